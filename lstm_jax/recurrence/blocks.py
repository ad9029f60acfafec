"""A scan over blocks of time instead of single steps."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.types import PyTree


def scan_blocks(
    block: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    carry: PyTree,
    steps: PyTree,
    size: int,
    *,
    reverse: bool,
) -> tuple[PyTree, PyTree]:
    """Scans ``block`` over consecutive blocks of at most ``size`` steps.

    Where ``size`` does not divide the number of steps, the last block in time is a
    shorter one, run by itself. A number of steps that is not known takes ``size`` 1.

    Args:
        block: takes the carry and the steps of one block, ``[n, ...]`` with ``n`` equal
            to ``size`` or to what is left, and returns the carry and ``n`` outputs.
        carry: what the first block starts from.
        steps: pytree of ``[T, ...]``.
        size: steps in one block.
        reverse: whether the blocks run from the last to the first.

    Returns:
        The last carry, and the outputs, ``[T, ...]``.
    """
    length = jax.tree.leaves(steps)[0].shape[0]
    if size == 1 or not isinstance(length, int):
        return _scan_part(block, carry, steps, (0, length, 1), reverse)
    whole = length - length % size
    parts = [(0, whole, size)] if whole or not length else []
    if whole < length:
        parts.append((whole, length, length - whole))
    outputs = []
    for part in reversed(parts) if reverse else parts:
        carry, ys = _scan_part(block, carry, steps, part, reverse)
        outputs.append(ys)
    if len(outputs) == 1:
        return carry, outputs[0]
    if reverse:
        outputs.reverse()
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *outputs)


def _scan_part(block, carry, steps, part, reverse):
    """Scans over steps ``start`` to ``stop`` in blocks of ``size``, which divides."""
    start, stop, size = part
    count = (stop - start) // size

    def cut(leaf):
        if isinstance(stop, int):
            leaf = leaf[start:stop]
        return leaf.reshape(count, size, *leaf.shape[1:])

    carry, ys = lax.scan(block, carry, jax.tree.map(cut, steps), reverse=reverse)
    join = lambda y: y.reshape(count * size, *y.shape[2:])
    return carry, jax.tree.map(join, ys)
