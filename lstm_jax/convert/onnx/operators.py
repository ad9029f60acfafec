"""The layers of a stack as LSTM operators in a graph, and what connects them."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstm_jax.cells.quantized import QuantizedLSTMCell
from lstm_jax.cells.variants import gates_of, identity, peephole_gates
from lstm_jax.convert.onnx import activations, quantized
from lstm_jax.convert.onnx.drawing import Drawing
from lstm_jax.types import Directions, LSTMParams

_SUFFIXES = ("", "_reverse")
_MERGES = {"sum": "Add", "mean": "Add", "mul": "Mul"}


class Layers:
    """Draws layers.

    Args:
        drawing: the graph.
        model: the stack.
        states: whether states are inputs and outputs.
        lengths: whether lengths are an input.
    """

    def __init__(self, drawing: Drawing, model: Any, *, states: bool, lengths: bool):
        """Draws nothing yet, but checks what cells compute with."""
        self._drawing, self._model, self._states = drawing, model, states
        self._attributes = [
            {} if _in_8_bits(cell) else _attributes(cell) for cell in model.cells
        ]
        self._lengths = lengths
        self._rows = self._empty = self._valid = ""
        self._last: list[tuple[str, int]] = []

    def draw(self, params: Any, xs: str) -> str:
        """All layers, on inputs ``[T, B, I]``; returns what comes out."""
        drawing, model = self._drawing, self._model
        if self._lengths:
            drawing.input("lengths", ["batch"], np.int32)
        self._draw_sizes(xs, params)
        outputs, below = [], xs
        for index, layer in enumerate(params):
            inputs = below
            if index and model.skip:
                inputs = drawing.node("Concat", [below, xs], f"xs_l{index}", axis=2)
            ys = self._draw_layer(index, layer, inputs)
            if index and model.residual:
                ys = drawing.node("Add", [ys, below], f"residual_l{index}")
            outputs.append(ys)
            below = ys
        if model.skip and len(outputs) > 1:
            return drawing.node("Concat", outputs, "all_ys", axis=2)
        return below

    def draw_states(self) -> None:
        """The last states as outputs of the graph."""
        for name, size in self._last:
            self._drawing.output(name, ["batch", size])

    def _draw_sizes(self, xs: str, params: Any) -> None:
        """What states are made with: the number of rows, and which are empty."""
        drawing = self._drawing
        learned = any(layer.forward.initial_h is not None for layer in params)
        scanned = any(map(_in_8_bits, self._model.cells))
        if scanned and self._lengths:
            self._draw_valid(xs)
        if not self._states and not learned and not scanned:
            return
        one = drawing.integers(1)
        shape = drawing.node("Shape", [xs], "xs_shape")
        batch = drawing.node("Gather", [shape, one], "batch_size")
        self._rows = drawing.node("Concat", [one, batch, one], "rows", axis=0)
        if self._states and self._lengths:
            zero = drawing.integer(0, np.int32)
            empty = drawing.node("Equal", ["lengths", zero], "empty")
            axes = drawing.integers(0, 2)
            self._empty = drawing.node("Unsqueeze", [empty, axes], "empty_rows")

    def _draw_valid(self, xs: str) -> None:
        """Which steps of ``[T, B, 1]`` are within the lengths."""
        drawing, zero = self._drawing, self._drawing.integer(0)
        shape = drawing.node("Shape", [xs], "steps_shape")
        length = drawing.node("Gather", [shape, zero], "steps_count")
        times = [zero, length, drawing.integer(1)]
        times = drawing.node("Range", times, "times")
        lengths = drawing.cast("lengths", np.int64, "lengths_of_rows")
        times = drawing.node("Unsqueeze", [times, drawing.integers(1, 2)], "all_times")
        axes = drawing.integers(0, 2)
        lengths = drawing.node("Unsqueeze", [lengths, axes], "all_lengths")
        self._valid = drawing.node("Less", [times, lengths], "valid_steps")

    def _draw_layer(self, index: int, layer: Directions, inputs: str) -> str:
        cell = self._model.cells[index]
        directions = [one for one in layer if one is not None]
        starts = {}
        in_8_bits = _in_8_bits(cell)
        if self._states or in_8_bits or directions[0].initial_h is not None:
            starts = {key: self._draw_start(key, index, directions) for key in "hc"}
        results = [f"Y_l{index}", f"Y_h_l{index}", f"Y_c_l{index}"]
        if in_8_bits:
            self._draw_scans(index, cell, directions, inputs, starts, results)
        else:
            self._draw_operator(index, cell, directions, inputs, starts, results)
        if self._states:
            for key, result in zip("hc", results[1:], strict=True):
                self._draw_last(key, index, result, starts[key], directions)
        return self._draw_merge(index, results[0], len(directions))

    def _draw_scans(
        self,
        index: int,
        cell: Any,
        directions: list[Any],
        inputs: str,
        starts: dict[str, str],
        results: list[str],
    ) -> None:
        """A layer in 8 bits, with results as those of the LSTM operator."""
        drawing, count, made = self._drawing, len(directions), []
        for number, one in enumerate(directions):
            name = f"l{index}{_SUFFIXES[number]}"
            h, c = (
                self._pick(starts[key], number, 0, count, f"{key}_start_{name}")
                for key in "hc"
            )
            given = quantized.Given(inputs, h, c, self._valid)
            backwards = number == 1 or self._model._reversed[index]
            parts = quantized.draw(drawing, name, cell, one, given, reverse=backwards)
            for part, axis in zip(parts, (1, 0, 0), strict=True):
                axes = drawing.integers(axis)
                made.append(drawing.node("Unsqueeze", [part, axes], f"{part}_of_both"))
        for number, axis in enumerate((1, 0, 0)):
            drawing.node("Concat", made[number::3], results[number], axis=axis)

    def _draw_operator(
        self,
        index: int,
        cell: Any,
        directions: list[Any],
        inputs: str,
        starts: dict[str, str],
        results: list[str],
    ) -> None:
        """A layer as ONNX's LSTM operator."""
        drawing = self._drawing
        stored = _stored(cell, directions)
        names = {
            key: drawing.weights(f"{key}_l{index}", array)
            for key, array in stored.items()
        }
        operands = [inputs, names["W"], names["R"], names.get("B", "")]
        operands.append("lengths" if self._lengths else "")
        operands += [starts.get("h", ""), starts.get("c", ""), names.get("P", "")]
        while not operands[-1]:
            operands.pop()
        given = dict(self._attributes[index], hidden_size=cell.hidden_size)
        if self._model._reversed[index]:
            given["direction"] = "reverse"
        if len(directions) == 2:
            given["direction"] = "bidirectional"
            if "activations" in given:
                for key in ("activations", "activation_alpha", "activation_beta"):
                    given[key] = given.get(key, []) * 2
        given = {key: value for key, value in given.items() if value != []}
        wanted = results if self._states else results[:1]
        drawing.nodes("LSTM", operands, wanted, f"lstm_l{index}", **given)

    def _draw_start(self, key: str, index: int, directions: list[LSTMParams]) -> str:
        """The initial h or c, ``[D, B, H]``, in which all rows may be one."""
        drawing, parts = self._drawing, []
        size = self._size(key, index)
        for suffix, one in zip(_SUFFIXES, directions, strict=False):
            learned = getattr(one, f"initial_{key}")
            start = np.zeros(size) if learned is None else learned
            name = drawing.weights(f"{key}_0_l{index}{suffix}", start[None])
            if self._states:  # What is fed takes the place of the constant.
                drawing.input(name, ["batch", size])
            axes = drawing.integers(0)
            name = drawing.node("Unsqueeze", [name, axes], f"{name}_in_direction")
            part = f"{key}_l{index}{suffix}_of_rows"
            parts.append(drawing.node("Expand", [name, self._rows], part))
        if len(parts) == 1:
            return parts[0]
        return drawing.node("Concat", parts, f"{key}_l{index}_of_both", axis=0)

    def _draw_last(
        self, key: str, index: int, last: str, start: str, directions: list[LSTMParams]
    ) -> None:
        """The last h or c of each direction; of rows without a step the initial one."""
        drawing = self._drawing
        if self._empty:
            last = drawing.node("Where", [self._empty, start, last], f"{last}_or_start")
        for number in range(len(directions)):
            name = f"{key}_n_l{index}{_SUFFIXES[number]}"
            self._pick(last, number, 0, len(directions), name)
            self._last.append((name, self._size(key, index)))

    def _size(self, key: str, index: int) -> int:
        """That of h, or of c."""
        cell = self._model.cells[index]
        return cell.output_size if key == "h" else cell.hidden_size

    def _pick(self, value: str, number: int, axis: int, count: int, name: str) -> str:
        """One direction of a value, without the axis of directions."""
        drawing = self._drawing
        if count == 1:
            return drawing.node("Squeeze", [value, drawing.integers(axis)], name)
        return drawing.node("Gather", [value, drawing.integer(number)], name, axis=axis)

    def _draw_merge(self, index: int, value: str, count: int) -> str:
        """A layer's outputs ``[T, D, B, H]`` as ``[T, B, P]``."""
        drawing, merge = self._drawing, self._model.merge
        name = f"ys_l{index}"
        if count == 1:
            return self._pick(value, 0, 1, count, name)
        both = [
            self._pick(value, number, 1, count, f"{name}_{side}")
            for number, side in enumerate(Directions._fields)
        ]
        if merge == "concat":
            return drawing.node("Concat", both, name, axis=2)
        if merge != "mean":
            return drawing.node(_MERGES[merge], both, name)
        total = drawing.node("Add", both, f"{name}_total")
        return drawing.node("Mul", [total, drawing.weights("half", 0.5)], name)


def _in_8_bits(cell: Any) -> bool:
    """Whether a layer is drawn as ordinary operators."""
    return isinstance(cell, QuantizedLSTMCell)


def _attributes(cell: Any) -> dict[str, Any]:
    """What a cell's options are as attributes; those at their default are left out."""
    given = {}
    if cell.variant == "CIFG":
        given["input_forget"] = 1
    if cell.clip is not None:
        given["clip"] = float(cell.clip)
    functions = {
        name: getattr(cell, name)
        for name in ("gate_activation", "candidate_activation", "output_activation")
    }
    if cell.variant == "NIAF":
        functions["candidate_activation"] = identity
    if cell.variant == "NOAF":
        functions["output_activation"] = identity
    said = [activations.said(name, function) for name, function in functions.items()]
    if tuple(said) == activations.DEFAULTS:
        return given
    given["activations"] = [one.name for one in said]
    for key in ("alpha", "beta"):
        numbers = [getattr(one, key) for one in said]
        given[f"activation_{key}"] = [n for n in numbers if n is not None]
    return given


def _stored(cell: Any, directions: list[LSTMParams]) -> dict[str, np.ndarray]:
    """The weights of a layer as the operator takes them."""
    gates, seen = gates_of(cell.variant), peephole_gates(cell.variant)
    stored: dict[str, list[np.ndarray]] = {"W": [], "R": []}
    for one in directions:
        stored["W"].append(_rows(one.kernel, gates, "iofg").T)
        stored["R"].append(_rows(one.recurrent_kernel, gates, "iofg").T)
        if one.bias is not None:
            bias = _rows(one.bias, gates, "iofg")
            both = np.concatenate([bias, np.zeros_like(bias)])
            stored.setdefault("B", []).append(both)
        if one.peephole is not None:
            flat = _rows(one.peephole.reshape(-1), seen, "iof")
            stored.setdefault("P", []).append(flat)
    return {key: np.stack(arrays) for key, arrays in stored.items()}


def _rows(values: np.ndarray, gates: str, order: str) -> np.ndarray:
    """Columns of gates in another order; of a gate that there is not, zeros."""
    parts = dict(zip(gates, np.split(values, len(gates), axis=-1), strict=True))
    missing = np.zeros_like(values[..., : values.shape[-1] // len(gates)])
    return np.concatenate([parts.get(gate, missing) for gate in order], axis=-1)
