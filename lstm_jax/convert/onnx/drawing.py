"""An ONNX graph as it is drawn, node after node."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

# By its name, since it imports all others.
_PACKAGE = "lstm_jax"


class Drawing:
    """The parts of a graph.

    Args:
        dtype: of all that is floating.
        opset: the version of the operators.
    """

    def __init__(self, dtype: Any, opset: int):
        """Begins with nothing."""
        self.dtype = np.dtype(dtype)
        self._opset = opset
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, shape: Sequence[Any], dtype: Any = None) -> str:
        """Adds an input of the graph; sizes that are words are not fixed."""
        self._inputs.append(self._described(name, shape, dtype))
        return name

    def output(self, name: str, shape: Sequence[Any]) -> None:
        """Makes a value an output of the graph."""
        self._outputs.append(self._described(name, shape, None))

    def _described(self, name: str, shape: Sequence[Any], dtype: Any) -> Any:
        from onnx import helper

        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        return helper.make_tensor_value_info(name, code, shape)

    def weights(self, name: str, array: Any) -> str:
        """Adds a constant, in the dtype of the graph."""
        self._add(name, np.asarray(array).astype(self.dtype))
        return name

    def whole(self, name: str, array: np.ndarray) -> str:
        """Adds a constant of whole numbers, in its own dtype."""
        self._add(name, array)
        return name

    def integers(self, *values: int) -> str:
        """Adds a constant of axes or sizes."""
        name = "_".join(["axes", *map(str, values)])
        self._add(name, np.array(values, np.int64))
        return name

    def integer(self, value: int, dtype: Any = np.int64) -> str:
        """Adds a constant without axes."""
        name = f"{np.dtype(dtype)}_{value}"
        self._add(name, np.array(value, dtype))
        return name

    def _add(self, name: str, array: np.ndarray) -> None:
        from onnx import numpy_helper

        if name not in self._constants:
            array = np.asarray(array, order="C")
            self._constants[name] = numpy_helper.from_array(array, name)

    def node(self, kind: str, inputs: Sequence[str], output: str, **given: Any) -> str:
        """Adds a node of one output, which has its name; returns that."""
        self.nodes(kind, inputs, [output], output, **given)
        return output

    def nodes(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        name: str,
        **given: Any,
    ) -> None:
        """Adds a node of any outputs."""
        from onnx import helper

        made = helper.make_node(kind, list(inputs), list(outputs), name, **given)
        self._nodes.append(made)

    def cast(self, value: str, dtype: Any, name: str) -> str:
        """Adds a node that makes another dtype of a value."""
        from onnx import helper

        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", [value], name, to=code)

    def largest_of_rows(self, value: str, name: str) -> str:
        """Adds the largest number along the last axis, which stays, of size 1."""
        if self._opset < 18:
            return self.node("ReduceMax", [value], name, axes=[-1], keepdims=1)
        return self.node("ReduceMax", [value, self.integers(-1)], name, keepdims=1)

    def within(self) -> Drawing:
        """A drawing for a graph inside this one."""
        return Drawing(self.dtype, self._opset)

    def graph(self, name: str) -> Any:
        """What is drawn, for the attribute of a node."""
        from onnx import helper

        constants = list(self._constants.values())
        return helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, constants
        )

    def finish(self, name: str, doc: str) -> Any:
        """The model, in the oldest form that has its operators."""
        from onnx import helper

        graph = self.graph(name)
        opsets = [helper.make_opsetid("", self._opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="lstm_jax",
            producer_version=sys.modules[_PACKAGE].__version__,
            doc_string=doc,
        )
