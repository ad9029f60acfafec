"""The likeliest sequences that a beam of given width finds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.checks import options
from lstm_jax.data import taking
from lstm_jax.decoding import prompts as reading
from lstm_jax.decoding.prompts import Step
from lstm_jax.types import Array, PyTree

# The logarithm of the largest power of a length that scores are divided by: float32
# holds what is left of any sum of log-probabilities.
_LARGEST_POWER = 60.0


class Hypotheses(NamedTuple):
    """What a search found, the best of each row first.

    Attributes:
        tokens: int32 ``[B, n_best, length]``, ``fill`` after an end.
        lengths: int32 ``[B, n_best]``, tokens, a stop token included; 0 where a row has
            fewer hypotheses than asked for.
        scores: float32 ``[B, n_best]``; -inf where there is none. NaN, as the
            log-probabilities, and without tokens, for a row whose logits had a NaN.
        log_probs: float32 ``[B, n_best]``, sums of the tokens' log-probabilities.
        finished: bool ``[B, n_best]``, whether it ends with a stop token.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import decoding
        >>> count = lambda params, state, token: (state, 9 * jnp.eye(9)[token + 1])
        >>> found = decoding.beam_search(count, None, (), [[2]], 5, width=2, stop=5)
        >>> found.tokens[0, 0].tolist(), found.lengths.tolist()
        ([3, 4, 5, 0, 0], [[3]])
    """

    tokens: Array
    lengths: Array
    scores: Array
    log_probs: Array
    finished: Array


def beam_search(
    step: Step,
    params: PyTree,
    state: PyTree,
    prompts: Any,
    length: int,
    *,
    width: int,
    stop: int | Sequence[int] = (),
    length_penalty: float = 0.0,
    n_best: int = 1,
    fill: int = 0,
) -> Hypotheses:
    """Searches for the best continuations of prompts, in one compiled program.

    A hypothesis is a continuation that ends with its first stop token, or that has
    ``length`` tokens. Its score is ``log_prob / tokens**length_penalty``, where the
    prompt does not count and a stop token does. The search keeps the ``width``
    likeliest beginnings, and ends where none of them can come to a score above the
    ``width`` best hypotheses so far. A wide enough beam finds the best of all, under
    any penalty. What comes first does not depend on ``n_best``.

    Args:
        step: as for :func:`generate`; it is given ``B * width`` rows.
        params: whatever ``step`` takes.
        state: before the prompts; each leaf has B rows, ``[B, ...]``.
        prompts: as for :func:`generate`.
        length: most tokens of a hypothesis.
        width: beginnings that are kept.
        stop: a token, or several, that end a hypothesis.
        length_penalty: above 0 favours long ones, below 0 short ones.
        n_best: how many hypotheses of each row, at most ``width``.
        fill: what stands after a hypothesis's end.

    Raises:
        ValueError: as :func:`generate`, or if ``n_best`` is more than ``width``, or
            powers of ``length_penalty`` are too large or small for float32.
        TypeError: as :func:`generate`.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax import decoding
        >>> model = lj.LSTM(5, 5)
        >>> def step(params, state, tokens):
        ...     return model.step(params, state, jax.nn.one_hot(tokens, 5))
        >>> args = step, model.init(jax.random.key(0)), model.zero_state((2,))
        >>> found = decoding.beam_search(
        ...     *args, [[1, 2, 3], [4]], 7, width=4, stop=0, n_best=3
        ... )
        >>> found.tokens.shape
        (2, 3, 7)
    """
    options.check_positive("width", width)
    options.check_positive("n_best", n_best)
    options.check_finite("length_penalty", length_penalty)
    if n_best > width:
        raise ValueError(f"n_best: expected at most width, {width}, got {n_best}.")
    fill = taking.integer("fill", fill)
    read, ends = reading.checked(step, params, state, prompts, length, stop)
    most = _LARGEST_POWER / math.log(max(length, 2))
    if abs(length_penalty) > most:
        raise ValueError(
            f"length_penalty: expected from {-most:.1f} to {most:.1f} for a length of "
            f"{length}, got {length_penalty}."
        )
    found, classes = _found(
        *(step, reading.bucket(length), width, read, ends),
        *(np.int32(length), np.float32(length_penalty), np.int32(fill)),
    )
    reading.check_stops(ends, classes)
    return Hypotheses(
        found.tokens[:, :n_best, :length], *(part[:, :n_best] for part in found[1:])
    )


class _Search(NamedTuple):
    """Between two steps: the beginnings, and the best hypotheses so far.

    ``token`` is what the next step reads, ``[B * W]``; ``live`` has the beginnings'
    log-probabilities, ``[B, W]``, -inf where there are fewer. ``broken`` says which
    rows had a NaN, ``[B]``.
    """

    number: Array
    state: PyTree
    token: Array
    live: Array
    tokens: Array
    best: Hypotheses
    broken: Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _found(step, longest, width, read, *rest):
    classes = reading.classes(step, read)
    return _searched(step, longest, width, read, *rest), classes


def _searched(step, longest, width, read, stop, length, penalty, fill):
    state, last = reading.read(step, read)
    rows = len(last)
    widened = lambda leaf: jnp.repeat(leaf, width, 0)
    blank = jnp.full((rows, width, longest), fill)
    never = jnp.full((rows, width), -jnp.inf)
    none = jnp.zeros((rows, width), jnp.int32)
    best = Hypotheses(blank, none, never, never, none > 0)
    live = never.at[:, 0].set(0.0)
    start = _Search(
        *(jnp.int32(0), jax.tree.map(widened, state), widened(last)),
        *(live, blank, best, jnp.zeros(rows, bool)),
    )

    def score(log_probs, tokens):
        return log_probs / tokens.astype(jnp.float32) ** penalty

    def hopes(now):
        # No longer continuation is likelier: its score is best at one of both ends.
        ends = score(now.live, now.number + 1), score(now.live, length)
        return (jnp.maximum(*ends).max(-1) > now.best.scores.min(-1)) & ~now.broken

    def goes_on(now):
        return (now.number < length) & hopes(now).any()

    def search(now):
        state, logits = step(read.params, now.state, now.token)
        logs, wrong = _logs(logits, rows, width)
        broken = hopes(now) & (wrong & (now.live > -jnp.inf)).any(-1)
        now = now._replace(broken=now.broken | broken)
        logs = now.live[..., None] + logs
        best = _ended(now, logs, stop, score)
        return _continued(now._replace(best=best), state, logs, stop)

    now = lax.while_loop(goes_on, search, start)
    left = jnp.where(now.number < length, -jnp.inf, now.live)
    whole = Hypotheses(
        *(now.tokens, jnp.full_like(none, length), score(left, length)),
        *(left, none > 0),
    )
    return _told(_best_of(width, now.best, whole), blank, now.broken)


def _told(best: Hypotheses, blank: Array, broken: Array) -> Hypotheses:
    """The best, with nothing where there is none, and NaN where a row had one."""
    there = (best.scores > -jnp.inf) & ~broken[:, None]
    nan = jnp.where(broken[:, None], jnp.nan, jnp.zeros_like(best.scores))
    return Hypotheses(
        jnp.where(there[..., None], best.tokens, blank),
        jnp.where(there, best.lengths, jnp.zeros_like(best.lengths)),
        *(best.scores + nan, best.log_probs + nan, best.finished & there),
    )


def _logs(logits: Array, rows: int, width: int) -> tuple[Array, Array]:
    """Log-probabilities, ``[B, W, V]``, and of which beginnings they are none.

    Where no class is possible all are -inf: nothing goes on from there.
    """
    if logits.ndim != 2 or len(logits) != rows * width:
        raise ValueError(
            f"step: expected logits [B * width, V] with {rows * width} rows, as it was "
            f"given tokens, got {list(logits.shape)}."
        )
    logits = logits.reshape(rows, width, -1)
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), -1)
    wrong = jnp.isnan(logs)
    dead = (logits == -jnp.inf).all(-1)
    return jnp.where(wrong, -jnp.inf, logs), wrong.any(-1) & ~dead


def _ended(now: _Search, logs: Array, stop: Array, score: Any) -> Hypotheses:
    """The best hypotheses, with those that end at this step."""
    rows, width, _ = logs.shape
    if not stop.size:
        return now.best
    many = lambda leaf: jnp.repeat(leaf, len(stop), 1)
    logs = logs[..., stop].reshape(rows, -1)
    tokens = many(now.tokens).at[:, :, now.number]
    tokens = tokens.set(jnp.broadcast_to(jnp.tile(stop, width), logs.shape))
    lengths = jnp.full(logs.shape, now.number + 1)
    ended = Hypotheses(
        tokens, lengths, score(logs, lengths), logs, jnp.ones(logs.shape, bool)
    )
    return _best_of(width, now.best, ended)


def _continued(now: _Search, state: PyTree, logs: Array, stop: Array) -> _Search:
    """The likeliest beginnings that are one token longer."""
    rows, width, classes = logs.shape
    logs = logs.at[..., stop].set(-jnp.inf).reshape(rows, -1)
    live, places = lax.top_k(logs, width)
    parents, token = places // classes, (places % classes).astype(jnp.int32)
    tokens = jnp.take_along_axis(now.tokens, parents[..., None], 1)
    tokens = tokens.at[:, :, now.number].set(token)
    flat = (jnp.arange(rows)[:, None] * width + parents).reshape(-1)
    state = jax.tree.map(lambda leaf: leaf[flat], state)
    token = token.reshape(-1)
    return _Search(*(now.number + 1, state, token, live, tokens, now.best, now.broken))


def _best_of(width: int, one: Hypotheses, other: Hypotheses) -> Hypotheses:
    """The best of two sets of hypotheses of each row, in falling order."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), one, other)
    scores, places = lax.top_k(both.scores, width)
    chosen = [
        jnp.take_along_axis(
            part, places.reshape(*places.shape, *[1] * (part.ndim - 2)), 1
        )
        for part in both
    ]
    return Hypotheses(*chosen)._replace(scores=scores)
