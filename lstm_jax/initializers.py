"""The initializers that cells have by default, under names that last.

JAX's factories return a new function at each call, which neither pickles nor equals the
one before.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax.types import Array

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
