"""The cross-entropy of a linear layer's outputs, a few tokens at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import options, slips
from lstm_jax.meshes import vary_alike
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.losses.chunks import summed_losses
from lstm_jax.training.losses.classes import take_classes
from lstm_jax.training.losses.counted import count, finish
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array

# 4 MiB of logits in float32: they stay in a processor's cache.
_LOGITS = 2**20


@slips.explained
def linear_cross_entropy(
    ys: Array,
    kernel: Array,
    bias: Array | None,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    weights: Array | None = None,
    chunk_size: int | None = None,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """``cross_entropy(ys @ kernel + bias, targets)`` that never holds all the logits.

    Tokens are walked in chunks. Where a gradient is asked for, it is formed chunk by
    chunk while the loss is, from the same logits, so that nothing is computed twice:
    three products in all. What is kept until it is used is the gradient itself, in
    float32: as large as ``ys`` and ``kernel``.

    Args:
        ys: ``[..., H]``, floating; taken in the dtype of ``kernel``, whose products
            with it are summed in float32 or wider, where the softmax is taken too.
        kernel: ``[H, V]``, floating.
        bias: ``[V]``, floating; None for none.
        targets: ``[...]``, integers: see :func:`cross_entropy`.
        mask: ``[...]`` bool, True where a token counts; all if None. Elsewhere ``ys``,
            targets and weights may hold anything, NaN included.
        lengths: ``[*batch]`` integers, for targets ``[*batch, T]``: only the first
            ``lengths[b]`` steps count, and of those the ones that the mask leaves.
        weights: ``[...]``, floating, from 0 on: how much each token counts; 1 if None.
            The loss can be differentiated by them too.
        chunk_size: tokens to a chunk, on each device; less memory and more passes over
            the gradient of ``kernel`` the smaller it is. If None, H or ``2**20 / V``,
            whichever is more: logits no larger than ``kernel``, or 4 MiB.
        weighted: whether the sum and the weight of the valid tokens come back as
            :class:`Weighted`, for means over more than this call, instead of the mean.
            The weight is their number, int32, or the sum of ``weights``, floating.
        axis_name: see :func:`cross_entropy`.

    Returns:
        A scalar, the mean in nats per valid token, or per unit of weight; 0 where none
        is valid. A traced target that counts and is no class makes it NaN, as in
        :func:`cross_entropy`.

        Derivatives of every order are right, in either mode. Those beyond the first are
        taken of the plain formula, and hold all the logits. Where the loss is itself in
        a ``lax.scan`` or ``jax.vmap`` that is differentiated as a whole, a gradient of
        ``kernel`` is kept for each step or example: differentiate inside, or put
        ``jax.checkpoint`` around the loss. A batch that is sharded along leading axes
        is walked by each device on its own; its kernel is needed whole there, and the
        gradients meet once.

    Raises:
        ValueError: if a shape does not fit, ``mask`` is not bool, ``chunk_size`` is
            below 1, or a target that counts is out of range or its weight negative,
            where the values are known.
        TypeError: if a dtype is wrong, or ``weighted`` is no bool.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax.training import linear_cross_entropy
        >>> ys, targets = jnp.ones((2, 7, 5)), jnp.zeros((2, 7), int)
        >>> kernel, bias = jnp.zeros((5, 4)), jnp.zeros(4)
        >>> loss, grad = jax.value_and_grad(linear_cross_entropy)(
        ...     ys, kernel, bias, targets
        ... )
        >>> round(float(loss), 4), grad.shape  # log 4
        (1.3863, (2, 7, 5))

    References:
        Wijmans et al. 2024, arXiv:2411.09009, section 4, computes the same without the
        logits by computing them twice.
    """
    options.check_flag("weighted", weighted)
    ys, kernel, bias = _take_layer(ys, kernel, bias)
    hidden, classes = kernel.shape
    tokens = take_classes(
        targets,
        ys.shape,
        classes,
        mask,
        lengths,
        of="ys",
        last="the last axis of kernel",
    )
    wide = accumulation_dtype(kernel.dtype)
    weight, scales = count(tokens.valid), jnp.ones(tokens.valid.shape, wide)
    if weights is not None:
        scales = _take_weights(weights, tokens.valid).astype(wide)
        weight = jnp.sum(scales)
    if chunk_size is None:
        chunk_size = max(hidden, _LOGITS // max(classes, 1), 1)
    options.check_positive("chunk_size", chunk_size)
    arrays = (ys, kernel, bias, tokens.poison(scales), tokens.targets, tokens.valid)
    total = summed_losses(int(chunk_size), *vary_alike(arrays))
    return finish(total, weight, weighted, axis_name)


def _take_layer(ys: Any, kernel: Any, bias: Any) -> tuple[Array, Array, Array]:
    """Checks the outputs and the layer; a bias of zeros stands for none."""
    ys, kernel = shapes.take_array("ys", ys), shapes.take_array("kernel", kernel)
    if not ys.shape:
        raise ValueError("ys: expected shape [..., H], got a scalar.")
    if kernel.ndim != 2 or kernel.shape[0] != ys.shape[-1]:
        transposed = kernel.ndim == 2 and kernel.shape[1] == ys.shape[-1]
        hint = "It looks transposed: pass kernel.T." if transposed else ""
        raise ValueError(
            f"kernel: expected shape [H, V] with H = {ys.shape[-1]}, the last axis of "
            f"ys, got {list(kernel.shape)}. {hint}".rstrip()
        )
    if bias is None:
        return ys, kernel, jnp.zeros(kernel.shape[1], kernel.dtype)
    bias = shapes.take_array("bias", bias)
    shapes.check_shape("bias", "[V]", kernel.shape[1:], bias)
    return ys, kernel, bias


def _take_weights(weights: Any, valid: Array) -> Array:
    """Checks weights; returns them with 0 where a token does not count."""
    weights = shapes.take_array("weights", weights)
    shapes.check_shape("weights", "of targets", valid.shape, weights)
    weights = jnp.where(valid, weights, jnp.zeros((), weights.dtype))
    if not isinstance(weights, jax.core.Tracer):
        least = np.asarray(weights).min(initial=0)
        if least < 0:
            raise ValueError(f"weights: expected numbers from 0 on, got {least}.")
    return weights
