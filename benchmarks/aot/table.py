"""The table of all programs, as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.aot.programs import DTYPES, MODES, RIVAL_NAMES, Program, cells, compiled
from benchmarks.aot.reading import figures
from benchmarks.aot.targets import devices

SIZES = (256, 768, 1536)
_PACKAGES = (
    *("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc"),
    *("flax", "dm-haiku", "equinox"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One program for one target.

    Attributes:
        target: what it is compiled for.
        chips: how many devices share the batch.
        program: what is compiled.
        cycles: estimated, by step; None for a GPU.
        launches: in the loops, by step; None for a TPU.
        temporaries: MiB of temporary memory.
        collectives: executed in loops, by step.
        collectives_outside: executed outside of loops.
        two_in_place: fusions that update several buffers in place.
        compile_s: seconds of tracing and compiling.
        error: what the compiler raised; then there are no figures.
    """

    target: str
    chips: int
    program: Program
    cycles: float | None = None
    launches: float | None = None
    temporaries: float | None = None
    collectives: float | None = None
    collectives_outside: int | None = None
    two_in_place: int | None = None
    compile_s: float | None = None
    error: str = ""


def plan(
    targets: Sequence[str], max_size: int, libraries: Sequence[str]
) -> Iterator[tuple[str, int, Program]]:
    """What is compiled: target, number of devices, program."""
    for target in targets:
        for size in (size for size in SIZES if size <= max_size):
            for library, mode in itertools.product(libraries, MODES):
                shape = (16, 1024, size)
                yield target, 1, Program(library, "LSTM", mode, "bfloat16", *shape)
    if "lstm_jax" not in libraries:
        return
    for target in targets:
        if target in ("v5e", "h100"):
            for name, dtype in itertools.product(cells(128), DTYPES):
                shape = (16, 64, 128)
                one = Program("lstm_jax", name, "gradient", dtype, *shape)
                yield target, 1, one
    if "v5e" in targets:
        for mode in MODES:
            shape = (64, 64, 256)
            yield "v5e", 4, Program("lstm_jax", "LSTM", mode, "bfloat16", *shape)


def measure(target: str, chips: int, program: Program) -> Row:
    """Compiles one program and reads its figures."""
    start = time.perf_counter()
    try:
        result = compiled(program, devices(target, chips))
    except Exception as error:  # whatever a compiler raises goes into the table
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Row(target, chips, program, error=text[:200])
    seconds = time.perf_counter() - start
    found, steps = figures(result.as_text()), program.length
    gpu = target == "h100"
    return Row(
        target,
        chips,
        program,
        cycles=None if gpu else found.cycles / steps,
        launches=found.launches / steps if gpu else None,
        temporaries=result.memory_analysis().temp_size_in_bytes / 2**20,
        collectives=found.collectives / steps,
        collectives_outside=found.collectives_outside,
        two_in_place=found.two_in_place,
        compile_s=seconds,
    )


def run(
    targets: Sequence[str], libraries: Sequence[str], max_size: int, out: pathlib.Path
) -> int:
    """Compiles everything and writes ``out`` with the endings .json and .md.

    Rivals that ``out`` has already, under the same versions, are not compiled again.

    Returns:
        1 if a program of lstm_jax did not compile, else 0.
    """
    about, rows = versions(), []
    known = _known(out, about)
    for one in plan(targets, max_size, libraries):
        rows.append(known.get(one) or measure(*one))
        print(_line(rows[-1]), flush=True)
        # After each, so that an interrupted run keeps what it has.
        _write(out, about, rows)
    ours = [row for row in rows if row.program.library == "lstm_jax"]
    return int(any(row.error for row in ours))


def _known(out: pathlib.Path, about: dict[str, Any]) -> dict[tuple, Row]:
    """The rows of rivals in a file that was written under the same versions."""
    path = out.with_suffix(".json")
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content["versions"] != about["versions"]:
        return {}
    rows = [
        Row(**{**row, "program": Program(**row["program"])}) for row in content["rows"]
    ]
    return {
        (row.target, row.chips, row.program): row
        for row in rows
        if row.program.library != "lstm_jax"
    }


def versions() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _write(out: pathlib.Path, about: dict[str, Any], rows: Sequence[Row]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {**about, "rows": [dataclasses.asdict(row) for row in rows]}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(about, rows))


def _line(row: Row) -> str:
    one = row.program
    name = f"{row.target} x{row.chips} {one.library} {one.cell} {one.mode} {one.dtype}"
    figure = row.error or _figure(row)
    return f"{name} H {one.size}: {figure}"


def _figure(row: Row) -> str:
    if row.error:
        return "does not compile"
    if row.launches is not None:
        return f"{row.launches:.2f}"
    return f"{row.cycles:,.0f}"


def markdown(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The tables in Markdown."""
    listed = ", ".join(f"{name} {is_}" for name, is_ in about["versions"].items())
    parts = [
        "# What accelerators' compilers say\n",
        "Made by `make aot`; no device was used. Of a TPU the cycles that XLA "
        "estimates, of an H100 the kernels launched in loops, both by step of the "
        "sequence; forward / gradient of all parameters. Temporaries in MiB. What is "
        "empty was not compiled.\n",
        f"{about['date']}; {listed}.\n",
        "## Libraries: one layer, bfloat16, B 16, T 1024, I = H\n",
        *_libraries(rows),
        "\n## Cells of lstm_jax: gradient, B 16, T 64, sizes of about 128\n",
        *_cells(rows),
        "\n## One batch of 64 rows over four chips: lstm_jax, T 64, H 256\n",
        *_sharded(rows),
    ]
    return "\n".join(parts) + "\n"


def _libraries(rows: Sequence[Row]) -> Iterator[str]:
    names = ("lstm_jax", *RIVAL_NAMES)
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    large = [row for row in rows if row.program.length == 1024]
    known = {
        (r.target, r.program.size, r.program.library, r.program.mode): r for r in large
    }
    for target, size in dict.fromkeys((r.target, r.program.size) for r in large):
        cells_ = []
        for name in names:
            both = [known.get((target, size, name, mode)) for mode in MODES]
            text = " / ".join("" if row is None else _figure(row) for row in both)
            memory = both[1].temporaries if both[1] else None
            cells_.append(text + ("" if memory is None else f" ({memory:,.0f} MiB)"))
        yield f"| {target} H {size} | " + " | ".join(cells_) + " |"


def _cells(rows: Sequence[Row]) -> Iterator[str]:
    small = [row for row in rows if row.program.length == 64 and row.chips == 1]
    columns = list(dict.fromkeys((row.target, row.program.dtype) for row in small))
    yield "| | " + " | ".join(" ".join(column) for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    known = {(row.target, row.program.dtype, row.program.cell): row for row in small}
    for name in dict.fromkeys(row.program.cell for row in small):
        found = [known.get((*column, name)) for column in columns]
        texts = ["" if row is None else _figure(row) for row in found]
        yield f"| {name} | " + " | ".join(texts) + " |"


def _sharded(rows: Sequence[Row]) -> Iterator[str]:
    yield "| | cycles | collectives in loops, by step | outside |"
    yield "|---|---|---|---|"
    for row in rows:
        if row.chips > 1:
            yield (
                f"| {row.target}, {row.program.mode} | {_figure(row)} | "
                f"{row.collectives or 0:g} | {row.collectives_outside} |"
            )
