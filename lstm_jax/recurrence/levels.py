"""vmap around a call that can't take the axis into its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# For each, the outermost first: the axis of every argument (None where it has none),
# and where the axis goes: 0, or for each result its place, None for a sum over it.
Levels = tuple[tuple[tuple[int | None, ...], Any], ...]


def mapped(levels: Levels, function: Callable, *, one_by_one: bool = False) -> Callable:
    """A function of one element as a function of all.

    Args:
        levels: see :data:`Levels`.
        function: takes arrays and returns a list of arrays.
        one_by_one: whether elements follow each other; otherwise they are vmapped.
    """
    if not levels:
        return function
    (in_axes, out_axes), *inner = levels
    function = mapped(tuple(inner), function, one_by_one=one_by_one)

    def whole(*args):
        if one_by_one:
            outputs = _one_by_one(function, in_axes, args)
        else:
            outputs = jax.vmap(function, in_axes)(*args)
        axes = [0] * len(outputs) if out_axes == 0 else out_axes
        return [
            jnp.sum(out, 0) if axis is None else jnp.moveaxis(out, 0, axis)
            for out, axis in zip(outputs, axes, strict=True)
        ]

    return whole


def _one_by_one(function: Callable, in_axes: Sequence[int | None], args: Any) -> list:
    moved = [
        jnp.moveaxis(arg, axis, 0)
        for arg, axis in zip(args, in_axes, strict=True)
        if axis is not None
    ]

    def one(some):
        some = iter(some)
        return function(
            *(
                arg if axis is None else next(some)
                for arg, axis in zip(args, in_axes, strict=True)
            )
        )

    return jax.lax.map(one, moved)


def mapped_shapes(levels: Levels, function: Callable, args: Sequence[Any]) -> list[Any]:
    """Shapes and dtypes of what :func:`mapped` returns.

    ``function`` takes shapes and dtypes of one element and returns those.
    """
    if not levels:
        return function([jax.ShapeDtypeStruct(arg.shape, arg.dtype) for arg in args])
    (in_axes, out_axes), *inner = levels
    size = next(
        arg.shape[axis]
        for arg, axis in zip(args, in_axes, strict=True)
        if axis is not None
    )
    shapes = mapped_shapes(tuple(inner), function, unmapped(levels[:1], args))
    axes = [0] * len(shapes) if out_axes == 0 else out_axes

    def with_axis(shape, axis):
        if axis is None:
            return shape
        dims = (*shape.shape[:axis], size, *shape.shape[axis:])
        return jax.ShapeDtypeStruct(dims, shape.dtype)

    return [with_axis(*pair) for pair in zip(shapes, axes, strict=True)]


def unmapped(levels: Levels, args: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Shapes and dtypes of one element of the arguments."""
    shapes = [list(arg.shape) for arg in args]
    for in_axes, _ in levels:
        for shape, axis in zip(shapes, in_axes, strict=False):
            if axis is not None:
                del shape[axis]
    return [
        jax.ShapeDtypeStruct(tuple(shape), arg.dtype)
        for shape, arg in zip(shapes, args, strict=True)
    ]
