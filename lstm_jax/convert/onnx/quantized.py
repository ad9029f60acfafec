"""Layers in 8 bits as ONNX's ordinary operators: what rounds, multiplies and scales.

There is an operator of onnxruntime's own for such layers, DynamicQuantizeLSTM. It has
one scale for a whole batch, so that a row's result would depend on the others, and
rounds h to 8 bits without a sign. So time is a Scan here, and products are
MatMulInteger, with a scale for each row and each column as in
:mod:`lstm_jax.cells.int8`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstm_jax.cells.quantized import QuantizedLSTMCell, QuantizedParams
from lstm_jax.convert.onnx.drawing import Drawing

_SMALLEST = 2.0**-119


class Given(NamedTuple):
    """What one direction of a layer is given, by name.

    Attributes:
        xs: ``[T, B, I]``.
        h: ``[B, P]``, the initial one.
        c: ``[B, H]``, the same.
        valid: bool ``[T, B, 1]``; "" where all steps are.
    """

    xs: str
    h: str
    c: str
    valid: str


def draw(
    drawing: Drawing,
    name: str,
    cell: QuantizedLSTMCell,
    params: QuantizedParams,
    given: Given,
    *,
    reverse: bool,
) -> tuple[str, str, str]:
    """Draws one direction: ys ``[T, B, P]``, the last h and the last c."""
    zs = _product(drawing, f"{name}_x", given.xs, params.kernel, params.kernel_scale)
    if params.bias is not None:
        bias = drawing.weights(f"{name}_bias", params.bias)
        zs = drawing.node("Add", [zs, bias], f"{name}_zs")
    body = _body(drawing, f"{name}_step", cell, params, bool(given.valid))
    scanned = [zs, given.valid] if given.valid else [zs]
    results = [f"{name}_{part}" for part in ("h", "c", "ys")]
    drawing.nodes(
        "Scan",
        [given.h, given.c, *scanned],
        results,
        f"{name}_scan",
        body=body,
        num_scan_inputs=len(scanned),
        scan_input_directions=[int(reverse)] * len(scanned),
        scan_output_directions=[int(reverse)],
    )
    h, c, ys = results
    return ys, h, c


def _body(
    drawing: Drawing,
    name: str,
    cell: QuantizedLSTMCell,
    params: QuantizedParams,
    controlled: bool,
) -> Any:
    """One step as a graph of its own."""
    body, hidden, out = drawing.within(), cell.hidden_size, cell.output_size
    node = lambda kind, inputs, part, **given: body.node(
        kind, inputs, f"{name}_{part}", **given
    )
    h = body.input(f"{name}_h_before", ["batch", out])
    c = body.input(f"{name}_c_before", ["batch", hidden])
    z = body.input(f"{name}_z", ["batch", 4 * hidden])
    r = _product(body, f"{name}_r", h, params.recurrent_kernel, params.recurrent_scale)
    pre = _clipped(body, f"{name}_pre", node("Add", [z, r], "sum"), cell.clip)
    gates = [f"{name}_{gate}_pre" for gate in "ifgo"]
    sizes = body.whole(f"{name}_sizes", np.full(4, hidden, np.int64))
    body.nodes("Split", [pre, sizes], gates, f"{name}_split", axis=-1)
    i, f, g, o = (
        node("Tanh" if gate == "g" else "Sigmoid", [before], gate)
        for gate, before in zip("ifgo", gates, strict=True)
    )
    kept, new = node("Mul", [f, c], "kept"), node("Mul", [i, g], "new")
    after = _clipped(
        body, f"{name}_c", node("Add", [kept, new], "c_sum"), cell.cell_clip
    )
    y = node("Mul", [o, node("Tanh", [after], "shown")], "m")
    if params.projection_kernel is not None:
        kernel, scale = params.projection_kernel, params.projection_scale
        y = _product(body, f"{name}_projected", y, kernel, scale)
    states = [y, after]
    if controlled:
        valid = body.input(f"{name}_valid", ["batch", 1], np.bool_)
        states = [
            node("Where", [valid, new, old], f"held_{part}")
            for part, new, old in (("h", y, h), ("c", after, c))
        ]
        y = node("Where", [valid, y, body.weights(f"{name}_nothing", 0.0)], "valid_y")
    ends = [
        node("Identity", [value], f"{part}_after")
        for part, value in zip(("h", "c", "y"), (*states, y), strict=True)
    ]
    for end, size in zip(ends, (out, hidden, out), strict=True):
        body.output(end, ["batch", size])
    return body.graph(name)


def _clipped(drawing: Drawing, name: str, value: str, limit: float | None) -> str:
    if limit is None:
        return value
    low = drawing.weights(f"{name}_lowest", -limit)
    high = drawing.weights(f"{name}_highest", limit)
    return drawing.node("Clip", [value, low, high], f"{name}_clipped")


def _product(drawing: Drawing, name: str, x: str, kernel: Any, scale: Any) -> str:
    """``x @ (kernel * scale)``, with ``x`` rounded to 8 bits by row."""
    node = lambda kind, inputs, part: drawing.node(kind, inputs, f"{name}_{part}")
    size = node("Abs", [x], "size")
    largest = drawing.largest_of_rows(size, f"{name}_largest")
    usable = node(
        "GreaterOrEqual",
        [largest, drawing.weights("smallest_row", _SMALLEST)],
        "usable",
    )
    inverse = node("Div", [drawing.weights("steps", 127.0), largest], "steps")
    zero = drawing.weights("zero", 0.0)
    inverse = node("Where", [usable, inverse, zero], "inverse")
    steps = node("Round", [node("Mul", [x, inverse], "wide")], "rounded")
    steps = drawing.cast(steps, np.int8, f"{name}_int8")
    values = drawing.whole(f"{name}_values", np.asarray(kernel))
    sums = node("MatMulInteger", [steps, values], "sums")
    sums = drawing.cast(sums, np.float32, f"{name}_floats")
    by_column = node("Mul", [sums, drawing.weights(f"{name}_scale", scale)], "columns")
    step = drawing.weights("step", np.float32(1 / 127))
    return node(
        "Mul", [by_column, node("Mul", [largest, step], "row_scale")], "product"
    )
