"""The loop over time on checked, time-major arguments.

Turns lengths, mask and reset into what holds and resets the state at each step, chooses
the implementation, and keeps memory bounded where that was asked for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax import shapes
from lstm_jax.blocks import scan_blocks
from lstm_jax.cell import accumulation_dtype, cast_params
from lstm_jax.recurrence import cpu, xla
from lstm_jax.recurrence.xla import Controls
from lstm_jax.types import Array, Cell, PyTree

_IMPLEMENTATIONS = {"xla": xla, "cpu": cpu}


def implementations() -> dict[str, str]:
    """Returns each implementation's name with "available", or the reason why not.

    Example:
        >>> import lstm_jax as lj
        >>> lj.implementations()["xla"]
        'available'
    """
    return {"xla": "available", "cpu": cpu.unavailable() or "available"}


def choose_implementation(implementation: str | None, cell: Cell, xs: Array) -> str:
    """Returns the implementation asked for, or the fastest that can run these.

    Raises:
        NotImplementedError: if the one asked for cannot.
    """
    if implementation is None:
        native = jax.default_backend() == "cpu" and not _why_not_cpu(cell, xs)
        return "cpu" if native else "xla"
    shapes.check_choice("implementation", implementation, tuple(_IMPLEMENTATIONS))
    if implementation == "cpu" and (reason := _why_not_cpu(cell, xs)):
        raise NotImplementedError(f'implementation "cpu": {reason}.')
    return implementation


def _why_not_cpu(cell: Cell, xs: Array) -> str | None:
    return cpu.why_not(cell, getattr(cell, "dtype", None) or xs.dtype)


def run(
    cell: Cell,
    params: PyTree,
    xs: Array,
    state: PyTree,
    lengths: Array | None,
    mask: Array | None,
    reset: Array | None,
    reset_state: PyTree,
    *,
    reverse: bool,
    checkpoint_every: int | None,
    implementation: str,
    emit_states: bool = False,
) -> tuple[PyTree, PyTree]:
    """Runs ``cell`` over the leading axis of ``xs``.

    The arguments are those of :func:`lstm_jax.scan`, checked, with time in front; no
    state is missing.
    """
    valid, reset = _controls(xs.shape[0], lengths, mask, reset, reverse)
    dtype = getattr(cell, "dtype", None) or xs.dtype
    params, xs = cast_params(params, dtype), xs.astype(dtype)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    if implementation == "xla" and jax.default_backend() == "cpu":
        # XLA:CPU rewrites a whole half-precision buffer at each step that writes to it,
        # so states and outputs are float32 inside the loop. The products are not.
        widen = lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype))
        xs, state, reset_state = jax.tree.map(widen, (xs, state, reset_state))
    state = _vary(state, (params, xs, state, valid, reset, reset_state))
    if implementation == "xla" and valid is not None:
        # 0 * NaN is NaN: what stands in padding must go before the first product.
        xs = xla.where_rows(valid, xs, jnp.zeros_like(xs))

    def steps_from(state, steps):
        xs, valid, reset = steps
        return _IMPLEMENTATIONS[implementation].run(
            cell,
            params,
            xs,
            state,
            Controls(valid, reset, reset_state),
            reverse=reverse,
            emit_states=emit_states,
        )

    steps = (xs, valid, reset)
    if checkpoint_every is None:
        state, ys = steps_from(state, steps)
    else:
        block = jax.checkpoint(steps_from, prevent_cse=False)
        state, ys = scan_blocks(block, state, steps, checkpoint_every, reverse=reverse)
    narrow = lambda leaf, dtype: leaf.astype(dtype)
    state = jax.tree.map(narrow, state, dtypes)
    if emit_states:
        return state, jax.tree.map(narrow, ys, dtypes)
    return state, jax.tree.map(lambda y: y.astype(dtype), ys)


def _vary(state: PyTree, others: PyTree) -> PyTree:
    """Lets the state vary over the axes of ``shard_map`` that its inputs vary over.

    A loop's carry must have one type throughout, and zeros vary over no axis. A zero
    made like an input varies as it does, and so does what it is added to.
    """

    def add_zeros(leaf):
        for other in jax.tree.leaves(others):
            leaf = leaf + lax.full_like(other, 0, leaf.dtype, shape=())
        return leaf

    return jax.tree.map(add_zeros, state)


def _controls(
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
