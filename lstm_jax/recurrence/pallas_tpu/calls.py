"""From the inputs of a layer to the kernels' operands, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.numerics import as_last_axes, cast_like
from lstm_jax.recurrence import tape
from lstm_jax.recurrence.contract import (
    TAPE_UNITS,
    Call,
    Inputs,
    Outputs,
    Tape,
    hidden_of,
    numbered,
    saved_of,
)
from lstm_jax.recurrence.pallas_tpu import backward, forward, sizes
from lstm_jax.types import Array, LSTMParams, LSTMState

_GATES = 4


def run(call: Call, leaves: Sequence[Array], interpret: bool) -> list[Array]:
    """The forward pass; see :meth:`Implementation.run`."""
    shapes = call.shapes(leaves)
    every = zip(call.inputs(leaves), numbered(shapes), call.reverse, strict=True)
    results = []
    for inputs, numbers, reverse in every:
        wanted = jax.tree.map(lambda number: number in call.emit, numbers)
        results.append(_Direction(call, inputs, reverse, interpret).forward(wanted))
    return cast_like(call.emitted(shapes, results), call.emitted(shapes, shapes))


def pullback(
    call: Call, which: tuple[bool, ...], args: Sequence[Array], interpret: bool
) -> list[Array]:
    """The backward pass; see :meth:`Implementation.pullback`."""
    leaves, end = args[: call.leaves], len(args) - len(call.emit)
    shapes = call.shapes(leaves)
    saved = saved_of(shapes, args[call.leaves : end])
    cotangents = call.outputs(shapes, args[end:])
    grads = [
        _Direction(call, inputs, call.reverse[n], interpret).backward(
            wanted, *saved[n], cotangents[n]
        )
        for n, (inputs, wanted) in enumerate(
            zip(call.inputs(leaves), call.inputs(which), strict=True)
        )
    ]
    flat = call.tree.flatten_up_to(tuple(grads))
    return [
        grad.astype(leaf.dtype)
        for grad, leaf, want in zip(flat, leaves, which, strict=True)
        if want
    ]


class _Direction:
    """One direction, with arrays as the kernels take them: sizes that tiles divide.

    What pads is 0 in weights, states and inputs, and stays so: the c of such a unit is
    half of 0 and half of the tanh of 0. Steps that pad are not valid.
    """

    def __init__(self, call: Call, inputs: Inputs, reverse: bool, interpret: bool):
        self.call, self.inputs, self.reverse = call, inputs, reverse
        self.interpret, self.dtype = interpret, inputs.xs.dtype
        length, *self.batch = inputs.xs.shape[:-1]
        self.sizes = length, math.prod(self.batch)
        self.hidden = inputs.state.c.shape[-1]
        self.output = inputs.state.h.shape[-1]
        cell: Any = call.cell
        weights = sizes.resident_bytes(cell, self.dtype)
        self.shape = sizes.shape_of(
            *self.sizes, self.hidden, self.output, self.dtype, weights
        )

    def forward(self, wanted: Outputs) -> Outputs:
        """Runs the forward kernel."""
        made = forward.run(
            self._given(), _wanted_of(wanted), self.shape, self.reverse, self.interpret
        )
        hidden, output, rows = self.hidden, self.output, self._rows
        last = LSTMState(rows(made.last_h, output, 0), rows(made.last_c, hidden, 0))
        ys = rows(made.ys, output, 1)
        if self.call.emit_states:
            ys = LSTMState(ys, rows(made.cs, hidden, 1))
        entering = None
        if wanted.saved.entering is not None:
            entering = rows(made.entering, output, 1)
        to_tape = self._to_tape
        saved = Tape(to_tape(made.gates, _GATES), to_tape(made.cells, 1), entering)
        return Outputs(last, ys, saved)

    def backward(
        self, wanted: Inputs, saved: Tape, hidden: Array | None, d_outputs: Outputs
    ) -> Inputs:
        """Runs the backward kernel, and takes the gradients of weights from it."""
        params, reset = self.inputs.params, self.inputs.reset is not None
        resets = wanted.reset_state or LSTMState(False, False)
        given = backward.Given(
            gates=self._from_tape(saved.gates, self.dtype, _GATES),
            cells=self._from_tape(saved.cells, jnp.float32, 1),
            recurrent=self._recurrent().T,
            d_h=self._state(d_outputs.last.h, self.output).astype(jnp.float32),
            d_c=self._state(d_outputs.last.c, self.hidden),
            d_ys=self._steps(hidden_of(d_outputs.ys), self.shape.output),
            d_cs=self._steps(d_outputs.ys.c, self.shape.hidden)
            if self.call.emit_states
            else None,
            projection=None
            if params.projection_kernel is None
            else self._projection().T,
            controls=self._controls(),
        )
        made = backward.Made(
            d_zs=True,
            d_outs=params.projection_kernel is not None,
            d_h=wanted.state.h,
            d_c=wanted.state.c,
            d_reset_h=reset and resets.h,
            d_reset_c=reset and resets.c,
        )
        made = backward.run(
            given, made, self.shape, self.reverse, self.interpret, resets=reset
        )
        entering = saved.entering
        if hidden is not None:
            entering = tape.entering_of(hidden, self.inputs.state.h, self.reverse)
        return self._gradients(made, given, entering)

    def _gradients(
        self, made: backward.Made, given: backward.Given, entering: Array
    ) -> Inputs:
        """Gradients of weights and inputs, by products over all steps and rows.

        What pads has no part in them: its gradients are 0.
        """
        rows, params, xs = self._rows, self.inputs.params, self._xs()
        d_zs, d_projection = made.d_zs, None
        if params.projection_kernel is not None:
            outs = _unprojected(given).astype(self.dtype)
            d_projection = _over_rows(outs, made.d_outs)
            d_projection = d_projection[: self.hidden, : self.output]
        d_recurrent = _over_rows(self._steps(entering, self.shape.output), d_zs)
        d_bias = None
        if params.bias is not None:
            d_bias = self._to_gates(d_zs.astype(jnp.float32).sum((0, 1)))
        d_params = LSTMParams(
            kernel=self._to_gates(_over_rows(xs, d_zs)),
            recurrent_kernel=self._to_gates(d_recurrent[: self.output]),
            bias=d_bias,
            projection_kernel=d_projection,
        )
        d_xs = lax.dot_general(
            d_zs,
            self._by_units(params.kernel),
            (((2,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        state = lambda h, c: LSTMState(rows(h, self.output, 0), rows(c, self.hidden, 0))
        d_reset = None
        if self.inputs.reset_state is not None:
            d_reset = state(made.d_reset_h, made.d_reset_c)
        d_xs, d_state = rows(d_xs, xs.shape[-1], 1), state(made.d_h, made.d_c)
        return Inputs(d_params, d_xs, d_state, None, None, d_reset)

    def _xs(self) -> Array:
        return self._steps(self.inputs.xs, self.inputs.xs.shape[-1])

    def _given(self) -> forward.Given:
        params, inputs = self.inputs.params, self.inputs
        zs = lax.dot_general(
            self._xs(),
            self._by_units(params.kernel),
            (((2,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if params.bias is not None:
            zs = zs + as_last_axes(self._by_units(params.bias), zs)
        if self.hidden < self.shape.hidden:
            # An input that is infinite, times 0, is NaN: in every unit a step later.
            there = self._by_units(jnp.ones(params.kernel.shape[1:], bool))
            zs = jnp.where(jnp.expand_dims(there, (0, 1)), zs, jnp.zeros_like(zs))
        reset_h, reset_c = inputs.reset_state or (None, None)
        return forward.Given(
            zs=zs.astype(self.dtype),
            recurrent=self._recurrent(),
            h=self._state(inputs.state.h, self.output),
            c=self._state(inputs.state.c, self.hidden),
            projection=self._projection(),
            controls=self._controls(),
            reset_h=None if inputs.reset is None else self._state(reset_h, self.output),
            reset_c=None if inputs.reset is None else self._state(reset_c, self.hidden),
        )

    def _controls(self) -> Array | None:
        """Bits for each step and row; None where every step is valid and none reset."""
        length, _ = self.sizes
        valid, reset = self.inputs.valid, self.inputs.reset
        if valid is None and reset is None and length == self.shape.length:
            return None
        steps = (length, *self.batch)
        valid = jnp.ones(steps, bool) if valid is None else valid
        bits = valid.astype(jnp.int32) * forward.VALID
        if reset is not None:
            bits += reset.astype(jnp.int32) * forward.RESET
        return self._steps(bits[..., None], 1)

    # Arrays of the library's shapes, padded.

    def _by_units(self, columns: Array) -> Array:
        """``[..., 4H]``, padded, in the kernels' order."""
        *rows, size = columns.shape
        gates = columns.reshape(*rows, _GATES, size // _GATES)
        return _to_blocks(_padded(gates, (-1, self.shape.hidden)))

    def _to_gates(self, columns: Array) -> Array:
        """The inverse: ``[..., 4H]``, gate by gate."""
        *rows, _ = columns.shape
        gates = _from_blocks(columns, _GATES)[..., : self.hidden]
        return gates.reshape(*rows, _GATES * self.hidden)

    def _recurrent(self) -> Array:
        kernel = self._by_units(self.inputs.params.recurrent_kernel)
        return _padded(kernel, (0, self.shape.output))

    def _projection(self, transposed: bool = False) -> Any:
        kernel = self.inputs.params.projection_kernel
        if kernel is None:
            return None
        kernel = _padded(kernel, (0, self.shape.hidden), (1, self.shape.output))
        return kernel.T if transposed else kernel

    def _state(self, state: Array | None, size: int) -> Any:
        """``[*batch, size]`` as ``[B, size]``."""
        if state is None:
            return jnp.zeros(
                (self.shape.batch, sizes.rounded(size, sizes.LANES)), jnp.float32
            )
        rows = state.reshape(self.sizes[1], size)
        whole = sizes.rounded(size, sizes.LANES)
        return _padded(rows, (0, self.shape.batch), (1, whole))

    def _steps(self, values: Array | None, size: int) -> Any:
        """``[T, *batch, n]`` as ``[T, B, size]``."""
        if values is None:
            return None
        values = values.reshape(*self.sizes, values.shape[-1])
        return _padded(values, (0, self.shape.length), (1, self.shape.batch), (2, size))

    def _from_tape(self, bits: Array, dtype: Any, gates: int) -> Array:
        """A tape's rows: as the kernels write them where those are as long."""
        values = lax.bitcast_convert_type(bits, dtype)
        units = values.shape[-1] // gates
        if units < self.shape.hidden:
            values = values.reshape(*self.sizes, gates, units)
            values = _to_blocks(_padded(values, (-1, self.shape.hidden)))
        return self._steps(values, gates * self.shape.hidden)

    # And back.

    def _rows(self, values: Array | None, size: int, steps: int) -> Any:
        """The first T steps, B rows and ``size`` numbers."""
        if values is None:
            return None
        leading = self.sizes[1 - steps :]
        values = values[tuple(slice(n) for n in (*leading, size))]
        return values.reshape(*leading[:steps], *self.batch, size)

    def _to_tape(self, values: Any, gates: int) -> Any:
        """The inverse of :meth:`_from_tape`."""
        if values is None:
            return None
        units = sizes.rounded(self.hidden, TAPE_UNITS)
        values = self._rows(values, gates * self.shape.hidden, 1)
        if units < self.shape.hidden:
            cut = _from_blocks(values, gates)[..., :units]
            values = cut.reshape(*cut.shape[:-2], gates * units)
        return tape.as_bits(values)


def _to_blocks(gates: Array) -> Array:
    """``[..., G, H]`` as ``[..., G * H]``: the units of a tile, gate by gate."""
    *rows, count, hidden = gates.shape
    blocks = gates.reshape(*rows, count, hidden // sizes.LANES, sizes.LANES)
    return jnp.swapaxes(blocks, -3, -2).reshape(*rows, count * hidden)


def _from_blocks(columns: Array, gates: int) -> Array:
    """The inverse of :func:`_to_blocks`."""
    *rows, size = columns.shape
    blocks = columns.reshape(*rows, -1, gates, sizes.LANES)
    return jnp.swapaxes(blocks, -3, -2).reshape(*rows, gates, size // gates)


def _wanted_of(wanted: Outputs) -> forward.Made:
    states, saved = isinstance(wanted.ys, LSTMState), wanted.saved
    return forward.Made(
        ys=hidden_of(wanted.ys),
        cs=states and wanted.ys.c,
        last_h=wanted.last.h,
        last_c=wanted.last.c,
        gates=saved.gates,
        cells=saved.cells,
        entering=bool(saved.entering),
    )


def _padded(array: Array, *sizes: tuple[int, int]) -> Array:
    """An array with some axes filled up with zeros to a size."""
    widths = [(0, 0, 0)] * array.ndim
    for axis, size in sizes:
        widths[axis] = (0, size - array.shape[axis], 0)
    if not any(any(width) for width in widths):
        return array
    return lax.pad(array, jnp.zeros((), array.dtype), widths)


def _over_rows(xs: Array, ds: Array) -> Array:
    """``x.T @ d`` over all steps and rows."""
    axes = tuple(range(xs.ndim - 1))
    return lax.dot_general(
        xs, ds, ((axes, axes), ((), ())), preferred_element_type=jnp.float32
    )


def _unprojected(given: backward.Given) -> Array:
    """``o * tanh(c)`` of every step."""
    sums = _from_blocks(given.gates.astype(jnp.float32), _GATES)
    i, f, g, o = jnp.moveaxis(sums, -2, 0)
    sigmoid = jax.nn.sigmoid
    c = sigmoid(f) * given.cells + sigmoid(i) * jnp.tanh(g)
    return sigmoid(o) * jnp.tanh(c)
