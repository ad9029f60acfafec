"""What is read rather than minimised: accuracy, perplexity, bits."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import options, slips
from lstm_jax.checks.border import take
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.losses.classes import take_classes
from lstm_jax.training.losses.counted import count, finish
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array


@slips.explained
def accuracy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The share of valid tokens whose largest logit is that of their target.

    Args:
        logits: ``[..., V]``, floating. Of equal ones the first counts; where one is
            NaN, none does.
        targets: ``[...]``, integers from 0 to V - 1 where a token counts.
        mask: ``[...]`` bool, True where a token counts; all if None. Elsewhere logits
            and targets may hold anything.
        lengths: ``[*batch]`` integers, for targets ``[*batch, T]``: only the first
            ``lengths[b]`` steps count, and of those the ones that the mask leaves.
        weighted: whether how many are right and how many there are, int32, come back as
            :class:`Weighted`, for the share over more than this call.
        axis_name: see :func:`cross_entropy`.

    Returns:
        A scalar, float32, from 0 to 1; 0 where no token is valid. Traced targets that
        count and are no class make it NaN.

    Raises:
        ValueError: as :func:`cross_entropy` does.
        TypeError: as :func:`cross_entropy` does.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import accuracy
        >>> logits = jnp.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
        >>> float(accuracy(logits, jnp.array([1, 0, 0, 0])))
        0.75
    """
    options.check_flag("weighted", weighted)
    logits = shapes.take_array("logits", logits)
    classes = logits.shape[-1] if logits.shape else 0
    tokens = take_classes(targets, logits.shape, classes, mask, lengths)
    best = jnp.argmax(logits, -1).astype(tokens.targets.dtype)
    right = (best == tokens.targets) & ~jnp.any(jnp.isnan(logits), -1)
    right = tokens.poison((right & tokens.valid).astype(jnp.float32))
    return finish(jnp.sum(right), count(tokens.valid), weighted, axis_name)


def perplexity(loss: Array | float | Weighted) -> Array:
    """The exponential of a loss in nats.

    Args:
        loss: a mean cross-entropy: a number or an array, each of whose elements is one;
            or a total with its weight, which is divided first: the perplexity of a set
            is that of the mean over its tokens, and no mean of perplexities.

    Returns:
        As many numbers as came, float32 or wider; of a :class:`Weighted` a scalar, 1
        where nothing counts.

    Raises:
        TypeError: if ``loss`` is no number.

    Example:
        >>> from lstm_jax.training import Weighted, perplexity
        >>> float(perplexity(0.0)), float(perplexity(Weighted(0.0, 12)))
        (1.0, 1.0)
    """
    return jnp.exp(_mean(loss))


def bits(loss: Array | float | Weighted) -> Array:
    """A loss in nats as bits: per character, where the loss is.

    Args:
        loss: see :func:`perplexity`.

    Returns:
        As many numbers as came, float32 or wider; of a :class:`Weighted` a scalar, 0
        where nothing counts.

    Raises:
        TypeError: if ``loss`` is no number.

    Example:
        >>> import math
        >>> from lstm_jax.training import bits
        >>> float(bits(math.log(8)))
        3.0
    """
    mean = _mean(loss)
    return mean / jnp.asarray(np.log(2), mean.dtype)


def _mean(loss: Any) -> Array:
    if isinstance(loss, Weighted):
        total = _floating("loss.total", loss.total)
        weight = take("loss.weight", loss.weight, allow_lists=True)
        return Weighted(total, weight).mean()
    return _floating("loss", loss)


def _floating(name: str, value: Any) -> Array:
    value = take(name, value, allow_lists=True)
    if value.dtype.kind in "biu":
        return value.astype(jnp.float32)
    shapes.check_array(name, value)
    return value.astype(accumulation_dtype(value.dtype))
