"""What one run of training does from step to step."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import border
from lstm_jax.distributed import batches as rows
from lstm_jax.distributed import together, watching
from lstm_jax.training.runs.beginning import Beginning
from lstm_jax.training.runs.monitor import Standing
from lstm_jax.training.runs.signals import Interruption
from lstm_jax.training.runs.sums import Sums
from lstm_jax.training.steps.state import Cursor, TrainState, start_of
from lstm_jax.training.steps.step import compiled

# Steps that may be on their way before the oldest one's report is read; fewer where
# several processes have to stop at one step.
_AHEAD = 8
_DONE, _EARLY, _INTERRUPTED = "done", "stopped early", "interrupted"


class Diverged(FloatingPointError):
    """Loss or gradient were not finite too many times in a row.

    Attributes:
        step: of the last of them.
        leaf: what was not finite.
        result: what :func:`fit` would have returned, the parameters as they were before
            the first of these steps.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from lstm_jax import training
        >>> wrong = lambda params, carry, batch, key: (params * batch, (carry, {}))
        >>> args = wrong, optax.sgd(0.1), jnp.ones(()), [jnp.float32("nan")]
        >>> try:
        ...     training.fit(*args, steps=100, show=False)
        ... except training.Diverged as error:
        ...     error.step, float(error.result.state.params)
        (10, 1.0)
    """

    step: int
    leaf: str
    result: Any = None


class Run(Beginning):
    """A run, from its first step or the one that it goes on with to its end."""

    def run(
        self, state: TrainState, resume: bool | str, interruption: Interruption
    ) -> str:
        """Begins or goes on, and returns the reason of the end."""
        self.schedule = self.schedule.checked()
        self._interruption = interruption
        self._step_fn = compiled(self.plan)
        self._several = jax.process_count() > 1
        self._ahead = together.AHEAD if self._several else _AHEAD
        self._stop = together.Stop()
        try:
            with self._claimed(resume):
                return self._run(state, resume)
        finally:
            watching.at_step(None)

    def _run(self, state: TrainState, resume: bool | str) -> str:
        self._prepare(state)
        record = self._restore(resume)
        self._begin(record)
        try:
            with self._checkpoints or contextlib.nullcontext():
                return self._loop()
        finally:
            self.rows = self._log.rows
            self._log.close()

    # From step to step.

    def _loop(self) -> str:
        try:
            while True:
                row = None if self._record["settled"] else self._settle()
                if self._step == 0:
                    self._save_first()
                reason = self._ended()
                self._save_what_is_due(row, reason)
                self._call_hooks(row)
                if reason is not None:
                    self._finish(reason)
                    return reason
                self._take_step()
        except Diverged:
            raise
        except Exception as error:
            self._rescue(error)
            raise

    def _ended(self) -> str | None:
        """Why the run ends here; None where it goes on."""
        if self._record["settled"]:
            if self.monitor is not None and self.monitor.stops(self.standing):
                return _EARLY
            if self._is_last():
                return _DONE
        if self._several:
            number = self._stop.due(self._step, self._interruption.number)
            self._interruption.number = number or self._interruption.number
            return None if number is None else _INTERRUPTED
        return None if self._interruption.number is None else _INTERRUPTED

    def _is_last(self) -> bool:
        if self.schedule.steps is not None:
            return self._step >= self.schedule.steps
        epochs = self._feed.epoch + self._feed.at_end
        return epochs >= (self.schedule.epochs or 0)

    def _take_step(self) -> None:
        if self._feed.at_end:
            self._next_epoch()
        elif not self._feed.continues and self._feed.index:
            self._start_anew()
        where = self._step + 1, self._feed.epoch, self._feed.index
        watching.at_step(where[0])
        rows.check_global("batches", self._feed.ahead)
        batch = border.take_leaves("batches", self._feed.ahead)
        self.state, report = self._step_fn(self.state, batch)
        self._pending.append((where, report))
        self._step += 1
        self._record["settled"] = False
        # A batch is known again by its digest where the run may have to go on from it.
        every = self.schedule.save_every or self.schedule.evaluate_every
        due = every is not None and self._step % every == 0
        self._record["last"] = self._digest(self._feed.ahead) if due else None
        self._feed.take()
        if self._timed_from is None:
            self._drain()  # What was compiled is not timed.
            self._start_clock()
        elif len(self._pending) > self._ahead:
            self._read(*self._pending.popleft())
        self._log.step(self._step)

    def _next_epoch(self) -> None:
        self._feed.advance()
        cursor = Cursor(jnp.int32(self._feed.epoch), jnp.int32(0))
        self.state = self.state._replace(cursor=cursor)
        self._start_anew()

    def _start_anew(self) -> None:
        start = self.plan.objective.start
        carry = start_of(start, self.state.params, self.state.carry)
        self.state = self.state._replace(carry=carry)

    def _drain(self) -> None:
        while self._pending:
            self._read(*self._pending.popleft())

    def _read(self, where: tuple, report: Any) -> None:
        """Adds up what a step reported; waits for it."""
        report = jax.device_get(report)
        self._skipping = int(report.skipped_in_row)
        if report.wrong >= 0 or self._skipping:
            if self._skipping >= (self.plan.max_skipped or 0):
                raise self._diverged(where, int(report.wrong))
            return
        self._sums.add(report.loss, report.metrics)
        if report.grad_norm is not None:
            self._record["grad_norm"] = float(report.grad_norm)
        before, self._window_tokens = self._window_tokens, self._sums.tokens
        if self._window_tokens is not None:
            self._record["tokens"] += self._window_tokens - (before or 0)

    def _diverged(self, where: tuple, wrong: int) -> Diverged:
        step, epoch, batch = where
        leaves = jax.tree.leaves_with_path(self.state.params)
        leaf = "the loss"
        if wrong > 0:
            leaf = f"the gradient of params{jax.tree_util.keystr(leaves[wrong - 1][0])}"
        error = Diverged(
            f"step {step}: {leaf} is not finite, as in the {self._skipping} last steps "
            f"(batch {batch} of epoch {epoch}). None of them changed the parameters. "
            "The data, the learning rate and clip_norm are where to look."
        )
        error.step, error.leaf = step, leaf
        return error

    def _start_clock(self) -> None:
        self._clock = time.perf_counter()
        self._timed_from = self._step, self._record["tokens"]

    # At a step where something is due.

    def _evaluates_here(self) -> bool:
        if self._evaluator is None:
            return False
        every = self.schedule.evaluate_every
        here = self._feed.at_end if every is None else self._step % every == 0
        return here or self._is_last()

    def _settle(self) -> dict[str, Any] | None:
        """Writes the row of a step, where one is due, and returns it."""
        evaluates = self._evaluates_here()
        logs = self._step % self.schedule.log_every == 0 or self._is_last()
        logs |= self._feed.at_end and self.schedule.epochs is not None
        if not (evaluates or logs):
            self._record["settled"] = True
            return None
        self._drain()
        speed = self._speed()
        figures = None
        if evaluates:
            figures = self._evaluated()
            if figures is None:  # Interrupted: a resume evaluates first.
                return None
        row, standing = self._row(figures, speed)
        self._log.write(row)
        # What is written counts; whatever fails from here on, it does so once.
        self._judged(standing)
        self._sums, self._window_tokens = Sums(), None
        self._record["settled"] = True
        self._log.show(row)
        self._start_clock()
        return row

    def _evaluated(self) -> dict[str, float] | None:
        """The figures of an evaluation; None where it was interrupted."""
        assert self._evaluator is not None
        params, interruption = self._of(self.state), self._interruption
        if not self._several:
            return self._evaluator(params, lambda: interruption.number is not None)
        # Of process 0 on all: what is decided by them is then decided alike.
        figures = self._evaluator(params)
        return together.led("evaluation", lambda: figures)

    def _row(self, figures: dict | None, speed: dict[str, Any]) -> tuple[dict, Any]:
        """A row, and how the monitored figure stands after it."""
        row: dict[str, Any] = {"step": self._step, "epoch": self._feed.epoch}
        if "tokens" in self._record["columns"]:
            row["tokens"] = self._record["tokens"]
        row |= self._sums.means()
        row["skipped"] = int(self.state.skipped)
        if self._record["grad_norm"] is not None:
            row["grad_norm"] = self._record["grad_norm"]
        row |= {self.prefix + name: value for name, value in (figures or {}).items()}
        for name, figure in self.derived.items():
            if (value := self._derived(name, figure, row)) is not None:
                row[name] = value
        standing = self.standing
        if figures is not None:
            assert self.monitor is not None
            value = float(row[self.monitor.name])
            standing = self.monitor.after(standing, self._step, value)
            if self.monitor.plateau is not None:
                row["scale"] = standing.scale
        return row | speed, standing

    def _derived(self, name: str, figure: Any, row: dict[str, Any]) -> float | None:
        """A figure computed from others; None where this row has not all of them."""
        try:
            return float(figure(row))
        except KeyError as error:
            columns = self._record["columns"]
            if error.args[0] in columns:
                return None
            raise ValueError(
                f"derived[{name!r}]: expected figures of a row, which are "
                f"{', '.join(columns)}, got {error.args[0]!r}."
            ) from error

    def _judged(self, standing: Standing) -> None:
        """Best, plateau and patience after an evaluation."""
        if standing == self.standing:
            return
        self.standing = standing
        if standing.best_step == self._step:
            self.best = jax.tree.map(jnp.copy, self._of(self.state))
        if self.state.scale is not None:
            self.state = self.state._replace(scale=jnp.float32(standing.scale))

    def _speed(self) -> dict[str, Any]:
        step, tokens = self._timed_from or (self._step, self._record["tokens"])
        passed = time.perf_counter() - self._clock
        self._record["seconds"] += passed
        row = {"seconds": round(self._record["seconds"], 3)}
        if self._step > step:
            row["steps_per_second"] = (self._step - step) / passed
            if self._window_tokens is not None:
                per_second = (self._record["tokens"] - tokens) / passed
                row["tokens_per_second"] = per_second
                if self._peak is not None:
                    row["share_of_peak"] = self._peak(per_second)
        return row

    # On disk.

    def _save_what_is_due(self, row: dict | None, reason: str | None) -> None:
        every = self.schedule.save_every
        due = self._due or reason is not None
        if self._step and self._step % (every or self._step + 1) == 0:
            due = True
        if (
            row is not None
            and every is None
            and (self._feed.at_end or self._evaluates_here())
        ):
            due = True
        best = row is not None and self.standing.best_step == self._step
        self._due = due or best
        if self._due:
            self._save(even_skipped=best or reason is not None)

    def _save(self, even_skipped: bool = False) -> None:
        if self._checkpoints is None or self._saved == self._step:
            self._due = False
            return
        self._drain()
        if self._skipping and not even_skipped:
            return  # Until a step is taken again: nothing is newer than what is good.
        before = time.perf_counter()
        self._checkpoints.save(
            self._step,
            self.state,
            {
                **self._record,
                "sums": self._sums.plain,
                "standing": self.standing._asdict(),
                "position": self._log.position,
                "settings": self.settings,
                "schedule": self.schedule._asdict(),
                "monitor": self._monitoring(),
            },
            best=self.standing.best_step,
        )
        self._saved, self._due = self._step, False
        self._clock += time.perf_counter() - before

    def _save_first(self) -> None:
        """Before the first row is written there is a checkpoint to go on from."""
        self._save()
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def _finish(self, reason: str) -> None:
        if self._checkpoints is not None:
            self._checkpoints.wait()
        self._log.plot("loss.png")
        self._log.say(f"{reason} after {self._step} steps")

    def _rescue(self, error: Exception) -> None:
        """Saves what there is; an error on the way there is added to the first one.

        Not where there are other processes, which do not come to save.
        """
        if self._several:
            return
        try:
            self._save(even_skipped=True)
            if self._checkpoints is not None:
                self._checkpoints.wait()
        except Exception as failed:
            error.add_note(f"The state of step {self._step} was not saved: {failed!r}")

    def _call_hooks(self, row: dict[str, Any] | None) -> None:
        if row is None or not self.hooks:
            return
        self._log.pause()
        for hook in self.hooks:
            hook(self.state, dict(row))
        self._log.resume()
        self._start_clock()
