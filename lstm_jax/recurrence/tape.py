"""The tape as the reference writes it: pre-activations and entering states."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.base import Cell
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.recurrence.contract import (
    TAPE_UNITS,
    Inputs,
    Saved,
    Tape,
    bits_of,
    keeps_entering,
)
from lstm_jax.types import Array, LSTMState, PyTree

_GATES = 4  # that a tape has room for; a variant may have fewer


def pack(cell: Cell, inputs: Inputs, saved: Saved) -> Tape:
    """What the reference saved of an additive LSTM, as a :class:`Tape`."""
    (h, c), (pre, _) = saved
    z, xs = _first(pre), _first(inputs.xs)
    units = c.shape[-1]
    gates = z.reshape(*z.shape[:-1], z.shape[-1] // units, units).astype(xs.dtype)
    gates = _padded(_padded(gates, -2, _GATES), -1, TAPE_UNITS)
    gates = gates.reshape(*gates.shape[:-2], math.prod(gates.shape[-2:]))
    return Tape(
        lax.bitcast_convert_type(gates, bits_of(xs.dtype)),
        lax.bitcast_convert_type(_padded(c, -1, TAPE_UNITS), bits_of(c.dtype)),
        h if keeps_entering(cell, inputs) else None,
    )


def unpack(
    cell: Cell, inputs: Inputs, tape: Tape, hidden: Array | None, reverse: bool
) -> Saved:
    """The inverse of :func:`pack`; ``hidden`` are all h where none is on the tape."""
    h, c = inputs.state
    dtype, units = _first(inputs.xs).dtype, c.shape[-1]
    columns = jax.eval_shape(cell.project, inputs.params, inputs.xs)
    columns = _first(columns).shape[-1]
    gates = lax.bitcast_convert_type(tape.gates, dtype)
    gates = gates.reshape(*gates.shape[:-1], _GATES, gates.shape[-1] // _GATES)
    gates = gates[..., : columns // units, :units]
    pre = gates.reshape(*gates.shape[:-2], columns).astype(accumulation_dtype(dtype))
    if isinstance(inputs.xs, tuple):
        # What has no part in the sum is as it came in.
        pre = (pre, *inputs.xs[1:])
    cells = lax.bitcast_convert_type(tape.cells, c.dtype)[..., :units]
    entering = tape.entering
    if hidden is not None:
        first = jnp.expand_dims(h, 0)
        around = [hidden, first] if reverse else [first, hidden]
        start, length = int(reverse), hidden.shape[0]
        joined = jnp.concatenate(around)
        entering = lax.slice_in_dim(joined, start, start + length)
    return Saved(LSTMState(entering, cells), (pre, None))


def _first(tree: PyTree) -> Array:
    return jax.tree.leaves(tree)[0]


def _padded(array: Array, axis: int, to: int) -> Array:
    """An axis filled up with zeros to a multiple of ``to``."""
    missing = -array.shape[axis] % to
    widths = [(0, 0, 0)] * array.ndim
    widths[axis] = (0, missing, 0)
    return lax.pad(array, jnp.zeros((), array.dtype), widths)
