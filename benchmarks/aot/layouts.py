"""What devices exchange in each layout of ``lstm_jax.sharding``: by formula, counted.

Programs are compiled for accelerators that are not here; see :mod:`.targets`.
``python -m benchmarks.scaling --compiled`` compiles them all.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lstm_jax as lj
from benchmarks.aot.exchanges import Exchanged, exchanged
from benchmarks.aot.table import versions
from benchmarks.aot.targets import devices

LENGTH, SIZE, LAYERS, ROWS = 64, 2048, 2, 16
MODES = ("forward", "gradient")

# Sizes of the mesh's axes for a number of chips, and arguments of Layout.
LAYOUTS: dict[str, tuple[Callable[[int], dict[str, int]], dict[str, str]]] = {
    "data": (lambda n: {"data": n}, {"data": "data"}),
    "fsdp": (lambda n: {"data": n}, {"data": "data", "fsdp": "data"}),
    "model": (lambda n: {"model": n}, {"model": "model"}),
    "data, model": (
        lambda n: {"data": n // 4, "model": 4},
        {"data": "data", "model": "model"},
    ),
    "data, fsdp, model": (
        lambda n: {"data": n // 4, "model": 4},
        {"data": "data", "fsdp": "data", "model": "model"},
    ),
}
PLAN = (("v5e", 8), ("v5e", 256), ("h100", 8))


class Shape(NamedTuple):
    """Of layers of LSTM, and of their inputs."""

    batch: int
    length: int
    input_size: int
    hidden_size: int
    layers: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One program for one target.

    Attributes:
        target: what it is compiled for.
        chips: how many.
        layout: one of :data:`LAYOUTS`.
        mode: "forward", or "gradient" of all parameters.
        exchanges: for each kind of exchange, with " in loops" behind it where it is in
            one, how often it runs, and the numbers and bytes of all of them.

            exchanges take.
        compile_s: seconds of tracing and compiling.
    """

    target: str
    chips: int
    layout: str
    mode: str
    exchanges: dict[str, Exchanged]
    compile_s: float


def plan(pairs: Sequence[tuple[str, int]] = PLAN) -> list[tuple[str, int, str, str]]:
    """What is compiled: units over 256 chips are not."""
    return [
        (target, chips, layout, mode)
        for (target, chips), layout, mode in itertools.product(pairs, LAYOUTS, MODES)
        if chips <= 8 or layout != "model"
    ]


def measure(target: str, chips: int, layout: str, mode: str) -> Row:
    """Compiles one program and counts."""
    start = time.perf_counter()
    text = compiled(devices(target, chips), layout, mode).as_text()
    found = {
        kind + " in loops" * in_loop: one
        for (kind, in_loop), one in exchanged(text).items()
    }
    seconds = round(time.perf_counter() - start, 1)
    return Row(target, chips, layout, mode, found, seconds)


def compiled(chips: Sequence[Any], name: str, mode: str) -> Any:
    """Compiles two layers, float32, 16 rows to a part of the batch."""
    sizes_of, axes = LAYOUTS[name]
    sizes = sizes_of(len(chips))
    mesh = Mesh(np.array(chips).reshape(tuple(sizes.values())), tuple(sizes))
    layout = lj.sharding.Layout(mesh, **axes)
    model = lj.LSTM(SIZE, SIZE, num_layers=LAYERS)

    def abstract(leaf: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=where)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(abstract, shapes, layout.params(model))
    shape = (ROWS * sizes.get("data", 1), LENGTH, SIZE)
    xs = abstract(jax.ShapeDtypeStruct(shape, jnp.float32), layout.inputs())
    forward = lambda params, xs: model.apply(params, xs)[1]
    loss = lambda params, xs, weights: jnp.vdot(forward(params, xs), weights)
    with lj.sharding.use(layout):
        if mode == "forward":
            return jax.jit(forward).lower(params, xs).compile()
        # Gradients end where parameters are, as an optimizer wants them.
        outs = jax.tree.map(lambda leaf: leaf.sharding, params)
        gradient = jax.jit(jax.grad(loss), out_shardings=outs)
        return gradient.lower(params, xs, xs).compile()


def expected(
    layout: Mapping[str, Any],
    sizes: Mapping[str, int],
    mode: str,
    shape: Shape,
    *,
    scatters: bool,
    inputs: bool = False,
) -> dict[str, int]:
    """How many numbers are exchanged by kind: the formulas of docs/scaling.md.

    Args:
        layout: arguments of ``Layout``.
        sizes: those of the mesh's axes.
        mode: one of :data:`MODES`.
        shape: of the model and its inputs.
        scatters: whether the compiler sums what devices then take their part of so
            that each has no more than its part; for CPUs and for 256 chips it does not.
        inputs: whether the gradient is that of inputs and of starting states too.
    """
    parts = {
        name: math.prod(sizes[axis] for axis in ([axes] if type(axes) is str else axes))
        for name, axes in layout.items()
    }
    data, units = parts.get("data", 1), parts.get("model", 1)
    sizes_in = (shape.input_size, *[shape.hidden_size] * (shape.layers - 1))
    gates, rows = 4 * shape.hidden_size, shape.batch // data
    weights = sum((size + shape.hidden_size) * gates for size in sizes_in) // units
    biases = shape.layers * gates
    states = shape.layers * shape.length * rows * shape.hidden_size
    gradient, found = mode == "gradient", collections.Counter()
    if "fsdp" in parts:
        found["all-gather"] += weights
    if "model" in parts:
        found["all-to-all"] += weights * (1 + gradient)
        found["all-gather in loops"] += states
    if "model" in parts and gradient:
        found["reduce-scatter in loops"] += states
        found["all-reduce"] += shape.length * rows * sum(sizes_in[1:])
        found["all-gather"] += biases
        if inputs:
            found["all-reduce"] += rows * shape.length * shape.input_size
            found["all-reduce"] += rows * shape.layers * shape.hidden_size
    if data > 1 and gradient:
        scattered = scatters and "fsdp" in parts and "model" not in parts
        found["reduce-scatter" if scattered else "all-reduce"] += weights
        found["all-reduce"] += biases // units
    return dict(found)


def expected_of(row: Row) -> dict[str, int]:
    """What the formulas say of a row."""
    sizes_of, axes = LAYOUTS[row.layout]
    sizes = sizes_of(row.chips)
    shape = Shape(ROWS * sizes.get("data", 1), LENGTH, SIZE, SIZE, LAYERS)
    return expected(axes, sizes, row.mode, shape, scatters=row.chips <= 8)


def wrong(row: Row) -> str:
    """Where what was counted is not what the formulas say; empty if it is."""
    counted = {kind: one.numbers for kind, one in row.exchanges.items()}
    formulas = expected_of(row)
    return "" if counted == formulas else f"exchanges {counted}, expected {formulas}"


def run(out: pathlib.Path) -> int:
    """Compiles everything, writes ``out`` as JSON and prints the table.

    Returns:
        How many programs exchange something else than the formulas say.
    """
    rows, failures = [], 0
    for one in plan():
        rows.append(measure(*one))
        why = wrong(rows[-1])
        failures += bool(why)
        print(*one, why or "as expected", f"({rows[-1].compile_s} s)", flush=True)
    content = {**versions(), "rows": [dataclasses.asdict(row) for row in rows]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(markdown(read(out)))
    return failures


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a file that :func:`run` wrote."""
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]]
    return [
        dataclasses.replace(
            row, exchanges={k: Exchanged(*v) for k, v in row.exchanges.items()}
        )
        for row in rows
    ]


def markdown(rows: Sequence[Row]) -> str:
    """A table: a line for each program, how often and how many MB of each kind."""
    kinds = sorted({kind for row in rows for kind in row.exchanges})
    lines = [
        "| | " + " | ".join(kinds) + " |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for row in rows:
        found = [row.exchanges.get(kind) for kind in kinds]
        texts = [
            f"{one.times}: {one.nbytes / 1e6:,.2f}" if one else "" for one in found
        ]
        name = f"{row.target} x {row.chips}, {row.layout}, {row.mode}"
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
