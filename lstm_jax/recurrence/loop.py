"""The loop over time on checked, time-major arguments.

Turns lengths, mask and reset into what holds and resets the state at each step, chooses
the implementation, and keeps memory bounded where that was asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.lstm_cell import cast_params
from lstm_jax.checks import options
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.recurrence import cpu, xla
from lstm_jax.recurrence.blocks import scan_blocks
from lstm_jax.recurrence.xla import Controls
from lstm_jax.types import Array, PyTree

_IMPLEMENTATIONS = {"xla": xla, "cpu": cpu}


def implementations() -> dict[str, str]:
    """Returns each implementation's name with "available", or the reason why not.

    Example:
        >>> import lstm_jax as lj
        >>> lj.implementations()["xla"]
        'available'
    """
    return {"xla": "available", "cpu": cpu.unavailable() or "available"}


def choose_implementation(implementation: str | None, cell: Any, dtype: Any) -> str:
    """Returns the implementation asked for, or the fastest that can run these.

    Raises:
        ValueError: if there is none of that name.
        NotImplementedError: if the one asked for cannot run these.
    """
    if implementation == "xla":
        return implementation
    reason = cpu.why_not(cell, dtype)
    if implementation is None:
        return "cpu" if jax.default_backend() == "cpu" and not reason else "xla"
    options.check_choice("implementation", implementation, tuple(_IMPLEMENTATIONS))
    if reason:
        raise NotImplementedError(
            f'implementation: "cpu" {reason}. Leave it out for the fastest that can.'
        )
    return implementation


def check_implementation(implementation: str | None, cell: Any, xs: Array) -> None:
    """Raises what :func:`choose_implementation` does, before anything is traced."""
    if implementation is not None:
        cell, dtype = cell_without_noise(cell), compute_dtype(cell, xs)
        choose_implementation(implementation, cell, dtype)


def cell_without_noise(cell: Any) -> Any:
    """What runs instead of a cell where there is no key."""
    return getattr(cell, "without_noise", cell)


def compute_dtype(cell: Any, xs: Array) -> Any:
    """The dtype that the cell's products are computed in."""
    return jnp.dtype(getattr(cell, "dtype", None) or xs.dtype)


class Direction(NamedTuple):
    """What the directions of a layer do not share."""

    params: PyTree
    state: PyTree
    reset_state: PyTree = None
    key: Array | None = None
    reverse: bool = False


def run(
    cell: Any,
    xs: Array,
    directions: Sequence[Direction],
    lengths: Array | None,
    mask: Array | None,
    reset: Array | None,
    *,
    checkpoint_every: int | str | None,
    implementation: str | None,
    emit_states: bool = False,
) -> list[tuple[PyTree, PyTree]]:
    """Runs ``cell`` over the leading axis of ``xs``, in each direction.

    The arguments are those of :func:`lstm_jax.scan`, checked, with time in front; no
    state is missing.
    """
    ready = [
        _prepare(cell, xs, direction, lengths, mask, reset, implementation)
        for direction in directions
    ]
    if checkpoint_every is None and all(one.implementation == "cpu" for one in ready):
        results = cpu.run_together(
            ready[0].cell,
            [
                cpu.Direction(one.params, one.xs, one.state, one.controls, one.reverse)
                for one in ready
            ],
            emit_states=emit_states,
        )
    else:
        results = [_run_one(one, checkpoint_every, emit_states) for one in ready]
    dtype = compute_dtype(cell, xs)
    narrowed = []
    for direction, (state, ys) in zip(directions, results, strict=True):
        dtypes = jax.tree.map(lambda leaf: leaf.dtype, direction.state)
        narrow = lambda tree: jax.tree.map(lambda a, dt: a.astype(dt), tree, dtypes)
        ys = narrow(ys) if emit_states else jax.tree.map(lambda y: y.astype(dtype), ys)
        narrowed.append((narrow(state), ys))
    return narrowed


class _Ready(NamedTuple):
    """One direction as an implementation takes it."""

    implementation: str
    cell: Any
    params: PyTree
    xs: PyTree
    state: PyTree
    controls: Controls
    reverse: bool


def _prepare(
    cell: Any,
    xs: Array,
    direction: Direction,
    lengths: Array | None,
    mask: Array | None,
    reset: Array | None,
    implementation: str | None,
) -> _Ready:
    params, state, reset_state, key, reverse = direction
    valid, reset = step_controls(xs.shape[0], lengths, mask, reset, reverse)
    dtype = compute_dtype(cell, xs)
    params, xs = cast_params(params, dtype), xs.astype(dtype)
    if key is None:
        cell = cell_without_noise(cell)
    elif hasattr(cell, "perturb"):
        cell, params, xs = cell.perturb(key, params, xs)
    implementation = choose_implementation(implementation, cell, dtype)
    if implementation == "xla":
        xs, state, reset_state = _for_xla(xs, state, reset_state, valid)
    state = vary(state, (params, xs, state, valid, reset, reset_state))
    controls = Controls(valid, reset, reset_state)
    return _Ready(implementation, cell, params, xs, state, controls, reverse)


def _run_one(
    one: _Ready, checkpoint_every: int | str | None, emit_states: bool
) -> tuple[PyTree, PyTree]:
    """One direction; in blocks, where the backward pass is to run it again."""
    reset_state = one.controls.reset_state

    def steps_from(state, steps):
        xs, valid, reset = steps
        return _IMPLEMENTATIONS[one.implementation].run(
            one.cell,
            one.params,
            xs,
            state,
            Controls(valid, reset, reset_state),
            reverse=one.reverse,
            emit_states=emit_states,
        )

    steps = (one.xs, one.controls.valid, one.controls.reset)
    if checkpoint_every is None:
        return steps_from(one.state, steps)
    block = jax.checkpoint(steps_from, prevent_cse=False)
    size = checkpoint_every
    if isinstance(size, str):
        size = max(1, math.isqrt(jax.tree.leaves(one.xs)[0].shape[0]))
    return scan_blocks(block, one.state, steps, size, reverse=one.reverse)


def _for_xla(
    xs: PyTree, state: PyTree, reset_state: PyTree, valid: Array | None
) -> tuple[PyTree, PyTree, PyTree]:
    """Inputs and states as the reference takes them."""
    if jax.default_backend() == "cpu":
        # XLA:CPU rewrites a whole half-precision buffer at each step that writes to it,
        # so states and outputs are float32 inside the loop. The products are not.
        widen = lambda leaf: (
            leaf.astype(accumulation_dtype(leaf.dtype))
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        )
        xs, state, reset_state = jax.tree.map(widen, (xs, state, reset_state))
    if valid is not None:
        # 0 * NaN is NaN: what stands in padding must go before the first product.
        xs = xla.where_rows(valid, xs, jax.tree.map(jnp.zeros_like, xs))
    return xs, state, reset_state


def vary(state: PyTree, others: PyTree) -> PyTree:
    """Lets the state vary over the axes of ``shard_map`` that its inputs vary over.

    A loop's carry must have one type throughout, and zeros vary over no axis. A zero
    made like an input varies as it does, and so does what it is added to.
    """

    def add_zeros(leaf):
        for other in jax.tree.leaves(others):
            leaf = leaf + lax.full_like(other, 0, leaf.dtype, shape=())
        return leaf

    return jax.tree.map(add_zeros, state)


def step_controls(
    length: int,
    lengths: Array | None,
    mask: Array | None,
    reset: Array | None,
    reverse: bool,
) -> tuple[Array | None, Array | None]:
    """What is valid, and before which steps to reset, ``[T, *batch]`` each."""
    valid = mask
    if lengths is not None:
        times = lax.broadcasted_iota(jnp.int32, (length, *lengths.shape), 0)
        within = times < jnp.expand_dims(lengths.astype(jnp.int32), 0)
        valid = within if mask is None else within & mask
        reset = None if reset is None else within & reset
    if reset is not None and reverse:
        # In reverse the boundary between t-1 and t is crossed just before step t-1.
        reset = jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])
    return valid, reset
