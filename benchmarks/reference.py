"""The numbers that every library is given, and the right answers, in plain NumPy.

A library that computes something else is not compared. The loops below are written for
clearness and share nothing with what they check.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case

# TF32 is not a dtype of arrays: float32 arrays, whose products round to 10 bits.
ARRAY_DTYPES = {
    "float32": "float32",
    "tf32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}

# The largest error, relative in the L2 norm, that is still rounding. Libraries that
# keep c in 16 bits came to 1.3e-2 in bfloat16, and all to under 1e-6 in float32.
TOLERANCES = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}


class Params(NamedTuple):
    """One layer and direction: [I, 4H], [H, 4H], [4H]; gates in order i, f, g, o."""

    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One case with its numbers, float32 in NumPy but rounded to the dtype of the run.

    Attributes:
        case: the shape.
        dtype: a key of :data:`ARRAY_DTYPES`.
        weights: for each layer a tuple over directions.
        xs: inputs, ``[T, B, I]``.
        cotangent: what the outputs are weighted with in the loss, ``[T, B, D*H]``.
    """

    case: Case
    dtype: str
    weights: tuple[tuple[Params, ...], ...]
    xs: np.ndarray
    cotangent: np.ndarray

    @property
    def array_dtype(self) -> str:
        """The dtype of the arrays."""
        return ARRAY_DTYPES[self.dtype]

    @functools.cached_property
    def forward(self):
        """The right ys, and for each layer and direction what the way back needs."""
        return _forward(self)

    @property
    def outputs(self) -> np.ndarray:
        """The right ys, ``[T, B, D*H]``."""
        return self.forward[0]

    @functools.cached_property
    def gradients(self) -> tuple[np.ndarray, float]:
        """The right gradients: of xs, and the L2 norm of all matrices' together."""
        return _backward(self)


def make_problem(case: Case, dtype: str, seed: int = 0) -> Problem:
    """Draws the numbers of a case; weights from U(-1/sqrt(H), 1/sqrt(H)) as PyTorch."""
    rng = np.random.default_rng(seed)

    def rounded(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float32)
        return np.asarray(jnp.asarray(values, ARRAY_DTYPES[dtype]), np.float32)

    def uniform(*shape: int) -> np.ndarray:
        return rounded(rng.uniform(-1, 1, shape) / np.sqrt(case.hidden_size))

    H = case.hidden_size
    weights = tuple(
        tuple(
            Params(uniform(size, 4 * H), uniform(H, 4 * H), uniform(4 * H))
            for _ in range(case.directions)
        )
        for size in case.input_sizes
    )
    shape = (case.length, case.batch)
    xs = rounded(rng.standard_normal((*shape, case.input_size)))
    cotangent = rounded(rng.standard_normal((*shape, case.directions * H)))
    return Problem(case, dtype, weights, xs, cotangent)


def _forward(problem: Problem):
    tapes, ys = [], problem.xs
    for layer in problem.weights:
        ran = [_scan(params, _flip(ys, n)) for n, params in enumerate(layer)]
        tapes.append([tape for _, tape in ran])
        ys = np.concatenate([_flip(out, n) for n, (out, _) in enumerate(ran)], -1)
    return ys, tapes


def _backward(problem: Problem) -> tuple[np.ndarray, float]:
    _, tapes = problem.forward
    grads, squares = problem.cotangent, 0.0
    for layer, layer_tapes in zip(problem.weights[::-1], tapes[::-1], strict=True):
        parts = np.split(grads, len(layer), -1)
        grads = np.zeros_like(layer_tapes[0][0])
        for n, (params, tape) in enumerate(zip(layer, layer_tapes, strict=True)):
            d_xs, d_kernel, d_recurrent = _scan_back(params, tape, _flip(parts[n], n))
            grads += _flip(d_xs, n)
            for matrix in (d_kernel, d_recurrent):
                squares += np.square(matrix, dtype=np.float64).sum()
    return grads, float(np.sqrt(squares))


def _flip(xs: np.ndarray, direction: int) -> np.ndarray:
    return xs[::-1] if direction else xs


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x))


def _scan(params: Params, xs: np.ndarray):
    T, B, _ = xs.shape
    H = params.recurrent_kernel.shape[0]
    zs = xs @ params.kernel + params.bias
    hs, cs = (np.zeros((T + 1, B, H), np.float32) for _ in range(2))
    gates = np.empty((T, 4, B, H), np.float32)
    for t in range(T):
        i, f, g, o = np.split(zs[t] + hs[t] @ params.recurrent_kernel, 4, axis=-1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        cs[t + 1] = f * cs[t] + i * g
        hs[t + 1] = o * np.tanh(cs[t + 1])
        gates[t] = i, f, g, o
    return hs[1:], (xs, hs, cs, gates)


def _scan_back(params: Params, tape, d_ys: np.ndarray):
    xs, hs, cs, gates = tape
    T, B, H = d_ys.shape
    d_zs = np.empty((T, B, 4 * H), np.float32)
    dh, dc = np.zeros((B, H), np.float32), np.zeros((B, H), np.float32)
    for t in reversed(range(T)):
        i, f, g, o = gates[t]
        tanh_c = np.tanh(cs[t + 1])
        dh = dh + d_ys[t]
        dc = dc + dh * o * (1 - tanh_c**2)
        di, df, dg, do = dc * g, dc * cs[t], dc * i, dh * tanh_c
        parts = di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)
        d_zs[t] = np.concatenate(parts, axis=-1)
        dc, dh = dc * f, d_zs[t] @ params.recurrent_kernel.T
    rows = d_zs.reshape(T * B, -1)
    d_kernel = xs.reshape(T * B, -1).T @ rows
    return d_zs @ params.kernel.T, d_kernel, hs[:-1].reshape(T * B, H).T @ rows
