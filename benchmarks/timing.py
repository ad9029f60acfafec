"""How it is measured: in turn, after settling, and the machine's own limit."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.reference import ARRAY_DTYPES

MIN_SAMPLES = 7
MAX_SAMPLES = 100

# Before each sample, a library runs untimed for this long. The worker threads of the
# one before it (OpenMP's, in torch) go on spinning for milliseconds after its work is
# done: without this, a 3 ms JAX program took 5 to 6 ms when torch went before it.
SETTLE_S = 0.02


class Times(NamedTuple):
    """Milliseconds of one run."""

    median_ms: float
    min_ms: float
    max_ms: float
    samples: int


class Peak(NamedTuple):
    """The best matrix product found on this machine."""

    gflops: float
    library: str


def threads() -> int:
    """How many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def on_gpu() -> bool:
    """Whether JAX runs on a GPU."""
    return jax.default_backend() == "gpu"


def torch_installed() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def torch_device() -> str:
    """PyTorch's device: the kind JAX runs on, where PyTorch has it too."""
    import torch

    return "cuda" if on_gpu() and torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    """Makes float32 mean float32 on a GPU, and "tf32" mean TF32, in JAX and torch."""
    if not on_gpu():
        yield
        return
    if torch_installed():
        import torch

        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    precision = {"float32": "highest", "tf32": "tensorfloat32"}.get(dtype)
    with jax.default_matmul_precision(precision):
        yield


def measure(programs: Mapping[str, Callable[[], Any]], budget_s: float):
    """Times each program in turn, A B A B ..., so that a busy machine is so for all.

    Args:
        programs: for each name, a function that has finished its work when it returns.
        budget_s: stop after the round that passes this many seconds, but not before
            each has :data:`MIN_SAMPLES`.

    Returns:
        :class:`Times` by name.
    """
    samples = {name: [] for name in programs}
    start = time.perf_counter()
    for round_ in range(MAX_SAMPLES):
        if round_ >= MIN_SAMPLES and time.perf_counter() - start > budget_s:
            break
        for name, run in programs.items():
            last = samples[name][-1] if round_ else 0.0
            samples[name].append(_sample(run, settle=last < 10 * SETTLE_S))
    return {name: _summarize(times) for name, times in samples.items()}


def _sample(run: Callable[[], Any], settle: bool) -> float:
    """Seconds of one run. What takes long needs no settling."""
    start = time.perf_counter()
    while settle and time.perf_counter() - start < SETTLE_S:
        run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _summarize(seconds: list[float]) -> Times:
    ms = 1e3 * np.array(seconds)
    return Times(float(np.median(ms)), float(ms.min()), float(ms.max()), len(ms))


def peak(dtype: str, size: int | None = None) -> Peak:
    """The best rate of a square matrix product, over the libraries that are here.

    Args:
        dtype: a key of :data:`ARRAY_DTYPES`.
        size: rows and columns; by default 2048, and 8192 on a GPU.
    """
    size = size or (8192 if on_gpu() else 2048)
    values = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
    programs = {"jax": _jax_product(values, dtype)}
    if dtype == "float32" and not on_gpu():
        programs["numpy"] = lambda: values @ values
    if torch_installed():
        programs["torch"] = _torch_product(values, dtype)
    for run in programs.values():
        run()
    times = measure(programs, budget_s=0)
    best = min(times, key=lambda name: times[name].min_ms)
    return Peak(2e-6 * size**3 / times[best].min_ms, best)


def _jax_product(values: np.ndarray, dtype: str) -> Callable[[], Any]:
    a = jnp.asarray(values, ARRAY_DTYPES[dtype])
    product = jax.jit(jnp.matmul).lower(a, a).compile()
    return lambda: jax.block_until_ready(product(a, a))


def _torch_product(values: np.ndarray, dtype: str) -> Callable[[], Any]:
    import torch

    device = torch_device()
    torch.set_num_threads(threads())
    a = torch.from_numpy(values).to(device, getattr(torch, ARRAY_DTYPES[dtype]))

    def run():
        product = a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        return product

    return run
