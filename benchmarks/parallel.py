"""Times ``parallel_scan`` in turn with ``scan``: ``python -m benchmarks.parallel``.

One row of inputs, new weights, float32. A line is a case: iterations, with the weights
as they are and four times as large, then the median times of a forward pass and of a
gradient in ms, and how many times those of ``scan`` they are.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from benchmarks.timing import measure

INPUTS = 8
# Jacobians of the scan's last rounds alone are T * (2H)^2 numbers.
LARGEST = 5e7


def gradient(run):
    def loss(params, xs):
        return jnp.sum(run(params, xs)[1] ** 2)

    return jax.grad(loss)


def timed(params, xs, programs):
    """Medians in ms, by name, of programs run in turn."""
    compiled = {name: jax.jit(run) for name, run in programs.items()}
    runs = {
        name: lambda run=run: jax.block_until_ready(run(params, xs))
        for name, run in compiled.items()
    }
    for run in runs.values():
        run()
    return {name: t.median_ms for name, t in measure(runs, budget_s=0).items()}


def case(hidden, length):
    cell = lj.LSTMCell(INPUTS, hidden)
    params = cell.init(jax.random.key(0))
    large = jax.tree.map(lambda leaf: 4 * leaf, params)
    values = np.random.default_rng(0).standard_normal((1, length, INPUTS))
    xs = jnp.asarray(values, jnp.float32)
    programs: dict[str, Callable] = {
        "scan": lambda params, xs: lj.scan(cell, params, xs)
    }
    for method in ("deer", "quasi-deer"):
        if method == "quasi-deer" or length * (2 * hidden) ** 2 < LARGEST:
            programs[method] = lambda params, xs, method=method: lj.parallel_scan(
                cell, params, xs, method=method
            )
    forward = timed(params, xs, programs)
    backward = timed(params, xs, {n: gradient(run) for n, run in programs.items()})
    for name, run in programs.items():
        line = f"{hidden:3} {length:6} {name:10}"
        if name != "scan":
            reports = [jax.jit(run)(weights, xs)[2] for weights in (params, large)]
            counts = [str(r.iterations) if r.converged else "-" for r in reports]
            line += f" iterations {counts[0]:>3} {counts[1]:>3}"
        for kind, ms in (("forward", forward), ("gradient", backward)):
            line += f"  {kind} {ms[name]:8.2f} ms, {ms[name] / ms['scan']:6.1f}"
        print(line, flush=True)


if __name__ == "__main__":
    for hidden in (1, 4, 16, 64):
        for length in (1_000, 10_000):
            case(hidden, length)
