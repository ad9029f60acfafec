"""A gradient through very many steps: its memory and its time a step.

``python -m benchmarks.long`` measures one row of 64 units, each length in a process of
its own: the gradient of all parameters and of the inputs for a given cotangent of all
outputs, with ``checkpoint_every="sqrt"``, and the shorter length without it too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

SIZE = 64
SHORT, LONG = 10_000, 1_000_000


def measure(length: int, every: str | None, repeats: int) -> dict[str, float]:
    """Time a step in microseconds, and memory beyond inputs and outputs in MiB."""
    import jax
    import numpy as np

    import lstm_jax as lj

    cell = lj.LSTMCell(SIZE, SIZE)
    params = cell.init(jax.random.key(0))
    shape = jax.ShapeDtypeStruct((1, length, SIZE), np.float32)

    @jax.jit
    def gradient(params, xs, cotangent):
        run = lambda params, xs: lj.scan(cell, params, xs, checkpoint_every=every)[1]
        ys, pull = jax.vjp(run, params, xs)
        return ys, pull(cotangent)

    compiled: Any = gradient.lower(params, shape, shape).compile()
    before, times = resident(), []
    rng = np.random.default_rng(0)
    xs, cotangent = (
        jax.device_put(rng.standard_normal(shape.shape, np.float32)) for _ in range(2)
    )
    nbytes = xs.nbytes + cotangent.nbytes
    for _ in range(repeats):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(params, xs, cotangent))
        times.append(time.perf_counter() - start)
        outputs = sum(leaf.nbytes for leaf in jax.tree.leaves(out))
        del out
    return {
        "length": length,
        "microseconds_a_step": statistics.median(times) / length * 1e6,
        "least": min(times) / length * 1e6,
        "most": max(times) / length * 1e6,
        "mebibytes": (peak() - before - nbytes - outputs) / 2**20,
        "temporaries": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }


def resident() -> float:
    """Resident memory now, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> float:
    """The most resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Runs each measurement in a process of its own, and prints them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--one", nargs=2, metavar=("LENGTH", "EVERY"))
    args = parser.parse_args()
    if args.one:
        length, every = args.one
        every = None if every == "none" else every
        print(json.dumps(measure(int(length), every, args.repeats)))
        return
    for length, every in ((SHORT, "none"), (SHORT, "sqrt"), (LONG, "sqrt")):
        command = [sys.executable, "-m", "benchmarks.long", "--one", str(length), every]
        command += ["--repeats", str(args.repeats)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        print(every, result.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
