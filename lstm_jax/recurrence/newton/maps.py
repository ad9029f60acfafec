"""Affine recurrences over time, solved for all steps at once.

``x_t = A_t x_{t-1} + b_t`` from zero, where A_t is block diagonal: K blocks of m by m,
so that a state of K*m numbers is ``[K, m]``. A full matrix is one block. Maps of this
kind compose, which is associative: ``jax.lax.associative_scan`` needs about log2(T)
rounds instead of T steps.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from lstm_jax.types import Array


def solve(blocks: Array, offsets: Array) -> Array:
    """Returns every x.

    Shapes:
        ``blocks``, A, is ``[T, *batch, K, m, m]``; ``offsets``, b, and what is returned
        are ``[T, *batch, K, m]``.
    """
    return lax.associative_scan(_compose, (blocks, offsets))[1]


def solve_decays(log_scales: Array, offsets: Array) -> Array:
    """Returns every x of ``x_t = exp(l_t) x_{t-1} + b_t``, number by number.

    Logarithms add up: a scale next to 1 loses no digits, however many steps it acts
    over, and -inf, which is 0, lets nothing through.

    Shapes:
        All are ``[T, ...]``.
    """
    return lax.associative_scan(_decay, (log_scales, offsets))[1]


def solve_transposed(blocks: Array, offsets: Array) -> Array:
    """Applies the transpose of :func:`solve`: a recurrence from the last step back."""
    blocks = _transpose(blocks)
    blocks = jnp.concatenate([blocks[1:], jnp.zeros_like(blocks[:1])])
    return lax.associative_scan(_compose, (blocks, offsets), reverse=True)[1]


def solve_damped(blocks: Array, offsets: Array, damping: Array) -> Array:
    r"""Returns the means of a Kalman filter that observes zeros.

    .. math::
        x_t &= A_t x_{t-1} + b_t + q_t, \quad q_t \sim N(0, 1) \\
        0 &= x_t + r_t, \quad r_t \sim N(0, 1 / \text{damping})

    They follow ``x_t = G_t (A_t x_{t-1} + b_t)`` with ``G_t = 1 - damping * P_t``, and
    the covariances P_t do not depend on b: they are all that is left to filter.

    References:
        The filter as an associative scan: Sarkka and Garcia-Fernandez 2021,
        arXiv:1905.13002.
    """
    identity = _identity_like(blocks)
    shrunk = blocks / (1 + damping)
    information = damping * _multiply(_transpose(blocks), shrunk)
    elements = (shrunk, identity / (1 + damping), information)
    gains = identity - damping * lax.associative_scan(_filter, elements)[1]
    return solve(_multiply(gains, blocks), _apply(gains, offsets))


def _compose(first: tuple, second: tuple) -> tuple:
    """One stretch of affine maps after another."""
    (a1, b1), (a2, b2) = first, second
    return _multiply(a2, a1), _apply(a2, b1) + b2


def _decay(first: tuple, second: tuple) -> tuple:
    """One stretch of decays after another."""
    (l1, b1), (l2, b2) = first, second
    return l1 + l2, jnp.exp(l2) * b1 + b2


def _filter(first: tuple, second: tuple) -> tuple:
    """One stretch of the filter after another, without what only the means need.

    Each is a matrix from the state before it to the state after it, the covariance of
    the state after it, and the information that it holds on the state before it.
    """
    (a1, c1, j1), (a2, c2, j2) = first, second
    # The eigenvalues of a product of two covariances are not negative, so that the
    # inverse always exists.
    inverse = _inverse(_identity_like(a1) + _multiply(c1, j2))
    through = _multiply(inverse, a1)
    a2_transposed = _transpose(a2)
    covariance = _multiply(a2, _multiply(_multiply(inverse, c1), a2_transposed)) + c2
    information = _multiply(_transpose(a1), _multiply(j2, through)) + j1
    return _multiply(a2, through), covariance, information


def _identity_like(blocks: Array) -> Array:
    identity = jnp.eye(blocks.shape[-1], dtype=blocks.dtype)
    return jnp.broadcast_to(identity, blocks.shape)


def _transpose(blocks: Array) -> Array:
    return jnp.swapaxes(blocks, -1, -2)


def _multiply(a: Array, b: Array) -> Array:
    # Matrix products even of 2 by 2: written entry by entry, XLA:CPU fuses the rounds
    # of the scan and computes them several times over, 8 times slower.
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _apply(a: Array, x: Array) -> Array:
    """``a @ x`` for vectors x."""
    return _multiply(a, x[..., None])[..., 0]


def _inverse(a: Array) -> Array:
    if a.shape[-1] > 2:
        return jnp.linalg.inv(a)
    if a.shape[-1] == 1:
        return 1 / a
    (p, q), (r, s) = (a[..., 0, 0], a[..., 0, 1]), (a[..., 1, 0], a[..., 1, 1])
    rows = jnp.stack([s, -q], -1), jnp.stack([-r, p], -1)
    return jnp.stack(rows, -2) / (p * s - q * r)[..., None, None]
