"""The loops of the reference: forward, forward with all that is kept, and tangents.

Two loops, each arranged as XLA was found to be fastest on its platform:

* Forward: a scan over blocks of a few steps. The block's inputs are projected in one
  product inside the loop, so that the projection never leaves the cache, and its steps
  are unrolled. Where a derivative follows it keeps, for each step, the state that
  entered it and its pre-activations; XLA:CPU is faster then by single steps.
* Tangents: a scan over single steps, in which the parameters are constants. What the
  parameters' tangents contribute is added for all steps at once, so that in the
  transpose, which JAX makes by itself, a weight gradient is one product after the loop
  instead of a sum inside it. Accelerators have a backward pass of their own instead of
  that transpose: :mod:`lstm_jax.recurrence.backward`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.base import Cell
from lstm_jax.numerics import (
    added,
    merging_rows,
    narrowed,
    where_rows,
    widened,
    zero_where_not,
)
from lstm_jax.recurrence.blocks import scan_blocks
from lstm_jax.recurrence.contract import Call, Inputs, Saved, keep, traced_step
from lstm_jax.types import Array, PyTree


class Arrangement(NamedTuple):
    """How the loops are arranged; the results are the same.

    Attributes:
        block: steps unrolled in one block of the forward loop without a derivative.
        differentiated: the same where a derivative follows, and of the backward pass,
            which is JAX's transpose where this is 1.
        apart: whether what such a block reads and writes at once is cut into arrays of
            single steps. XLA:TPU leaves one in HBM that several steps read, and a step
            waits for that longer than it computes; on a GPU a cut is a launch.
        widen: whether half-precision states and outputs are float32 inside the loop.
            XLA:CPU rewrites a whole half-precision buffer at each step that writes to
            it. The products are not widened.
        merge: whether products make time and batch one axis: faster, on one device.
        by_row: whether gradients of what ``update`` takes of the parameters are summed
            by rows in the loop, so that a batch over several devices is reduced once.
    """

    block: int = 8
    differentiated: int = 1
    apart: bool = False
    widen: bool = False
    merge: bool = False
    by_row: bool = False


def forward(call: Call, inputs: Inputs, reverse: bool, how: Arrangement) -> tuple:
    """Runs one direction without a derivative: ``(last, ys)``."""
    last, (ys,) = _run(call, inputs, reverse, how, keeping=False)
    return last, ys


def save(
    call: Call, inputs: Inputs, reverse: bool, how: Arrangement
) -> tuple[PyTree, PyTree, Saved, PyTree]:
    """Runs one direction and keeps what its derivatives need.

    Returns:
        ``(last, ys, saved, starts)``; the last is the state that entered the first step
        of each block.
    """
    if how.differentiated > 1:
        last, (ys, states, pre, starts) = _run(call, inputs, reverse, how, keeping=True)
        return last, ys, Saved(states, pre), starts
    cell, inputs = call.cell, widened(inputs) if how.widen else inputs
    params = inputs.params

    def step(state, steps):
        x, ok, new = steps
        state = enter(state, new, inputs.reset_state)
        pre = keep(cell, cell.project(params, x), cell.recur(params, state))
        after, y = hold(ok, state, update(cell, params, state, pre))
        return after, (zero_where_not(ok, after if call.emit_states else y), state, pre)

    steps = (inputs.xs, inputs.valid, inputs.reset)
    with merging_rows(how.merge):
        last, (ys, *saved) = lax.scan(step, inputs.state, steps, reverse=reverse)
    return last, ys, Saved(*saved), saved[0]


def _run(
    call: Call, inputs: Inputs, reverse: bool, how: Arrangement, *, keeping: bool
) -> tuple[PyTree, tuple]:
    cell, dtype = call.cell, inputs.dtype
    inputs = widened(inputs) if how.widen else inputs
    params = inputs.params

    def block(state, steps):
        xs, valid, reset = steps
        zs, outs, entering = cell.project(params, xs), {}, {}
        singly = one_by_one((zs, valid, reset), apart=how.apart and keeping)
        order = in_order(len(singly), reverse)
        for t in order:
            z, ok, new = singly[t]
            state = entering[t] = enter(state, new, inputs.reset_state)
            pre = keep(cell, z, cell.recur(params, state))
            state, y = hold(ok, state, update(cell, params, state, pre))
            outs[t] = (zero_where_not(ok, state if call.emit_states else y),)
            if keeping:
                # A tape holds them in the dtype of the inputs.
                outs[t] += entering[t], narrowed(pre, dtype) if call.taped else pre
        start = together({0: entering[order[0]]})
        return state, together(outs) + ((start,) if keeping else ())

    steps = (inputs.xs, inputs.valid, inputs.reset)
    length = jax.tree.leaves(inputs.xs)[0].shape[0]
    size = block_size(length, how.differentiated if keeping else how.block)
    with merging_rows(how.merge):
        return scan_blocks(block, inputs.state, steps, size, reverse=reverse)


def block_size(length: Any, block: int) -> int:
    """The divisor of ``length`` nearest to ``block``, or that where none is near."""
    if not isinstance(length, int):
        return 1
    near = [n for n in range(block // 2 + 1, 2 * block) if length % n == 0]
    return min(near, key=lambda n: abs(n - block), default=block)


def in_order(length: int, reverse: bool) -> range:
    """The steps of a block in the order in which a direction takes them."""
    return range(length)[::-1] if reverse else range(length)


def one_by_one(steps: PyTree, *, apart: bool) -> list[PyTree]:
    """The steps of a block; see :class:`Arrangement` for ``apart``."""
    length = jax.tree.leaves(steps)[0].shape[0]
    singly = [jax.tree.map(lambda leaf: leaf[t], steps) for t in range(length)]
    return lax.optimization_barrier(singly) if apart else singly


def together(steps: dict[int, PyTree]) -> PyTree:
    """What steps returned, by their places in time, as arrays over time."""
    in_time = [steps[t] for t in range(len(steps))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *in_time)


def one_tangent(
    call: Call,
    inputs: Inputs,
    d_inputs: Inputs,
    saved: Saved,
    reverse: bool,
    how: Arrangement,
) -> tuple[PyTree, PyTree]:
    """Tangents of one direction, ``(d_last, d_ys)``; None in ``d_inputs`` is zero."""
    cell = call.cell
    like, *_ = traced_step(cell, inputs)
    if how.widen:
        inputs, d_inputs, saved = widened((inputs, d_inputs, saved))
    params, d_params = inputs.params, d_inputs.params
    states, pres = saved
    with merging_rows(how.merge):
        d_zs = _jvp(cell.project, (params, inputs.xs), (d_params, d_inputs.xs))
        d_rs = _jvp(lambda p: cell.recur(p, states), (params,), (d_params,))
    d_pres = (added(d_zs, d_rs), None) if cell.additive else (d_zs, d_rs)
    d_reset_state = instantiated(inputs.reset_state, d_inputs.reset_state)
    d_update = _update_tangent(cell, inputs, d_params, how)

    def step(d_state, steps):
        (d_z, d_r), state, pre, ok, new = steps
        pre = pre if how.widen else cast_tree(pre, like)
        d_state = enter(d_state, new, d_reset_state)
        _, d_through = jax.jvp(lambda s: cell.recur(params, s), (state,), (d_state,))
        if cell.additive:
            d_pre = (added(d_z, d_through), None)
        else:
            d_pre = (d_z, added(d_r, d_through))
        d_after, d_y = hold(ok, d_state, d_update(state, pre, d_state, d_pre))
        return d_after, zero_where_not(ok, d_after if call.emit_states else d_y)

    d_state = instantiated(inputs.state, d_inputs.state)
    steps = (d_pres, states, pres, inputs.valid, inputs.reset)
    return lax.scan(step, d_state, steps, reverse=reverse)


def cast_tree(values: PyTree, like: PyTree) -> PyTree:
    """Casts arrays to the dtypes of others; None stays."""
    leaves, structure = jax.tree.flatten(like)
    cast = [
        None if value is None else value.astype(leaf.dtype)
        for value, leaf in zip(structure.flatten_up_to(values), leaves, strict=True)
    ]
    return structure.unflatten(cast)


def _update_tangent(
    cell: Cell, inputs: Inputs, d_params: PyTree, how: Arrangement
) -> Callable[..., tuple[PyTree, PyTree]]:
    """The derivative of ``update``: ``(state, pre, d_state, d_pre) -> (d_state, d_y)``.

    Under remat: what it needs is computed again from the state and the pre-activations
    where it is needed, instead of being written for every step.
    """

    def derivative(params, d_params, state, pre, d_state, d_pre):
        one = lambda params, state, pre: update(cell, params, state, pre)
        return _jvp(one, (params, state, pre), (d_params, d_state, d_pre))

    params = inputs.params
    if how.by_row:
        by_row = cell.params_by_row(params)
        batch = batch_shape(cell, inputs.state)
        d_params = _spread(d_params, by_row, batch)
        axes = jax.tree.map(lambda row: 0 if row else None, by_row)
        for _ in batch:
            derivative = jax.vmap(derivative, (axes, 0, 0, 0, 0, 0))
    closed = functools.partial(derivative, params, d_params)
    return jax.checkpoint(closed, prevent_cse=False)


def batch_shape(cell: Cell, state: PyTree) -> tuple[int, ...]:
    """The batch axes of a state."""
    one = jax.tree.leaves(jax.eval_shape(lambda: cell.zero_state(())))[0]
    leaf = jax.tree.leaves(state)[0]
    return leaf.shape[: leaf.ndim - one.ndim]


def _spread(d_params: PyTree, by_row: PyTree, batch: tuple[int, ...]) -> PyTree:
    """Every row with a tangent of its own, so that their gradients are summed apart."""

    def spread(row, leaf):
        if row or leaf is None:
            return leaf
        leaf = jnp.expand_dims(leaf, tuple(range(len(batch))))
        return jnp.broadcast_to(leaf, (*batch, *leaf.shape[len(batch) :]))

    return jax.tree.map(spread, by_row, d_params)


def _jvp(function: Callable, primals: tuple, tangents: tuple) -> Any:
    """The tangent of a function by those leaves that have one; None where none has."""
    leaves, structure = jax.tree.flatten(primals)
    given = structure.flatten_up_to(tangents)
    moving = [n for n, tangent in enumerate(given) if tangent is not None]
    if not moving:
        return jax.tree.map(lambda leaf: None, jax.eval_shape(function, *primals))

    def of_moving(*some):
        merged = dict(enumerate(leaves)) | dict(zip(moving, some, strict=True))
        return function(*structure.unflatten(merged.values()))

    values = tuple(leaves[n] for n in moving)
    _, out = jax.jvp(of_moving, values, tuple(given[n] for n in moving))
    return without_float0(out)


def without_float0(tangents: PyTree) -> PyTree:
    """None for the tangents of what is no number: no loop takes them."""
    is_float0 = lambda leaf: leaf.dtype == jax.dtypes.float0
    return jax.tree.map(lambda leaf: None if is_float0(leaf) else leaf, tangents)


def instantiated(primals: PyTree, tangents: PyTree) -> PyTree:
    """Tangents with zeros where there is none."""
    zeros = lambda leaf, tangent: jnp.zeros_like(leaf) if tangent is None else tangent
    return jax.tree.map(zeros, primals, tangents)


def update(cell: Cell, params: PyTree, state: PyTree, kept: tuple) -> tuple:
    """``(state, y)`` after a step, from what is kept of z and r."""
    z, r = kept
    if r is None:
        r = jax.tree.map(jnp.zeros_like, z)
    return cell.update(params, state, z, r)


def enter(state: PyTree, reset: Array | None, reset_state: PyTree) -> PyTree:
    """The state that enters a step."""
    return state if reset is None else where_rows(reset, reset_state, state)


def hold(valid: Array | None, before: PyTree, after: tuple[PyTree, PyTree]) -> Any:
    """The state after a step that may not be valid; the output as it is."""
    if valid is None:
        return after
    state, y = after
    return where_rows(valid, state, before), y


def batch_axis_first(ys: PyTree) -> PyTree:
    """Returns ``ys`` as it is, with the axis that ``vmap`` adds in front.

    Under jvp of vmap of jit, JAX takes the added axis of a rule's outputs to stand
    where it stands in the function's outputs, and does not look. Blocks reshaped to
    steps have it in front; the outputs of a scan have it behind the time axis. An axis
    added and taken away moves it, and compiles to nothing.
    """
    return jax.tree.map(lambda y: jnp.expand_dims(y, 0).squeeze(0), ys)
