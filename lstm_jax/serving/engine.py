"""Batch after batch: what leads chunks from the scheduler to the device and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lstm_jax.serving.errors import Gone, StepFailed, Unavailable
from lstm_jax.serving.programs import Programs, Row, TableLost
from lstm_jax.serving.scheduling import Scheduler
from lstm_jax.serving.streams import Batch
from lstm_jax.serving.worker import Worker


class Engine:
    """Runs a scheduler's batches, one at a time, without blocking the event loop.

    Args:
        programs: what runs them.
        scheduler: what cuts them.
    """

    def __init__(self, programs: Programs, scheduler: Scheduler):
        """Takes both; nothing runs yet."""
        self._programs, self._scheduler = programs, scheduler
        self._batch: Batch | None = None
        self._tasks: list[asyncio.Task[None]] = []
        # What ended the loop, where something has.
        self.broken: BaseException | None = None

    async def start(self) -> None:
        """Compiles every program, and begins to run what comes."""
        loop = asyncio.get_running_loop()
        self._wake, self.worker = asyncio.Event(), Worker(loop)
        outcome = await self.worker.submit(self._programs.compile)
        if outcome.error is not None:
            self.worker.stop()
            raise outcome.error
        self._scheduler.metrics.compiled = outcome.value
        for run in (self._serve(), self._sweep()):
            task = loop.create_task(run)
            task.add_done_callback(self._note_end)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Ends the loop, and the thread after what it does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.worker.stop()

    def wake(self) -> None:
        """Says that there is something to run, or to run at once."""
        self._wake.set()

    async def ask(self, job: Callable[..., Any], *args: Any) -> Any:
        """Runs something else between two batches.

        Raises:
            StepFailed: if it raises.
        """
        outcome = await self.worker.submit(job, *args)
        if outcome.error is not None:
            self._note_loss(outcome.error)
            raise StepFailed(
                f"The device raised {type(outcome.error).__name__}: {outcome.error}"
            ) from outcome.error
        return outcome.value

    @property
    def healthy(self) -> bool:
        """Whether the loop lives, and is not stuck in a batch."""
        if self.broken is not None or self._batch is None:
            return self.broken is None
        taken = self._scheduler.clock() - self._batch.started
        return taken <= self._scheduler.limits.stuck_s

    async def _serve(self) -> None:
        while True:
            batch = self._scheduler.cut()
            if batch is None:
                await self._pause()
                continue
            rows = [
                Row(chunk.stream.lease.slot, chunk.stream.fresh, chunk.xs)
                for chunk in batch.chunks
            ]
            self._batch = batch
            outcome = await self.worker.submit(self._programs.run, batch.steps, rows)
            self._batch = None
            if outcome.error is None:
                self._scheduler.finish(batch, outcome.value)
            else:
                self._scheduler.fail(batch, outcome.error)
                self._note_loss(outcome.error)

    async def _pause(self) -> None:
        """Waits until something comes, or what is there need not wait any longer."""
        self._wake.clear()
        due, timer = self._scheduler.due_in(), None
        if due is not None:
            timer = asyncio.get_running_loop().call_later(due, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _sweep(self) -> None:
        """Evicts what is idle, now and then."""
        period = min(max(self._scheduler.limits.idle_s / 4, 0.01), 5.0)
        while True:
            await asyncio.sleep(period)
            self._scheduler.evict()

    def _note_loss(self, error: BaseException) -> None:
        """Ends every stream where states are lost: none begins anew in silence."""
        if isinstance(error, TableLost):
            self._scheduler.end_all(
                Gone(
                    "The state of the stream was lost: a step"
                    f" failed while it was written. {error}"
                )
            )

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """Lets no one wait for ever where the loop has ended by itself."""
        if task.cancelled():
            return
        self.broken = task.exception() or RuntimeError("the loop ended")
        self._scheduler.end_all(Unavailable(f"The server has broken: {self.broken!r}"))
