"""The other JAX libraries, each as its own documentation has it, with given weights.

A builder returns ``(forward, params)`` with ``forward(params, xs) -> ys``, time-major
where the library takes that.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lstm_jax as lj
from benchmarks.reference import Problem
from benchmarks.timing import on_gpu

Build = Callable[[Problem], tuple[Callable[[Any, jax.Array], Any], Any]]


class Rival(NamedTuple):
    """Another library's LSTM.

    Attributes:
        module: what is imported.
        install: how to get it.
        build: makes ``(forward, params)``; None for what is no JAX program.
        batch_major: whether it takes and returns ``[B, T, ...]`` only.
        gpu_only: whether it has no CPU implementation.
    """

    module: str
    install: str
    build: Build | None
    batch_major: bool = False
    gpu_only: bool = False


def as_stack(problem: Problem) -> tuple[lj.LSTM, Any]:
    """A problem as ``(model, params)``, which ``lstm_jax.convert`` gives to others."""
    case = problem.case
    model = lj.LSTM(
        case.input_size,
        case.hidden_size,
        case.layers,
        bidirectional=case.bidirectional,
    )
    params = [
        [lj.LSTMParams(*map(jnp.asarray, one)) for one in layer]
        for layer in problem.weights
    ]
    return model, tuple(lj.Directions(*layer) for layer in params)


def missing(name: str) -> str:
    """Why a rival cannot run here at all, and what helps; empty if it can."""
    rival = RIVALS[name]
    if rival.gpu_only and not on_gpu():
        return "needs a GPU"
    if importlib.util.find_spec(rival.module) is None:
        return f"not installed: {rival.install}"
    return ""


def _zeros(problem: Problem) -> jax.Array:
    return jnp.zeros(
        (problem.case.batch, problem.case.hidden_size), problem.array_dtype
    )


def _layers(given: Any) -> list[Any]:
    """What a converter gives for each layer; that of one layer comes alone."""
    return given if isinstance(given, list) else [given]


def _each_way(layers: list[Any], directions: list[Callable]) -> tuple[Callable, Any]:
    """A function over layers and their weights, from one for each direction."""

    def forward(params, xs):
        for layer in params:
            outputs = [f(p, xs) for f, p in zip(directions, layer, strict=True)]
            xs = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
        return xs

    alone = len(directions) == 1
    return forward, [(layer,) if alone else layer for layer in layers]


def _flax_nnx(problem: Problem):
    from flax import nnx

    case, carry, graphs, states = problem.case, (_zeros(problem),) * 2, [], []

    def rnn(size):
        dtype = problem.array_dtype
        cell = nnx.OptimizedLSTMCell(
            size,
            case.hidden_size,
            recurrent_kernel_init=jax.nn.initializers.zeros,
            dtype=dtype,
            param_dtype=dtype,
            rngs=nnx.Rngs(0),
        )
        return nnx.RNN(cell, time_major=True, rngs=False)

    weights = lj.convert.to_nnx(*as_stack(problem), cell="OptimizedLSTMCell")
    for size, given in zip(case.input_sizes, _layers(weights), strict=True):
        module = rnn(size)
        if case.bidirectional:
            module = nnx.Bidirectional(module, rnn(size), time_major=True, rngs=False)
        nnx.update(module, given)
        graph, state = nnx.split(module)
        graphs.append(graph)
        states.append(state)
    initial: Any = (carry, carry) if case.bidirectional else carry

    def forward(states, xs):
        for graph, state in zip(graphs, states, strict=True):
            xs = nnx.merge(graph, state)(xs, initial_carry=initial)
        return xs

    return forward, states


def _flax_linen(problem: Problem):
    from flax import linen as nn

    def rnn():
        cell = nn.OptimizedLSTMCell(
            problem.case.hidden_size,
            dtype=problem.array_dtype,
            param_dtype=problem.array_dtype,
        )
        return nn.RNN(cell, time_major=True)

    module = rnn()
    if problem.case.bidirectional:
        module = nn.Bidirectional(module, rnn(), time_major=True)

    def forward(params, xs):
        for layer in params:
            xs = module.apply(layer, xs)
        return xs

    return forward, _layers(lj.convert.to_linen(*as_stack(problem)))


def _haiku(problem: Problem):
    import haiku as hk

    def network(reverse):
        def unroll(xs):
            state = hk.LSTMState(_zeros(problem), _zeros(problem))
            core = hk.LSTM(problem.case.hidden_size)
            return hk.dynamic_unroll(core, xs, state, reverse=reverse)[0]

        apply = hk.without_apply_rng(hk.transform(unroll)).apply
        return lambda params, xs: apply(params, xs)

    layers = _layers(lj.convert.to_haiku(*as_stack(problem)))
    return _each_way(layers, [network(n == 1) for n in range(problem.case.directions)])


def _equinox(problem: Problem):
    def scan(reverse):
        def run(cell, xs):
            def step(state, x):
                h, c = jax.vmap(cell)(x, state)
                return (h, c), h

            carry = (_zeros(problem), _zeros(problem))
            return jax.lax.scan(step, carry, xs, reverse=reverse)[1]

        return run

    layers = _layers(lj.convert.to_equinox(*as_stack(problem)))
    return _each_way(layers, [scan(n == 1) for n in range(problem.case.directions)])


def _keras(problem: Problem):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError("Keras was already imported with another backend than JAX")
    case, dtype = problem.case, problem.array_dtype
    layers = []
    for _ in range(case.layers):
        module = keras.layers.LSTM(
            case.hidden_size,
            return_sequences=True,
            recurrent_initializer="zeros",
            dtype=dtype,
        )
        if case.bidirectional:
            module = keras.layers.Bidirectional(module, dtype=dtype)
        layers.append(module)
    shape = (case.batch, case.length, case.input_size)
    inputs = keras.Input(batch_shape=shape, dtype=dtype)
    model: Any = keras.Sequential([inputs, *layers])
    fixed = [variable.value for variable in model.non_trainable_variables]

    def forward(params, xs):
        return model.stateless_call(params, fixed, xs)[0]

    return forward, sum(lj.convert.to_keras(*as_stack(problem)), [])


def _jax_cudnn(problem: Problem):
    from jax.experimental import rnn

    if problem.array_dtype != "float32":
        raise ValueError("float32 only")
    case = problem.case
    shape = (case.layers * case.directions, case.batch, case.hidden_size)
    zeros = jnp.zeros(shape)
    lengths = jnp.full((case.batch,), case.length, jnp.int32)
    options = (case.input_size, case.hidden_size, case.layers, 0.0, case.bidirectional)

    def forward(weights, xs):
        result: Any = rnn.lstm(xs, zeros, zeros, weights, lengths, *options)
        return result[0]

    return forward, lj.convert.to_cudnn(*as_stack(problem))


RIVALS = {
    "torch": Rival("torch", "pip install torch==2.13.0", None),
    "flax-nnx": Rival("flax", "pip install flax", _flax_nnx),
    "flax-linen": Rival("flax", "pip install flax", _flax_linen),
    "haiku": Rival("haiku", "pip install dm-haiku", _haiku),
    "equinox": Rival("equinox", "pip install equinox", _equinox),
    "keras": Rival("keras", "pip install keras", _keras, batch_major=True),
    "jax-cudnn": Rival(
        "jax.experimental.rnn",
        'pip install "jax[cuda13]"',
        _jax_cudnn,
        batch_major=True,
        gpu_only=True,
    ),
}
