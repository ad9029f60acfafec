"""The reference implementation of the recurrence, for any cell, in plain JAX.

Two loops, each the fastest arrangement that XLA:CPU was measured with:

* Without a derivative: a scan over blocks of a few steps. The block's inputs are
  projected in one product inside the loop, so that the projection never leaves the
  cache, and its steps are unrolled.
* With one: a scan over single steps that keeps, for each, the state that entered it and
  its pre-activations, and a second scan for the tangents, in which the parameters are
  constants. What the parameters' tangents contribute is added for all steps at once, so
  that in the transpose, which JAX makes by itself, a weight gradient is one product
  after the loop instead of a sum inside it.

``jax.custom_jvp`` and not ``custom_vjp``: forward mode, vmap, remat and derivatives of
any order follow from the one rule.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.recurrence.blocks import scan_blocks
from lstm_jax.types import Array, Cell, PyTree

# Steps unrolled in one block of the loop without a derivative.
BLOCK = 8


class Controls(NamedTuple):
    """What holds or resets the state, step by step; None where nothing does.

    Attributes:
        valid: ``[T, *batch]`` bool; a step that is not valid holds the state.
        reset: ``[T, *batch]`` bool; the state becomes ``reset_state`` before this step.
        reset_state: a state of the batch.
    """

    valid: Array | None = None
    reset: Array | None = None
    reset_state: PyTree = None


def run(
    cell: Cell,
    params: PyTree,
    xs: PyTree,
    state: PyTree,
    controls: Controls,
    *,
    reverse: bool,
    emit_states: bool,
) -> tuple[PyTree, PyTree]:
    """Runs ``cell`` over the leading axis of ``xs``.

    Shapes:
        ``xs`` is ``[T, *batch, ...]``, and so are the outputs.

    Args:
        cell: follows :class:`lstm_jax.types.Cell`.
        params: the cell's, in the compute dtype.
        xs: inputs, in the compute dtype; finite where not valid.
        state: the state to start from, in the dtypes that the cell's steps return.
        controls: see :class:`Controls`.
        reverse: whether to go from the last step to the first.
        emit_states: whether the outputs are the states instead of the cell's outputs.

    Returns:
        ``(state, ys)``: the last state, and the outputs, 0 where not valid.
    """
    return _run(cell, reverse, emit_states, params, xs, state, controls)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _run(cell, reverse, emit_states, params, xs, state, controls):
    def block(state, inputs):
        xs, valid, reset = inputs
        length = jax.tree.leaves(xs)[0].shape[0]
        zs = cell.project(params, xs)
        ys = [None] * length
        for t in reversed(range(length)) if reverse else range(length):
            z, ok, new = jax.tree.map(lambda leaf: leaf[t], (zs, valid, reset))
            state = enter(state, new, controls.reset_state)
            pre = _keep(cell, z, cell.recur(params, state))
            state, y = hold(ok, state, _update(cell, params, state, pre))
            ys[t] = emit(emit_states, ok, state, y)
        return state, _stack(ys)

    steps = (xs, controls.valid, controls.reset)
    size = _block_size(jax.tree.leaves(xs)[0].shape[0])
    return scan_blocks(block, state, steps, size, reverse=reverse)


@_run.defjvp
def _run_jvp(cell, reverse, emit_states, primals, tangents):
    params, xs, state, controls = primals
    d_params, d_xs, d_state, d_controls = tangents

    def step(state, inputs):
        x, ok, new = inputs
        state = enter(state, new, controls.reset_state)
        pre = _keep(cell, cell.project(params, x), cell.recur(params, state))
        after, y = hold(ok, state, _update(cell, params, state, pre))
        return after, (emit(emit_states, ok, after, y), state, pre)

    steps = (xs, controls.valid, controls.reset)
    last, (ys, states, pres) = lax.scan(step, state, steps, reverse=reverse)

    _, d_zs = jax.jvp(cell.project, (params, xs), (d_params, d_xs))
    _, d_rs = jax.jvp(lambda p: cell.recur(p, states), (params,), (d_params,))

    # Remat: what the derivative of `update` needs is computed again from the state and
    # the pre-activations where it is needed, instead of being written for every step.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def d_update(state, pre, d_state, d_pre):
        def update(params, state, pre):
            return _update(cell, params, state, pre)

        d_pre = _with_float0(pre[0], d_pre[0]), d_pre[1]
        return jax.jvp(update, (params, state, pre), (d_params, d_state, d_pre))[1]

    def d_step(d_state, inputs):
        (d_z, d_r), state, pre, ok, new = inputs
        d_state = enter(d_state, new, d_controls.reset_state)
        _, d_through = jax.jvp(lambda s: cell.recur(params, s), (state,), (d_state,))
        d_r = d_through if d_r is None else _add(d_r, d_through)
        d_pre = _keep(cell, d_z, d_r)
        d_after, d_y = hold(ok, d_state, d_update(state, pre, d_state, d_pre))
        return d_after, emit(emit_states, ok, d_after, d_y)

    d_pres = _keep(cell, _without_float0(d_zs), d_rs)
    d_steps = (d_pres, states, pres, controls.valid, controls.reset)
    d_last, d_ys = lax.scan(d_step, d_state, d_steps, reverse=reverse)
    return (last, batch_axis_first(ys)), (d_last, batch_axis_first(d_ys))


def _without_float0(tangents: PyTree) -> PyTree:
    """None for the tangents of what is no number: no loop takes them."""
    is_float0 = lambda leaf: leaf.dtype == jax.dtypes.float0
    return jax.tree.map(lambda leaf: None if is_float0(leaf) else leaf, tangents)


def _with_float0(primals: PyTree, tangents: PyTree) -> PyTree:
    """The inverse of :func:`_without_float0`."""
    zero = lambda primal: np.zeros(primal.shape, jax.dtypes.float0)
    return jax.tree.map(
        lambda primal, tangent: zero(primal) if tangent is None else tangent,
        primals,
        tangents,
    )


def batch_axis_first(ys: PyTree) -> PyTree:
    """Returns ``ys`` as it is, with the axis that ``vmap`` adds in front.

    Under jvp of vmap of jit, JAX takes the added axis of a rule's outputs to stand
    where it stands in the function's outputs, and does not look. Blocks reshaped to
    steps have it in front; the outputs of a scan have it behind the time axis. An axis
    added and taken away moves it, and compiles to nothing.
    """
    return jax.tree.map(lambda y: jnp.expand_dims(y, 0).squeeze(0), ys)


def _block_size(length: int) -> int:
    """The divisor of ``length`` nearest to BLOCK, or BLOCK where none is near."""
    near = [n for n in range(BLOCK // 2 + 1, 2 * BLOCK) if length % n == 0]
    return min(near, key=lambda n: abs(n - BLOCK), default=BLOCK)


def _keep(cell: Cell, z: PyTree, r: PyTree) -> tuple[PyTree, PyTree]:
    """What ``update`` needs of z and r: their sum, where it depends on that alone."""
    return (_add(z, r), None) if getattr(cell, "additive", False) else (z, r)


def _update(cell: Cell, params: PyTree, state: PyTree, kept: tuple) -> tuple:
    z, r = kept
    if r is None:
        r = jax.tree.map(jnp.zeros_like, z)
    return cell.update(params, state, z, r)


def enter(state: PyTree, reset: Array | None, reset_state: PyTree) -> PyTree:
    """The state that enters a step."""
    if reset is None:
        return state
    return where_rows(reset, reset_state, state)


def hold(valid: Array | None, before: PyTree, after: tuple[PyTree, PyTree]) -> Any:
    """The state after a step that may not be valid; the output as it is."""
    if valid is None:
        return after
    state, y = after
    return where_rows(valid, state, before), y


def emit(emit_states: bool, valid: Array | None, state: PyTree, y: PyTree) -> PyTree:
    """What a step puts out."""
    out = state if emit_states else y
    if valid is None:
        return out
    return where_rows(valid, out, jax.tree.map(jnp.zeros_like, out))


def where_rows(condition: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Selects whole rows: ``condition`` has the batch axes only."""

    def select(a, b):
        axes = tuple(range(condition.ndim, a.ndim))
        return jnp.where(jnp.expand_dims(condition, axes), a, b)

    return jax.tree.map(select, on_true, on_false)


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _stack(outputs: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
