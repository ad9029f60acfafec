"""What was measured, as tables, as JSON and as a plot."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import lstm_jax as lj
from benchmarks.cases import Case, flops
from benchmarks.programs import OURS
from benchmarks.timing import Peak, Times, on_gpu, threads

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "keras", "dm-haiku", "equinox")


@dataclasses.dataclass(frozen=True)
class Result:
    """One library in one group.

    Attributes:
        library: its name.
        times: of one run; None where ``reason`` says why there are none.
        compile_s: seconds of tracing and compiling; None where nothing is compiled.
        errors: relative errors of what it computed.
        reason: why there are no times.
    """

    library: str
    times: Times | None = None
    compile_s: float | None = None
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Group:
    """Every library on one case, mode and dtype, measured in turn.

    Attributes:
        case: the shape.
        mode: "forward" or "training".
        dtype: "float32", "tf32", "bfloat16" or "float16".
        implementation: what lstm_jax picked by itself.
        peak: the best matrix product of the same run.
        results: of lstm_jax as it comes, then of everything else.
    """

    case: Case
    mode: str
    dtype: str
    implementation: str
    peak: Peak
    results: tuple[Result, ...]

    @property
    def ours(self) -> Result:
        """The result of lstm_jax as it comes."""
        return next(result for result in self.results if result.library == OURS)

    def ratio(self, result: Result) -> float | None:
        """A library's median time over ours: above 1, lstm_jax is faster."""
        if result.times is None or self.ours.times is None:
            return None
        return result.times.median_ms / self.ours.times.median_ms

    def gflops(self, result: Result) -> float | None:
        """The rate that a library reached."""
        if result.times is None:
            return None
        return 1e-6 * flops(self.case, self.mode) / result.times.median_ms


@dataclasses.dataclass(frozen=True)
class Row:
    """A group in short; None where there is nothing to compare with."""

    case: str
    mode: str
    dtype: str
    implementation: str
    ours_ms: float | None
    share_of_peak: float | None
    fastest_jax: str | None
    ratio_to_fastest_jax: float | None
    ratio_to_torch: float | None


def summarize(groups: Iterable[Group]) -> list[Row]:
    """One row a group: against the fastest other JAX library, and against torch."""
    return [_row(group) for group in groups]


def _row(group: Group) -> Row:
    ratios = {
        result.library: ratio
        for result in group.results
        if result.library.split(":")[0] != OURS
        and (ratio := group.ratio(result)) is not None
    }
    torch = ratios.pop("torch", None)
    fastest = min(ratios, key=lambda name: ratios[name], default=None)
    ours, rate = group.ours, group.gflops(group.ours)
    return Row(
        case=group.case.name,
        mode=group.mode,
        dtype=group.dtype,
        implementation=group.implementation,
        ours_ms=None if ours.times is None else ours.times.median_ms,
        share_of_peak=None if rate is None else rate / group.peak.gflops,
        fastest_jax=fastest,
        ratio_to_fastest_jax=None if fastest is None else ratios[fastest],
        ratio_to_torch=torch,
    )


def geometric_mean(ratios: Iterable[float | None]) -> float | None:
    """The geometric mean of the ratios that are there; None of none."""
    logs = [np.log(ratio) for ratio in ratios if ratio is not None]
    return float(np.exp(np.mean(logs))) if logs else None


def means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each mode and dtype, the geometric means over the cases."""
    found = []
    for mode, dtype in dict.fromkeys((row.mode, row.dtype) for row in rows):
        chosen = [row for row in rows if (row.mode, row.dtype) == (mode, dtype)]
        found.append(
            {
                "mode": mode,
                "dtype": dtype,
                "cases": len(chosen),
                "to_fastest_jax": geometric_mean(
                    row.ratio_to_fastest_jax for row in chosen
                ),
                "to_torch": geometric_mean(row.ratio_to_torch for row in chosen),
            }
        )
    return found


def machine() -> dict[str, Any]:
    """What a figure depends on: device, threads, versions, load, date."""
    versions = {
        name: importlib.metadata.version(name)
        for name in _PACKAGES
        if importlib.util.find_spec(name.removeprefix("dm-")) is not None
    }
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind if on_gpu() else _cpu_model(),
        "driver": _gpu_driver() if on_gpu() else None,
        "cpu": _cpu_model(),
        "threads": threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "versions": {
            "python": platform.python_version(),
            "lstm_jax": lj.__version__,
            **versions,
        },
    }


def _cpu_model() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu_driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    ran = subprocess.run(query, capture_output=True, text=True, check=False)
    return next(iter(ran.stdout.splitlines()), None)


def caption(about: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = about["versions"]
    names = [n for n in ("lstm_jax", "jax", "torch") if n in versions]
    listed = ", ".join(f"{name} {versions[name]}" for name in names)
    driver = f", driver {about['driver']}" if about["driver"] else ""
    return (
        f"{about['device']}{driver}, {about['threads']} threads; {listed}; "
        f"{about['date'][:10]}"
    )


def print_header(
    console: Console, about: dict[str, Any], not_run: dict[str, str]
) -> None:
    """Prints where this runs, and what does not."""
    console.print(f"[bold]{caption(about)}[/bold]", highlight=False)
    for name, why in not_run.items():
        console.print(Text(f"Not run: {name}: {why}", style="yellow"))


def print_group(console: Console, group: Group) -> None:
    """Prints one group as a table."""
    case = group.case
    megabytes = 4 * case.hidden_size**2 * (2 if "16" in group.dtype else 4) / 2**20
    console.print(
        f"\n[bold]{case.name} · {group.mode} · {group.dtype}[/bold]   "
        f"{case.describe()}\n"
        f"[dim]{flops(case, group.mode) / 1e9:.2f} GFLOP; {case.length} steps one "
        f"after the other; recurrent kernel {megabytes:.2f} MiB[/dim]",
        highlight=False,
    )
    table = _table("library")
    for name in ("median ms", "min", "max", "n", "÷ ours", "GFLOP/s", "of best"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("compile s", justify="right", no_wrap=True)
    for result in group.results:
        if result.times is not None:
            table.add_row(*_cells(group, result))
    console.print(table)
    for result in group.results:
        if result.reason:
            console.print(Text(f"{result.library}: {result.reason}", style="yellow"))


def _cells(group: Group, result: Result) -> list[Any]:
    times, rate = result.times, group.gflops(result)
    assert times is not None and rate is not None
    name = result.library
    if name == OURS:
        name = f"{OURS} \\[{group.implementation}]"
    return [
        name,
        *(f"{ms:.2f}" for ms in times[:3]),
        str(times.samples),
        _ratio(group.ratio(result)),
        f"{rate:.1f}",
        f"{rate / group.peak.gflops:.0%}",
        "-" if result.compile_s is None else f"{result.compile_s:.2f}",
    ]


def _ratio(ratio: float | None) -> Text:
    if ratio is None:
        return Text("-")
    return Text(f"{ratio:.2f}", style="green" if ratio >= 1 else "red")


def print_summary(console: Console, rows: Sequence[Row]) -> None:
    """Prints the ratios that matter, with their geometric means."""
    console.print(
        "\n[bold]Summary[/bold]: the other's median time over that of lstm_jax; above "
        "1, lstm_jax is faster.",
        highlight=False,
    )
    for mean in means(rows):
        mode, dtype = mean["mode"], mean["dtype"]
        table = _table("case", title=f"{mode}, {dtype}")
        for name in ("ours ms", "of best", "÷ other JAX", "fastest", "÷ torch"):
            left = name == "fastest"
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for row in rows:
            if (row.mode, row.dtype) == (mode, dtype):
                table.add_row(*_summary_cells(row))
        table.add_section()
        to_jax, to_torch = _ratio(mean["to_fastest_jax"]), _ratio(mean["to_torch"])
        table.add_row("geometric mean", "", "", to_jax, "", to_torch)
        console.print()
        console.print(table)


def _summary_cells(row: Row) -> list[Any]:
    return [
        f"{row.case} \\[{row.implementation}]",
        "failed" if row.ours_ms is None else f"{row.ours_ms:.2f}",
        "-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}",
        _ratio(row.ratio_to_fastest_jax),
        row.fastest_jax or "",
        _ratio(row.ratio_to_torch),
    ]


def _table(first: str, title: str | None = None) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        title=title,
        title_justify="left",
        title_style="bold",
    )
    table.add_column(first, no_wrap=True)
    return table


def write_json(
    path: pathlib.Path,
    groups: Sequence[Group],
    about: dict[str, Any],
    not_run: dict[str, str],
) -> None:
    """Writes everything that was measured."""
    rows = summarize(groups)
    content = {
        **about,
        "not_run": not_run,
        "summary": [dataclasses.asdict(row) for row in rows],
        "geometric_means": means(rows),
        "groups": [_group_record(group) for group in groups],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _group_record(group: Group) -> dict[str, Any]:
    return {
        "case": dataclasses.asdict(group.case),
        "mode": group.mode,
        "dtype": group.dtype,
        "implementation": group.implementation,
        "flops": flops(group.case, group.mode),
        "best_matrix_product": group.peak._asdict(),
        "results": [_result_record(group, result) for result in group.results],
    }


def _result_record(group: Group, result: Result) -> dict[str, Any]:
    rate = group.gflops(result)
    return {
        "library": result.library,
        **(result.times._asdict() if result.times else {}),
        "ratio_to_ours": group.ratio(result),
        "gflops": rate,
        "share_of_peak": None if rate is None else rate / group.peak.gflops,
        "compile_s": result.compile_s,
        "errors": result.errors,
        "reason": result.reason,
    }
