"""The cross-entropy of tokens."""

from __future__ import annotations

import jax.numpy as jnp

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import options, slips
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.losses.classes import take_classes
from lstm_jax.training.losses.counted import count, cross_entropies, finish
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array


@slips.explained
def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The mean cross-entropy over valid tokens.

    Args:
        logits: ``[..., V]``, floating; the softmax is taken in float32 or wider.
        targets: ``[...]``, integers from 0 to V - 1 where a token counts. Padding that
            is marked there, as by PyTorch's ``ignore_index``, is left out by
            ``mask=targets != -100``.
        mask: ``[...]`` bool, True where a token counts; all if None. Elsewhere logits
            and targets may hold anything, NaN included.
        lengths: ``[*batch]`` integers, for targets ``[*batch, T]``: only the first
            ``lengths[b]`` steps count, and of those the ones that the mask leaves.
        weighted: whether the sum and the number of valid tokens, int32, come back as
            :class:`Weighted`, for means over more than this call, instead of the mean.
        axis_name: axes of a ``jax.shard_map`` or ``jax.vmap`` around this: sum and
            weight are added up over them, each by itself, and divided then. None for
            what one device has.

    Returns:
        A scalar, in nats per valid token; 0 where none is valid. Divided by ``log(2)``
        it is bits, and its exponential is the perplexity. Where the targets are traced,
        as under ``jax.jit``, one that counts and is out of range makes it NaN, and the
        gradient of its logits too: it never counts as another class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import cross_entropy
        >>> float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])))  # log 4
        1.3862943649291992

    Raises:
        ValueError: if a shape does not fit, ``mask`` is not bool, or a target that
            counts is out of range, where the values are known.
        TypeError: if ``logits`` are not floating, ``targets`` or ``lengths`` no
            integers, or ``weighted`` is no bool.
    """
    options.check_flag("weighted", weighted)
    logits = shapes.take_array("logits", logits)
    classes = logits.shape[-1] if logits.shape else 0
    tokens = take_classes(targets, logits.shape, classes, mask, lengths)
    logits = logits.astype(accumulation_dtype(logits.dtype))
    zero = jnp.zeros((), logits.dtype)
    keep = jnp.expand_dims(tokens.valid, -1)
    logits = jnp.where(keep, logits, zero)
    losses = cross_entropies(logits, tokens.targets)
    losses = tokens.poison(losses)
    total = jnp.sum(jnp.where(tokens.valid, losses, zero))
    return finish(total, count(tokens.valid), weighted, axis_name)
