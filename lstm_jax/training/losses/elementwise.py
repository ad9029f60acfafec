"""Losses of numbers, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import options, slips
from lstm_jax.checks.border import take
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.losses.counted import count, finish, valid_elements
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array


@slips.explained
def squared_error(
    predictions: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The mean squared error over valid elements.

    Args:
        predictions: any shape, such as ``[*batch, T, F]``, floating; errors are taken
            in float32 or wider.
        targets: the same shape, floating. Nothing is broadcast.
        mask: bool, True where an element counts; all if None. It has the whole shape,
            or leading axes of it: ``[*batch, T]`` says which steps count, and all
            features of a step count then. Elsewhere anything may stand, NaN included.
        lengths: ``[*batch]`` integers, for targets ``[*batch, T, ...]``: only the first
            ``lengths[b]`` steps count, and of those what the mask leaves. Their number
            of axes says how many are batch axes.
        weighted: whether the sum and the number of valid elements, int32, come back as
            :class:`Weighted`, for means over more than this call, instead of the mean.
        axis_name: axes of a ``jax.shard_map`` or ``jax.vmap`` around this: sum and
            weight are added up over them, each by itself, and divided then. None for
            what one device has.

    Returns:
        A scalar, per valid element; 0 where none is valid. Not halved.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import squared_error
        >>> targets = jnp.array([[1.0, 2.0, jnp.nan], [1.0, jnp.nan, jnp.nan]])
        >>> float(squared_error(jnp.zeros((2, 3)), targets, lengths=[2, 1]))
        2.0

    Raises:
        ValueError: if a shape does not fit, or a length is out of range, where the
            values are known.
        TypeError: if a dtype is wrong, or ``weighted`` is no bool.
    """
    given = predictions, targets, mask, lengths, weighted, axis_name
    return _mean_of(optax.squared_error, *given)


@slips.explained
def absolute_error(
    predictions: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The mean absolute error over valid elements; its gradient is 0 at 0.

    Args:
        predictions: see :func:`squared_error`.
        targets: see :func:`squared_error`.
        mask: see :func:`squared_error`.
        lengths: see :func:`squared_error`.
        weighted: see :func:`squared_error`.
        axis_name: see :func:`squared_error`.

    Returns:
        A scalar, per valid element; 0 where none is valid.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import absolute_error
        >>> float(absolute_error(jnp.zeros(2), jnp.array([1.0, -3.0])))
        2.0

    Raises:
        ValueError: as :func:`squared_error` does.
        TypeError: as :func:`squared_error` does.
    """
    distance = lambda predictions, targets: jnp.abs(predictions - targets)
    return _mean_of(distance, predictions, targets, mask, lengths, weighted, axis_name)


@slips.explained
def huber_error(
    predictions: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    delta: float = 1.0,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The mean Huber loss over valid elements: half the square, linear beyond delta.

    Args:
        predictions: see :func:`squared_error`.
        targets: see :func:`squared_error`.
        mask: see :func:`squared_error`.
        lengths: see :func:`squared_error`.
        delta: the error from which on the loss grows linearly, above 0.
        weighted: see :func:`squared_error`.
        axis_name: see :func:`squared_error`.

    Returns:
        A scalar, per valid element; 0 where none is valid.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import huber_error
        >>> float(huber_error(jnp.zeros(2), jnp.array([1.0, -3.0])))  # 0.5 and 2.5
        1.5

    Raises:
        ValueError: as :func:`squared_error` does, and if ``delta`` is not above 0.
        TypeError: as :func:`squared_error` does, and if ``delta`` is no number.

    References:
        Huber 1964, doi:10.1214/aoms/1177703732.
    """
    options.check_finite("delta", delta)
    options.check_limit("delta", delta)
    huber = functools.partial(optax.huber_loss, delta=delta)
    return _mean_of(huber, predictions, targets, mask, lengths, weighted, axis_name)


@slips.explained
def binary_cross_entropy(
    logits: Array,
    targets: Array,
    mask: Array | None = None,
    *,
    lengths: Array | None = None,
    weighted: bool = False,
    axis_name: str | tuple[str, ...] | None = None,
) -> Array | Weighted:
    """The mean cross-entropy of yes or no over valid elements, in nats.

    Args:
        logits: as ``predictions`` of :func:`squared_error`; before the sigmoid.
        targets: the same shape: bool, integers 0 and 1, or floating from 0 to 1, the
            probability of yes.
        mask: see :func:`squared_error`.
        lengths: see :func:`squared_error`.
        weighted: see :func:`squared_error`.
        axis_name: see :func:`squared_error`.

    Returns:
        A scalar, per valid element; 0 where none is valid.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.training import binary_cross_entropy
        >>> targets = jnp.array([True, False])
        >>> float(binary_cross_entropy(jnp.zeros(2), targets))  # log 2
        0.6931471824645996

    Raises:
        ValueError: as :func:`squared_error` does. Targets beyond 0 and 1 are not
            looked for.
        TypeError: as :func:`squared_error` does.
    """
    targets = take("targets", targets)
    if targets.dtype.kind in "biu":
        targets = targets.astype(jnp.float32)
    loss = optax.sigmoid_binary_cross_entropy
    return _mean_of(
        loss, logits, targets, mask, lengths, weighted, axis_name, name="logits"
    )


def _mean_of(
    loss: Callable[[Array, Array], Any],
    predictions: Any,
    targets: Any,
    mask: Any,
    lengths: Any,
    weighted: bool,
    axis_name: Any,
    *,
    name: str = "predictions",
) -> Any:
    """The mean of a loss of two numbers over the elements that count."""
    options.check_flag("weighted", weighted)
    predictions = shapes.take_array(name, predictions)
    targets = shapes.take_array("targets", targets)
    if predictions.shape != targets.shape:
        raise ValueError(
            f"targets: expected shape {list(predictions.shape)}, as {name}, got "
            f"{list(targets.shape)}. Nothing is broadcast."
        )
    valid = valid_elements(targets.shape, mask, lengths)
    wides = [accumulation_dtype(one.dtype) for one in (predictions, targets)]
    wide = max(wides, key=lambda dtype: dtype.itemsize)
    # Before the loss: the gradient of what is 0 times NaN is NaN.
    clean = lambda array: jnp.where(valid, array.astype(wide), jnp.zeros((), wide))
    losses = loss(clean(predictions), clean(targets))
    # A loss of 0 and 0 need not be 0.
    total = jnp.sum(jnp.where(valid, losses, jnp.zeros((), wide)))
    return finish(total, count(valid), weighted, axis_name)
