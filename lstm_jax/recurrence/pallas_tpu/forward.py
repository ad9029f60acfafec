"""The forward kernel: weights stay in VMEM, and h and c beside them, step after step.

The grid is ``(blocks of rows, blocks of steps)``. Rows are independent, so that two
cores can share them; steps follow each other, and the next block's inputs are fetched
while one runs. What inputs contribute comes ready made: it is one large product, which
XLA multiplies at the full rate.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lstm_jax.recurrence.pallas_tpu import blocks
from lstm_jax.recurrence.pallas_tpu.sizes import LANES, Shape
from lstm_jax.types import Array

VALID, RESET = 1, 2  # bits of a row's controls at a step


class Given(NamedTuple):
    """What the kernel reads; None for what is not there.

    Columns of gates are ordered by units: those of the first 128, gate by gate, then
    those of the next.

    Attributes:
        zs: ``[T, B, 4H]``, what inputs contribute, in the compute dtype.
        recurrent: ``[P, 4H]``.
        h: ``[B, P]``, to start from.
        c: ``[B, H]``, float32.
        projection: ``[H, P]``.
        controls: ``[T, B, 1]`` int32: :data:`VALID` and :data:`RESET`.
        reset_h: ``[B, P]``, what a reset goes back to.
        reset_c: ``[B, H]``.
    """

    zs: Any
    recurrent: Any
    h: Any
    c: Any
    projection: Any = None
    controls: Any = None
    reset_h: Any = None
    reset_c: Any = None


class Made(NamedTuple):
    """What the kernel writes; None for what nobody wants.

    Attributes:
        ys: ``[T, B, P]``.
        cs: ``[T, B, H]``, c after each step, 0 where not valid.
        last_h: ``[B, P]``.
        last_c: ``[B, H]``.
        gates: ``[T, B, 4H]``, what activations are taken of, in the compute dtype.
        cells: ``[T, B, H]``, the c that entered each step.
        entering: ``[T, B, P]``, the h that entered each step.
    """

    ys: Any = None
    cs: Any = None
    last_h: Any = None
    last_c: Any = None
    gates: Any = None
    cells: Any = None
    entering: Any = None


def run(
    given: Given, wanted: Made, shape: Shape, reverse: bool, interpret: bool
) -> Made:
    """Runs one direction.

    Args:
        given: arrays whose sizes the tiles of a TPU divide.
        wanted: a truth for each result.
        shape: sizes, and those of blocks.
        reverse: whether the last step comes first.
        interpret: whether it is interpreted.
    """
    results = _results(given, wanted, shape)
    ins = Given(
        zs=blocks.steps(shape, 4 * shape.hidden, reverse),
        recurrent=blocks.whole(given.recurrent),
        h=blocks.rows(shape, shape.output),
        c=blocks.rows(shape, shape.hidden),
        projection=given.projection is not None and blocks.whole(given.projection),
        controls=blocks.steps(shape, 1, reverse),
        reset_h=blocks.rows(shape, shape.output),
        reset_c=blocks.rows(shape, shape.hidden),
    )
    outs = Made(
        ys=blocks.steps(shape, shape.output, reverse),
        cs=blocks.steps(shape, shape.hidden, reverse),
        last_h=blocks.rows(shape, shape.output),
        last_c=blocks.rows(shape, shape.hidden),
        gates=blocks.steps(shape, 4 * shape.hidden, reverse),
        cells=blocks.steps(shape, shape.hidden, reverse),
        entering=blocks.steps(shape, shape.output, reverse),
    )
    scratch = (
        pltpu.VMEM((shape.rows, shape.output), given.h.dtype),
        pltpu.VMEM((shape.rows, shape.hidden), given.c.dtype),
        pltpu.VMEM((shape.rows, shape.hidden), given.h.dtype),
    )
    body = functools.partial(_kernel, shape=shape, reverse=reverse)
    return blocks.call(
        "lstm_forward", body, shape, given, ins, results, outs, scratch, interpret
    )


def _results(given: Given, wanted: Made, shape: Shape) -> Made:
    """Shapes and dtypes of those results that are wanted."""
    narrow, wide = given.h.dtype, given.c.dtype
    steps = lambda size, dtype: ((shape.length, shape.batch, size), dtype)
    every = Made(
        ys=steps(shape.output, narrow),
        cs=steps(shape.hidden, wide),
        last_h=((shape.batch, shape.output), narrow),
        last_c=((shape.batch, shape.hidden), wide),
        gates=steps(4 * shape.hidden, narrow),
        cells=steps(shape.hidden, wide),
        entering=steps(shape.output, narrow),
    )
    return blocks.shapes_of(every, wanted)


def _kernel(given: Given, made: Made, scratch: Any, *, shape: Shape, reverse: bool):
    h, c, _ = scratch

    @pl.when(pl.program_id(1) == 0)
    def _():
        h[...], c[...] = given.h[...], given.c[...]

    def body(n, _):
        _step(given, made, scratch, shape.steps - 1 - n if reverse else n, shape)

    lax.fori_loop(0, shape.steps, body, None)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        if made.last_h is not None:
            made.last_h[...] = h[...]
        if made.last_c is not None:
            made.last_c[...] = c[...]


def _step(given: Given, made: Made, scratch: Any, t: Any, shape: Shape) -> None:
    h_ref, c_ref, outs_ref = scratch
    valid = None
    if given.controls is not None:
        controls = given.controls[t]
        valid = (controls & VALID) != 0
    if given.reset_h is not None:
        reset = (controls & RESET) != 0
        for ref, start in ((h_ref, given.reset_h), (c_ref, given.reset_c)):
            for place in columns_of(ref.shape[1]):
                ref[:, place] = jnp.where(reset, start[:, place], ref[:, place])
    if made.entering is not None:
        made.entering[t] = h_ref[...]
    h = h_ref[...]
    for block in unit_blocks(shape):
        _block(given, made, scratch, t, h, valid, block)
    if given.projection is not None:
        outs = product(outs_ref[...], given.projection[...]).astype(h.dtype)
        outs_ref[:, : shape.output] = outs
    for place in columns_of(shape.output):
        new_h = outs_ref[:, place]
        held = new_h if valid is None else jnp.where(valid, new_h, h_ref[:, place])
        h_ref[:, place] = held
        if made.ys is not None:
            put = new_h if valid is None else jnp.where(valid, new_h, 0)
            made.ys[t, :, place] = put


def _block(
    given: Given,
    made: Made,
    scratch: Any,
    t: Any,
    h: Array,
    valid: Array | None,
    block: Block,
) -> None:
    """A step of some units: few enough for all that they are to stay in registers."""
    _, c_ref, outs_ref = scratch
    c = c_ref[:, block.units]
    if made.cells is not None:
        made.cells[t, :, block.units] = c
    sums = product(h, given.recurrent[:, block.gates])
    sums = given.zs[t, :, block.gates].astype(c.dtype) + sums
    if made.gates is not None:
        made.gates[t, :, block.gates] = sums.astype(h.dtype)
    i, f, g, o = split(sums)
    new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
    outs_ref[:, block.units] = new_h.astype(h.dtype)
    c_ref[:, block.units] = new_c if valid is None else jnp.where(valid, new_c, c)
    if made.cs is not None:
        put = new_c if valid is None else jnp.where(valid, new_c, 0)
        made.cs[t, :, block.units] = put


class Block(NamedTuple):
    """Which units, and which columns of the gates are theirs."""

    units: Any
    gates: Any


def columns_of(size: int) -> list[slice]:
    """All columns, a tile's width of them at a time."""
    return [slice(n, n + LANES) for n in range(0, size, LANES)]


def unit_blocks(shape: Shape) -> list[Block]:
    """All units, a tile's width of them at a time."""
    return [
        Block(units, slice(4 * units.start, 4 * units.stop))
        for units in columns_of(shape.hidden)
    ]


def product(x: Array, kernel: Array) -> Array:
    """``x @ kernel``, summed in float32, in the precision that the context asks for."""
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def split(sums: Array) -> list[Array]:
    """The four gates of a block of units."""
    return jnp.split(sums, 4, -1)
