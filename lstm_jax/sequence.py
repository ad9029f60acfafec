"""A cell over time: the public functions, their checks and their layouts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import options
from lstm_jax.recurrence import loop
from lstm_jax.types import Array, Cell, LSTMParams, LSTMState, PyTree


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
    return _checked(
        cell,
        params,
        xs,
        state,
        lengths,
        mask,
        reset,
        reset_state,
        key,
        reverse=reverse,
        time_major=time_major,
        checkpoint_every=checkpoint_every,
        implementation=implementation,
        emit_states=False,
    )


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
    return _checked(
        cell,
        params,
        xs,
        state,
        lengths,
        mask,
        reset,
        reset_state,
        key,
        reverse=reverse,
        time_major=time_major,
        checkpoint_every=checkpoint_every,
        implementation=implementation,
        emit_states=True,
    )


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
) -> str:
    """Returns the name of the implementation that :func:`scan` would run.

    Takes and checks the same arguments; runs nothing.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> xs = jnp.ones((2, 7, 3), jnp.float16)
        >>> lj.resolve_implementation(cell, params, xs)
        'xla'
    """
    xs, _, _ = prepare(
        cell,
        params,
        xs,
        state,
        lengths,
        mask,
        reset,
        reset_state,
        time_major,
        checkpoint_every,
    )
    cell = loop.cell_without_noise(cell)
    return loop.choose_implementation(
        implementation, cell, loop.compute_dtype(cell, xs)
    )


def check_arguments(
    cell, params, xs, lengths, mask, reset, time_major, checkpoint_every
) -> tuple[tuple[int, ...], int]:
    """Checks what :func:`scan` was given but for states; returns batch shape and T."""
    if cell.__hash__ is None:
        raise TypeError(
            f"cell: expected a hashable description, got {type(cell).__name__}. Make "
            "it a frozen dataclass."
        )
    if isinstance(checkpoint_every, str):
        options.check_choice("checkpoint_every", checkpoint_every, ("sqrt",))
    elif checkpoint_every is not None:
        options.check_positive("checkpoint_every", checkpoint_every)
    shapes.check_params(cell, params)
    batch_shape, length = shapes.check_sequence(cell, xs, time_major)
    shapes.check_controls(batch_shape, length, time_major, lengths, mask, reset)
    return batch_shape, length


def prepare(
    cell,
    params,
    xs,
    state,
    lengths,
    mask,
    reset,
    reset_state,
    time_major,
    checkpoint_every,
) -> tuple[Array, PyTree, PyTree]:
    """Checks what :func:`scan` was given; returns xs and the states, none missing."""
    batch_shape, length = check_arguments(
        cell, params, xs, lengths, mask, reset, time_major, checkpoint_every
    )
    xs = jnp.asarray(xs)
    conform = functools.partial(
        shapes.conform_state,
        cell,
        params=params,
        batch_shape=batch_shape,
        dtype=xs.dtype,
        length=length,
    )
    if reset is not None:
        reset_state = conform("reset_state", reset_state)
    elif reset_state is not None:
        raise ValueError("reset_state: expected None without reset, got a state.")
    return xs, conform("state", state), reset_state


def _checked(
    cell, params, xs, state, lengths, mask, reset, reset_state, key, **options
) -> tuple[PyTree, PyTree]:
    if key is not None:
        shapes.check_key(key)
    xs, state, reset_state = prepare(
        cell,
        params,
        xs,
        state,
        lengths,
        mask,
        reset,
        reset_state,
        options["time_major"],
        options["checkpoint_every"],
    )
    loop.check_implementation(options["implementation"], cell, xs)
    return _scan(
        cell, params, xs, state, lengths, mask, reset, reset_state, key, **options
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "cell",
        "reverse",
        "time_major",
        "checkpoint_every",
        "implementation",
        "emit_states",
    ),
)
def _scan(
    cell,
    params,
    xs,
    state,
    lengths,
    mask,
    reset,
    reset_state,
    key,
    *,
    time_major,
    reverse,
    **options,
):
    if not time_major:
        axis = xs.ndim - shapes.input_ndim(cell) - 1
        xs, mask, reset = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf, axis, 0), (xs, mask, reset)
        )
    direction = loop.Direction(params, state, reset_state, key, reverse)
    ((state, ys),) = loop.run(cell, xs, [direction], lengths, mask, reset, **options)
    if not time_major:
        ys = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axis), ys)
    return state, ys
