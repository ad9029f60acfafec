"""Which LSTM nodes of an ONNX graph feed each other, and through what.

Values are followed from every node's Y through the operators that exporters put between
layers: those that move axes, and those that make one output of two directions. Of each
value is known what its axes are, so that a reshape which mixes time and batch is not
taken for one that does not. What is not understood is not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lstm_jax.convert.onnx import folding, sizes
from lstm_jax.convert.onnx.nodes import Layer

# Of each direction the node's number, and which half of its outputs.
Parts = tuple[tuple[int, int], ...]


class Out(NamedTuple):
    """What a layer puts out.

    Attributes:
        parts: its directions, forward first.
        merge: how they were made one; None for one direction.
        residual: whether what the layer was fed is added.
        skip: the name of the inputs of the stack that stand behind it, or None.
    """

    parts: Parts
    merge: str | None = None
    residual: bool = False
    skip: str | None = None


class Flow(NamedTuple):
    """A value of the graph.

    Attributes:
        axes: T, B, D, F (features) or 1 for each of its axes.
        root: the first node of the stack, whose T and B they are.
        out: what it is; None for both directions of a node still side by side.
        node: the number of that node.
    """

    axes: tuple[Any, ...]
    root: int
    out: Out | None
    node: int


class Wiring:
    """The values that come from LSTM nodes, in one walk over the graph.

    Args:
        graph: the graph.
        layers: what was read of each LSTM node, by the name of one of its outputs.
        constants: those of the graph.

    Attributes:
        layers: the layers in the order of their nodes.
        fed: for each node what feeds it, where that is a layer.
        outs: everything that layers put out.
    """

    def __init__(
        self, graph: Any, layers: dict[str, Layer], constants: folding.Constants
    ):
        """Walks over the graph."""
        self.layers = list(layers.values())
        self.fed: dict[int, Out] = {}
        self.outs: set[Out] = set()
        self._constants = constants
        self._flows: dict[str, Flow] = {}
        self._sizes = sizes.Sizes(constants)
        self._declared = {
            one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim]
            for one in (*graph.input, *graph.value_info, *graph.output)
        }
        numbers = {name: number for number, name in enumerate(layers)}
        for node in graph.node:
            found = [numbers[name] for name in node.output if name in numbers]
            if found:
                self._enter(found[0])
            elif node.output:
                self._pass(node)

    def _enter(self, number: int) -> None:
        """A node: what feeds it, and what it puts out."""
        layer = self.layers[number]
        order = ("B", "T", "F") if layer.batch_first else ("T", "B", "F")
        below, root = self._flows.get(layer.inputs.get("X", "")), number
        if below is not None and below.axes == order and below.out is not None:
            self.fed[number], root = below.out, below.root
        out, directions = None, "D"
        if len(layer.params) == 1:
            out, directions = Out(((number, 0),)), 1
        axes = ("T", directions, "B", "F")
        if layer.batch_first:
            axes = ("B", "T", directions, "F")
        self._put(layer.outputs[0], Flow(axes, root, out, number))

    def _put(self, name: str, flow: Flow | None) -> None:
        if not name or flow is None:
            return
        self._flows[name] = flow
        if flow.out is not None:
            self.outs.add(flow.out)

    def _pass(self, node: Any) -> None:
        """Any other node, if it is one that values are followed through."""
        followed = any(name in self._flows for name in node.input)
        table = self._follow if followed else {}
        follow = table.get(folding.operator(node), Wiring._compute_sizes)
        try:
            follow(self, node, folding.attributes(node))
        except (ValueError, IndexError, KeyError, TypeError):
            return  # It depends on what is not known, or lacks what it needs.

    def _compute_sizes(self, node: Any, given: dict) -> None:
        self._sizes.follow(node, given)

    def _shape(self, node: Any, given: dict) -> None:
        flow = self._flows[node.input[0]]
        self._sizes.shape(node, given, [self._size(a, flow) for a in flow.axes])

    def _ints(self, node: Any, given: dict, name: str) -> list | None:
        """Axes from an input or, in old files, an attribute; None if there are none."""
        if name in given:
            return list(given[name])
        if len(node.input) < 2 or not node.input[1]:
            return None
        return folding.integers(self._constants.value(node.input[1]))

    def _same(self, node: Any, given: dict) -> None:
        self._put(node.output[0], self._flows.get(node.input[0]))

    def _cast(self, node: Any, given: dict) -> None:
        if given["to"] in (1, 10, 11, 16):  # ONNX's floating dtypes.
            self._same(node, given)

    def _transpose(self, node: Any, given: dict) -> None:
        flow = self._flows[node.input[0]]
        order = given.get("perm", list(range(len(flow.axes)))[::-1])
        if sorted(order) == list(range(len(flow.axes))):
            axes = tuple(flow.axes[axis] for axis in order)
            self._put(node.output[0], flow._replace(axes=axes))

    def _squeeze(self, node: Any, given: dict) -> None:
        flow = self._flows[node.input[0]]
        axes = self._ints(node, given, "axes")
        if axes is None or any(flow.axes[axis] != 1 for axis in axes):
            return
        gone = [axis % len(flow.axes) for axis in axes]
        left = tuple(one for n, one in enumerate(flow.axes) if n not in gone)
        self._put(node.output[0], flow._replace(axes=left))

    def _unsqueeze(self, node: Any, given: dict) -> None:
        flow = self._flows[node.input[0]]
        axes = self._ints(node, given, "axes") or []
        made, total = list(flow.axes), len(flow.axes) + len(axes)
        for axis in sorted(axis % total for axis in axes):
            made.insert(axis, 1)
        self._put(node.output[0], flow._replace(axes=tuple(made)))

    def _gather(self, node: Any, given: dict) -> None:
        """One of two directions, by its number."""
        flow = self._flows[node.input[0]]
        axis = given.get("axis", 0)
        index = self._constants.value(node.input[1])
        if flow.axes[axis] != "D" or index.size != 1 or not -2 <= index.item() < 2:
            return
        axes = list(flow.axes)
        axes[axis : axis % len(axes) + 1] = [1] * index.ndim
        half = Out(((flow.node, int(index.item()) % 2),))
        self._put(node.output[0], flow._replace(axes=tuple(axes), out=half))

    def _split(self, node: Any, given: dict) -> None:
        """Both directions, each by itself."""
        flow = self._flows[node.input[0]]
        axis, sizes = given.get("axis", 0), self._ints(node, given, "split")
        if (
            flow.axes[axis] != "D"
            or len(node.output) != 2
            or sizes not in (None, [1, 1])
        ):
            return
        axes = tuple(1 if one == "D" else one for one in flow.axes)
        for half, name in enumerate(node.output):
            out = Out(((flow.node, half),))
            self._put(name, flow._replace(axes=axes, out=out))

    def _reshape(self, node: Any, given: dict) -> None:
        """Drops axes of one, and puts both directions side by side."""
        flow = self._flows[node.input[0]]
        axes, out = [axis for axis in flow.axes if axis != 1], flow.out
        if axes[-2:] == ["D", "F"]:
            del axes[-2]
            out = Out(((flow.node, 0), (flow.node, 1)), "concat")
        made = flow._replace(axes=tuple(axes), out=out)
        shape = given.get("shape") or self._sizes.of(node.input[1])
        if len(axes) != 3 or axes[-1] != "F" or len(shape) != 3 or out is None:
            return
        declared = self._declared.get(node.input[0], [])
        for n, (axis, got) in enumerate(zip(axes, shape, strict=True)):
            possible = [-1, self._size(axis, made)]
            if axis != "F" and len(declared) == len(flow.axes):
                possible.append(declared[flow.axes.index(axis)])
            copied = got == 0 and not given.get("allowzero")
            if not (flow.axes[n] == axis if copied else got in possible):
                return
        self._put(node.output[0], made)

    def _size(self, axis: Any, flow: Flow) -> Any:
        """The size of an axis: a number where the file says it."""
        if axis in ("T", "B"):
            return axis, flow.root
        if axis == "F":
            merged = flow.out is not None and flow.out.merge == "concat"
            return self.layers[flow.node].options["hidden_size"] * (1 + merged)
        return 2 if axis == "D" else 1

    def _concat(self, node: Any, given: dict) -> None:
        """Two directions, or a layer and the inputs of the stack."""
        flow, axis = self._flows.get(node.input[0]), given["axis"]
        if flow is None or flow.out is None or len(node.input) != 2:
            return
        if flow.axes[axis] != "F":
            return
        other = self._flows.get(node.input[1])
        if other is None:
            out = flow.out._replace(skip=node.input[1])
            self._put(node.output[0], flow._replace(out=out))
        else:
            self._merge(node, flow, other, "concat")

    def _merge(self, node: Any, flow: Flow, other: Flow, merge: str) -> None:
        """Two directions as one output."""
        if flow.out is None or other.out is None or flow.axes != other.axes:
            return
        parts = (*flow.out.parts, *other.out.parts)
        if merge != "concat" and self._reversed(parts):
            parts = parts[::-1]
        plain = (flow.out, other.out) == (Out(parts[:1]), Out(parts[1:]))
        if merge != "concat" and not plain:
            plain = (other.out, flow.out) == (Out(parts[:1]), Out(parts[1:]))
        if plain and self._opposite(parts):
            out = Out(parts, merge)
            self._put(node.output[0], flow._replace(out=out, node=parts[0][0]))

    def _reversed(self, parts: Parts) -> bool:
        number, half = parts[0]
        return half == 1 or self.layers[number].reverse

    def _opposite(self, parts: Parts) -> bool:
        """Whether two parts are the directions of one layer, forward first."""
        if len(parts) != 2:
            return False
        (one, half), (other, other_half) = parts
        if one == other:
            return (half, other_half) == (0, 1)
        first, second = self.layers[one], self.layers[other]
        same = ("X", "sequence_lens")
        return (
            (len(first.params), len(second.params)) == (1, 1)
            and (first.reverse, second.reverse) == (False, True)
            and first.batch_first == second.batch_first
            and _cell(first) == _cell(second)
            and all(first.inputs.get(n) == second.inputs.get(n) for n in same)
        )

    def _two(self, node: Any) -> list[Flow | None]:
        if len(node.input) != 2:
            raise IndexError("expected two inputs")
        return [self._flows.get(name) for name in node.input]

    def _add(self, node: Any, given: dict) -> None:
        """Two directions, or a layer and what it was fed."""
        one, other = self._two(node)
        if one is None or other is None:
            return
        for flow, below in ((one, other), (other, one)):
            if flow.out is None or below.out is None or flow.axes != below.axes:
                continue
            fed = self.fed.get(flow.out.parts[0][0])
            plain = not (flow.out.residual or flow.out.skip)
            if plain and fed is not None and below.out == fed._replace(skip=None):
                out = flow.out._replace(residual=True)
                return self._put(node.output[0], flow._replace(out=out))
        self._merge(node, one, other, "sum")

    def _multiply(self, node: Any, given: dict) -> None:
        """Two directions, or half of their sum."""
        one, other = self._two(node)
        if one is not None and other is not None:
            return self._merge(node, one, other, "mul")
        self._halve(node, 0.5)

    def _divide(self, node: Any, given: dict) -> None:
        if self._two(node)[0] is not None:
            self._halve(node, 2.0)

    def _halve(self, node: Any, number: float) -> None:
        for flow_name, name in (node.input, node.input[::-1]):
            flow = self._flows.get(flow_name)
            if flow is None or flow.out is None:
                continue
            if flow.out != Out(flow.out.parts, "sum"):
                continue
            value = self._constants.value(name)
            if value.size == 1 and value.ndim < 4 and value.item() == number:
                out = flow.out._replace(merge="mean")
                self._put(node.output[0], flow._replace(out=out))

    def _mean(self, node: Any, given: dict) -> None:
        one, other = self._two(node)
        if one is not None and other is not None:
            self._merge(node, one, other, "mean")

    _follow: dict[str, Callable[..., None]] = {
        "Add": _add,
        "Cast": _cast,
        "Concat": _concat,
        "Div": _divide,
        "Dropout": _same,
        "Gather": _gather,
        "Identity": _same,
        "Mean": _mean,
        "Mul": _multiply,
        "Reshape": _reshape,
        "Shape": _shape,
        "Split": _split,
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
    }


def _cell(layer: Layer) -> dict[str, Any]:
    """What makes two directions those of one layer."""
    options = dict(layer.options)
    del options["learn_initial_state"]
    return options
