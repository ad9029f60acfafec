"""Sizes that an ONNX graph computes from the shapes of values, to reshape others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lstm_jax.convert.onnx import folding

# A number, or the name of a size that is not known before the graph runs.
Size = Any


class Sizes:
    """Lists of sizes by the names of the graph's values.

    Args:
        constants: those of the graph.
    """

    def __init__(self, constants: folding.Constants):
        """Knows none yet."""
        self._constants = constants
        self._known: dict[str, list[Size]] = {}

    def of(self, name: str) -> list[Size]:
        """The sizes that a value holds.

        Raises:
            NotConstantError: if they are not known.
            ValueError: if it holds no sizes.
        """
        if name in self._known:
            return self._known[name]
        return folding.integers(self._constants.value(name))

    def shape(self, node: Any, given: dict[str, Any], whole: list[Size]) -> None:
        """A Shape node, of a value whose sizes are ``whole``."""
        self._known[node.output[0]] = whole[given.get("start", 0) : given.get("end")]

    def follow(self, node: Any, given: dict[str, Any]) -> None:
        """Any other node, if it makes sizes of sizes."""
        follow = self._follow.get(folding.operator(node))
        if follow is not None and any(name in self._known for name in node.input):
            self._known[node.output[0]] = follow(self, node, given)

    def _same(self, node: Any, given: dict) -> list[Size]:
        return self.of(node.input[0])

    def _gather(self, node: Any, given: dict) -> list[Size]:
        sizes = self.of(node.input[0])
        return [sizes[index] for index in self.of(node.input[1])]

    def _slice(self, node: Any, given: dict) -> list[Size]:
        sizes, *bounds = (self.of(name) for name in node.input[:3])
        (start,), (end,) = bounds
        return sizes[start:end] if len(node.input) < 5 else []

    def _concat(self, node: Any, given: dict) -> list[Size]:
        return [size for name in node.input for size in self.of(name)][:64]

    def _multiply(self, node: Any, given: dict) -> list[Size]:
        (one,), (other,) = (self.of(name) for name in node.input)
        return [int(one) * int(other)]

    _follow: dict[str, Callable[..., list[Size]]] = {
        "Cast": _same,
        "Concat": _concat,
        "Gather": _gather,
        "Identity": _same,
        "Mul": _multiply,
        "Reshape": _same,
        "Slice": _slice,
        "Squeeze": _same,
        "Unsqueeze": _same,
    }
