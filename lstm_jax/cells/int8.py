"""Products in 8 bits: weights with a scale for each column, rows with one of their own.

The sums are of integers, and exact; what is done with them is in :mod:`bitwise`.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.bitwise import rounded
from lstm_jax.types import Array

# Symmetric: -128 is not used, so that the negative of a number has one too.
LARGEST = 127
# Sums of so many products of two such numbers fit in 32 bits.
DEEPEST = (2**31 - 1) // LARGEST**2
_STEP = np.float32(1 / LARGEST)
# A row of smaller numbers is one of zeros: its scale has no reciprocal in float32.
_SMALLEST = np.float32(2.0**-119)


def quantize_columns(kernel: Array) -> tuple[Array, Array]:
    """A matrix as integers, and what each column of them is multiplied with.

    Shapes:
        ``kernel`` is ``[K, N]`` in float32; the results are int8 ``[K, N]`` and float32
        ``[N]``.
    """
    scale = jnp.max(jnp.abs(kernel), axis=0, keepdims=True) * _STEP
    steps = jnp.round(kernel / jnp.where(scale > 0, scale, 1))
    steps = jnp.clip(steps, -LARGEST, LARGEST)
    return steps.astype(jnp.int8), scale[0]


def quantize_rows(x: Array) -> tuple[Array, Array]:
    """Rows as integers, and what each row of them is multiplied with.

    Nothing but the row itself decides on its scale, so that its result depends neither
    on the batch nor on padding. A row that is not finite has zeros, and a scale that is
    not finite.

    Shapes:
        ``x`` is ``[..., K]`` in float32; the results are int8 ``[..., K]`` and float32
        ``[..., 1]``.
    """
    x = rounded(x)
    # As integers, sizes of floats are ordered as they are, and NaN is above infinity.
    bits = lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
    bits = jnp.max(bits, axis=-1, keepdims=True, initial=0)
    largest = lax.bitcast_convert_type(bits, jnp.float32)
    usable = (largest >= _SMALLEST) & (largest < np.inf)
    inverse = jnp.where(usable, np.float32(LARGEST) / largest, np.float32(0))
    steps = jnp.where(usable, x * inverse, np.float32(0))
    steps = lax.round(steps, lax.RoundingMethod.TO_NEAREST_EVEN)
    return steps.astype(jnp.int8), rounded(largest * _STEP)


def int8_matmul(x: Array, kernel: Array, scale: Array) -> Array:
    """``x @ (kernel * scale)``, with ``x`` rounded to 8 bits by row.

    Shapes:
        ``x`` is ``[..., K]`` in float32, ``kernel`` int8 ``[K, N]`` and ``scale``
        float32 ``[N]``; the result is float32 ``[..., N]``.
    """
    steps, row_scale = quantize_rows(x)
    sums = lax.dot_general(
        steps,
        kernel,
        (((x.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    scale = jnp.expand_dims(scale, tuple(range(x.ndim - 1)))
    return rounded(rounded(sums.astype(jnp.float32) * scale) * row_scale)
