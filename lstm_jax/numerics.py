"""Products that accumulate in float32 or wider, and what is 0 where not valid."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.types import Array, PyTree

_MERGING = contextvars.ContextVar("merging", default=False)


def accumulation_dtype(dtype: Any) -> jnp.dtype:
    """The dtype in which products of ``dtype`` are summed: float32 or wider."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype).itemsize > 4 else jnp.float32)


def widened(tree: PyTree) -> PyTree:
    """Floating leaves in float32 or wider, the others as they are."""

    def widen(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(accumulation_dtype(leaf.dtype)) if floating else leaf

    return jax.tree.map(widen, tree)


def narrowed(tree: PyTree, limit: Any) -> PyTree:
    """Floating leaves that are wider than ``limit`` in it, the others as they are."""

    def narrow(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        wider = floating and leaf.dtype.itemsize > limit.itemsize
        return leaf.astype(limit) if wider else leaf

    return jax.tree.map(narrow, tree)


@contextlib.contextmanager
def merging_rows(merge: bool) -> Iterator[None]:
    """Whether :func:`matmul` makes leading axes one, in what is traced within.

    The product's transpose, a weight gradient, is then one plain matrix product, which
    XLA:CPU runs 1.6 times as fast as a contraction over several axes. But it makes
    time and batch one axis, so that a batch which is sharded would be gathered.
    """
    token = _MERGING.set(merge)
    try:
        yield
    finally:
        _MERGING.reset(token)


def merges_rows() -> bool:
    """Whether leading axes are made one; see :func:`merging_rows`."""
    return _MERGING.get()


def matmul(x: Array, kernel: Array) -> Array:
    """``x @ kernel``, summed in float32 or wider, over any leading axes of ``x``."""
    *leading, size = x.shape
    merge = merges_rows() and len(leading) > 1
    rows = x.reshape(math.prod(leading), size) if merge else x
    out = lax.dot_general(
        rows.astype(kernel.dtype),
        kernel,
        (((rows.ndim - 1,), (0,)), ((), ())),
        preferred_element_type=accumulation_dtype(kernel.dtype),
    )
    return out.reshape(*leading, kernel.shape[1]) if merge else out


def heads_matmul(x: Array, kernel: Array, gates: int) -> Array:
    """The product with a block-diagonal matrix, a block for each of N heads.

    Shapes:
        ``x`` is ``[..., P]``, ``kernel`` ``[N, P/N, G*H/N]`` with G ``gates``; the
        result is ``[..., G*H]``: gate after gate, and within one head after head.
    """
    *leading, _ = x.shape
    heads, rows, columns = kernel.shape
    x = x.reshape(*leading, heads, rows).astype(kernel.dtype)
    axes = len(leading)
    out = lax.dot_general(
        x,
        kernel,
        (((axes + 1,), (1,)), ((axes,), (0,))),
        preferred_element_type=accumulation_dtype(kernel.dtype),
    )
    out = out.reshape(heads, *leading, gates, columns // gates)
    return jnp.moveaxis(out, 0, axes + 1).reshape(*leading, heads * columns)


def cast_like(values: Sequence[Array], shapes: Sequence[Any]) -> list[Array]:
    """Casts arrays to the dtypes of others."""
    return [
        value.astype(shape.dtype) for value, shape in zip(values, shapes, strict=True)
    ]


def as_last_axes(values: Array, like: Array) -> Array:
    """``values`` in the dtype and with the number of axes of ``like``.

    The axes that are missing come first, so that arithmetic with ``like`` applies the
    values to every row and step.
    """
    axes = tuple(range(like.ndim - values.ndim))
    return jnp.expand_dims(values.astype(like.dtype), axes)


def added(a: PyTree, b: PyTree) -> PyTree:
    """``a + b``; None is zero, in ``b`` in place of a whole part too."""
    if a is None:
        return b

    def add(part, to):
        if part is None or to is None:
            return to if part is None else part
        return to + part

    return jax.tree.map(add, b, a, is_leaf=lambda part: part is None)


def where_rows(condition: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Selects whole rows: ``condition`` has the leading axes only."""

    def select(a, b):
        axes = tuple(range(condition.ndim, a.ndim))
        return jnp.where(jnp.expand_dims(condition, axes), a, b)

    return jax.tree.map(select, on_true, on_false)


def zero_where_not(valid: Array | None, tree: PyTree) -> PyTree:
    """``tree`` with 0 in rows that are not valid, which may hold NaN."""
    if valid is None:
        return tree
    return where_rows(valid, tree, jax.tree.map(jnp.zeros_like, tree))
