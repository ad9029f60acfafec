"""Flax NNX's modules as trees of their weights, and what they say beside them."""

from __future__ import annotations

import sys
from typing import Any

from lstm_jax.convert import flax, paths
from lstm_jax.descriptions.base import differs

CELLS = ("LSTMCell", "OptimizedLSTMCell")


class Reader:
    """Takes modules apart, and keeps what they say beside their weights."""

    def __init__(self, merge: str | None):
        """Begins with how a caller says that directions are merged."""
        self.nnx: Any = sys.modules.get("flax.nnx")  # else there are no modules
        self.merge = merge
        self.cells: list[Any] = []

    def reads(self, weights: Any) -> bool:
        """Whether there are modules in it."""
        if self.nnx is None:
            return False
        if isinstance(weights, (list, tuple)):
            return any(map(self.reads, weights))
        return isinstance(weights, (self.nnx.Module, self.nnx.List))

    def said(self, name: str, default: Any) -> Any:
        """What all cells say, or the default where there are none."""
        values = [getattr(cell, name) for cell in self.cells]
        for value in values[1:]:
            if differs(value, values[0]):
                raise ValueError(
                    f"{name}: expected one for all layers, got {values[0]} and {value}."
                )
        return values[0] if values else default

    def open(self, weights: Any, path: Any = ()) -> Any:
        """Modules as trees of dicts, nested as they were; the rest as it is."""
        if isinstance(weights, (list, tuple)):
            if path not in ((), ""):
                raise ValueError(
                    f"path: expected none where weights is a {type(weights).__name__}, "
                    f"got {path!r}. It says where in one module layers are."
                )
            return type(weights)(
                self._layer(one, told=isinstance(weights, tuple) and index == 1)
                for index, one in enumerate(weights)
            )
        if isinstance(path, list):
            places = [paths.walk("weights", weights, place) for place in path]
            return [self._layer(one) for one in places]
        found = paths.walk("weights", weights, path)
        found = found.layers if isinstance(found, self.nnx.Sequential) else found
        if isinstance(found, (list, tuple, self.nnx.List)):
            return [self._layer(one) for one in found]
        return self._layer(found)

    def _layer(self, module: Any, told: bool = False) -> Any:
        """A layer as a tree; ``told``: its direction is, by what is around it."""
        nnx = self.nnx
        if isinstance(module, tuple):
            return self.open(module)
        if not self.reads(module):
            return module
        if isinstance(module, nnx.Bidirectional):
            self._check_merge(module)
            both = (getattr(module, name) for name in flax.DIRECTIONS)
            trees = [self._layer(one, told=True) for one in both]
            return dict(zip(flax.DIRECTIONS, trees, strict=True))
        if isinstance(module, nnx.RNN):
            if module.reverse and not told:
                raise ValueError(
                    "weights: expected an RNN that runs forward, got reverse=True. "
                    "Pass its cell, and run it with lstm_jax.scan(..., reverse=True)."
                )
            return {"cell": self._layer(module.cell)}
        return self._cell(module)

    def _cell(self, module: Any) -> Any:
        """The state of a cell, as dicts."""
        for kind in (getattr(self.nnx, name) for name in CELLS):
            if isinstance(module, kind) and type(module).__call__ is kind.__call__:
                self.cells.append(module)
                return self.nnx.to_pure_dict(self.nnx.state(module))
        kinds = (self.nnx.Bidirectional, self.nnx.RNN)
        kinds += tuple(getattr(self.nnx, name) for name in CELLS)
        places = [
            ".".join(map(str, place))
            for place, one in self.nnx.iter_modules(module)
            if isinstance(one, kinds)
        ]
        begins = tuple(f"{place}." for place in places)
        outer = [place for place in places if not place.startswith(begins)]
        hint = f"LSTM layers are at {', '.join(outer)}: pass path." if outer else ""
        raise ValueError(
            "weights: expected an LSTMCell, an OptimizedLSTMCell, or an RNN or "
            f"Bidirectional of them, got {type(module).__name__}. {hint}".rstrip()
        )

    def _check_merge(self, module: Any) -> None:
        default = self.nnx.Bidirectional.merge_fn
        if self.merge is None and module.merge_fn is not default:
            raise ValueError(
                "merge: expected what the Bidirectional's merge_fn does, which is not "
                f"Flax's default: {', '.join(map(repr, paths.MERGES))}, got None."
            )
