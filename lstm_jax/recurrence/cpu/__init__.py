"""The recurrence on a CPU, as compiled kernels.

They run the standard cell, with or without bias and projection, in float32 and
bfloat16 (which accumulates in float32). ``native/`` holds their source; how they work
is written at the top of ``forward.h`` and ``backward.h``, and what they save for the
backward pass in ``native.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.recurrence import xla
from lstm_jax.recurrence.cpu import library
from lstm_jax.recurrence.cpu.calls import Call, Inputs
from lstm_jax.recurrence.primitive import run as run_kernel
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


class Direction(NamedTuple):
    """What :func:`run_together` is given for each direction."""

    params: LSTMParams
    xs: Array
    state: LSTMState
    controls: Controls
    reverse: bool


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
    direction = Direction(params, xs, state, controls, reverse)
    return run_together(cell, [direction], emit_states=emit_states)[0]


def run_together(
    cell: LSTMCell, directions: Sequence[Direction], *, emit_states: bool
) -> list[tuple[LSTMState, PyTree]]:
    """Runs one direction or two of a layer, side by side; see :func:`run`."""
    xs = directions[0].xs
    if 0 in xs.shape:
        return [
            xla.run(
                cell,
                one.params,
                one.xs,
                one.state,
                one.controls,
                reverse=one.reverse,
                emit_states=emit_states,
            )
            for one in directions
        ]
    inputs = _vary_alike(tuple(map(_flat_inputs, directions)))
    emit = ("ys", "cs", "h", "c") if emit_states else ("ys", "h", "c")
    call = Call(
        cell,
        tuple(direction.reverse for direction in directions),
        jax.tree.structure(inputs),
        (emit,) * len(directions),
    )

    def unflat(leaf):
        return leaf.reshape(*leaf.shape[:-2], *xs.shape[1:-1], leaf.shape[-1])

    results = []
    for outputs in run_kernel(inputs, call):
        ys, cs, h, c, *_ = jax.tree.map(unflat, outputs)
        results.append((LSTMState(h, c), LSTMState(ys, cs) if emit_states else ys))
    return results


def _flat_inputs(direction: Direction) -> Inputs:
    """Inputs with one batch axis."""
    params, xs, state, controls, _ = direction
    rows = math.prod(xs.shape[1:-1])
    flat = lambda leaf: leaf.reshape(rows, leaf.shape[-1])
    flat_steps = lambda leaf: leaf.reshape(
        xs.shape[0], rows, *leaf.shape[xs.ndim - 1 :]
    )
    valid, reset = jax.tree.map(flat_steps, (controls.valid, controls.reset))
    return Inputs(
        # A learned start is not the steps' business: it came in as the state.
        params._replace(initial_h=None, initial_c=None),
        flat_steps(xs),
        jax.tree.map(flat, state),
        valid,
        reset,
        jax.tree.map(flat, controls.reset_state),
    )


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
