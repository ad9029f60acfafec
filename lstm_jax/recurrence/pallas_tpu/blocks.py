"""How arrays are cut into blocks, and calls of kernels on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lstm_jax.recurrence.pallas_tpu.sizes import LIMIT, Shape

# How kernels are interpreted; tests have it look for races.
INTERPRETER = pltpu.InterpretParams()


def steps(shape: Shape, size: int, reverse: bool) -> pl.BlockSpec:
    """Blocks of what there is for each step, in the order in which they are taken."""
    last = shape.length // shape.steps - 1
    place = lambda b, t: (last - t if reverse else t, b, 0)
    return pl.BlockSpec((shape.steps, shape.rows, size), place)


def rows(shape: Shape, size: int) -> pl.BlockSpec:
    """Blocks of what there is for each row."""
    return pl.BlockSpec((shape.rows, size), lambda b, t: (b, 0))


def whole(array: Any) -> pl.BlockSpec:
    """All of a matrix, fetched once: it needs no second place in VMEM."""
    return pl.BlockSpec(
        array.shape, lambda b, t: (0, 0), pipeline_mode=pl.Buffered(buffer_count=1)
    )


def shapes_of(every: Any, wanted: Any) -> Any:
    """Of a named tuple of shapes with dtypes those that are wanted; None for others."""
    return type(every)(
        *(
            jax.ShapeDtypeStruct(*one) if wants else None
            for one, wants in zip(every, wanted, strict=True)
        )
    )


def call(
    name: str,
    body: Callable,
    shape: Shape,
    given: Any,
    ins: Any,
    results: Any,
    outs: Any,
    scratch: tuple,
    interpret: bool,
) -> Any:
    """Calls a kernel with tuples of references, in which None stands for nothing.

    Args:
        name: what a profile calls it.
        body: takes what is read, what is written, and the scratch.
        shape: how it is cut.
        given: a named tuple of arrays.
        ins: their blocks.
        results: a named tuple of shapes and dtypes.
        outs: their blocks.
        scratch: places of its own.
        interpret: whether it is interpreted on a CPU.
    """
    operands = [one for one in given if one is not None]
    wanted = [one for one in results if one is not None]

    def kernel(*refs):
        refs = iter(refs)
        body(_like(given, refs), _like(results, refs), tuple(refs))

    values = pl.pallas_call(
        kernel,
        grid=(shape.batch // shape.rows, shape.length // shape.steps),
        in_specs=_chosen(ins, given),
        out_specs=_chosen(outs, results),
        out_shape=wanted,
        scratch_shapes=scratch,
        interpret=INTERPRETER if interpret else False,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=LIMIT
        ),
        name=name,
    )(*operands)
    return _like(results, iter(values))


def _like(tree: Any, values: Any) -> Any:
    return type(tree)(*(None if one is None else next(values) for one in tree))


def _chosen(specs: Any, there: Any) -> list[Any]:
    pairs = zip(specs, there, strict=True)
    return [spec for spec, one in pairs if one is not None]
