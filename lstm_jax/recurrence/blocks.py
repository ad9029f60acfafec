"""A scan over blocks of time instead of single steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
            to ``size`` or to what is left, and returns the carry and outputs: ``n`` for
            the steps, or 1 for the block.
        carry: what the first block starts from.
        steps: pytree of ``[T, ...]``.
        size: steps in one block.
        reverse: whether the blocks run from the last to the first.

    Returns:
        The last carry, and the outputs of all blocks after each other.
    """
    length = jax.tree.leaves(steps)[0].shape[0]
    parts = parts_of(length, size)
    outputs = []
    for part in reversed(parts) if reverse else parts:
        carry, ys = _scan_part(block, carry, steps, part, reverse)
        outputs.append(ys)
    if len(outputs) == 1:
        return carry, outputs[0]
    if reverse:
        outputs.reverse()
    return carry, jax.tree.map(lambda *ys: jnp.concatenate(ys), *outputs)


def parts_of(length: Any, size: int) -> list[tuple[Any, Any, int]]:
    """``(start, stop, size)`` of the blocks of one size, and of a shorter last one."""
    if size == 1 or not isinstance(length, int):
        return [(0, length, 1)]
    whole = length - length % size
    parts = [(0, whole, size)] if whole or not length else []
    if whole < length:
        parts.append((whole, length, length - whole))
    return parts


def cut_blocks(steps: PyTree, part: tuple[Any, Any, int]) -> PyTree:
    """The steps of a part by blocks: ``[count, size, ...]``."""
    start, stop, size = part
    count = (stop - start) // size

    def cut(leaf):
        if isinstance(stop, int):
            leaf = leaf[start:stop]
        return leaf.reshape(count, size, *leaf.shape[1:])

    return jax.tree.map(cut, steps)


def first_of_blocks(steps: PyTree, size: int, reverse: bool) -> PyTree:
    """Of each block the step that a direction takes first."""
    length = jax.tree.leaves(steps)[0].shape[0]
    place = -1 if reverse else 0
    first = [
        jax.tree.map(lambda leaf: leaf[:, place], cut_blocks(steps, part))
        for part in parts_of(length, size)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *first)


def _scan_part(block, carry, steps, part, reverse):
    """Scans over the blocks of a part."""
    carry, ys = lax.scan(block, carry, cut_blocks(steps, part), reverse=reverse)
    join = lambda y: y.reshape(y.shape[0] * y.shape[1], *y.shape[2:])
    return carry, jax.tree.map(join, ys)
