"""The one thread that talks to the device."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """What a job returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


class Worker:
    """Runs jobs one after the other, in the order in which they came.

    Its thread is a daemon: one that hangs in a program does not keep the process from
    ending.

    Args:
        loop: where those who wait are told.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        """Starts the thread."""
        self._loop = loop
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, daemon=True, name="serving")
        thread.start()
        self._thread = thread

    def submit(self, job: Callable[..., Any], *args: Any) -> asyncio.Future[Outcome]:
        """Queues a job; the future holds what it returned or raised, and never raises.

        Cancelling the future leaves the job as it is.
        """
        future = self._loop.create_future()
        self._jobs.put((future, job, args))
        return future

    def stop(self) -> None:
        """Lets the thread end after what is queued."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            future, job, args = task
            try:
                outcome = Outcome(job(*args))
            except BaseException as error:
                outcome = Outcome(error=error)
            try:
                self._loop.call_soon_threadsafe(_tell, future, outcome)
            except RuntimeError:  # The loop is closed: there is no one to tell.
                return
            # A job that waits must not keep what the last one held.
            del task, future, job, args, outcome


def _tell(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)
