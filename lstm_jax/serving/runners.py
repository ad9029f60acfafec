"""What runs chunks: a stack with what is around it, or any step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.base import as_cell
from lstm_jax.checks import border, options
from lstm_jax.numerics import where_rows
from lstm_jax.types import PyTree

# A function and its first argument, such as (dense.apply, variables).
Around = tuple[Callable[[Any, Any], Any], PyTree]


class Runner(NamedTuple):
    """One function over the steps of a chunk, and what it needs.

    Attributes:
        params: its first argument.
        step: the input of one step of one stream, without batch and time.
        state: of one stream, shapes and dtypes only.
        run: ``run(params, state, xs, lengths, new) -> (state, ys)``; ``xs`` and ``ys``
            are ``[B, T, ...]``, ``lengths`` and ``new`` are ``[B]``. Where ``new`` is
            true, what stands in ``state`` is not looked at.
    """

    params: PyTree
    step: jax.ShapeDtypeStruct
    state: PyTree
    run: Callable[..., tuple[PyTree, Any]]


def make_runner(
    model: Any,
    params: PyTree,
    inputs: Any,
    state: PyTree,
    embedding: Around | None,
    readout: Around | None,
) -> Runner:
    """Makes the runner of a stack or of a step; see :class:`Server`."""
    params = border.take_leaves("params", params)
    if hasattr(model, "cells"):
        if state is not None:
            raise ValueError(
                "state: expected None with a stack, which says itself where streams "
                "start, got a state."
            )
        return _of_stack(model, params, inputs, embedding, readout)
    options.check_callable("model", model, "lambda params, state, x, reset: ...")
    for name, around in (("embedding", embedding), ("readout", readout)):
        if around is not None:
            raise ValueError(
                f"{name}: expected None with a step, which does all that is to be "
                f"done, got {around!r}."
            )
    if state is None or inputs is None:
        raise ValueError(
            "state, inputs: expected both with a step, the state that a stream starts "
            "from and the jax.ShapeDtypeStruct of one input, without a batch axis."
        )
    return _of_step(model, params, _shape_of(inputs), state)


def _shape_of(inputs: Any) -> jax.ShapeDtypeStruct:
    """What one step takes, from anything with a shape and a dtype."""
    if not hasattr(inputs, "shape") or not hasattr(inputs, "dtype"):
        raise TypeError(
            "inputs: expected a jax.ShapeDtypeStruct of one step of one stream, got "
            f"{type(inputs).__name__}."
        )
    dtype = jax.dtypes.canonicalize_dtype(inputs.dtype)
    return jax.ShapeDtypeStruct(tuple(inputs.shape), dtype)


def _check_around(name: str, around: Any) -> tuple[Callable[..., Any], PyTree]:
    if around is None:
        return (lambda params, xs: xs), ()
    if not isinstance(around, tuple) or len(around) != 2 or not callable(around[0]):
        raise TypeError(
            f"{name}: expected a pair (function, params), such as (dense.apply, "
            f"variables), got {type(around).__name__}."
        )
    return around[0], border.take_leaves(name, around[1])


def _of_stack(model, params, inputs, embedding, readout) -> Runner:
    """Runs a stack: one step by ``step``, more by ``apply`` with lengths."""
    options.check_forward("model", model)
    params = model.check_params(params)
    if inputs is None:
        if embedding is not None:
            raise ValueError(
                "inputs: expected the jax.ShapeDtypeStruct of what the embedding takes "
                "at one step, such as jax.ShapeDtypeStruct((), jnp.int32), got None."
            )
        shape = tuple(as_cell(model.cells[0]).input_shape)
        inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    step = _shape_of(inputs)
    embed, embed_params = _check_around("embedding", embedding)
    read, read_params = _check_around("readout", readout)

    def run(params, state, xs, lengths, new):
        xs = embed(params[1], xs)
        start = model.initial_state(params[0], new.shape)
        start = jax.tree.map(lambda a, b: a.astype(b.dtype), start, state)
        state = where_rows(new, start, state)
        if xs.shape[1] == 1:
            state, y = model.step(params[0], state, xs[:, 0])
            ys = y[:, None]
        else:
            state, ys = model.apply(params[0], xs, state, lengths=lengths)
        return state, read(params[2], ys)

    both = params, embed_params, read_params
    xs = jax.ShapeDtypeStruct((1, 2, *step.shape), step.dtype)
    begun = lambda both, xs: model.apply(both[0], embed(both[1], xs))[0]
    state = jax.eval_shape(begun, both, xs)
    return Runner(both, step, without_batch(state), run)


def _of_step(function, params, step, state) -> Runner:
    """Runs any step, in a loop within the program."""
    state = jax.tree.map(jnp.asarray, border.take_leaves("state", state))

    def run(both, state, xs, lengths, new):
        params, start = both
        start = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), start, state)
        state = where_rows(new, start, state)

        def one(state, at):
            number, x = at
            after, y = function(params, state, x, new & (number == 0))
            return where_rows(number < lengths, after, state), y

        numbers = jnp.arange(xs.shape[1], dtype=lengths.dtype)
        state, ys = lax.scan(one, state, (numbers, jnp.moveaxis(xs, 1, 0)))
        return state, jnp.moveaxis(ys, 0, 1)

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    _check_step(function, params, step, shapes)
    return Runner((params, state), step, shapes, run)


def _check_step(function: Any, params: Any, step: Any, state: Any) -> None:
    """Checks that a step's state comes back as it went in."""
    wide = lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype)
    reset = jax.ShapeDtypeStruct((2,), np.bool_)
    before = jax.tree.map(wide, state)
    result = jax.eval_shape(function, params, before, wide(step), reset)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            "model: expected a step that returns (state, y), got one that returns "
            f"{type(result).__name__}."
        )
    after, y = result
    if not hasattr(y, "shape") or y.shape[:1] != (2,):
        raise ValueError(
            f"model: expected a step whose y is one array [B, ...], got {y} for B = 2."
        )
    if jax.tree.structure(after) != jax.tree.structure(before) or any(
        (a.shape, a.dtype) != (b.shape, b.dtype)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    ):
        raise ValueError(
            f"model: expected a step that returns a state like the one it takes, "
            f"{before}, got {after}."
        )


def without_batch(state: PyTree) -> PyTree:
    """Shapes of one row's state."""
    one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return jax.tree.map(one, state)
