"""A run before its first step: new, or as the newest checkpoint left it."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import warnings
from collections import deque
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border, options
from lstm_jax.training.disk.checkpoints import Checkpoints
from lstm_jax.training.runs import log, peak, resuming
from lstm_jax.training.runs.evaluation import Evaluator
from lstm_jax.training.runs.feed import Feed
from lstm_jax.training.runs.log import TIMES, Log
from lstm_jax.training.runs.monitor import Monitor, Standing
from lstm_jax.training.runs.sums import Sums
from lstm_jax.training.steps.state import Cursor, TrainState
from lstm_jax.training.steps.step import Plan
from lstm_jax.types import PyTree


class Schedule(NamedTuple):
    """When what happens; see :func:`lstm_jax.training.fit`."""

    steps: int | None
    epochs: int | None
    evaluate_every: int | None
    save_every: int | None
    log_every: int
    evaluates: bool

    def check(self) -> None:
        """Checks the options."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps, epochs: expected one of them, got {self.steps} and "
                f"{self.epochs}."
            )
        for name in ("steps", "epochs", "evaluate_every", "save_every", "log_every"):
            if getattr(self, name) is not None:
                options.check_positive(name, getattr(self, name))
        if self.evaluate_every is not None and not self.evaluates:
            raise ValueError(
                "evaluate_every: expected valid= data beside it, got none."
            )


@dataclasses.dataclass
class Beginning:
    """A run: what it was told, and below that how it stands."""

    plan: Plan
    schedule: Schedule
    batches: Any
    continues: bool | None
    valid: Any
    valid_fn: Any
    monitor: Monitor | None
    out: pathlib.Path | None
    keep: int
    settings: dict[str, Any]
    derived: dict[str, Any]
    flops_per_token: Any
    tensorboard: bool
    show: bool
    hooks: tuple

    state: Any = None
    standing: Standing = Standing()
    best: PyTree = None
    rows: list = dataclasses.field(default_factory=list)
    _skipping: int = 0
    _window_tokens: int | float | None = None
    _due: bool = False
    _step_fn: Any = None
    _interruption: Any = None
    _saved: int | None = None

    @property
    def weights(self) -> str:
        """What evaluations are of."""
        return "params" if self.plan.ema_decay is None else "ema"

    @property
    def prefix(self) -> str:
        """What the names of held-out figures begin with: they say what they are of."""
        return "valid_" if self.plan.ema_decay is None else "ema_valid_"

    def _prepare(self, state: TrainState) -> None:
        scale = state.scale
        if scale is None and self.monitor is not None and self.monitor.plateau:
            scale = jnp.float32(1)
        zero = jnp.zeros((), jnp.int32)
        state = state._replace(
            scale=scale,
            cursor=Cursor(zero, zero) if state.cursor is None else state.cursor,
            skipped=zero if state.skipped is None else state.skipped,
            skipped_in_row=zero,
        )
        # The caller's arrays outlive the steps, which use the buffers of their own.
        self.state = jax.tree.map(jnp.copy, border.take_leaves("state", state))
        self._checkpoints = None
        if self.out is not None:
            self._checkpoints = Checkpoints(self.out / "checkpoints", keep=self.keep)
        self._evaluator = None
        if self.valid is not None:
            self._evaluator = Evaluator(
                self.valid_fn,
                self.valid,
                self.state.carry,
                self.plan.objective.start,
                self.continues,
                "valid",
            )

    def _restore(self, resume: bool | str) -> dict[str, Any] | None:
        """Reads the newest checkpoint, and returns its record; None for a new run."""
        there = self._checkpoints.steps() if self._checkpoints else ()
        out = None if self.out is None else str(self.out)
        if resume is True and not there:
            raise FileNotFoundError(
                f"resume: expected a run to go on with in out={out!r}, got none. Is "
                "this the folder that it was given? resume='auto' begins one where "
                "there is none."
            )
        if not resume and self.out is not None:
            if there or log.has_rows(self.out / "metrics.csv"):
                raise FileExistsError(
                    f"out: expected a new folder, got {self.out}, which holds a run. "
                    "resume=True goes on with it."
                )
        if not there or self._checkpoints is None:
            return None
        state, record = self._checkpoints.restore(self.state)[1:]
        resuming.check_settings(self.out, record["settings"], self.settings)
        resuming.say_changes(self.out, record["schedule"], self.schedule)
        self.state = state
        self._saved = int(state.step)
        self.standing = Standing(**record["standing"])
        if self.standing.best_step is not None:
            self._restore_best(self.standing.best_step)
        return record

    def _restore_best(self, step: int) -> None:
        assert self._checkpoints is not None
        try:
            self.best = self._of(self._checkpoints.restore(self.state, step).state)
        except (FileNotFoundError, ValueError) as error:
            warnings.warn(
                f"The best parameters so far, of step {step}, are lost: {error} The "
                "next evaluation is the best one again.",
                stacklevel=6,
            )
            self.standing = self.standing._replace(best=None, best_step=None)

    def _begin(self, record: dict[str, Any] | None) -> None:
        self._step = int(self.state.step)
        cursor = [int(part) for part in self.state.cursor]
        self._feed = Feed("batches", self.batches, *cursor, continues=self.continues)
        self._check_continues()
        first = self._first(cursor)
        self._record = record or {
            "settled": True,
            "sums": {},
            "tokens": 0,
            "seconds": 0.0,
            "grad_norm": None,
            "first": first,
            "last": None,
            "columns": self._columns(),
        }
        before = resuming.digest(self._feed.before) if self._feed.index else None
        for name, got in (("first", first), ("last", before)):
            resuming.check_batch(self.out, name, self._record[name], got)
        self._sums = Sums(self._record["sums"])
        self._window_tokens = self._sums.tokens
        self._pending: deque = deque()
        self._log = Log(
            self._folder(),
            self._record["columns"],
            total=self.schedule.steps,
            show=self.show,
            tensorboard=self.tensorboard,
            position=None if record is None else record["position"],
        )
        self.rows = self._log.rows
        self._peak = peak.rate_for(self.flops_per_token, self.plan)
        self._clock, self._timed_from = time.perf_counter(), None

    def _folder(self) -> pathlib.Path | None:
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
        return self.out

    def _check_continues(self) -> None:
        if jax.tree.leaves(self.state.carry) and not self._feed.continues:
            if self.continues is None:
                raise ValueError(
                    "carry: expected (), since nothing says that the rows of a batch "
                    "go on where those of the batch before ended, got a carry. "
                    "data.stream_batches says so, or continues=True; with "
                    "continues=False the carry starts anew at every batch."
                )

    def _first(self, cursor: list[int]) -> str | None:
        """The digest of the first batch of all: a resume must have the same."""
        feed = self._feed
        if cursor != [0, 0]:
            if feed.once:
                return None
            feed = Feed("batches", self.batches, continues=self.continues)
        if feed.at_end:
            raise ValueError("batches: expected some, got none.")
        return resuming.digest(feed.ahead)

    def _columns(self) -> list[str]:
        """The names of all figures that rows will have."""
        batch = border.take_leaves("batches", self._feed.ahead)
        report = jax.eval_shape(self._step_fn, self.state, batch)[1]
        sums = Sums()
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), report)
        sums.add(zeros.loss, zeros.metrics)
        names = ["step", "epoch", *sums.means()]
        if sums.tokens is not None:
            names.insert(2, "tokens")
        if self.plan.clip_norm is not None:
            names.append("grad_norm")
        names += ["skipped"]
        if self._evaluator is not None:
            figures = self._evaluator.names(self._of(self.state))
            figures = [f"{self.prefix}{name}" for name in figures]
            assert self.monitor is not None
            self.monitor.check_names([*figures, *self.derived])
            names += figures
            names += ["scale"] if self.monitor.plateau else []
        names += self.derived
        return [*names, *TIMES]

    def _of(self, state: TrainState) -> PyTree:
        """The parameters that are evaluated."""
        return state.params if self.plan.ema_decay is None else state.ema
