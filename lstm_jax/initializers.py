"""Initializers under names that last: the defaults of cells, and an LSTM's own.

JAX's factories return a new function at each call, which neither pickles nor equals the
one before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax.checks import options
from lstm_jax.types import Array

__all__ = ("chrono", "chrono_bias", "glorot_uniform", "orthogonal")

_GLOROT_UNIFORM = initializers.glorot_uniform()
_ORTHOGONAL = initializers.orthogonal()


def glorot_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
    """Returns what ``jax.nn.initializers.glorot_uniform()`` does.

    Example:
        >>> import jax
        >>> from lstm_jax.initializers import glorot_uniform
        >>> glorot_uniform(jax.random.key(0), (3, 20)).shape
        (3, 20)
    """
    return _GLOROT_UNIFORM(key, shape, dtype)


def orthogonal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32):
    """Returns what ``jax.nn.initializers.orthogonal()`` does.

    Example:
        >>> import jax
        >>> from lstm_jax.initializers import orthogonal
        >>> orthogonal(jax.random.key(0), (5, 20)).shape
        (5, 20)
    """
    return _ORTHOGONAL(key, shape, dtype)


def chrono(t_max: float) -> Callable[..., Array]:
    r"""Returns an initializer of biases for dependencies of up to ``t_max`` steps.

    A unit forgets over ``1 / (1 - f)`` steps, which a new cell spreads over those that
    matter (Tallec and Ollivier 2018, arXiv:1804.11188):

    .. math::
        b_f \sim \log U(1, T_\text{max} - 1), \qquad b_i = -b_f, \qquad b_g = b_o = 0

    Pass ``forget_bias=0.0`` beside it, which is added to b_f otherwise.

    Args:
        t_max: T_max, the longest dependency in steps, 2 at least.

    Returns:
        :func:`chrono_bias` with ``t_max``: a ``bias_init`` for cells of all four gates.

    Raises:
        ValueError: if ``t_max`` is less than 2 or not finite.
        TypeError: if it is no number.

    Example:
        >>> import jax, lstm_jax as lj
        >>> bias_init = lj.initializers.chrono(100)
        >>> model = lj.LSTM(3, 5, bias_init=bias_init, forget_bias=0.0)
        >>> params = model.init(jax.random.key(0))
        >>> i, f, g, o = params[0].forward.bias.reshape(4, 5)
        >>> bool((f >= 0).all()), bool((i == -f).all()), g.max().item()
        (True, True, 0.0)
    """
    options.check_finite("t_max", t_max)
    if t_max < 2:
        raise ValueError(f"t_max: expected at least 2 steps, got {t_max}.")
    return functools.partial(chrono_bias, t_max=float(t_max))


def chrono_bias(
    key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, t_max: float
) -> Array:
    """Returns the bias that :func:`chrono` draws.

    Args:
        key: the key of the draw.
        shape: ``(4H,)``, of the gates i, f, g, o.
        dtype: of the bias.
        t_max: see :func:`chrono`.

    Raises:
        ValueError: if it is another shape.

    Example:
        >>> import jax
        >>> from lstm_jax.initializers import chrono_bias
        >>> chrono_bias(jax.random.key(0), (20,), t_max=100.0).shape
        (20,)
    """
    if len(shape) != 1 or shape[0] % 4:
        raise ValueError(
            f"shape: expected [4H], a bias of the gates i, f, g, o, got {list(shape)}. "
            "Other parameters have other initializers."
        )
    size = shape[0] // 4
    keep = jnp.log(jax.random.uniform(key, (size,), dtype, 1.0, t_max - 1.0))
    return jnp.concatenate([-keep, keep, jnp.zeros(2 * size, dtype)])
