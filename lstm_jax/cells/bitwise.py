"""Arithmetic in float32 whose every bit is specified, whatever compiles it.

Compilers join a product and a sum into one operation that rounds once, here and not
there. What is rounded to 8 bits afterwards turns such a last bit into a whole step of
the 8, now and then. So every product that a sum may follow is rounded by itself, and
functions are sums and products alone: in any program, of any shape, and in the CPU
kernels (``recurrence/cpu/csrc/quantized``) the bits are the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.types import Array

_LOG2_E = np.float32(1.44269504)
# (2^f - 1) / f for |f| <= 1/2, the highest power first: 5e-7 off at most.
_EXP2_M1_OVER_F = np.array(
    [1.33335392e-3, 9.66624543e-3, 5.55050038e-2, 2.40223512e-1, 6.93147123e-1],
    np.float32,
)
NO_GRADIENT = (
    "A quantized LSTM has no gradient: it rounds to 8 bits. Differentiate the model it "
    "was made from; where only what follows it is trained, write "
    "jax.lax.stop_gradient(xs)."
)


@jax.custom_jvp
def rounded(x: Array) -> Array:
    """``x``, rounded to float32 before anything else is done with it.

    No compiler takes the product that ``x`` may be through this into a sum. (It takes
    one through ``lax.optimization_barrier`` and a ``lax.reduce_precision`` to float32.)
    """
    return jnp.where(x == x, x, jnp.full_like(x, jnp.nan))


@rounded.defjvp
def _rounded_jvp(primals, tangents):
    raise NotImplementedError(NO_GRADIENT)


def _exp2_parts(y: Array) -> tuple[Array, Array]:
    """2^n and 2^f - 1, with 2^y = 2^n 2^f; for y of -126 to 126."""
    n = lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN)
    f = y - n
    p = jnp.full_like(f, _EXP2_M1_OVER_F[0])
    for coefficient in _EXP2_M1_OVER_F[1:]:
        p = rounded(f * p) + coefficient
    exponent = (n.astype(jnp.int32) + 127) << 23
    return lax.bitcast_convert_type(exponent, jnp.float32), rounded(f * p)


def _one_over_sigmoid(x: Array) -> Array:
    """1 + exp(-x), of what is beyond 86 as of 86."""
    power, m1 = _exp2_parts(limited(rounded(x * -_LOG2_E), np.float32(125)))
    return (m1 + np.float32(1)) * power + np.float32(1)


def times_sigmoid(x: Array, gate: Array) -> Array:
    """The product of ``x`` and ``sigmoid(gate)``."""
    return x / _one_over_sigmoid(gate)


def tanh_times_sigmoid(x: Array, gate: Array) -> Array:
    """That of ``tanh(x)`` and ``sigmoid(gate)``: in one division, which is slow."""
    size = rounded(jnp.abs(x) * (_LOG2_E + _LOG2_E))
    # From 26.02 on, tanh rounds to 1.
    power, m1 = _exp2_parts(limited(size, np.float32(29)))
    # exp(2 |x|) - 1, without cancellation where x is small.
    m1 = m1 * power + (power - np.float32(1))
    below = (m1 + np.float32(2)) * _one_over_sigmoid(gate)
    return jnp.copysign(m1, x) / below


def limited(x: Array, limit: np.float32) -> Array:
    """``x`` from -limit to limit; NaN stays NaN."""
    x = jnp.where(x > limit, jnp.full_like(x, limit), x)
    return jnp.where(x < -limit, jnp.full_like(x, -limit), x)
