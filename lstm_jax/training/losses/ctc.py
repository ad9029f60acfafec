"""The loss of labels whose places among the frames are not known."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lstm_jax import meshes
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, options, slips
from lstm_jax.data import taking
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.losses.counted import finish, valid_tokens
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array


@slips.explained
def ctc_loss(
    logits: Array,
    labels: Array,
    *,
    lengths: Array | None = None,
    label_lengths: Array | None = None,
    blank: int = 0,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The mean CTC loss over rows: ``-log p(labels | frames)``, any alignment.

    A row whose labels do not fit into its frames, one each and a blank between equal
    ones, has no alignment: it weighs 0, and so does its gradient. So does one that has
    none without a class that is at -inf. :func:`ctc_alignable` says which these are, to
    be counted. A row without frames, which fills a batch, weighs 0 too.

    Args:
        logits: ``[B, T, K]``, floating, the blank among the K classes; computed with in
            float32 or wider. A class may be at -inf: never at that frame.
        labels: ``[B, N]``, integers from 0 to K - 1 that are not ``blank``, where they
            count.
        lengths: ``[B]`` integers, valid frames of each row; all if None. Beyond them
            logits may hold anything, NaN included.
        label_lengths: ``[B]`` integers, valid labels; all if None. A row without labels
            is one of blanks alone.
        blank: the class that stands for no label.
        weighted: whether the sum and the number of rows that can be aligned come back
            as :class:`Weighted`, instead of the mean.
        axis_name: see :func:`cross_entropy`.

    Returns:
        A scalar, in nats a row; 0 where no row can be aligned. PyTorch's mean divides
        each row by its number of labels first. Where labels are traced, one that counts
        and is no label makes the loss NaN.

    Raises:
        ValueError: if a shape does not fit, ``blank`` is no class, or a label that
            counts is out of range or the blank, where the values are known.
        TypeError: if ``logits`` are not floating, or labels, lengths or ``blank`` no
            integers.

    Source:
        Graves et al. 2006, "Connectionist temporal classification"; ``optax.ctc_loss``.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import training
        >>> frames, labels = jnp.zeros((1, 3, 2)), jnp.array([[1]])
        >>> # 6 of the 8 sequences of 3 frames are one run of label 1.
        >>> round(float(jnp.exp(-training.ctc_loss(frames, labels))), 6)
        0.75
    """
    options.check_flag("weighted", weighted)
    logits, blank = _scored(logits, blank)
    frames = valid_tokens(jnp.zeros(logits.shape[:2], jnp.int32), None, lengths)
    labels, there = _taken(labels, label_lengths, logits.shape[0])
    wrong = _wrong(labels, there, blank, logits.shape[-1])
    fits = _fits(labels, there, frames) & ~wrong
    fits &= _possible(logits, frames, labels, there, blank)
    losses = _losses(logits, frames, labels, there & ~wrong[:, None], fits, blank)
    losses = jnp.where(wrong, jnp.asarray(jnp.nan, losses.dtype), losses)
    weigh = fits & frames.any(-1)
    return finish(jnp.sum(losses), jnp.sum(weigh, dtype=jnp.int32), weighted, axis_name)


def ctc_alignable(
    labels: Array,
    *,
    lengths: Array,
    label_lengths: Array | None = None,
    logits: Array | None = None,
    blank: int = 0,
) -> Array:
    """Which rows have as many frames as their labels need.

    Args:
        labels: ``[B, N]``, as for :func:`ctc_loss`.
        lengths: ``[B]`` integers, frames of each row.
        label_lengths: ``[B]`` integers; all labels count if None.
        logits: ``[B, T, K]``; where classes may be at -inf, a row must also have an
            alignment without them, as :func:`ctc_loss` asks for. All may be if None.
        blank: the class that stands for no label; asked for beside logits alone.

    Returns:
        Bool ``[B]``.

    Raises:
        ValueError: if a shape does not fit, or ``blank`` is no class.
        TypeError: if labels or lengths are no integers, or ``logits`` not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import training
        >>> labels = jnp.array([[1, 1, 1], [1, 2, 1]])
        >>> training.ctc_alignable(labels, lengths=jnp.array([4, 4])).tolist()
        [False, True]
    """
    lengths = border.take("lengths", lengths, allow_lists=True)
    shapes.check_array("lengths", lengths, jnp.integer)
    labels, there = _taken(labels, label_lengths, len(lengths))
    fits = lengths >= _needed(labels, there)
    if logits is None:
        return fits
    logits, blank = _scored(logits, blank)
    frames = valid_tokens(jnp.zeros(logits.shape[:2], jnp.int32), None, lengths)
    return fits & _possible(logits, frames, labels, there, blank)


def _scored(logits: Any, blank: Any) -> tuple[Array, int]:
    """Logits, and the class that is the blank."""
    logits = shapes.take_array("logits", logits)
    if logits.ndim != 3:
        raise ValueError(f"logits: expected shape [B, T, K], got {list(logits.shape)}.")
    blank = taking.integer("blank", blank)
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(
            f"blank: expected a class from 0 to {logits.shape[-1] - 1}, got {blank}."
        )
    return logits, blank


def _taken(labels: Any, label_lengths: Any, rows: int) -> tuple[Array, Array]:
    """Labels, and where they count."""
    labels = border.take("labels", labels)
    shapes.check_array("labels", labels, jnp.integer)
    if labels.ndim != 2 or labels.shape[0] != rows:
        raise ValueError(
            f"labels: expected shape [B, N] with B = {rows}, got {list(labels.shape)}."
        )
    return labels.astype(jnp.int32), valid_tokens(labels, None, label_lengths)


def _wrong(labels: Array, there: Array, blank: int, classes: int) -> Array:
    """Rows with a label that is none; an error where the values are known."""
    none = there & ((labels < 0) | (labels >= classes) | (labels == blank))
    if not isinstance(none, jax.core.Tracer) and (bad := np.asarray(none)).any():
        raise ValueError(
            f"labels: expected from 0 to {classes - 1} and not the blank, {blank}, got "
            f"{np.asarray(labels)[bad][0]}."
        )
    return none.any(-1)


def _needed(labels: Array, there: Array) -> Array:
    """The fewest frames of each row: equal neighbours need a blank between them."""
    again = (labels[:, 1:] == labels[:, :-1]) & there[:, 1:]
    return there.sum(-1, dtype=jnp.int32) + again.sum(-1, dtype=jnp.int32)


def _fits(labels: Array, there: Array, frames: Array) -> Array:
    return frames.sum(-1, dtype=jnp.int32) >= _needed(labels, there)


def _possible(
    logits: Array, frames: Array, labels: Array, there: Array, blank: int
) -> Array:
    """Which rows have an alignment without a class at -inf.

    Most have no such class at all; where one has, alignments are gone through frame by
    frame, as the loss does, with whether there is one in the place of how likely it is.
    """
    labels = jnp.where(there, labels, jnp.int32(blank))
    args = logits != -jnp.inf, frames, labels, there.sum(-1, dtype=jnp.int32)

    def run(may, frames, labels, numbers):
        every = lambda: jnp.ones(len(frames), bool)
        some = lambda: _reached(may, frames, labels, numbers, blank)
        return (lax.cond(may.all(), every, some),)

    return meshes.automatic(run, args, logits, (0, 1), (0,))[0]


def _reached(may, frames, labels, numbers, blank):
    """Whether a way over blank, label, blank, ... ends at the last one or behind it.

    The first place, 0, is before any frame; a label n from 0 on is at ``2 n + 2``.
    """
    rows, labelled = labels.shape
    at = jnp.arange(2 * labelled + 2)[None]
    places = jnp.full((rows, at.size), blank, jnp.int32).at[:, 2::2].set(labels)
    # What is between two labels that differ may be passed over.
    passes = jnp.zeros(places.shape, bool).at[:, 2:3].set(True)
    passes = passes.at[:, 4::2].set(labels[:, 1:] != labels[:, :-1])
    from_before = lambda reached, by: jnp.pad(reached, ((0, 0), (by, 0)))[:, :-by]

    def after(reached, now):
        may, valid = now
        ways = reached | from_before(reached, 1) | (from_before(reached, 2) & passes)
        ways &= jnp.take_along_axis(may, places, 1) & (at > 0)
        return jnp.where(valid[:, None], ways, reached), None

    start = jnp.broadcast_to(at == 0, places.shape)
    reached, _ = lax.scan(after, start, (jnp.moveaxis(may, 1, 0), frames.T))
    last = 2 * numbers[:, None]
    return (reached & ((at == last) | (at == last + 1))).any(-1)


def _losses(logits, frames, labels, there, fits, blank):
    """The loss of each row, 0 where there is no alignment."""
    wide = accumulation_dtype(logits.dtype)
    keep = (frames & fits[:, None])[..., None]
    logits = jnp.where(keep, logits.astype(wide), jnp.zeros((), wide))
    # A product of -inf and 0 would be NaN; this is as good as never.
    logits = jnp.maximum(logits, jnp.asarray(-1e9, wide))
    # One more frame and label of padding, so that there always is one of each.
    logits = jnp.pad(logits, ((0, 0), (0, 1), (0, 0)))
    pad = lambda valid: jnp.pad(~valid, ((0, 0), (0, 1)), constant_values=True)
    labels = jnp.pad(jnp.where(there, labels, jnp.int32(0)), ((0, 0), (0, 1)))
    padded = pad(frames).astype(wide), labels, pad(there).astype(wide)
    run = lambda *args: (optax.ctc_loss(*args, blank_id=blank),)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        # Optax makes arrays of its own, which have no explicit sharding.
        (losses,) = meshes.automatic(run, (logits, *padded), logits, (0, 1), (0,))
    return jnp.where(fits, losses.astype(wide), jnp.zeros((), wide))
