"""Modules of Flax as pure functions of their parameters."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from lstm_jax.types import PyTree


class Functional(NamedTuple):
    """A model's parameters, and how a function of the model becomes one of them.

    Attributes:
        params: a pytree of arrays.
        lift: makes of ``function(model, ...)`` one of ``(params, ...)``.
        give_back: puts parameters into the model, where it is an object.
    """

    params: PyTree
    lift: Callable[[Callable], Callable]
    give_back: Callable[[PyTree], None]


def functional(model: Any) -> Functional:
    """Takes an ``nnx.Module``, linen's variables or any other pytree of parameters."""
    nnx = getattr(sys.modules.get("flax"), "nnx", None)
    if nnx is not None and isinstance(model, nnx.Module):
        return _of_module(nnx, model)
    check_parameters(model)
    return Functional(model, lambda function: function, lambda params: None)


def check_parameters(model: Any) -> None:
    """Refuses linen's variables that are more than parameters."""
    if isinstance(model, Mapping) and "params" in model and len(model) > 1:
        others = ", ".join(sorted(name for name in model if name != "params"))
        raise ValueError(
            f"params: expected parameters alone, got the collections {others} beside "
            "them. What is no parameter belongs into the carry."
        )


def _of_module(nnx: Any, model: Any) -> Functional:
    graph, params, streams, others = nnx.split(model, nnx.Param, nnx.RngState, ...)
    if nnx.to_flat_state(others):
        raise ValueError(
            "params: expected an nnx.Module with parameters and streams of random "
            f"numbers alone, got {others}. What else changes belongs into the carry."
        )

    def lift(function):
        @functools.wraps(function)
        def of_params(params, *arguments):
            # In loss_fn(model, carry, batch, key) the last argument is the key.
            of_this_trace = jax.tree.map(lambda leaf: leaf, streams)
            whole = nnx.merge(graph, params, of_this_trace)
            key = arguments[2] if len(arguments) > 2 else None
            if key is None:
                whole.eval()
            else:
                whole.train()
                nnx.reseed(whole, default=key)
            return function(whole, *arguments)

        return of_params

    return Functional(params, lift, lambda params: nnx.update(model, params))
