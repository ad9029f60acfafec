"""The tape as the reference writes it: pre-activations and entering states."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from lstm_jax.numerics import accumulation_dtype
from lstm_jax.recurrence.contract import (
    TAPE_UNITS,
    Inputs,
    Saved,
    Tape,
    bits_of,
    has_controls,
)
from lstm_jax.types import Array, LSTMState


def pack(inputs: Inputs, saved: Saved) -> Tape:
    """What the reference saved of a standard cell, as a :class:`Tape`."""
    (h, c), (pre, _) = saved
    dtype = inputs.xs.dtype
    units = c.shape[-1]
    gates = _padded(pre.reshape(*pre.shape[:-1], 4, units).astype(dtype), units)
    gates = gates.reshape(*gates.shape[:-2], math.prod(gates.shape[-2:]))
    return Tape(
        lax.bitcast_convert_type(gates, bits_of(dtype)),
        lax.bitcast_convert_type(_padded(c, units), bits_of(c.dtype)),
        h if has_controls(inputs) else None,
    )


def unpack(inputs: Inputs, tape: Tape, hidden: Array | None, reverse: bool) -> Saved:
    """The inverse of :func:`pack`; ``hidden`` are all h where none is on the tape."""
    h, c = inputs.state
    dtype, units = inputs.xs.dtype, c.shape[-1]
    gates = lax.bitcast_convert_type(tape.gates, dtype)
    gates = gates.reshape(*gates.shape[:-1], 4, gates.shape[-1] // 4)[..., :units]
    pre = gates.reshape(*gates.shape[:-2], 4 * units).astype(accumulation_dtype(dtype))
    cells = lax.bitcast_convert_type(tape.cells, c.dtype)[..., :units]
    entering = tape.entering
    if hidden is not None:
        first = jnp.expand_dims(h, 0)
        around = [hidden, first] if reverse else [first, hidden]
        start, length = int(reverse), hidden.shape[0]
        joined = jnp.concatenate(around)
        entering = lax.slice_in_dim(joined, start, start + length)
    return Saved(LSTMState(entering, cells), (pre, None))


def _padded(array: Array, units: int) -> Array:
    """The last axis, of H, made as long as whole vectors are."""
    missing = -units % TAPE_UNITS
    zero = jnp.zeros((), array.dtype)
    return lax.pad(array, zero, [(0, 0, 0)] * (array.ndim - 1) + [(0, missing, 0)])
