"""The tape as the reference writes it: pre-activations and entering states."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.base import Cell
from lstm_jax.recurrence.blocks import first_of_blocks
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


def pack(cell: Cell, inputs: Inputs, saved: Saved, starts: LSTMState) -> Tape:
    """What the reference saved of an LSTM, as a :class:`Tape`.

    Where what inputs and what h contribute do not make one sum, only the inputs' part
    is there. Its first rows of cells are those of ``starts``, which entered the blocks.
    """
    states, (pre, _) = saved
    z, dtype = _first(pre), inputs.dtype
    units = starts.c.shape[-1]
    gates = z.reshape(*z.shape[:-1], z.shape[-1] // units, units).astype(dtype)
    gates = _padded(_padded(gates, -2, _GATES), -1, TAPE_UNITS)
    gates = gates.reshape(*gates.shape[:-2], math.prod(gates.shape[-2:]))
    cells = _padded(starts.c, -1, TAPE_UNITS)
    cells = as_bits(cells)
    blocks, length = cells.shape[0], z.shape[0]
    if isinstance(length, int) and blocks < length:
        rest = jnp.zeros((length - blocks, *cells.shape[1:]), cells.dtype)
        cells = jnp.concatenate([cells, rest])
    return Tape(
        as_bits(gates),
        cells,
        states.h if keeps_entering(cell, inputs) else None,
    )


def unpack(
    cell: Cell,
    inputs: Inputs,
    tape: Tape,
    hidden: Array | None,
    reverse: bool,
    size: int,
) -> tuple[Saved, LSTMState]:
    """The inverse of :func:`pack`, with no c in the states.

    ``hidden`` are all h where none is on the tape; ``size`` that of the blocks.
    """
    h, c = inputs.state
    units = c.shape[-1]
    columns = jax.eval_shape(cell.project, inputs.params, inputs.xs)
    columns = _first(columns).shape[-1]
    gates = lax.bitcast_convert_type(tape.gates, inputs.dtype)
    gates = gates.reshape(*gates.shape[:-1], _GATES, gates.shape[-1] // _GATES)
    gates = gates[..., : columns // units, :units]
    pre = gates.reshape(*gates.shape[:-2], columns)
    if isinstance(inputs.xs, tuple):
        # What has no part in the sum is as it came in.
        pre = (pre, *inputs.xs[1:])
    entering = tape.entering
    if hidden is not None:
        entering = entering_of(hidden, h, reverse)
    h_starts = first_of_blocks(entering, size, reverse)
    cells = tape.cells[: h_starts.shape[0]] if size > 1 else tape.cells
    cells = lax.bitcast_convert_type(cells, c.dtype)[..., :units]
    states, r = LSTMState(entering, None), None
    if not cell.additive:
        r = cell.recur(inputs.params, states)
    return Saved(states, (pre, r)), LSTMState(h_starts, cells)


def entering_of(hidden: Array, first: Array, reverse: bool) -> Array:
    """The h that entered each step, of all h and the one to start from."""
    first = jnp.expand_dims(first, 0)
    around = [hidden, first] if reverse else [first, hidden]
    start, length = int(reverse), hidden.shape[0]
    return lax.slice_in_dim(jnp.concatenate(around), start, start + length)


def as_bits(values: Array) -> Array:
    """Numbers as a tape has them."""
    return lax.bitcast_convert_type(values, bits_of(values.dtype))


def _first(tree: PyTree) -> Array:
    return jax.tree.leaves(tree)[0]


def _padded(array: Array, axis: int, to: int) -> Array:
    """An axis filled up with zeros to a multiple of ``to``."""
    missing = -array.shape[axis] % to
    widths = [(0, 0, 0)] * array.ndim
    widths[axis] = (0, missing, 0)
    return lax.pad(array, jnp.zeros((), array.dtype), widths)
