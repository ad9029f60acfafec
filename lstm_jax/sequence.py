"""A cell over time: the public functions, their checks and their layouts."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import meshes
from lstm_jax.cells.base import Cell, as_cell, compute_dtype
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.checks import arrays, options, trees
from lstm_jax.recurrence import choice, loop, units
from lstm_jax.types import Array, LSTMParams, LSTMState, Options, PyTree


def scan(
    cell: Cell,
    params: PyTree,
    xs: Array,
    state: PyTree = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_state: PyTree = None,
    reverse: bool = False,
    key: Array | None = None,
    time_major: bool = False,
    checkpoint_every: int | str | None = None,
    implementation: str | None = None,
) -> tuple[PyTree, PyTree]:
    """Runs a cell over time.

    Shapes:
        ``xs`` is ``[*batch, T, I]``, or ``[T, *batch, I]`` if ``time_major``; ``ys``,
        ``mask`` and ``reset`` have the same leading axes. For the standard cell ``ys``
        ends in P, and the states are ``[*batch, P]`` and ``[*batch, H]``.

    Args:
        cell: an :class:`LSTMCell`, or anything that follows the cell protocol.
        params: the cell's parameters.
        xs: the inputs. They set the compute dtype, unless the cell has a ``dtype``.
        state: what the scan starts from; if None zeros, or what the cell has learned.
        lengths: ``[*batch]``, any integer dtype, from 0 to T. Outputs past a row's
            length are 0, and its last state is the one after its last valid step.
            Padding may hold anything, NaN included: it reaches no output and no
            gradient.
        mask: bool. A step where it is False holds the state and outputs 0. With
            ``lengths``, a step is valid where both say so.
        reset: bool. True at t says that a new segment begins at step t: no state
            crosses from t-1 to t, in either direction::

                reset      F F T F F
                forward    0 1|2 3 4     before step 2 the state becomes reset_state
                reverse    0 1|2 3 4     after 4, 3, 2, before step 1, it does

            A masked step still separates; past a row's length nothing acts.
        reset_state: the state after a reset, of the same shapes as ``state``; if None
            zeros, or what the cell has learned. It is never the ``state`` passed in,
            which may come from an earlier chunk.
        reverse: whether to run from the last step to the first. Outputs stand at their
            input's time, and each row is reversed within its own length.
        key: a random key turns on the noise of a cell that has some, such as a
            :class:`Regularized` one; without a key every cell is deterministic.
        time_major: whether the first axis is time.
        checkpoint_every: k keeps the state every k steps and computes the rest again in
            the backward pass: memory grows with T/k + k instead of T. "sqrt" takes the
            square root of T, for which that is least.
        implementation: a name of :func:`implementations`; None for the fastest one that
            can run these arguments.

    Returns:
        ``(state, ys)``: the last state and the outputs of all steps. Under ``jax.jit``,
        outputs that are not used are not kept.

    Raises:
        ValueError: if a shape, a value of ``lengths`` or an option is wrong.
        TypeError: if a type or dtype is wrong, such as a bare pair for the state.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> xs = jnp.ones((2, 7, 3))
        >>> state, ys = lj.scan(cell, params, xs, lengths=jnp.array([7, 4]))
        >>> ys.shape, bool((ys[1, 4:] == 0).all()), bool((ys[1, 3] == state.h[1]).all())
        ((2, 7, 5), True, True)
    """
    given = Options(
        lengths,
        mask,
        reset,
        reset_state,
        key,
        time_major,
        checkpoint_every,
        implementation,
    )
    return _checked(cell, params, xs, state, given, reverse, emit_states=False)


def scan_states(
    cell: Cell,
    params: PyTree,
    xs: Array,
    state: PyTree = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_state: PyTree = None,
    reverse: bool = False,
    key: Array | None = None,
    time_major: bool = False,
    checkpoint_every: int | str | None = None,
    implementation: str | None = None,
) -> tuple[PyTree, PyTree]:
    """Runs a cell over time and returns the state after every step.

    The arguments are those of :func:`scan`.

    Returns:
        ``(state, states)``: ``states`` is an :class:`LSTMState` (or the cell's own
        state) whose leaves have a time axis, 0 where a step is not valid, so that
        ``states.h`` is what :func:`scan` returns as ``ys``.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> _, states = lj.scan_states(cell, params, jnp.ones((2, 7, 3)))
        >>> states.h.shape, states.c.shape
        ((2, 7, 5), (2, 7, 5))
    """
    given = Options(
        lengths,
        mask,
        reset,
        reset_state,
        key,
        time_major,
        checkpoint_every,
        implementation,
    )
    return _checked(cell, params, xs, state, given, reverse, emit_states=True)


def lstm(
    params: LSTMParams,
    xs: Array,
    state: LSTMState | None = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_state: LSTMState | None = None,
    reverse: bool = False,
    key: Array | None = None,
    time_major: bool = False,
    checkpoint_every: int | str | None = None,
    implementation: str | None = None,
) -> tuple[LSTMState, Array]:
    """Runs the standard LSTM that fits ``params`` over time.

    ``scan(LSTMCell.for_params(params), params, xs, ...)``; the arguments, the results
    and the errors are those of :func:`scan`.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> params = lj.LSTMCell(3, 5).init(jax.random.key(0))
        >>> state, ys = lj.lstm(params, jnp.ones((7, 3)))
        >>> ys.shape
        (7, 5)
    """
    return scan(
        LSTMCell.for_params(params),
        params,
        xs,
        state,
        lengths=lengths,
        mask=mask,
        reset=reset,
        reset_state=reset_state,
        reverse=reverse,
        key=key,
        time_major=time_major,
        checkpoint_every=checkpoint_every,
        implementation=implementation,
    )


def resolve_implementation(
    cell: Cell,
    params: PyTree,
    xs: Array,
    state: PyTree = None,
    *,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_state: PyTree = None,
    reverse: bool = False,
    key: Array | None = None,
    time_major: bool = False,
    checkpoint_every: int | str | None = None,
    implementation: str | None = None,
    platform: str | None = None,
) -> str:
    """Returns the name of the implementation that :func:`scan` would run.

    Takes and checks the same arguments; runs nothing.

    Args:
        cell: see :func:`scan`, as for all but ``platform``.
        params: see :func:`scan`.
        xs: see :func:`scan`.
        state: see :func:`scan`.
        lengths: see :func:`scan`.
        mask: see :func:`scan`.
        reset: see :func:`scan`.
        reset_state: see :func:`scan`.
        reverse: see :func:`scan`.
        key: see :func:`scan`.
        time_major: see :func:`scan`.
        checkpoint_every: see :func:`scan`.
        implementation: see :func:`scan`.
        platform: one of JAX's, such as "cpu", "cuda" or "tpu"; None for the one that
            ``xs`` is on or, where that is not known, ``jax.default_device``.

    Raises:
        ValueError: as :func:`scan`.
        TypeError: as :func:`scan`.
        NotImplementedError: if the implementation that was named can't run these
            arguments, or not on this platform.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> xs = jnp.ones((2, 7, 3), jnp.float16)
        >>> lj.resolve_implementation(cell, params, xs)
        'xla'
    """
    given = Options(
        lengths,
        mask,
        reset,
        reset_state,
        key,
        time_major,
        checkpoint_every,
        implementation,
    )
    where = xs
    options.check_flag("reverse", reverse)
    cell, params, xs, state, given = prepare(cell, params, xs, state, given)
    runs = [cell.without_noise]

    def perturb():
        front = xs if time_major else jnp.moveaxis(xs, _batch_ndim(cell, xs), 0)
        runs[0], *rest = cell.perturb(jnp.asarray(given.key), params, front)
        return rest

    if key is not None:
        jax.eval_shape(perturb)
    dtype = compute_dtype(cell, xs.dtype)
    able = choice.candidates(given.implementation, units.in_parts(runs[0]), dtype)
    return choice.resolve(able, platform, where)


def check_options(given: Options) -> None:
    """Checks what is static about a call over time."""
    options.check_flag("time_major", given.time_major)
    every = given.checkpoint_every
    if isinstance(every, str):
        options.check_choice("checkpoint_every", every, ("sqrt",))
    elif every is not None:
        options.check_positive("checkpoint_every", every)


def check_length(given: Options, length: Any) -> None:
    """Checks that a number of steps that is not known is not needed."""
    if given.checkpoint_every is not None and not isinstance(length, int):
        raise ValueError(
            f"checkpoint_every: expected None where the number of steps is symbolic, "
            f"T = {length}, got {given.checkpoint_every!r}. Blocks need a number."
        )


def prepare(
    cell: Any, params: PyTree, xs: Any, state: PyTree, given: Options
) -> tuple[Cell, PyTree, Array, PyTree, Options]:
    """Checks what :func:`scan` was given; all arrays are JAX's own, no state missing.

    ``implementation`` is then a tuple of those that may run.
    """
    cell = as_cell(cell)
    check_options(given)
    params = trees.check_params(cell, params)
    xs, batch_shape, length = arrays.check_sequence(cell, xs, given.time_major)
    check_length(given, length)
    given = arrays.take_controls(batch_shape, length, given)
    conform = functools.partial(
        trees.conform_state,
        cell,
        params=params,
        xs=xs,
        batch=(int(given.time_major), len(batch_shape)),
        dtype=xs.dtype,
        length=length,
    )
    if given.reset is not None:
        reset_state = conform("reset_state", given.reset_state)
        given = given._replace(reset_state=reset_state)
    elif given.reset_state is not None:
        raise ValueError("reset_state: expected None without reset, got a state.")
    permitted = choice.permitted(given.implementation)
    given = given._replace(implementation=permitted)
    return cell, params, xs, conform("state", state), given


def _checked(
    cell: Any,
    params: PyTree,
    xs: Any,
    state: PyTree,
    given: Options,
    reverse: bool,
    emit_states: bool,
) -> tuple[PyTree, PyTree]:
    options.check_flag("reverse", reverse)
    cell, params, xs, state, given = prepare(cell, params, xs, state, given)
    # What can't run is said here, and not in the middle of a program.
    runs = units.in_parts(cell.without_noise)
    choice.candidates(given.implementation, runs, compute_dtype(cell, xs.dtype))
    return _scan(
        cell.for_program(),
        params,
        xs,
        state,
        given.arrays,
        reverse=bool(reverse),
        emit_states=emit_states,
        static=given.static,
    )


def _batch_ndim(cell: Cell, xs: Array) -> int:
    return xs.ndim - arrays.input_ndim(cell) - 1


@functools.partial(
    jax.jit, static_argnames=("cell", "reverse", "emit_states", "static")
)
def _scan(cell, params, xs, state, traced, *, reverse, emit_states, static):
    given = Options(*traced, *static)
    axis = _batch_ndim(cell, xs)

    def run(params, xs, state, traced):
        given = Options(*traced, *static)
        if not given.time_major:
            xs, mask, reset = time_in_front(axis, xs, given)
            given = given._replace(mask=mask, reset=reset)
        direction = loop.Direction(params, state, given.reset_state, given.key, reverse)
        ((state, ys),) = loop.run(
            cell,
            xs,
            [direction],
            given,
            given.implementation,
            emit_states=emit_states,
        )
        if not given.time_major:
            ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axis), ys)
        return state, ys

    first = int(given.time_major)
    args = (params, xs, state, traced)
    outs = [units.state_places(state, 0), first]
    if emit_states:
        outs[1] = units.state_places(state, first, 1 - first)
    return meshes.automatic(run, args, xs, (first, axis), tuple(outs))


def time_in_front(axis: int, xs: Array, given: Options) -> Any:
    """Inputs, mask and reset with their time axis in front."""
    front = lambda leaf: jnp.moveaxis(leaf, axis, 0)
    return jax.tree.map(front, (xs, given.mask, given.reset))
