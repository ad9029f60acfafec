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
import numpy as np

from benchmarks.reference import Params, Problem
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


def _stack(directions: list[Callable]) -> Callable:
    """A forward function over layers, from one function for each direction."""

    def forward(params, xs):
        for layer in params:
            outputs = [f(p, xs) for f, p in zip(directions, layer, strict=True)]
            xs = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, -1)
        return xs

    return forward


def _flax_nnx(problem: Problem):
    from flax import nnx

    carry, graphs, states = (_zeros(problem),) * 2, [], []
    for layer in problem.weights:
        rnns = [_nnx_rnn(problem, params) for params in layer]
        module = rnns[0]
        if len(rnns) == 2:
            module = nnx.Bidirectional(*rnns, time_major=True, rngs=False)
        graph, state = nnx.split(module)
        graphs.append(graph)
        states.append(state)
    initial: Any = (carry, carry) if problem.case.bidirectional else carry

    def forward(states, xs):
        for graph, state in zip(graphs, states, strict=True):
            xs = nnx.merge(graph, state)(xs, initial_carry=initial)
        return xs

    return forward, states


def _nnx_rnn(problem: Problem, params: Params):
    from flax import nnx

    zeros = jax.nn.initializers.zeros
    cell = nnx.OptimizedLSTMCell(
        params.kernel.shape[0],
        problem.case.hidden_size,
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        dtype=problem.array_dtype,
        param_dtype=problem.array_dtype,
        rngs=nnx.Rngs(0),
    )
    cell.dense_i.kernel = nnx.Param(jnp.asarray(params.kernel))
    cell.dense_h.kernel = nnx.Param(jnp.asarray(params.recurrent_kernel))
    cell.dense_h.bias = nnx.Param(jnp.asarray(params.bias))
    return nnx.RNN(cell, time_major=True, rngs=False)


def _flax_linen(problem: Problem):
    from flax import linen as nn

    def rnn():
        cell = nn.OptimizedLSTMCell(
            problem.case.hidden_size,
            dtype=problem.array_dtype,
            param_dtype=problem.array_dtype,
        )
        return nn.RNN(cell, time_major=True)

    def by_gate(params):
        kernels = np.split(params.kernel, 4, axis=1)
        recurrent = np.split(params.recurrent_kernel, 4, axis=1)
        biases = np.split(params.bias, 4)
        cell: dict[str, Any] = {}
        for gate, w, r, b in zip("ifgo", kernels, recurrent, biases, strict=True):
            cell[f"i{gate}"] = {"kernel": w}
            cell[f"h{gate}"] = {"kernel": r, "bias": b}
        return {"cell": cell}

    if problem.case.bidirectional:
        module = nn.Bidirectional(rnn(), rnn(), time_major=True)
        names = ("forward_rnn", "backward_rnn")
        params = [
            dict(zip(names, map(by_gate, layer), strict=True))
            for layer in problem.weights
        ]
    else:
        module = rnn()
        params = [by_gate(layer[0]) for layer in problem.weights]

    def forward(params, xs):
        for layer in params:
            xs = module.apply({"params": layer}, xs)
        return xs

    return forward, params


def _haiku(problem: Problem):
    import haiku as hk

    def network(reverse):
        def unroll(xs):
            state = hk.LSTMState(_zeros(problem), _zeros(problem))
            core = hk.LSTM(problem.case.hidden_size)
            return hk.dynamic_unroll(core, xs, state, reverse=reverse)[0]

        apply = hk.without_apply_rng(hk.transform(unroll)).apply
        return lambda params, xs: apply(params, xs)

    def convert(params):
        # Gates i, g, f, o on [x, h], and 1 is added to f as it runs.
        both = np.concatenate([params.kernel, params.recurrent_kernel])
        i, f, g, o = np.split(np.concatenate([both, params.bias[None]]), 4, axis=1)
        f[-1] -= 1
        joined = np.concatenate([i, g, f, o], axis=1)
        return {"lstm/linear": {"w": joined[:-1], "b": joined[-1]}}

    directions = [network(n == 1) for n in range(problem.case.directions)]
    params = [[convert(p) for p in layer] for layer in problem.weights]
    return _stack(directions), params


def _equinox(problem: Problem):
    import equinox as eqx

    def convert(params):
        size, dtype = params.kernel.shape[0], problem.array_dtype
        key = jax.random.key(0)
        cell = eqx.nn.LSTMCell(size, problem.case.hidden_size, dtype=dtype, key=key)
        new = (params.kernel.T, params.recurrent_kernel.T, params.bias)
        return eqx.tree_at(lambda c: (c.weight_ih, c.weight_hh, c.bias), cell, new)

    def scan(reverse):
        def run(cell, xs):
            def step(state, x):
                h, c = jax.vmap(cell)(x, state)
                return (h, c), h

            carry = (_zeros(problem), _zeros(problem))
            return jax.lax.scan(step, carry, xs, reverse=reverse)[1]

        return run

    directions = [scan(n == 1) for n in range(problem.case.directions)]
    params = [[convert(p) for p in layer] for layer in problem.weights]
    return _stack(directions), params


def _keras(problem: Problem):
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise ValueError("Keras was already imported with another backend than JAX")
    case, dtype = problem.case, problem.array_dtype
    layers, values = [], []
    for layer in problem.weights:
        module = keras.layers.LSTM(
            case.hidden_size,
            return_sequences=True,
            recurrent_initializer="zeros",
            dtype=dtype,
        )
        if case.bidirectional:
            module = keras.layers.Bidirectional(module, dtype=dtype)
        layers.append(module)
        for params in layer:
            values += [params.kernel, params.recurrent_kernel, params.bias]
    shape = (case.batch, case.length, case.input_size)
    inputs = keras.Input(batch_shape=shape, dtype=dtype)
    model: Any = keras.Sequential([inputs, *layers])
    fixed = [variable.value for variable in model.non_trainable_variables]

    def forward(params, xs):
        return model.stateless_call(params, fixed, xs)[0]

    return forward, values


def _jax_cudnn(problem: Problem):
    from jax.experimental import rnn

    if problem.array_dtype != "float32":
        raise ValueError("float32 only")
    case, layers = problem.case, [p for layer in problem.weights for p in layer]
    matrices = [m.T.ravel() for p in layers for m in (p.kernel, p.recurrent_kernel)]
    biases = [b for p in layers for b in (p.bias, np.zeros_like(p.bias))]
    zeros = jnp.zeros((len(layers), case.batch, case.hidden_size))
    lengths = jnp.full((case.batch,), case.length, jnp.int32)
    options = (case.input_size, case.hidden_size, case.layers, 0.0, case.bidirectional)

    def forward(weights, xs):
        result: Any = rnn.lstm(xs, zeros, zeros, weights, lengths, *options)
        return result[0]

    return forward, np.concatenate(matrices + biases)


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
