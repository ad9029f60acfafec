"""Constants of an ONNX graph, those behind operators that only move values included.

Exporters leave weights behind such operators: slices of a matrix by gates, put together
in another order. They are computed here, by NumPy; no operator of the file is run.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lstm_jax.convert.onnx import tensors

_DEPTH = 100
# How many times what was read may be made of it in all, and how much beside.
_TIMES, _SPARE = 16, 2**20
_DOMAINS = ("", "ai.onnx")


class NotConstantError(ValueError):
    """A value depends on what the graph is given.

    Attributes:
        given: the graph's input that it depends on; None if it is computed otherwise.
    """

    def __init__(self, message: str, given: str | None):
        """Says what it depends on."""
        super().__init__(message)
        self.given = given


def operator(node: Any) -> str:
    """The name of a node's operator; with its domain where that is not ONNX's own."""
    if node.domain in _DOMAINS:
        return node.op_type
    return f"{node.domain}.{node.op_type}"


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name.

    Raises:
        ValueError: if one is there twice, or refers to a function's.
    """
    import onnx.helper

    found = {}
    for attribute in node.attribute:
        if attribute.name in found or attribute.ref_attr_name:
            raise ValueError(
                f"node {node.name!r} ({operator(node)}): expected each attribute once, "
                f"with its value, got {attribute.name!r} otherwise."
            )
        found[attribute.name] = onnx.helper.get_attribute_value(attribute)
    return found


class Constants:
    """The constants of a graph by name.

    Args:
        graph: the graph.
        folder: see :func:`tensors.read`.
        through_expand: whether what is expanded to a shape that is not constant counts
            as what it was before: so are states repeated for each row of a batch.
    """

    def __init__(self, graph: Any, folder: str | None, through_expand: bool = False):
        """Finds out what makes which value, which has to be one thing.

        Raises:
            ValueError: if several do.
        """
        made = [tensor.name for tensor in graph.initializer]
        made += [name for node in graph.node for name in node.output if name]
        if len(set(made)) < len(made):
            twice = [name for name, n in collections.Counter(made).items() if n > 1]
            raise ValueError(
                f"model: expected one node or tensor that makes a value, got several "
                f"for {', '.join(map(repr, twice[:5]))}. The file may be damaged."
            )
        self.producers = {
            name: node for node in graph.node for name in node.output if name
        }
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {sparse.values.name for sparse in graph.sparse_initializer}
        self._inputs = {one.name for one in graph.input}
        self._folder, self._through_expand = folder, through_expand
        self._left = _SPARE
        self._known: dict[str, np.ndarray] = {}
        self._zero: dict[str, bool] = {}

    def value(self, name: str, chain: tuple[str, ...] = ()) -> np.ndarray:
        """The value of a name.

        Raises:
            NotConstantError: if it is no constant.
            ValueError: if the file contradicts itself, or its constants grow.
        """
        if name not in self._known:
            self._known[name] = self._find(name, chain)
        return self._known[name]

    def _find(self, name: str, chain: tuple[str, ...]) -> np.ndarray:
        if name in self._stored:
            return self._read(self._stored[name])
        node = self.producers.get(name)
        if node is None or len(chain) > _DEPTH:
            given = name if node is None and name in self._inputs else None
            raise NotConstantError(self._why(name, chain), given)
        chain = (*chain, f"{operator(node)} {node.name!r}")
        if operator(node) == "Constant":
            return self._constant(node)
        fold = self._folds.get(operator(node))
        if fold is None or not node.input or not node.input[0]:
            raise NotConstantError(self._why(name, chain), None)
        inputs = [
            self._moved(operator(node), place, one, chain) if one else None
            for place, one in enumerate(node.input)
        ]
        try:
            return fold(self, attributes(node), *inputs)
        except (ValueError, TypeError, IndexError, OverflowError, KeyError) as error:
            raise ValueError(f"{' <- '.join(chain)}: {error}") from error

    def _read(self, tensor: Any) -> np.ndarray:
        value = tensors.read(tensor, self._folder)
        self._left += _TIMES * value.nbytes
        return value

    def _why(self, name: str, chain: tuple[str, ...]) -> str:
        """Why a name is no constant: where it comes from."""
        end = f"{name!r}, which nothing in the file makes"
        if len(chain) > _DEPTH:
            end = f"more than {_DEPTH} operators"
        elif name in self._sparse:
            end = f"{name!r}, a sparse tensor"
        elif name in self._inputs:
            end = f"{name!r}, an input of the graph"
        elif chain and name in self.producers:
            return f"{' <- '.join(chain)}, which no constant can be read through"
        return " <- ".join((*chain, end))

    def _constant(self, node: Any) -> np.ndarray:
        """The value of a Constant."""
        given = attributes(node)
        if len(given) == 1:
            (kind, value), *_ = given.items()
            if kind == "value" and hasattr(value, "dims"):
                return self._read(value)
            if kind in ("value_float", "value_floats"):
                return np.asarray(value, np.float32)
            if kind in ("value_int", "value_ints"):
                return np.asarray(value, np.int64)
        raise ValueError(
            f"node {node.name!r} (Constant): expected one tensor or numbers, got "
            f"{sorted(given)}."
        )

    def _moved(
        self, kind: str, place: int, name: str, chain: tuple[str, ...]
    ) -> np.ndarray | None:
        """An input of an operator; None for a shape of Expand that counts as none."""
        try:
            return self.value(name, chain)
        except NotConstantError:
            if kind == "Expand" and place == 1 and self._through_expand:
                return None
            raise

    def _spend(self, size: int) -> None:
        """Counts what is allocated, which a hostile file could make grow."""
        self._left -= size
        if self._left < 0:
            raise ValueError(
                "expected constants about as large as the file, got some that "
                "operators make many times larger."
            )

    def zero(self, name: str, depth: int = 0) -> bool:
        """Whether a value is zeros, whatever the graph is given and its shape is."""
        if name not in self._zero:
            self._zero[name] = False  # A value that would depend on itself is none.
            self._zero[name] = self._is_zero(name, depth)
        return self._zero[name]

    def _is_zero(self, name: str, depth: int) -> bool:
        node = self.producers.get(name)
        if name in self._stored or (node is not None and operator(node) == "Constant"):
            return not self.value(name).any()
        if node is None or depth > _DEPTH or not node.input:
            return False
        if operator(node) == "ConstantOfShape":
            value = attributes(node).get("value")
            return value is None or not tensors.read(value, self._folder).any()
        if operator(node) == "Concat":
            return all(self.zero(one, depth + 1) for one in node.input)
        return operator(node) in _KEEP_ZERO and self.zero(node.input[0], depth + 1)

    def _slice(self, given, data, starts=None, ends=None, axes=None, steps=None):
        starts = given["starts"] if starts is None else integers(starts)
        ends = given["ends"] if ends is None else integers(ends)
        axes = given.get("axes", range(len(starts))) if axes is None else integers(axes)
        steps = [1] * len(starts) if steps is None else integers(steps)
        index = [slice(None)] * data.ndim
        for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
            index[axis] = slice(*bounds)
        return data[tuple(index)]

    def _concat(self, given, *arrays):
        if any(one is None or one.dtype != arrays[0].dtype for one in arrays):
            raise ValueError("expected arrays of one dtype.")
        self._spend(sum(array.nbytes for array in arrays))
        return np.concatenate(arrays, axis=given["axis"])

    def _squeeze(self, given, data, axes=None):
        axes = given.get("axes") if axes is None else integers(axes)
        return np.squeeze(data, None if axes is None else tuple(axes))

    def _unsqueeze(self, given, data, axes=None):
        return np.expand_dims(
            data, tuple(given["axes"] if axes is None else integers(axes))
        )

    def _reshape(self, given, data, shape=None):
        shape = list(given["shape"] if shape is None else integers(shape))
        if not given.get("allowzero"):
            shape = [size or data.shape[n] for n, size in enumerate(shape)]
        self._spend(data.nbytes)
        return data.reshape(shape)

    def _transpose(self, given, data):
        return np.transpose(data, given.get("perm"))

    def _cast(self, given, data):
        dtype = tensors.dtype_of("to", given["to"])
        self._spend(data.size * dtype.itemsize)
        with np.errstate(all="ignore"):
            return data.astype(dtype)

    def _repeat(self, given, data, shape):
        if shape is None:
            return data
        shape = np.broadcast_shapes(data.shape, tuple(integers(shape)))
        self._spend(math.prod(shape) * data.itemsize)
        return np.broadcast_to(data, shape)

    def _identity(self, given, data):
        return data

    _folds: dict[str, Callable[..., np.ndarray]] = {
        "Cast": _cast,
        "Concat": _concat,
        "Expand": _repeat,
        "Identity": _identity,
        "Reshape": _reshape,
        "Slice": _slice,
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }


# Operators that only repeat, drop or move what their first input holds.
_KEEP_ZERO = (
    *("Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze"),
)


def integers(array: np.ndarray) -> list[int]:
    """Axes or sizes as Python's integers."""
    if array.dtype.kind != "i" or array.ndim > 1 or array.size > 64:
        raise ValueError(f"expected a few integers, got {array.dtype} {array.shape}.")
    return [int(value) for value in array.reshape(-1)]


def elsewhere(model: Any) -> Iterator[Any]:
    """The nodes that are not in the graph itself: of its branches and functions."""
    waiting = [node for function in model.functions for node in function.node]
    yield from waiting
    waiting += model.graph.node
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.node
                waiting += graph.node
