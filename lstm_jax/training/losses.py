"""Losses over sequences."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from lstm_jax.checks import arrays as shapes
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.types import Array


def cross_entropy(logits: Array, targets: Array, mask: Array | None = None) -> Array:
    """The mean cross-entropy over valid tokens.

    Args:
        logits: ``[..., V]``, floating; the softmax is taken in float32 or wider.
        targets: ``[...]``, integers from 0 to V - 1.
        mask: ``[...]`` bool, True where a token counts; all if None. Padding may hold
            anything, NaN included.

    Returns:
        A scalar, in nats per valid token; 0 where none is valid. Divided by ``log(2)``
        it is bits, and its exponential is the perplexity.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import cross_entropy
        >>> float(cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3])))  # log 4
        1.3862943649291992

    Raises:
        ValueError: if a shape does not fit, or ``mask`` is not bool.
        TypeError: if ``targets`` are not integers.
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets: expected shape {list(logits.shape[:-1])}, the leading axes of "
            f"logits, got {list(targets.shape)}."
        )
    shapes.check_array("targets", targets, jnp.integer)
    logits = logits.astype(accumulation_dtype(logits.dtype))
    if mask is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
    if mask.shape != targets.shape or mask.dtype != jnp.bool_:
        raise ValueError(
            f"mask: expected bool {list(targets.shape)}, as targets, got {mask.dtype} "
            f"{list(mask.shape)}."
        )
    logits = jnp.where(jnp.expand_dims(mask, -1), logits, jnp.zeros_like(logits))
    targets = jnp.where(mask, targets, jnp.zeros_like(targets))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    total = jnp.sum(jnp.where(mask, losses, jnp.zeros_like(losses)))
    return total / jnp.maximum(jnp.sum(mask), 1).astype(total.dtype)
