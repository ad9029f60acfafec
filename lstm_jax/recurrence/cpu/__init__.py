"""The recurrence on a CPU, as compiled kernels.

They run the standard cell, with or without bias and projection, in float32 and
bfloat16 (which accumulates in float32). ``native/`` holds their source; how they work
is written at the top of ``forward.h`` and ``backward.h``, and what they save for the
backward pass in ``native.py``.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cell import LSTMCell
from lstm_jax.recurrence import xla
from lstm_jax.recurrence.cpu import library
from lstm_jax.recurrence.cpu.native import Call, Inputs
from lstm_jax.recurrence.cpu.primitives import run as run_kernel
from lstm_jax.recurrence.xla import Controls
from lstm_jax.types import Array, Cell, LSTMParams, LSTMState, PyTree

_DTYPES = (jnp.float32, jnp.bfloat16)


def unavailable() -> str | None:
    """Why these kernels cannot run on this machine; None if they can."""
    return library.missing()


def why_not(cell: Cell, dtype: Any) -> str | None:
    """Why the kernels cannot run a cell in a compute dtype; None if they can."""
    if reason := unavailable():
        return reason
    if type(cell) is not LSTMCell or not cell.standard:
        return f"runs the standard LSTMCell only, not {cell}"
    if jnp.dtype(dtype) not in _DTYPES:
        return f"computes in float32 and bfloat16 only, not {jnp.dtype(dtype).name}"
    return None


def run(
    cell: LSTMCell,
    params: LSTMParams,
    xs: Array,
    state: LSTMState,
    controls: Controls,
    *,
    reverse: bool,
    emit_states: bool,
) -> tuple[LSTMState, PyTree]:
    """Runs ``cell`` over the leading axis of ``xs``.

    The arguments and what comes back are those of :func:`lstm_jax.recurrence.xla.run`,
    but for two things: xs, states and outputs have the compute dtype (c has float32),
    and xs may hold anything where not valid.
    """
    batch_shape = xs.shape[1:-1]
    if 0 in xs.shape:
        return xla.run(
            cell, params, xs, state, controls, reverse=reverse, emit_states=emit_states
        )
    rows = math.prod(batch_shape)
    flat = lambda leaf: leaf.reshape(rows, leaf.shape[-1])
    flat_steps = lambda leaf: leaf.reshape(
        xs.shape[0], rows, *leaf.shape[xs.ndim - 1 :]
    )
    # A learned start is not the steps' business: it came in as the state.
    params = params._replace(initial_h=None, initial_c=None)
    inputs = Inputs(
        params,
        flat_steps(xs),
        jax.tree.map(flat, state),
        *jax.tree.map(flat_steps, controls[:2]),
        jax.tree.map(flat, controls.reset_state),
    )
    inputs = _vary_alike(inputs)
    emit = ("ys", "cs", "h", "c") if emit_states else ("ys", "h", "c")
    tree = jax.tree.structure(inputs)
    outputs = run_kernel(inputs, Call(cell, reverse, tree, emit))
    unflat = lambda leaf: leaf.reshape(*leaf.shape[:-2], *batch_shape, leaf.shape[-1])
    last = LSTMState(unflat(outputs.h), unflat(outputs.c))
    ys = unflat(outputs.ys)
    return last, LSTMState(ys, unflat(outputs.cs)) if emit_states else ys


def _vary_alike(tree: PyTree) -> PyTree:
    """Lets every leaf vary over the axes of ``shard_map`` that any of them varies over.

    A zero made like an array varies as it does, and so does what it is added to; the
    transpose of that sums the gradients of what did not vary.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    others = jax.tree.leaves(tree)

    def vary(leaf):
        for other in others:
            zero = lax.full_like(other, 0, leaf.dtype, shape=())
            leaf = leaf | zero if leaf.dtype == jnp.bool else leaf + zero
        return leaf

    return jax.tree.map(vary, tree)
