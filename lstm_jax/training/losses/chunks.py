"""Sums of the cross-entropy of ``ys @ kernel + bias`` and their gradients, in chunks.

No derivative of a loop is taken: the gradient is written down, is formed together with
the sum, and waits until its cotangent, a number, is known. Second derivatives are those
of the plain formula.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lstm_jax import meshes
from lstm_jax.numerics import accumulation_dtype, matmul
from lstm_jax.training.losses.by_shard import by_shard
from lstm_jax.training.losses.counted import cross_entropies
from lstm_jax.types import Array

# Which arguments there are a row for each token of, and which can be differentiated:
# ys, kernel, bias, weights, targets, valid.
_ROWS = (True, False, False, True, True, True)
_MOVING = 4
NONE = (False,) * _MOVING


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def summed_losses(
    chunk_size: int,
    ys: Array,
    kernel: Array,
    bias: Array,
    weights: Array,
    targets: Array,
    valid: Array,
) -> Array:
    """The sum of tokens' losses times their weights, a scalar, float32 or wider.

    Args:
        chunk_size: tokens to a chunk.
        ys: ``[..., H]``.
        kernel: ``[H, V]``.
        bias: ``[V]``.
        weights: ``[...]``, float32 or wider.
        targets: ``[...]``, a class each.
        valid: ``[...]`` bool, where a token counts.
    """
    args = (ys, kernel, bias, weights, targets, valid)
    return _walk(Walk(chunk_size, NONE), args)[0]


def _sum_tangent(chunk_size, primals, tangents):
    tangents = tangents[:_MOVING]
    wanted = tuple(not isinstance(one, SymbolicZero) for one in tangents)
    total, *grads = _sum_and_gradients(Walk(chunk_size, wanted), *primals)
    moving = [one for one, wants in zip(tangents, wanted, strict=True) if wants]
    tangent = jnp.zeros_like(total)
    for grad, one in zip(grads, moving, strict=True):
        # Its transpose is one product with a number.
        tangent += jnp.sum(grad * one.astype(grad.dtype))
    return total, tangent


summed_losses.defjvp(_sum_tangent, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_and_gradients(walk, *args):
    return _walk(walk, args)


@_sum_and_gradients.defjvp
def _sum_and_gradients_tangent(walk, primals, tangents):
    moving, fixed = primals[:_MOVING], primals[_MOVING:]
    plainly = functools.partial(_plainly_with_gradients, walk, fixed)
    _, out = jax.jvp(plainly, moving, tangents[:_MOVING])
    return _sum_and_gradients(walk, *primals), out


def _plainly_with_gradients(walk, fixed, *moving):
    """What a walk returns, by the formula with all the logits."""

    def run(*args):
        which = tuple(n for n, wants in enumerate(walk.wanted) if wants)
        total, grads = jax.value_and_grad(_plainly, which)(*args)
        return [total, *(grad.astype(total.dtype) for grad in grads)]

    return _automatic(walk, run, (*moving, *fixed))


def _plainly(ys, kernel, bias, weights, targets, valid):
    keep = jnp.expand_dims(valid, -1)
    logits = _logits(ys, kernel, bias, keep)
    losses = cross_entropies(logits, targets)
    return jnp.sum(weights * jnp.where(valid, losses, jnp.zeros_like(losses)))


def _logits(ys: Array, kernel: Array, bias: Array, keep: Array) -> Array:
    """Logits of some tokens, 0 where one does not count, of which all may be NaN."""
    logits = matmul(jnp.where(keep, ys, jnp.zeros_like(ys)), kernel)
    bias = jnp.expand_dims(bias.astype(logits.dtype), tuple(range(logits.ndim - 1)))
    return jnp.where(keep, logits + bias, jnp.zeros_like(logits))


def _walk(walk: Walk, args: tuple[Array, ...]) -> list[Array]:
    """Walks all tokens, on each device its own."""
    ys = args[0]
    outs = walk.of_results(_ROWS)
    run = lambda *args: by_shard(walk, args, _ROWS, (False, *outs), ys.ndim - 1)
    return _automatic(walk, run, args)


def _automatic(walk: Walk, run: Any, args: tuple[Array, ...]) -> list[Array]:
    """Calls what returns a sum and gradients, ``ys`` may have an explicit sharding."""
    ys = args[0]
    outs = (None, *(0 if rows else None for rows in walk.of_results(_ROWS)))
    whole = lambda *args: tuple(run(*args))
    return list(meshes.automatic(whole, args, ys, (0, ys.ndim - 1), outs))


class _Tokens(NamedTuple):
    """What there is of each token: ys ``[N, H]``, the others ``[N]``."""

    ys: Array
    weights: Array
    targets: Array
    valid: Array


@dataclasses.dataclass(frozen=True)
class Walk:
    """A walk over tokens: their weighted sum of losses, and what gradients of it.

    Attributes:
        chunk_size: tokens to a chunk.
        wanted: whether gradients by ys, kernel, bias and weights are.
    """

    chunk_size: int
    wanted: tuple[bool, ...]

    def of_results(self, values: tuple) -> tuple:
        """Of some values, one for each argument, those of wanted gradients."""
        return tuple(v for v, w in zip(values, self.wanted, strict=False) if w)

    def __call__(self, ys, kernel, bias, weights, targets, valid) -> list[Array]:
        """Returns the sum, and the gradients that are wanted, float32 or wider."""
        tokens = _Tokens(
            ys.reshape(-1, kernel.shape[0]),
            weights.reshape(-1),
            targets.reshape(-1),
            valid.reshape(-1),
        )
        count, wide = weights.size, accumulation_dtype(kernel.dtype)
        like = self.of_results((tokens.ys, kernel, bias, tokens.weights))
        zeros = [jnp.zeros(one.shape, wide) for one in (jnp.zeros(()), *like)]
        sums = self._chunks(tokens, kernel, bias, zeros, count) if count else zeros
        shapes = self.of_results((ys.shape, kernel.shape, bias.shape, weights.shape))
        return [
            out.reshape(shape) for out, shape in zip(sums, ((), *shapes), strict=True)
        ]

    def _chunks(self, tokens, kernel, bias, zeros, count):
        chunks = -(-count // self.chunk_size)
        size = -(-count // chunks)

        def step(sums, number):
            # The last chunk begins early, where sizes do not divide, and leaves out
            # what the chunk before it has.
            start = jnp.minimum(number * size, count - size)
            cut = lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size)
            piece = jax.tree.map(cut, tokens)
            if count % size:
                own = start + lax.iota(number.dtype, size) >= number * size
                piece = piece._replace(valid=piece.valid & own)
            parts = _of_chunk(self.wanted, piece, kernel, bias)
            rows = (False, *self.of_results(_ROWS))
            sums = [
                lax.dynamic_update_slice_in_dim(old, new, start, 0)
                if of_rows
                else old + new
                for old, new, of_rows in zip(sums, parts, rows, strict=True)
            ]
            return sums, None

        # Backwards: the rows that the last chunk left out are written later.
        sums, _, _ = meshes.vary_alike((zeros, tokens, kernel))
        return lax.scan(step, sums, jnp.arange(chunks), reverse=True)[0]


def _of_chunk(wanted, tokens: _Tokens, kernel: Array, bias: Array) -> list[Array]:
    """The sum of a chunk, and its wanted gradients."""
    keep = jnp.expand_dims(tokens.valid, -1)
    logits = _logits(tokens.ys, kernel, bias, keep)
    weights = jnp.where(tokens.valid, tokens.weights, jnp.zeros_like(tokens.weights))
    top = jnp.max(logits, -1)
    top = jnp.where(jnp.isfinite(top), top, jnp.zeros_like(top))
    powers = jnp.exp(logits - top[:, None])
    norms = jnp.sum(powers, -1)
    targets = tokens.targets[:, None]
    right = jnp.take_along_axis(logits, targets, -1, mode="promise_in_bounds")[:, 0]
    losses = jnp.log(norms) + top - right
    results = [jnp.sum(weights * losses)]
    if any(wanted[:3]):
        place = lax.broadcasted_iota(targets.dtype, logits.shape, 1) == targets
        slopes = powers * (weights / norms)[:, None]
        slopes -= jnp.where(place, weights[:, None], jnp.zeros_like(slopes))
        results += _products(wanted, tokens.ys, keep, kernel, slopes)
    if wanted[3]:
        results.append(losses)
    return results


def _products(wanted, ys: Array, keep: Array, kernel: Array, slopes: Array) -> list:
    """Gradients by ys, kernel and bias, those that are wanted, of that by logits."""
    product = functools.partial(lax.dot_general, preferred_element_type=slopes.dtype)
    narrow, results = slopes.astype(kernel.dtype), []
    if wanted[0]:
        results.append(product(narrow, kernel, (((1,), (1,)), ((), ()))))
    if wanted[1]:
        ys = jnp.where(keep, ys, jnp.zeros_like(ys)).astype(kernel.dtype)
        results.append(product(ys, narrow, (((0,), (0,)), ((), ()))))
    if wanted[2]:
        results.append(jnp.sum(slopes, 0))
    return results
