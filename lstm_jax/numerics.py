"""Products that accumulate in float32 or wider, over any leading axes."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from lstm_jax.types import Array


def accumulation_dtype(dtype: Any) -> jnp.dtype:
    """The dtype in which products of ``dtype`` are summed: float32 or wider."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype).itemsize > 4 else jnp.float32)


def matmul(x: Array, kernel: Array) -> Array:
    """``x @ kernel``, accumulated in float32 or wider, over any leading axes of ``x``.

    The leading axes are made one first: the product's transpose, a weight gradient, is
    then one plain matrix product, which XLA:CPU runs 1.6 times as fast as a contraction
    over several axes.
    """
    *leading, size = x.shape
    rows = x.reshape(math.prod(leading), size).astype(kernel.dtype)
    out = jnp.matmul(
        rows, kernel, preferred_element_type=accumulation_dtype(kernel.dtype)
    )
    return out.reshape(*leading, kernel.shape[1])


def heads_matmul(x: Array, kernel: Array, gates: int) -> Array:
    """The product with a block-diagonal matrix, a block for each of N heads.

    Shapes:
        ``x`` is ``[..., P]``, ``kernel`` ``[N, P/N, G*H/N]`` with G ``gates``; the
        result is ``[..., G*H]``: gate after gate, and within one head after head.
    """
    *leading, _ = x.shape
    heads, rows, columns = kernel.shape
    x = x.reshape(math.prod(leading), heads, rows).astype(kernel.dtype)
    out = lax.dot_general(
        x,
        kernel,
        (((2,), (1,)), ((1,), (0,))),
        preferred_element_type=accumulation_dtype(kernel.dtype),
    )
    out = out.reshape(heads, -1, gates, columns // gates)
    return jnp.moveaxis(out, 0, 2).reshape(*leading, heads * columns)


def as_last_axes(values: Array, like: Array) -> Array:
    """``values`` in the dtype and with the number of axes of ``like``.

    The axes that are missing come first, so that arithmetic with ``like`` applies the
    values to every row and step.
    """
    axes = tuple(range(like.ndim - values.ndim))
    return jnp.expand_dims(values.astype(like.dtype), axes)
