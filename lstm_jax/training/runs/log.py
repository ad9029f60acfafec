"""What a run says: metrics.csv, a bar on the terminal, TensorBoard, a plot."""

from __future__ import annotations

import csv
import errno
import io
import math
import os
import pathlib
import sys
from typing import Any

from rich import progress

TIMES = ("seconds", "steps_per_second", "tokens_per_second", "share_of_peak")
# Columns that are not figures of the loss function, whether or not a run has them.
OURS = ("step", "epoch", "tokens", "skipped", "grad_norm", "scale", *TIMES)


class Log:
    """The rows of one run, in memory, on disk and on the terminal.

    Attributes:
        rows: every row so far, names to numbers; those of a run that is gone on with
            are read from its file.
    """

    def __init__(
        self,
        folder: pathlib.Path | None,
        columns: list[str],
        *,
        total: int | None,
        show: bool,
        tensorboard: bool,
        position: int | None = None,
    ):
        """Begins, or goes on where the file was at ``position``.

        Args:
            folder: for metrics.csv; None for no file.
            columns: the names of all figures that rows will hold, in order.
            total: steps of the whole run, where they are known.
            show: whether to write to the terminal.
            tensorboard: whether to write TensorBoard's files too.
            position: bytes of metrics.csv that belong to the run that goes on; None
                for a new one.
        """
        self.columns, self.rows = columns, []
        self._folder, self._show, self._total = folder, show, total
        self._file, self._board = None, None
        if folder is not None:
            self._open(folder / "metrics.csv", position)
        if tensorboard:
            self._board = _tensorboard(folder, self.rows)
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
        )
        self._live = show and sys.stdout.isatty()
        self._task = self._bar.add_task("compiling", total=total)
        if self._live:
            self._bar.start()

    def _open(self, path: pathlib.Path, position: int | None) -> None:
        head = _line(self.columns)
        if position is None:
            self._file = path.open("wb", buffering=0)
            self._file.write(head)
            return
        text = path.read_bytes() if path.is_file() else b""
        if len(text) < position:
            raise ValueError(
                f"{path}: expected at least the {position} bytes that were there at "
                f"the checkpoint, got {len(text)}. Was it moved or changed?"
            )
        if not text.startswith(head):
            was = text.partition(b"\n")[0].decode(errors="replace").strip()
            raise ValueError(
                f"{path}: expected the columns {', '.join(self.columns)}, got {was}."
            )
        # Rows after the checkpoint are written again.
        self._file = path.open("r+b", buffering=0)
        self._file.truncate(position)
        self._file.seek(position)
        kept = csv.DictReader(io.StringIO(text[:position].decode()))
        self.rows += [{k: _parsed(v) for k, v in row.items() if v} for row in kept]

    @property
    def position(self) -> int:
        """How long metrics.csv is, in bytes, all of them on disk."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def write(self, row: dict[str, Any]) -> None:
        """Writes a row to metrics.csv: all of it, or nothing."""
        if unknown := [name for name in row if name not in self.columns]:
            raise ValueError(
                f"metrics: expected {', '.join(self.columns)} in every row, as in the "
                f"first one, got {', '.join(unknown)} too."
            )
        if self._file is not None:
            before = self._file.tell()
            line = _line([_written(row.get(name)) for name in self.columns])
            try:
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._file.truncate(before)
                self._file.seek(before)
                raise
        self.rows.append(row)

    def show(self, row: dict[str, Any]) -> None:
        """Shows a row on the terminal and TensorBoard."""
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, row["step"])
        line = _shown(row)
        self._bar.update(self._task, completed=row["step"], description=line)
        if self._show and not self._live:
            total = "" if self._total is None else f"/{self._total}"
            print(f"step {row['step']}{total}: {line}", flush=True)

    def step(self, step: int) -> None:
        """Moves the bar."""
        if self._live:
            self._bar.update(self._task, completed=step)

    def say(self, words: str) -> None:
        """Writes a line for people."""
        if self._show:
            self._bar.console.print(words, highlight=False, markup=False)

    def plot(self, file: str) -> None:
        """Draws the losses and every other figure, to a file beside metrics.csv."""
        if self._folder is None or len(self.rows) < 2:
            return
        try:
            from matplotlib.figure import Figure
        except ImportError:
            self.say('No plot without matplotlib: pip install "lstm_jax[training]"')
            return
        panels: dict[str, list[str]] = {"loss": []}
        for name in self.columns:
            if name not in OURS and any(name in row for row in self.rows):
                panels.setdefault(_panel(name), []).append(name)
        figure = Figure(figsize=(7, 1 + 3 * len(panels)), layout="constrained")
        every = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
        for axes, (title, names) in zip(every, panels.items(), strict=True):
            self._draw(axes, names)
            axes.set(ylabel=title)
        every[-1].set(xlabel="step")
        figure.savefig(self._folder / file, dpi=150)

    def _draw(self, axes: Any, names: list[str]) -> None:
        for name in names:
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), _style(name), label=name)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()

    def pause(self) -> None:
        """Takes the bar off the terminal until the next row, for others to write."""
        if self._live:
            self._bar.stop()

    def resume(self) -> None:
        """Brings the bar back."""
        if self._live:
            self._bar.start()

    def close(self) -> None:
        """Closes the files."""
        if self._live:
            self._bar.stop()
        for file in (self._file, self._board):
            if file is not None:
                file.close()


def has_rows(path: pathlib.Path) -> bool:
    """Whether a metrics.csv holds more than its names."""
    return path.is_file() and len(path.read_bytes().splitlines()) > 1


def _tensorboard(folder: pathlib.Path | None, rows: list[dict]) -> Any:
    if folder is None:
        raise ValueError("tensorboard: expected a folder, got out=None.")
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'tensorboard=True needs tensorboardX: pip install "lstm_jax[training]"'
        ) from error
    # Whoever reads the files passes over what was written from that step on.
    purge = rows[-1]["step"] + 1 if rows else None
    # Two files of one second would have one name.
    suffix = f".{purge or 0}"
    board = str(folder / "tensorboard")
    return SummaryWriter(board, purge_step=purge, filename_suffix=suffix)


def _line(cells: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _written(value: Any) -> str:
    return "" if value is None else repr(value)


def _parsed(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _shown(row: dict[str, Any]) -> str:
    parts = []
    for name, value in row.items():
        if name == "tokens_per_second":
            parts.append(f"{value:,.0f} tokens/s")
        elif name == "share_of_peak":
            parts.append(f"{value:.0%} of the peak")
        elif isinstance(value, float) and name not in TIMES:
            digits = (
                ".3f" if 1e-3 <= abs(value) < 1e4 or not math.isfinite(value) else ".3g"
            )
            parts.append(f"{name} {value:{digits}}")
    return ", ".join(parts)


def _panel(name: str) -> str:
    """Losses have one panel, and so has a figure with its evaluations."""
    return "loss" if name.endswith("loss") else name.split("valid_")[-1]


def _style(name: str) -> str:
    return "o-" if "valid_" in name else "-"
