"""The recurrence as JAX sees it step by step, for where no platform is known.

For derivatives of second order, which no implementation has a rule for, and for steps
with side effects. ``jax.custom_jvp`` and not ``custom_vjp``: forward mode, vmap, remat
and derivatives of any order follow from the one rule.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from lstm_jax.numerics import cast_like
from lstm_jax.recurrence.contract import Call, Inputs, Outputs, numbered
from lstm_jax.recurrence.steps import (
    Arrangement,
    batch_axis_first,
    forward,
    one_tangent,
    save,
    without_float0,
)
from lstm_jax.types import Array


def run(inputs: tuple[Inputs, ...], call: Call) -> tuple[Outputs, ...]:
    """Runs a layer as JAX operations that JAX sees as they are traced."""
    leaves = jax.tree.leaves(inputs)
    shapes = call.shapes(leaves)
    emit = jax.tree.leaves([one[:2] for one in numbered(shapes)])
    call = dataclasses.replace(call, emit=tuple(emit))
    return call.outputs(shapes, plain(call, leaves))


def plain(call: Call, args: Sequence[Array]) -> list[Array]:
    """The forward pass under every transform, for where no platform is known."""
    shapes = call.shapes(args)
    results = [
        Outputs(*_plain(call, reverse, one), shape.saved)  # pyright: ignore
        for one, reverse, shape in zip(
            call.inputs(args), call.reverse, shapes, strict=True
        )
    ]
    return cast_like(call.emitted(shapes, results), call.emitted(shapes, shapes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _plain(call, reverse, inputs):
    return forward(call, inputs, reverse, Arrangement())


@_plain.defjvp
def _plain_jvp(call, reverse, primals, tangents):
    (inputs,), (d_inputs,) = primals, tangents
    last, ys, saved, _ = save(call, inputs, reverse, Arrangement())
    d_inputs = without_float0(d_inputs)
    d_last, d_ys = one_tangent(call, inputs, d_inputs, saved, reverse, Arrangement())
    return (last, batch_axis_first(ys)), (d_last, batch_axis_first(d_ys))


def tangent(*args: Array, call: Call, which: tuple[bool, ...]) -> list[Array]:
    """What :func:`tangent` returns, computed anew: what was saved is not looked at."""
    end = len(args) - sum(which)
    function, primals = _of_some(args[: call.leaves], call, which)
    return jax.jvp(function, primals, tuple(args[end:]))[1]


def pullback(*args: Array, call: Call, which: tuple[bool, ...]) -> list[Array]:
    """What :meth:`Reference.pullback` returns, computed anew."""
    end = len(args) - len(call.emit)
    function, primals = _of_some(args[: call.leaves], call, which)
    return list(jax.vjp(function, *primals)[1](list(args[end:])))


def _of_some(leaves: Sequence[Any], call: Call, which: tuple[bool, ...]) -> tuple:
    """:func:`plain` as a function of some of its inputs, and those."""

    def function(*some):
        some = iter(some)
        merged = [
            next(some) if w else leaf for leaf, w in zip(leaves, which, strict=True)
        ]
        return plain(call, merged)

    return function, tuple(leaf for leaf, w in zip(leaves, which, strict=True) if w)
