"""Terms that are added to a loss: of outputs, and of parameters."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks.border import take
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.types import Array, PyTree


def activation_penalty(ys: Array, mask: Array | None = None) -> Array:
    """AR: the mean square of outputs, which keeps them small.

    Args:
        ys: ``[..., H]``, floating; AWD-LSTM takes the last layer's outputs as dropout
            left them.
        mask: ``[...]`` bool, True where a step counts; all if None.

    Returns:
        A scalar, 0 where no step counts. AWD-LSTM adds 2 times this.

    Raises:
        ValueError: if the shape of ``mask`` does not fit.
        TypeError: if a dtype is wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import activation_penalty
        >>> float(activation_penalty(jnp.full((2, 7, 5), 0.5)))
        0.25

    References:
        Merity et al. 2017, arXiv:1708.02182, section 4.6.
    """
    ys = take("ys", ys)
    shapes.check_array("ys", ys)
    mask = _checked_mask(ys, mask)
    return _mean(jnp.square(_counted(_widened(ys), mask)), mask)


def temporal_activation_penalty(
    ys: Array, mask: Array | None = None, *, time_major: bool = False
) -> Array:
    """TAR: the mean square of the outputs' changes from step to step.

    Args:
        ys: ``[*batch, T, H]``, or ``[T, *batch, H]`` if ``time_major``; AWD-LSTM takes
            the last layer's outputs before dropout.
        mask: ``[*batch, T]`` bool, True where a step counts; a change counts where both
            its steps do. All if None.
        time_major: whether the first axis is time.

    Returns:
        A scalar, 0 where nothing counts, as for T = 1. AWD-LSTM adds 1 times this.

    Raises:
        ValueError: if there is no time axis, or the shape of ``mask`` does not fit.
        TypeError: if a dtype is wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import temporal_activation_penalty
        >>> float(temporal_activation_penalty(jnp.array([[[0.0], [1.0], [3.0]]])))
        2.5

    References:
        Merity et al. 2017, arXiv:1708.02182, section 4.6.
    """
    ys = take("ys", ys)
    shapes.check_array("ys", ys)
    if len(ys.shape) < 2:
        raise ValueError(f"ys: expected shape [*batch, T, H], got {list(ys.shape)}.")
    mask = _checked_mask(ys, mask)
    axis = 0 if time_major else len(ys.shape) - 2
    steps = functools.partial(jax.lax.slice_in_dim, axis=axis)
    length = ys.shape[axis]
    first, last = (0, max(length - 1, 0)), (min(length, 1), length)
    ys = _counted(_widened(ys), mask)
    if mask is not None:
        mask = steps(mask, *first) & steps(mask, *last)
    return _mean(jnp.square(steps(ys, *last) - steps(ys, *first)), mask)


def l1_penalty(params: PyTree) -> Array:
    """The sum of absolute values over a pytree of parameters.

    Args:
        params: any pytree of floating arrays: all of a model's, or a choice of them,
            such as ``[layer.forward.kernel for layer in params]``.

    Returns:
        A scalar in float32 or wider; multiply it by the strength you want.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import l1_penalty
        >>> float(l1_penalty({"w": jnp.array([1.0, -2.0]), "b": None}))
        3.0
    """
    return _total(params, jnp.abs)


def l2_penalty(params: PyTree) -> Array:
    """The sum of squares over a pytree of parameters, as Keras's ``L2``.

    Args:
        params: see :func:`l1_penalty`.

    Returns:
        A scalar in float32 or wider. Weight decay of 1/2 is the gradient of this.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import l2_penalty
        >>> float(l2_penalty({"w": jnp.array([1.0, -2.0]), "b": None}))
        5.0
    """
    return _total(params, jnp.square)


def _total(params: PyTree, of: Any) -> Array:
    leaves, _ = jax.tree.flatten_with_path(params)
    if not leaves:
        raise ValueError("params: expected at least one array, got none.")
    named = {f"params{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}
    arrays = [take(name, leaf) for name, leaf in named.items()]
    for name, array in zip(named, arrays, strict=True):
        shapes.check_array(name, array)
    wide = max((accumulation_dtype(array.dtype) for array in arrays), key=_size)
    sums = [jnp.sum(of(array.astype(wide))) for array in arrays]
    return jnp.sum(jnp.stack(sums))


def _size(dtype: jnp.dtype) -> int:
    return dtype.itemsize


def _widened(ys: Array) -> Array:
    return ys.astype(accumulation_dtype(ys.dtype))


def _checked_mask(ys: Array, mask: Array | None) -> Array | None:
    if mask is None:
        return None
    mask = take("mask", mask)
    shapes.check_array("mask", mask, jnp.bool_)
    shapes.check_shape("mask", "of ys but the last axis", ys.shape[:-1], mask)
    return mask


def _counted(values: Array, mask: Array | None) -> Array:
    """``values`` with 0 at steps that do not count: they may be NaN."""
    if mask is None:
        return values
    return jnp.where(jnp.expand_dims(mask, -1), values, jnp.zeros((), values.dtype))


def _mean(values: Array, mask: Array | None) -> Array:
    """The mean over the steps that count, 0 where none does."""
    counted = values.size if mask is None else jnp.sum(mask) * values.shape[-1]
    total = jnp.sum(_counted(values, mask))
    return total / jnp.maximum(counted, 1).astype(values.dtype)
