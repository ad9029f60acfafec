"""Activations that JAX has no function for, as other libraries and formats have them.

``functools.partial`` gives those that take numbers theirs. Each has a name that
``to_config`` writes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lstm_jax.types import Array

__all__ = ("affine", "gelu", "hard_sigmoid", "scaled_tanh", "thresholded_relu")


def affine(x: Array, alpha: float, beta: float) -> Array:
    """Returns ``alpha * x + beta``.

    Example:
        >>> from lstm_jax import activations
        >>> activations.affine(3.0, 2.0, 1.0)
        7.0
    """
    return alpha * x + beta


def thresholded_relu(x: Array, alpha: float) -> Array:
    """Returns ``x`` where it is above ``alpha``, else 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import activations
        >>> activations.thresholded_relu(jnp.array([0.5, 1.5]), 1.0).tolist()
        [0.0, 1.5]
    """
    return jnp.where(x > alpha, x, jnp.zeros_like(x))


def scaled_tanh(x: Array, alpha: float, beta: float) -> Array:
    """Returns ``alpha * tanh(beta * x)``.

    Example:
        >>> from lstm_jax import activations
        >>> round(float(activations.scaled_tanh(0.5, 1.7159, 2 / 3)), 4)
        0.5517
    """
    return alpha * jnp.tanh(beta * x)


def hard_sigmoid(x: Array, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """Returns ``clip(alpha * x + beta, 0, 1)``.

    With its defaults it is the hard sigmoid of ONNX, of Keras 1 and 2 and of TensorFlow
    1; ``jax.nn.hard_sigmoid``, and Keras 3's, have an alpha of 1/6.

    Example:
        >>> from lstm_jax import activations
        >>> round(float(activations.hard_sigmoid(1.0)), 4)
        0.7
    """
    return jnp.clip(alpha * x + beta, 0, 1)


def gelu(x: Array) -> Array:
    """Returns ``x`` times the normal distribution's share below ``x``, exactly.

    Keras's "gelu". ``jax.nn.gelu`` is an approximation by default.

    Example:
        >>> from lstm_jax import activations
        >>> round(float(activations.gelu(1.0)), 6)
        0.841345
    """
    return jax.nn.gelu(x, approximate=False)
