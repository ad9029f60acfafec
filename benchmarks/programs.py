"""lstm_jax and its rivals as programs that can be run, checked and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from benchmarks.reference import Problem
from benchmarks.rivals import RIVALS, as_stack
from benchmarks.timing import threads, torch_device

OURS = "lstm_jax"

# What a library raises where it cannot run a case. Anything else is a bug in here.
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, MemoryError)


class Program(NamedTuple):
    """One library on one problem, ready to run.

    Attributes:
        run: one run, finished when it returns: ys, or the gradients of a training step.
        read: makes what :func:`errors` checks of a result.
        compile_s: seconds of tracing and compiling; None where nothing is compiled.
    """

    run: Callable[[], Any]
    read: Callable[[Any], dict[str, Any]]
    compile_s: float | None


def prepare(name: str, problem: Problem, mode: str) -> Program:
    """Builds a program and compiles it.

    Args:
        name: ``lstm_jax``, ``lstm_jax:IMPLEMENTATION`` or a key of :data:`RIVALS`.
        problem: the numbers.
        mode: "forward" or "training".

    Raises:
        RuntimeError, ValueError, TypeError, AttributeError, MemoryError: whatever the
            library raises where it cannot run this.
    """
    if name.split(":")[0] == OURS:
        forward, params = _ours(problem, name.partition(":")[2] or None)
        return _jax_program(forward, params, problem, mode, batch_major=False)
    rival = RIVALS[name]
    if rival.build is None:
        return _torch_program(problem, mode)
    forward, params = rival.build(problem)
    return _jax_program(forward, params, problem, mode, rival.batch_major)


def resolved(problem: Problem) -> str:
    """The implementation that lstm_jax picks, or those, where layers differ."""
    case, names = problem.case, []
    for layer, size in zip(problem.weights, case.input_sizes, strict=True):
        xs = jnp.zeros((case.length, case.batch, size), problem.array_dtype)
        cell = lj.LSTMCell(size, case.hidden_size)
        for direction, params in enumerate(_cast(layer, problem)):
            params = lj.LSTMParams(*params)
            name = lj.resolve_implementation(
                cell, params, xs, time_major=True, reverse=direction == 1
            )
            names.append(name)
    return "+".join(dict.fromkeys(names))


def errors(problem: Problem, mode: str, answer: dict[str, Any]) -> dict[str, float]:
    """The relative error, in the L2 norm, of each part of an answer."""
    expected: dict[str, Any] = {}
    if mode == "forward":
        expected["ys"] = problem.outputs
    else:
        expected["xs"], expected["matrices"] = problem.gradients
    found = {}
    for name, value in answer.items():
        value, right = np.asarray(value, np.float32), np.asarray(expected[name])
        if value.shape != right.shape:
            raise ValueError(f"{name} has shape {value.shape}, not {right.shape}")
        found[name] = float(np.linalg.norm(value - right) / np.linalg.norm(right))
    return found


def _cast(tree: Any, problem: Problem) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, problem.array_dtype), tree)


def _jax_program(
    forward: Callable, params: Any, problem: Problem, mode: str, batch_major: bool
) -> Program:
    def layout(values):
        return np.swapaxes(np.asarray(values), 0, 1) if batch_major else values

    params, xs, cotangent = _cast(
        (params, layout(problem.xs), layout(problem.cotangent)), problem
    )

    def loss(params, xs, cotangent):
        return jnp.vdot(forward(params, xs), cotangent)

    if mode == "forward":
        function, args = forward, (params, xs)
        read = lambda ys: {"ys": layout(ys)}
    else:
        function, args = jax.grad(loss, argnums=(0, 1)), (params, xs, cotangent)
        read = lambda grads: {"xs": layout(grads[1]), **_matrices(grads[0])}
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    compile_s = time.perf_counter() - start
    return Program(lambda: jax.block_until_ready(compiled(*args)), read, compile_s)


def _matrices(grads: Any) -> dict[str, float]:
    """The norm of all weight matrices' gradients: the same however gates are kept."""
    matrices = [leaf for leaf in jax.tree.leaves(grads) if leaf.ndim == 2]
    if not matrices:
        return {}
    squares = [np.square(np.asarray(m, np.float64)).sum() for m in matrices]
    return {"matrices": float(np.sqrt(sum(squares)))}


def _ours(problem: Problem, implementation: str | None):
    model, params = as_stack(problem)

    def forward(params, xs):
        _, ys = model.apply(params, xs, time_major=True, implementation=implementation)
        return ys

    return forward, params


def _torch_program(problem: Problem, mode: str) -> Program:
    import torch

    torch.set_num_threads(threads())
    case, device = problem.case, torch_device()

    def tensor(values):
        dtype = getattr(torch, problem.array_dtype)
        return torch.tensor(np.asarray(values)).to(device, dtype)

    lstm = torch.nn.LSTM(
        case.input_size,
        case.hidden_size,
        case.layers,
        bidirectional=case.bidirectional,
        device=device,
        dtype=getattr(torch, problem.array_dtype),
    )
    weights = lj.convert.to_torch(*as_stack(problem))
    lstm.load_state_dict({name: tensor(one) for name, one in weights.items()})
    lstm.train(mode == "training")
    xs = tensor(problem.xs).requires_grad_(mode == "training")
    cotangent = tensor(problem.cotangent)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward():
        with torch.inference_mode():
            ys = lstm(xs)[0]
        wait()
        return ys

    def training():
        # New tensors each time: nothing accumulates from one run to the next.
        grads = torch.autograd.grad(lstm(xs)[0], (xs, *lstm.parameters()), cotangent)
        wait()
        return grads

    def read_grads(grads):
        xs, *rest = (grad.float().cpu().numpy() for grad in grads)
        return {"xs": xs, **_matrices(rest)}

    if mode == "forward":
        return Program(forward, lambda ys: {"ys": ys.float().cpu().numpy()}, None)
    return Program(training, read_grads, None)
