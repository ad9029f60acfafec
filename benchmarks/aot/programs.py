"""The programs that are compiled: lstm_jax with any cell, and its rivals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lstm_jax as lj
from benchmarks.cases import Case
from benchmarks.reference import make_problem
from benchmarks.rivals import RIVALS

MODES = ("forward", "gradient")
DTYPES = ("float32", "bfloat16", "float16")
RIVAL_NAMES = ("flax-nnx", "haiku", "equinox")


def cells(size: int) -> dict[str, Any]:
    """Every kind of cell, with inputs and states of about ``size`` numbers a row."""
    lstm = lambda **options: lj.LSTMCell(size, size, **options)
    conv = lambda *shape: lj.ConvLSTMCell((*shape, 8), 8, 3)
    rates = dict(recurrent_dropout=0.3, zoneout_h=0.1, zoneout_c=0.1)
    return {
        "LSTM": lstm(),
        "projection": lstm(proj_size=size // 2),
        "no bias": lstm(use_bias=False),
        "peephole": lstm(peephole=True),
        **{name: lstm(variant=name) for name in ("NIG", "NFG", "NOG", "CIFG", "FGR")},
        "Haste's norm": lstm(layer_norm="haste"),
        "Ba's norm": lstm(layer_norm="ba"),
        "clip": lstm(clip=3.0, cell_clip=3.0),
        "heads": lstm(num_heads=4),
        "ParaRNN's LSTM": lstm(num_heads=size, variant="CIFG", peephole=True),
        "minLSTM": lj.MinLSTMCell(size, size),
        "sLSTM": lj.SLSTMCell(size, size, num_heads=4),
        "ConvLSTM 1d": conv(16),
        "ConvLSTM 2d": conv(8, 8),
        "ConvLSTM 3d": conv(4, 4, 4),
        "dropout, zoneout": lj.Regularized(lstm(), **rates),
    }


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled.

    Attributes:
        library: "lstm_jax" or one of :data:`RIVAL_NAMES`.
        cell: of lstm_jax one of :func:`cells`; of the others "LSTM".
        mode: "forward", or "gradient" of all parameters.
        dtype: of parameters and inputs.
        batch: B.
        length: T.
        size: I and H.
    """

    library: str
    cell: str
    mode: str
    dtype: str
    batch: int
    length: int
    size: int


def compiled(program: Program, devices: Sequence[Any]) -> Any:
    """Compiles a program for devices that share its batch."""
    mesh = Mesh(np.array(devices), "data")
    build = _ours if program.library == "lstm_jax" else _rival
    forward, params, row = build(program)

    def abstract(shape, *axes):
        where = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, program.dtype, sharding=where)

    params = jax.tree.map(lambda leaf: abstract(leaf.shape), params)
    shape = (program.length, program.batch, *row)
    xs = abstract(shape, None, "data")
    if program.mode == "forward":
        return jax.jit(forward).lower(params, xs).compile()
    ys = jax.eval_shape(forward, params, jax.ShapeDtypeStruct(shape, program.dtype))
    weights = abstract(ys.shape, None, "data")
    loss = lambda params, xs, weights: jnp.vdot(forward(params, xs), weights)
    return jax.jit(jax.grad(loss)).lower(params, xs, weights).compile()


def _ours(program: Program) -> tuple[Callable, Any, tuple[int, ...]]:
    cell = cells(program.size)[program.cell]
    key = jax.random.key(0) if isinstance(cell, lj.Regularized) else None

    def forward(params, xs):
        return lj.scan(cell, params, xs, time_major=True, key=key)[1]

    return forward, jax.eval_shape(cell.init, jax.random.key(0)), cell.input_shape


def _rival(program: Program) -> tuple[Callable, Any, tuple[int, ...]]:
    size = program.size
    # The parameters' values are used by nobody, and no library looks at the length.
    problem = make_problem(Case("one", program.batch, 1, size, size), program.dtype)
    build = RIVALS[program.library].build
    assert build is not None
    return *build(problem), (size,)
