"""Losses over sequences."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import slips
from lstm_jax.checks.border import take
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.types import Array, Options


@slips.explained
def cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
) -> Array:
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
            integers.
    """
    logits, targets = take("logits", logits), take("targets", targets)
    shapes.check_array("logits", logits)
    shapes.check_array("targets", targets, jnp.integer)
    if not logits.shape or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets: expected shape {list(logits.shape[:-1])}, the leading axes of "
            f"logits, got {list(targets.shape)}."
        )
    valid = _valid(targets, mask, lengths)
    classes = logits.shape[-1]
    # Wide enough to be compared with V; 64 bits only where they are on.
    targets = targets.astype(jnp.int64 if targets.dtype.itemsize > 4 else jnp.int32)
    wrong = valid & ((targets < 0) | (targets >= classes))
    _check_range(targets, wrong, classes)
    logits = logits.astype(accumulation_dtype(logits.dtype))
    logits = jnp.where(jnp.expand_dims(valid, -1), logits, jnp.zeros_like(logits))
    targets = jnp.where(valid & ~wrong, targets, jnp.zeros_like(targets))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    if isinstance(wrong, jax.core.Tracer):
        # By a product, so that the gradient is NaN too.
        losses *= jnp.where(wrong, jnp.nan, 1.0).astype(losses.dtype)
    total = jnp.sum(jnp.where(valid, losses, jnp.zeros_like(losses)))
    return total / jnp.maximum(jnp.sum(valid), 1).astype(total.dtype)


def _valid(targets: Array, mask: Any, lengths: Any) -> Array:
    """Where a token counts, ``[...]`` bool."""
    valid = jnp.ones(targets.shape, bool)
    if mask is not None:
        valid = take("mask", mask)
        if valid.shape != targets.shape or valid.dtype != jnp.bool_:
            raise ValueError(
                f"mask: expected bool {list(targets.shape)}, as targets, got "
                f"{valid.dtype} {list(valid.shape)}."
            )
    if lengths is None:
        return valid
    if not targets.shape:
        raise ValueError("lengths: expected targets [*batch, T], got none with T.")
    *batch_shape, steps = targets.shape
    lengths = shapes.take_controls(
        tuple(batch_shape), steps, Options(lengths=lengths)
    ).lengths
    step = lax.broadcasted_iota(jnp.int32, targets.shape, len(batch_shape))
    return valid & (step < jnp.expand_dims(lengths.astype(jnp.int32), -1))


def _check_range(targets: Array, wrong: Array, classes: int) -> None:
    """Checks that every target is a class, where the values are known."""
    if isinstance(wrong, jax.core.Tracer) or isinstance(targets, jax.core.Tracer):
        return
    if not (places := np.asarray(wrong)).any():
        return
    value = np.asarray(targets)[places][0]
    padding = f" Where it marks padding, pass mask=targets != {value}."
    raise ValueError(
        f"targets: expected classes from 0 to V - 1 = {classes - 1}, with V the last "
        f"axis of logits, got {value}; {places.sum()} of {places.size} are out of "
        f"range.{padding if value < 0 else ''}"
    )
