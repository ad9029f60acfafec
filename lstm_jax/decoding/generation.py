"""Prompts are read and gone on with, by any step that makes logits of a token."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.data import taking
from lstm_jax.decoding import prompts as reading
from lstm_jax.decoding import sampling
from lstm_jax.decoding.prompts import Step
from lstm_jax.types import Array, PyTree


class Generated(NamedTuple):
    """What was written.

    Attributes:
        tokens: int32 ``[B, length]``, ``fill`` after a row's end.
        lengths: int32 ``[B]``, tokens of each row, the one that it stopped at included.
        scores: float32 ``[B]``, the sum of the logarithms of their probabilities, by
            the model itself: before temperature, top_k and top_p.
        state: the state before each row's last token. With that token as a prompt it
            is gone on from there.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import decoding
        >>> count = lambda params, state, token: (state, jnp.eye(9)[token + 1])
        >>> decoding.generate(count, None, (), [[2]], 3, temperature=0.0).lengths
        Array([3], dtype=int32)
    """

    tokens: Array
    lengths: Array
    scores: Array
    state: PyTree


def generate(
    step: Step,
    params: PyTree,
    state: PyTree,
    prompts: Any,
    length: int,
    *,
    key: Any = None,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | Sequence[int] = (),
    fill: int = 0,
) -> Generated:
    """Goes on with prompts, token by token, in one compiled program.

    The program is compiled for a function ``step``, a number of rows, and lengths of
    prompts and of what is written up to the next power of two: all within it run the
    same one. So define ``step`` once, not anew at each call, and hand what it computes
    with over as ``params``. The loop ends where every row has stopped. A row's tokens
    do not depend on the others, with any kind of keys; those that are no threefry
    draw for one row after the other.

    Args:
        step: ``step(params, state, tokens) -> (state, logits)``, tokens int32 ``[B]``,
            logits ``[B, V]``. An attention's memory is part of the state.
        params: whatever ``step`` takes.
        state: before the prompts; each leaf has B rows, ``[B, ...]``.
        prompts: ``[B, T]`` integers, or B sequences of any lengths; each has at least
            one token, which the model begins with.
        length: most tokens to write.
        key: a typed key, which the rows split; or one for each row, ``[B]``. None where
            ``temperature`` is 0.
        temperature: as for :func:`sample`, as are ``top_k`` and ``top_p``.
        top_k: how many tokens to draw from.
        top_p: the probability to draw from.
        stop: a token, or several, that end a row.
        fill: what stands after a row's end.

    Raises:
        ValueError: if a prompt is empty, a token is negative or beyond int32, a stop
            token is none of the V that ``step`` has logits of, logits or the state have
            not as many rows as there are prompts, an option is out of range, or there
            is no key to draw with.
        TypeError: if prompts, stop tokens or ``fill`` are no integers.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> from lstm_jax import decoding
        >>> model = lj.LSTM(5, 5)
        >>> def step(params, state, tokens):
        ...     return model.step(params, state, jax.nn.one_hot(tokens, 5))
        >>> params, state = model.init(jax.random.key(0)), model.zero_state((2,))
        >>> prompts = [[1, 2, 3], [4]]
        >>> written = decoding.generate(
        ...     step, params, state, prompts, 7, key=jax.random.key(1), top_k=3, stop=0
        ... )
        >>> written.tokens.shape
        (2, 7)
    """
    sampling.check_options(key, temperature, top_k, top_p)
    fill = taking.integer("fill", fill)
    given, ends = reading.checked(step, params, state, prompts, length, stop)
    rows = len(given.tokens)
    if key is not None:
        key = jax.random.split(key, rows) if key.shape == () else key
        if key.shape != (rows,):
            raise ValueError(
                f"key: expected one, or one for each of {rows} rows, got "
                f"{list(key.shape)}."
            )
    written, classes = _written(
        *(step, reading.bucket(length), top_k, top_p, given, np.int32(length), key),
        *(temperature, ends, np.int32(fill)),
    )
    reading.check_stops(ends, classes)
    return written._replace(tokens=written.tokens[:, :length])


class _Writing(NamedTuple):
    """Between two steps: ``token`` is what the next one reads."""

    number: Array
    state: PyTree
    token: Array
    done: Array
    written: Generated


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _written(step, longest, top_k, top_p, given, *rest):
    length, key, temperature, stop, fill = rest
    classes = reading.classes(step, given)
    state, last = reading.read(step, given)
    zeros = jnp.zeros_like(last)
    blank = jnp.full((len(last), longest), fill)
    written = Generated(blank, zeros, zeros.astype(jnp.float32), state)
    start = _Writing(jnp.int32(0), state, last, zeros > 0, written)

    def goes_on(now):
        return (now.number < length) & ~now.done.all()

    def write(now):
        state, logits = step(given.params, now.state, now.token)
        if key is None:
            token = jnp.argmax(logits, -1).astype(jnp.int32)
        else:
            fold = lambda one: jax.random.fold_in(one, now.number)
            keys = sampling.by_key(fold, key)
            token = sampling.draw(logits, keys, temperature, top_k, top_p)
        return _with(now, state, logits, token, stop)

    return lax.while_loop(goes_on, write, start).written, classes


def _with(now: _Writing, state: PyTree, logits: Any, token: Array, stop: Any) -> Any:
    """What stands after one more token of each row that has not stopped."""
    going, old = ~now.done, now.written
    column = jnp.where(going, token, old.tokens[:, now.number])
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    log = jnp.take_along_axis(logs, token[:, None], -1)[:, 0]
    written = Generated(
        old.tokens.at[:, now.number].set(column),
        old.lengths + going.astype(jnp.int32),
        old.scores + jnp.where(going, log, jnp.zeros_like(log)),
        reading.chosen(going, state, now.state),
    )
    done = now.done | (token[:, None] == stop[None]).any(-1)
    return _Writing(now.number + 1, written.state, token, done, written)
