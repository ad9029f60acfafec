"""Labels of frames, by a model that was trained with the CTC loss."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.checks import arrays, options
from lstm_jax.data import taking
from lstm_jax.types import Array, Options


class Transcripts(NamedTuple):
    """The labels of each row's frames.

    Attributes:
        tokens: int32 ``[B, T]``, or ``[B, n_best, T]``, the best first; the blank after
            the last label.
        lengths: int32 ``[B]`` or ``[B, n_best]``, how many labels.
        log_probs: float32 ``[B]`` or ``[B, n_best]``: of a beam's labels, by any
            alignment that it kept; of greedy ones, of the likeliest alignment alone.
            -inf where a beam has fewer than ``n_best``.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import decoding
        >>> frames = 9 * jnp.eye(3)[jnp.array([[1, 1, 0, 1, 2, 0]])]
        >>> tokens, lengths, _ = decoding.ctc_greedy(frames)
        >>> tokens[0, : lengths[0]].tolist()
        [1, 1, 2]
    """

    tokens: Array
    lengths: Array
    log_probs: Array


def ctc_greedy(
    logits: Array, *, lengths: Array | None = None, blank: int = 0
) -> Transcripts:
    """The labels of the likeliest alignment: runs of a class once, blanks left out.

    Args:
        logits: ``[B, T, K]``, floating, the blank among the K classes.
        lengths: ``[B]`` integers, valid frames of each row; all if None. Beyond them
            logits may hold anything, NaN included.
        blank: the class that stands for no label.

    Returns:
        :class:`Transcripts`, one of each row.

    Raises:
        ValueError: if a shape does not fit, or ``blank`` is no class.
        TypeError: if ``logits`` are not floating, or lengths or ``blank`` no integers.

    Source:
        Graves et al. 2006, "Connectionist temporal classification", best path decoding.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import decoding
        >>> frames = 9 * jnp.eye(3)[jnp.array([[1, 1, 0, 0, 2]])]
        >>> decoding.ctc_greedy(frames, lengths=[4]).lengths.tolist()
        [1]
    """
    logits, lengths, blank = _checked(logits, lengths, blank)
    return _greedy(logits, lengths, blank)


def ctc_beam_search(
    logits: Array,
    *,
    width: int,
    lengths: Array | None = None,
    blank: int = 0,
    n_best: int = 1,
) -> Transcripts:
    """The likeliest labels, each with all the alignments that lead to it.

    The search keeps the ``width`` likeliest beginnings of labels from frame to frame,
    and adds up what leads to the same ones. A wide enough beam is exact. One compiled
    program for each shape; its time grows with ``width**2 * T`` a frame.

    Args:
        logits: as for :func:`ctc_greedy`.
        width: beginnings that are kept.
        lengths: as for :func:`ctc_greedy`.
        blank: as for :func:`ctc_greedy`.
        n_best: how many of each row, at most ``width``.

    Returns:
        :class:`Transcripts`, ``n_best`` of each row.

    Raises:
        ValueError: as :func:`ctc_greedy`, or if ``n_best`` is more than ``width``.
        TypeError: as :func:`ctc_greedy`.

    Source:
        Graves and Jaitly 2014, "Towards end-to-end speech recognition with recurrent
        neural networks", algorithm 1, without a language model.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import decoding
        >>> # Two blanks are the likeliest alignment: 0.36; label 1 has 0.64 in all.
        >>> frames = jnp.log(jnp.array([[[0.6, 0.4], [0.6, 0.4]]]))
        >>> decoding.ctc_greedy(frames).lengths.tolist()
        [0]
        >>> found = decoding.ctc_beam_search(frames, width=3)
        >>> probability = float(jnp.exp(found.log_probs[0, 0]))
        >>> found.tokens[0, 0, :1].tolist(), round(probability, 6)
        ([1], 0.64)
    """
    logits, lengths, blank = _checked(logits, lengths, blank)
    options.check_positive("width", width)
    options.check_positive("n_best", n_best)
    if n_best > width:
        raise ValueError(f"n_best: expected at most width, {width}, got {n_best}.")
    found = _searched(logits, lengths, blank, width)
    return Transcripts(*(part[:, :n_best] for part in found))


def _checked(logits: Any, lengths: Any, blank: Any) -> tuple[Array, Array, int]:
    logits = arrays.take_array("logits", logits)
    if logits.ndim != 3:
        raise ValueError(f"logits: expected shape [B, T, K], got {list(logits.shape)}.")
    rows, frames, classes = logits.shape
    blank = taking.integer("blank", blank)
    if not 0 <= blank < classes:
        raise ValueError(
            f"blank: expected a class from 0 to {classes - 1}, got {blank}."
        )
    if lengths is None:
        return logits, jnp.full(rows, frames, jnp.int32), blank
    given = arrays.take_controls((rows,), frames, Options(lengths=lengths))
    return logits, jnp.asarray(given.lengths, jnp.int32), blank


def _log_probs(logits: Array) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32), -1)


@functools.partial(jax.jit, static_argnums=2)
def _greedy(logits, lengths, blank):
    rows, frames, _ = logits.shape
    valid = jnp.arange(frames)[None] < lengths[:, None]
    best = jnp.argmax(logits, -1).astype(jnp.int32)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=blank)[:, :-1]
    keep = valid & (best != blank) & (best != before)
    # What is not kept goes to a place that is cut off.
    place = jnp.where(keep, jnp.cumsum(keep, -1) - 1, frames)
    tokens = jnp.full((rows, frames + 1), blank, jnp.int32)
    tokens = tokens.at[jnp.arange(rows)[:, None], place].set(best)
    likeliest = jnp.where(valid, _log_probs(logits).max(-1, initial=-jnp.inf), 0.0)
    return Transcripts(
        tokens[:, :frames], keep.sum(-1, dtype=jnp.int32), likeliest.sum(-1)
    )


class _Beam(NamedTuple):
    """Beginnings of one row's labels, W different ones, by frame.

    ``in_blank`` has the log-probability of the alignments that end with a blank, and
    ``in_label`` of those that end with the last label; -inf where there are fewer.
    """

    tokens: Array
    lengths: Array
    in_blank: Array
    in_label: Array

    @property
    def total(self):
        return jnp.logaddexp(self.in_blank, self.in_label)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _searched(logits, lengths, blank, width):
    frames = logits.shape[1]
    never = jnp.full(width, -jnp.inf)
    empty = jnp.full((width, frames), blank, jnp.int32)
    lengths_of_empty = jnp.zeros(width, jnp.int32)
    start = _Beam(empty, lengths_of_empty, never.at[0].set(0.0), never)

    def search(logs, length):
        def frame(beam, at):
            number, log_probs = at
            moved = _moved(beam, log_probs, blank)
            choose = lambda new, old: jnp.where(number < length, new, old)
            return jax.tree.map(choose, moved, beam), None

        beam, _ = lax.scan(frame, start, (jnp.arange(frames), logs))
        log_probs, order = lax.top_k(beam.total, width)
        there = log_probs > -jnp.inf
        tokens = jnp.where(there[:, None], beam.tokens[order], empty)
        labels = jnp.where(there, beam.lengths[order], lengths_of_empty)
        return Transcripts(tokens, labels, log_probs)

    return jax.vmap(search)(_log_probs(logits), lengths)


def _moved(beam: _Beam, log_probs: Array, blank: int) -> _Beam:
    """The likeliest beginnings after one more frame."""
    width, classes = len(beam.lengths), len(log_probs)
    place = jnp.maximum(beam.lengths - 1, jnp.zeros_like(beam.lengths))
    last = jnp.take_along_axis(beam.tokens, place[:, None], 1)[:, 0]
    some = beam.lengths > 0

    # A label once more is a run, unless a blank was between.
    is_last = jnp.arange(classes)[None] == last[:, None]
    again = is_last & some[:, None]
    longer = jnp.where(again, beam.in_blank[:, None], beam.total[:, None])
    longer = (longer + log_probs[None]).at[:, blank].set(-jnp.inf)
    in_label = jnp.where(some, beam.in_label + log_probs[last], -jnp.inf)

    # A longer one may be in the beam already: it is one beginning, not two.
    parent = _parents(beam) & some[:, None]
    joined = jnp.where(parent, longer[:, last].T, -jnp.inf).max(-1)
    in_label = jnp.logaddexp(in_label, joined)
    taken = parent[:, :, None] & is_last[:, None]
    longer = jnp.where(taken.any(0), -jnp.inf, longer)

    in_blank = beam.total + log_probs[blank]
    scores = jnp.concatenate([jnp.logaddexp(in_blank, in_label), longer.reshape(-1)])
    _, chosen = lax.top_k(scores, width)
    stays = chosen < width
    of_longer = jnp.where(stays, 0, chosen - width)
    origin = jnp.where(stays, chosen, of_longer // classes)
    label = (of_longer % classes).astype(jnp.int32)
    tokens, lengths = beam.tokens[origin], beam.lengths[origin]
    # Beyond the last place nothing is written.
    at = jnp.where(stays, tokens.shape[1], lengths)
    never = jnp.full(width, -jnp.inf)
    return _Beam(
        tokens.at[jnp.arange(width), at].set(label, mode="drop"),
        jnp.where(stays, lengths, lengths + 1),
        jnp.where(stays, in_blank[origin], never),
        jnp.where(stays, in_label[origin], longer.reshape(-1)[of_longer]),
    )


def _parents(beam: _Beam) -> Array:
    """``[W, W]``, whether a beginning is that of another without its last label."""
    place = jnp.arange(beam.tokens.shape[1])
    within = place[None] < (beam.lengths - 1)[:, None]
    equal = beam.tokens[:, None] == beam.tokens[None]
    same = (equal | ~within[:, None]).all(-1)
    return same & (beam.lengths[:, None] == beam.lengths[None] + 1)
