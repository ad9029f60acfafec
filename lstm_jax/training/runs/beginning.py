"""A run before its first step: new, or as the newest checkpoint left it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border, options
from lstm_jax.distributed import together
from lstm_jax.training.disk import aside, sealed
from lstm_jax.training.disk.checkpoints import Checkpoints
from lstm_jax.training.runs import log, peak, resuming
from lstm_jax.training.runs.evaluation import Evaluator
from lstm_jax.training.runs.feed import Feed, is_iterator
from lstm_jax.training.runs.log import OURS, TIMES, Log
from lstm_jax.training.runs.monitor import Monitor, Standing
from lstm_jax.training.runs.sums import Sums
from lstm_jax.training.steps import contract
from lstm_jax.training.steps.state import Cursor, TrainState, own
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

    def checked(self) -> Schedule:
        """Checks the options, and returns them as plain numbers."""
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
        named = self._asdict().items()
        numbers = {name: int(n) for name, n in named if n is not None}
        return self._replace(**numbers | {"evaluates": self.evaluates})


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
        self.state = jax.tree.map(own, border.take_leaves("state", state))
        _check_alike(self.state)
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
        there = together.led("run", lambda: self._found(resume))
        if not there or self._checkpoints is None:
            return None
        state, record = self._restored(self._checkpoints)
        resuming.check_settings(self.out, record["settings"], self.settings)
        resuming.check_monitor(self.out, record.get("monitor"), self._monitoring())
        was = record["schedule"] | (record.get("monitor") or {})
        resuming.say_changes(self.out, was, self._plans())
        self.state = state
        self._saved = int(state.step)
        self.standing = Standing(**record["standing"])
        if self.standing.best_step is not None:
            self._restore_best(self.standing.best_step)
        return record

    def _found(self, resume: bool | str) -> bool:
        """Whether there is a run to go on with, as ``resume`` would have it."""
        there = bool(self.out and Checkpoints(self.out / "checkpoints").steps_here())
        out = None if self.out is None else str(self.out)
        if resume is True and not there:
            raise FileNotFoundError(
                f"resume: expected a run to go on with in out={out!r}, got none. Is "
                "this the folder that it was given? resume='auto' begins one where "
                "there is none."
            )
        if self.out is not None and not (there and resume):
            if there or log.has_rows(self.out / "metrics.csv"):
                hint = "resume=True goes on with it." if there else ""
                raise FileExistsError(
                    f"out: expected a new folder, got {self.out}, which holds "
                    f"{'a run' if there else 'the metrics.csv of one'}. {hint}".rstrip()
                )
        return there

    def _restored(self, checkpoints: Checkpoints) -> tuple[Any, dict[str, Any]]:
        """The newest state and its record."""
        try:
            _, state, record = checkpoints.restore(self.state)
        except ValueError:
            # A setting that was changed says more than leaves that it made differ.
            for step in reversed(checkpoints.steps()):
                was = together.led(
                    "run", functools.partial(resuming.settings_of, self.out, step)
                )
                if was is not None:
                    now = json.loads(
                        sealed.written_record(resuming.plain(self.settings))
                    )
                    resuming.check_settings(self.out, was, now)
            raise
        return state, record

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
        first = self._first(cursor)
        self._feed = Feed("batches", self.batches, *cursor, continues=self.continues)
        self._check_continues()
        if self._feed.at_end and cursor == [0, 0]:
            raise ValueError("batches: expected some, got none.")
        self._record = self._recorded(record, cursor != [0, 0], first)
        self._sums = Sums(self._record["sums"])
        self._window_tokens = self._sums.tokens
        self._pending: deque = deque()
        writes = together.first()
        self._log = Log(
            self.out if writes else None,
            self._record["columns"],
            total=self.schedule.steps,
            show=self.show and writes,
            tensorboard=self.tensorboard and writes,
            position=None if record is None else record["position"],
        )
        self.rows = self._log.rows
        self._peak = peak.rate_for(self.flops_per_token, self.plan)
        self._clock, self._timed_from = time.perf_counter(), None

    def _recorded(
        self, record: dict[str, Any] | None, goes_on: bool, first: Any
    ) -> dict[str, Any]:
        """A new record, or the one that the run goes on with, if it is of this run."""
        batch = first
        if batch is None and not self._feed.at_end:
            batch = border.take_leaves("batches", self._feed.ahead)
        now: dict[str, Any] = {
            "first": self._digest(first if goes_on else batch),
            "last": self._feed.before,
            "valid": self._evaluator and self._digest(self._evaluator.first()),
        }
        if record is None or batch is not None:
            now["columns"] = self._columns(batch)
        return resuming.recorded(self.out, record, now)

    def _digest(self, batch: Any) -> str | None:
        """What a batch is known again by; None where nothing is kept."""
        absent = self.out is None or batch is None
        return None if absent else resuming.digest(batch)

    def _monitoring(self) -> dict[str, Any] | None:
        """What decides, as a record holds it."""
        if self.monitor is None:
            return None
        return resuming.plain(dataclasses.asdict(self.monitor))

    def _plans(self) -> dict[str, Any]:
        """What a resume may change, but says."""
        plans = self.schedule._asdict() | (self._monitoring() or {})
        del plans["evaluates"]
        return plans

    @contextlib.contextmanager
    def _claimed(self, resume: bool | str) -> Iterator[None]:
        """The folder of the run, for this one alone."""
        with contextlib.ExitStack() as stack:
            together.led("run", lambda: self._claim(resume, stack))
            yield

    def _claim(self, resume: bool | str, stack: contextlib.ExitStack) -> None:
        if self.out is None or (resume is True and not self.out.exists()):
            return
        if self.out.exists() and not self.out.is_dir():
            raise NotADirectoryError(
                f"out: expected a folder, got the file {self.out}."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(aside.alone(self.out))

    def _check_continues(self) -> None:
        if jax.tree.leaves(self.state.carry) and not self._feed.continues:
            if self.continues is None:
                raise ValueError(
                    "carry: expected (), since nothing says that the rows of a batch "
                    "go on where those of the batch before ended, got a carry. "
                    "data.stream_batches says so, or continues=True; with "
                    "continues=False the carry starts anew at every batch."
                )

    def _first(self, cursor: list[int]) -> Any:
        """The first batch of all, where the run is beyond it.

        Before the run's own pass is begun: a source may have but one.
        """
        if cursor == [0, 0] or is_iterator(self.batches):
            return None
        feed = Feed("batches", self.batches, continues=self.continues)
        return None if feed.at_end else border.take_leaves("batches", feed.ahead)

    def _columns(self, batch: Any) -> list[str]:
        """The names of all figures that rows will have."""
        state, report = jax.eval_shape(self._step_fn, self.state, batch)
        contract.check_leaves(self.state.carry, state.carry)
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
        names = [*names, *self.derived, *TIMES]
        for name in names:
            if names.count(name) > 1 or (name in sums.plain and name in OURS):
                raise ValueError(
                    f"metrics, derived: expected names that are no other figure's of "
                    f"a row, got {name!r}."
                )
        return names

    def _of(self, state: TrainState) -> PyTree:
        """The parameters that are evaluated."""
        return state.params if self.plan.ema_decay is None else state.ema


def _check_alike(state: TrainState) -> None:
    """Checks that processes begin with the same numbers, where each has them all."""
    if jax.process_count() == 1:
        return
    here = [leaf for leaf in jax.tree.leaves(state) if leaf.is_fully_addressable]

    def compare(digests):
        wrong = [str(n) for n, one in enumerate(digests) if one != digests[0]]
        if wrong:
            raise ValueError(
                "state: expected the same numbers on all processes, got others on "
                f"process {', '.join(wrong[:20])} than on process 0. Is each one's key "
                "made of the same seed?"
            )

    together.judged("state", resuming.digest(here), compare)
