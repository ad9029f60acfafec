"""The backward kernel: from the last step to the first, with the same residents.

It is given what activations were taken of and the c that entered each step, and makes
the gradients of all pre-activations. What is a sum over steps and rows, the gradients
of weights, is made of those by products outside: nothing is added up over the grid but
what a row has by itself.
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
from lstm_jax.recurrence.pallas_tpu.forward import (
    RESET,
    VALID,
    Block,
    columns_of,
    product,
    split,
)
from lstm_jax.recurrence.pallas_tpu.sizes import LANES, Shape


class Given(NamedTuple):
    """What the kernel reads; None for what is not there.

    Attributes:
        gates: ``[T, B, 4H]``, what activations were taken of.
        cells: ``[T, B, H]``, the c that entered each step.
        recurrent: ``[4H, P]``, transposed.
        d_h: ``[B, P]``, the gradient of the last h, float32.
        d_c: ``[B, H]``, of the last c.
        d_ys: ``[T, B, P]``.
        d_cs: ``[T, B, H]``.
        projection: ``[P, H]``, transposed.
        controls: as the forward kernel was given them.
    """

    gates: Any
    cells: Any
    recurrent: Any
    d_h: Any
    d_c: Any
    d_ys: Any = None
    d_cs: Any = None
    projection: Any = None
    controls: Any = None


class Made(NamedTuple):
    """What the kernel writes; None for what nobody wants.

    Attributes:
        d_zs: ``[T, B, 4H]``, the gradient of each step's pre-activations.
        d_outs: ``[T, B, P]``, of what each step puts out, where it is projected.
        d_h: ``[B, P]``, of the h that the first step started from.
        d_c: ``[B, H]``, of its c.
        d_reset_h: ``[B, P]``, of what resets went back to.
        d_reset_c: ``[B, H]``.
    """

    d_zs: Any
    d_outs: Any = None
    d_h: Any = None
    d_c: Any = None
    d_reset_h: Any = None
    d_reset_c: Any = None


def run(
    given: Given,
    wanted: Made,
    shape: Shape,
    reverse: bool,
    interpret: bool,
    *,
    resets: bool,
) -> Made:
    """Runs one direction.

    Args:
        given: arrays whose sizes the tiles of a TPU divide.
        wanted: a truth for each result.
        shape: sizes, and those of blocks.
        reverse: the direction of the forward pass.
        interpret: whether it is interpreted.
        resets: whether the controls have resets.
    """
    backwards = not reverse
    per_step = functools.partial(blocks.steps, shape, reverse=backwards)
    output, hidden = shape.output, shape.hidden
    ins = Given(
        gates=per_step(4 * hidden),
        cells=per_step(hidden),
        recurrent=blocks.whole(given.recurrent),
        d_h=blocks.rows(shape, output),
        d_c=blocks.rows(shape, hidden),
        d_ys=per_step(output),
        d_cs=per_step(hidden),
        projection=given.projection is not None and blocks.whole(given.projection),
        controls=per_step(1),
    )
    outs = Made(
        d_zs=per_step(4 * hidden),
        d_outs=per_step(output),
        d_h=blocks.rows(shape, output),
        d_c=blocks.rows(shape, hidden),
        d_reset_h=blocks.rows(shape, output),
        d_reset_c=blocks.rows(shape, hidden),
    )
    state = [pltpu.VMEM((shape.rows, size), jnp.float32) for size in (output, hidden)]
    body = functools.partial(_kernel, shape=shape, reverse=backwards, resets=resets)
    results = _results(given, wanted, shape)
    # The gradients of what a step makes, and of the h that entered it.
    within = [pltpu.VMEM((shape.rows, hidden), jnp.float32), state[0]]
    scratch = (*state, *within, *(state if resets else ()))
    return blocks.call(
        "lstm_backward",
        body,
        shape,
        given,
        ins,
        results,
        outs,
        scratch,
        interpret,
    )


def _results(given: Given, wanted: Made, shape: Shape) -> Made:
    steps = lambda size, dtype: ((shape.length, shape.batch, size), dtype)
    rows = lambda size: ((shape.batch, size), jnp.float32)
    every = Made(
        d_zs=steps(4 * shape.hidden, given.gates.dtype),
        d_outs=steps(shape.output, given.gates.dtype),
        d_h=rows(shape.output),
        d_c=rows(shape.hidden),
        d_reset_h=rows(shape.output),
        d_reset_c=rows(shape.hidden),
    )
    return blocks.shapes_of(every, wanted)


def _kernel(
    given: Given,
    made: Made,
    scratch: Any,
    *,
    shape: Shape,
    reverse: bool,
    resets: bool,
):
    h, c, _, _, *totals = scratch

    @pl.when(pl.program_id(1) == 0)
    def _():
        h[...], c[...] = given.d_h[...], given.d_c[...]
        for total in totals:
            total[...] = jnp.zeros_like(total)

    def body(n, _):
        t = shape.steps - 1 - n if reverse else n
        _step(given, made, scratch, t, shape, resets)

    lax.fori_loop(0, shape.steps, body, None)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        results = made.d_h, made.d_c, made.d_reset_h, made.d_reset_c
        for result, total in zip(results, (h, c, *totals), strict=False):
            if result is not None:
                result[...] = total[...]


def _step(
    given: Given, made: Made, scratch: Any, t: Any, shape: Shape, resets: bool
) -> None:
    h_ref, c_ref, outs_ref, before_ref, *totals = scratch
    valid: Any = None
    reset: Any = None
    if given.controls is not None:
        controls = given.controls[t]
        valid, reset = (controls & VALID) != 0, (controls & RESET) != 0
    _enter(given, made, scratch, t, valid, shape)
    together = _together(shape.hidden // LANES)

    def body(n, _):
        for k in range(together):
            _block(given, made, scratch, t, valid, _units_at(n * together + k))
        size = 4 * LANES * together
        columns = pl.ds(pl.multiple_of(n * size, size), size)
        d_z = made.d_zs[t, :, columns]
        before_ref[...] += product(d_z, given.recurrent[columns])

    lax.fori_loop(0, shape.hidden // (LANES * together), body, None)
    for place in columns_of(shape.output):
        d = before_ref[:, place]
        h_ref[:, place] = d if valid is None else jnp.where(valid, d, h_ref[:, place])
    if not resets:
        return
    sizes = shape.output, shape.hidden
    for ref, total, size in zip((h_ref, c_ref), totals, sizes, strict=True):
        for place in columns_of(size):
            d = ref[:, place]
            total[:, place] += _where(reset, d)
            ref[:, place] = jnp.where(reset, 0, d)


def _enter(
    given: Given, made: Made, scratch: Any, t: Any, valid: Any, shape: Shape
) -> None:
    """Puts together the gradient of what a step makes, before it is projected."""
    h_ref, _, outs_ref, before_ref, *_ = scratch
    before_ref[...] = jnp.zeros_like(before_ref)
    dtype = made.d_zs.dtype
    for place in columns_of(shape.output):
        d = h_ref[:, place]
        if given.d_ys is not None:
            d = d + _where(valid, given.d_ys[t, :, place].astype(jnp.float32))
        if made.d_outs is not None:
            made.d_outs[t, :, place] = _where(valid, d).astype(dtype)
        outs_ref[:, place] = d
    if given.projection is not None:
        d = outs_ref[:, : shape.output].astype(dtype)
        outs_ref[...] = product(d, given.projection[...])


def _together(blocks_of_units: int) -> int:
    """How many blocks of units share a round: more hide more, until registers spill."""
    return next(count for count in (3, 2, 1) if not blocks_of_units % count)


def _units_at(n: Any) -> Block:
    """The block of units of a number that is known when it runs."""
    return Block(
        pl.ds(pl.multiple_of(n * LANES, LANES), LANES),
        pl.ds(pl.multiple_of(4 * n * LANES, 4 * LANES), 4 * LANES),
    )


def _block(
    given: Given, made: Made, scratch: Any, t: Any, valid: Any, block: Block
) -> None:
    """A step of some units: few enough for all that they are to stay in registers."""
    _, c_ref, outs_ref, *_ = scratch
    after_c, d_h = c_ref[:, block.units], outs_ref[:, block.units]
    d_c = after_c
    if given.d_cs is not None:
        d_c = d_c + _where(valid, given.d_cs[t, :, block.units])
    before = given.cells[t, :, block.units]
    i, f, g, o = split(given.gates[t, :, block.gates].astype(jnp.float32))
    i, f, o, g = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jax.nn.sigmoid(o), jnp.tanh(g)
    tanh_c = jnp.tanh(f * before + i * g)
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_z = [
        d_c * g * i * (1 - i),
        d_c * before * f * (1 - f),
        d_c * i * (1 - g * g),
        d_h * tanh_c * o * (1 - o),
    ]
    d_z = _where(valid, jnp.concatenate(d_z, -1))
    made.d_zs[t, :, block.gates] = d_z.astype(made.d_zs.dtype)
    d_c = d_c * f
    c_ref[:, block.units] = d_c if valid is None else jnp.where(valid, d_c, after_c)


def _where(rows: Any, values: Any) -> Any:
    """Values in some rows, 0 in the others; None for all rows."""
    return values if rows is None else jnp.where(rows, values, 0)
