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
# log(2) in two parts: n * _LN2_HIGH is exact for the n that occur.
_LN2_HIGH, _LN2_LOW = np.float32(0.693145752), np.float32(1.42860677e-6)
# (exp(r) - 1) / r for |r| <= log(2) / 2, the highest power first: 1.4e-8 off at most.
_EXP_M1_OVER_R = np.array(
    [1.39406126e-3, 8.36649071e-3, 4.16664034e-2, 1.66665435e-1, 0.5, 1.0], np.float32
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


def _exp_m1(x: Array) -> tuple[Array, Array]:
    """2^n and exp(r) - 1, with exp(x) = 2^n exp(r); for x of -126 to 126 log(2)."""
    n = lax.round(x * _LOG2_E, lax.RoundingMethod.TO_NEAREST_EVEN)
    r = (x - n * _LN2_HIGH) - rounded(n * _LN2_LOW)
    p = jnp.full_like(r, _EXP_M1_OVER_R[0])
    for coefficient in _EXP_M1_OVER_R[1:]:
        p = rounded(r * p) + coefficient
    exponent = (n.astype(jnp.int32) + 127) << 23
    return lax.bitcast_convert_type(exponent, jnp.float32), rounded(r * p)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), of numbers from -87 to 87, and of those beyond as of these."""
    power, m1 = _exp_m1(limited(-x, np.float32(87)))
    return np.float32(1) / ((m1 + np.float32(1)) * power + np.float32(1))


def tanh(x: Array) -> Array:
    """The hyperbolic tangent."""
    # From 9.02 on, tanh rounds to 1.
    size = limited(jnp.abs(x), np.float32(10))
    power, m1 = _exp_m1(size + size)
    # exp(2x) - 1, without cancellation where x is small.
    m1 = m1 * power + (power - np.float32(1))
    return jnp.copysign(m1 / (m1 + np.float32(2)), x)


def limited(x: Array, limit: np.float32) -> Array:
    """``x`` from -limit to limit; NaN stays NaN."""
    x = jnp.where(x > limit, jnp.full_like(x, limit), x)
    return jnp.where(x < -limit, jnp.full_like(x, -limit), x)
