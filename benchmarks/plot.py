"""The plot: every library's time over ours, by case."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.programs import OURS
from benchmarks.report import Group, geometric_mean

_STYLES = {
    "torch": ("#d1495b", "s"),
    "flax-nnx": ("#2e86ab", "o"),
    "flax-linen": ("#66a5ad", "v"),
    "haiku": ("#edae49", "^"),
    "equinox": ("#6a4c93", "D"),
    "keras": ("#4f772d", "P"),
    "jax-cudnn": ("#333333", "X"),
}
_OTHER = ("#999999", "*")
_TICKS = (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100)
_MEAN = "geometric mean"


def plot(path: pathlib.Path, groups: Sequence[Group], caption: str) -> None:
    """Draws a panel for each dtype and mode: one row a case, one mark a library."""
    modes = list(dict.fromkeys(group.mode for group in groups))
    dtypes = list(dict.fromkeys(group.dtype for group in groups))
    rows = [*dict.fromkeys(group.case.name for group in groups), _MEAN]
    height = 1.6 + (0.42 * len(rows) + 0.8) * len(dtypes)
    figure = Figure(figsize=(2 + 4.5 * len(modes), height), layout="constrained")
    panels = figure.subplots(
        len(dtypes), len(modes), sharex=True, sharey=True, squeeze=False
    )
    labels: dict[str, Any] = {}
    for line, dtype in zip(panels, dtypes, strict=True):
        for axes, mode in zip(line, modes, strict=True):
            chosen = [g for g in groups if (g.dtype, g.mode) == (dtype, mode)]
            _prepare(axes, rows)
            axes.set_title(f"{mode}, {dtype}", fontsize=11)
            for library, ratios in _ratios(chosen).items():
                labels[library] = _mark(axes, library, ratios, rows)
    figure.legend(
        list(labels.values()),
        list(labels),
        loc="outside upper center",
        ncols=max(len(labels), 1),
        frameon=False,
        fontsize=9,
    )
    figure.supxlabel(
        f"time of the library over that of {OURS}: right of 1, {OURS} is faster\n"
        f"{caption}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _ratios(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """By library and case."""
    found: dict[str, dict[str, float]] = {}
    for group in groups:
        for result in group.results:
            ratio = group.ratio(result)
            if ratio is not None and result.library != OURS:
                found.setdefault(result.library, {})[group.case.name] = ratio
    return found


def _mark(axes: Any, library: str, ratios: dict[str, float], rows: list[str]) -> Any:
    color, marker = _STYLES.get(library, _OTHER)
    points = [*ratios.values(), geometric_mean(ratios.values())]
    heights = [rows.index(name) for name in (*ratios, _MEAN)]
    style = {"marker": marker, "markersize": 8, "color": color, "alpha": 0.8}
    (marks,) = axes.plot(points, heights, linestyle="", markeredgewidth=0, **style)
    return marks


def _prepare(axes: Any, rows: list[str]) -> None:
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1.2)
    axes.axhline(len(rows) - 1.5, color="0.7", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
