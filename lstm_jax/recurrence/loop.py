"""The loop over time on checked, time-major arguments.

Turns lengths, mask and reset into what holds and resets the state at each step, and
keeps memory bounded where that was asked for. Which implementation runs is not decided
here, but where JAX lowers the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.base import Cell, cast_params, compute_dtype
from lstm_jax.meshes import units_here, vary_alike
from lstm_jax.numerics import where_rows, zero_where_not
from lstm_jax.recurrence import choice, plain, primitive, units, xla
from lstm_jax.recurrence.blocks import scan_blocks
from lstm_jax.recurrence.contract import Call, Implementation, Inputs, traced_step
from lstm_jax.types import Array, Options, PyTree, config


class Direction(NamedTuple):
    """What the directions of a layer do not share."""

    params: PyTree
    state: PyTree
    reset_state: PyTree = None
    key: Array | None = None
    reverse: bool = False


def run(
    cell: Cell,
    xs: Array,
    directions: Sequence[Direction],
    given: Options,
    permitted: tuple[Implementation, ...],
    *,
    emit_states: bool = False,
) -> list[tuple[PyTree, PyTree]]:
    """Runs ``cell`` over the leading axis of ``xs``, in each direction.

    The arguments are those of :func:`lstm_jax.scan`, checked, with time in front; no
    state is missing.
    """
    dtype = compute_dtype(cell, xs.dtype)
    ready = [_prepare(cell, xs, direction, given) for direction in directions]
    inputs = vary_alike(tuple(one for _, one, _ in ready))
    reverse = tuple(direction.reverse for direction in directions)

    def run_cell(cell, inputs):
        able = choice.candidates(permitted, cell, dtype)
        call = Call(cell, reverse, emit_states, able, jax.tree.structure(inputs))
        return _run_layer(call, inputs, given.checkpoint_every)

    runs, over = ready[0][0], units_here()
    if over is None:
        results = run_cell(runs, inputs)
    else:
        results = units.run(run_cell, runs, inputs, over, emit_states=emit_states)
    narrowed = []
    for direction, (*_, restore), (state, ys) in zip(
        directions, ready, results, strict=True
    ):
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, direction.state)
        narrow = lambda tree: jax.tree.map(lambda a, dt: a.astype(dt), tree, dtypes)
        ys = narrow(ys) if emit_states else jax.tree.map(lambda y: y.astype(dtype), ys)
        narrowed.append((narrow(restore(state)), ys))
    return narrowed


def _prepare(
    cell: Cell, xs: Array, direction: Direction, given: Options
) -> tuple[Cell, Inputs, Callable[[PyTree], PyTree]]:
    """The cell that runs a direction, its inputs, and what restores its last state."""
    params, state, reset_state, key, reverse = direction
    valid, reset = step_controls(xs.shape[0], given, reverse)
    dtype = compute_dtype(cell, xs.dtype)
    # 0 * NaN is NaN: what stands in padding must go before the first product.
    xs = zero_where_not(valid, xs.astype(dtype))
    # A learned start is not the steps' business: it came in as the state.
    params = cast_params(cell.params_of_steps(params), dtype)
    if key is None:
        cell = cell.without_noise
    else:
        cell, params, xs = cell.perturb(key, params, xs)
    state, reset_state, restore = entering(state, reset_state, valid, reset, reverse)
    return cell, Inputs(params, xs, state, valid, reset, reset_state), restore


def _run_layer(
    call: Call, inputs: tuple[Inputs, ...], every: int | str | None
) -> list[tuple]:
    """All directions: at once, or by themselves where memory is bounded."""
    if every is None:
        return _run_together(call, inputs)
    return [
        _run_in_blocks(call, one, backwards, every)
        for one, backwards in zip(inputs, call.reverse, strict=True)
    ]


def _run_together(call: Call, inputs: tuple[Inputs, ...]) -> list[tuple]:
    """All directions at once."""
    if _is_plain(call, inputs):
        outputs = plain.run(inputs, call)
    else:
        outputs = primitive.run(inputs, call)
    return [(one.last, one.ys) for one in outputs]


def _is_plain(call: Call, inputs: tuple[Inputs, ...]) -> bool:
    """Whether the steps have to be seen by JAX one by one, as they are.

    Where they have side effects, or where jit is off so that they can be looked at; but
    not where another implementation may run, nor where there are no steps.
    """
    length = jax.tree.leaves(inputs[0].xs)[0].shape[0]
    others = any(not isinstance(one, xla.Reference) for one in call.candidates)
    if others or length == 0:
        return False
    effects = traced_step(call.cell, inputs[0])[-1]
    return bool(config.jax_disable_jit) or bool(effects)


def _run_in_blocks(
    call: Call, inputs: Inputs, reverse: bool, every: int | str
) -> tuple[PyTree, PyTree]:
    """One direction in blocks of steps, which the backward pass runs again."""

    def steps_from(state, steps):
        xs, valid, reset = steps
        one = inputs._replace(xs=xs, state=state, valid=valid, reset=reset)
        tree = jax.tree.structure((one,))
        alone = Call(call.cell, (reverse,), call.emit_states, call.candidates, tree)
        return _run_together(alone, (one,))[0]

    steps = (inputs.xs, inputs.valid, inputs.reset)
    length = jax.tree.leaves(inputs.xs)[0].shape[0]
    size = max(1, math.isqrt(length)) if isinstance(every, str) else int(every)
    block = jax.checkpoint(steps_from, prevent_cse=False)
    return scan_blocks(block, inputs.state, steps, size, reverse=reverse)


def step_controls(
    length: int, given: Options, reverse: bool
) -> tuple[Array | None, Array | None]:
    """What is valid, and before which steps to reset, ``[T, *batch]`` each."""
    lengths, valid, reset = given.lengths, given.mask, given.reset
    if lengths is not None:
        times = lax.broadcasted_iota(jnp.int32, (length, *lengths.shape), 0)
        within = times < jnp.expand_dims(lengths.astype(jnp.int32), 0)
        valid = within if valid is None else within & valid
        reset = None if reset is None else within & reset
    if reset is not None and reverse:
        # In reverse the boundary between t-1 and t is crossed just before step t-1.
        reset = jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])
    return valid, reset


def entering(
    state: PyTree,
    reset_state: PyTree,
    valid: Array | None,
    reset: Array | None,
    reverse: bool,
) -> tuple[PyTree, PyTree, Callable[[PyTree], PyTree]]:
    """Both states with 0 in the rows in which they enter no valid step.

    Those may hold NaN, and 0 * NaN, in a gradient of the parameters, is NaN. What comes
    third puts into a last state what such rows end with: the one or the other.
    """
    if valid is None:
        return state, reset_state, lambda last: last
    if reset is None:
        used = valid.any(0)
        restore = lambda last: where_rows(used, last, state)
        return zero_where_not(used, state), reset_state, restore
    times = lax.broadcasted_iota(jnp.int32, reset.shape, 0)
    never = -1 if reverse else jnp.iinfo(jnp.int32).max
    when = jnp.where(reset, times, never)
    if reverse:
        begun = times <= when.max(0, keepdims=True, initial=never)
    else:
        begun = times >= when.min(0, keepdims=True, initial=never)
    used, used_again = (valid & ~begun).any(0), (valid & begun).any(0)
    ends = used_again | (used & ~reset.any(0))

    def restore(last):
        return where_rows(ends, last, where_rows(reset.any(0), reset_state, state))

    return (
        zero_where_not(used, state),
        zero_where_not(used_again, reset_state),
        restore,
    )
