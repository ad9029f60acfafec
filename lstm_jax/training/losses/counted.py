"""Which tokens or elements count, how many do, and the mean over them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks.border import take
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array, Options


def valid_tokens(targets: Array, mask: Any, lengths: Any) -> Array:
    """Where a token counts, ``[...]`` bool, for targets ``[...]``."""
    # Like targets, for they may have an explicit sharding.
    valid = jnp.ones_like(targets, bool)
    if mask is not None:
        mask = take("mask", mask)
        if mask.shape != targets.shape or mask.dtype != jnp.bool_:
            raise ValueError(
                f"mask: expected bool {list(targets.shape)}, as targets, got "
                f"{mask.dtype} {list(mask.shape)}."
            )
        valid &= mask
    if lengths is None:
        return valid
    if not targets.shape:
        raise ValueError("lengths: expected targets [*batch, T], got none with T.")
    return valid & _within(targets.shape, lengths)


def valid_elements(shape: tuple[int, ...], mask: Any, lengths: Any) -> Array:
    """Where an element counts, bool of ``shape``.

    The mask may have its leading axes alone, and lengths have as many axes as there are
    batch axes.
    """
    valid = jnp.ones(shape, bool)
    if mask is not None:
        mask = take("mask", mask)
        shapes.check_array("mask", mask, jnp.bool_)
        if mask.shape != shape[: mask.ndim]:
            raise ValueError(
                f"mask: expected {list(shape)}, the shape of targets, or leading axes "
                f"of it, got {list(mask.shape)}."
            )
        valid &= _over_last_axes(mask, shape)
    if lengths is None:
        return valid
    lengths = take("lengths", lengths, allow_lists=True)
    if lengths.ndim >= len(shape):
        raise ValueError(
            "lengths: expected [*batch] for targets [*batch, T, ...], got "
            f"{list(lengths.shape)} for {list(shape)}."
        )
    steps = _within(shape[: lengths.ndim + 1], lengths)
    return valid & _over_last_axes(steps, shape)


def count(valid: Array) -> Array:
    """How many are True, int32."""
    return jnp.sum(valid, dtype=jnp.int32)


def cross_entropies(logits: Array, targets: Array) -> Array:
    """The cross-entropy of each row of ``[..., V]`` with its target.

    Optax's takes the target's logit in a way whose gradient JAX 0.12 refuses where axes
    of a mesh are explicit.
    """
    right = jnp.take_along_axis(logits, jnp.expand_dims(targets, -1), -1)
    return jax.nn.logsumexp(logits, -1) - jnp.squeeze(right, -1)


def finish(total: Array, weight: Array, weighted: bool, axis_name: Any = None) -> Any:
    """A total and its weight as they are, or the mean; over axes, where some are named.

    A device with few valid tokens weighs as they do: the mean of means does not.
    """
    if axis_name is not None:
        total, weight = lax.psum((total, weight), axis_name)
    result = Weighted(total, weight)
    return result if weighted else result.mean()


def _within(shape: tuple[int, ...], lengths: Any) -> Array:
    """Which steps of ``[*batch, T]`` lie within lengths ``[*batch]``."""
    *batch_shape, steps = shape
    given = Options(lengths=lengths)
    lengths = shapes.take_controls(tuple(batch_shape), steps, given).lengths
    step = lax.broadcasted_iota(jnp.int32, shape, len(batch_shape))
    return step < jnp.expand_dims(lengths.astype(jnp.int32), -1)


def _over_last_axes(valid: Array, shape: tuple[int, ...]) -> Array:
    one = (*valid.shape, *(1 for _ in shape[valid.ndim :]))
    return jnp.broadcast_to(valid.reshape(one), shape)
