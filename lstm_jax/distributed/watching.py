"""Whether the other processes live and go on; the end of this one where they do not.

A collective waits for ever for a process that has stopped, failed or lost its way. JAX
notices the first after its heartbeat's limit, from C++ and without a name, and the
others never. So each process says every second, on the line on which it met
process 0, that it lives and at which step it is; process 0 judges, and tells all.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from multiprocessing import connection
from typing import Any

import jax

from lstm_jax.distributed.meeting import Line, Met


class Self:
    """How this process stands.

    Attributes:
        step: of training, where it is in one; None elsewhere.
        ended: whether the program has come to its end.
        failed: the error that ended it.
        done: how much else was done, which takes as long as steps do.
        limit: seconds that a step, or an exchange, may take; None for no limit.
    """

    limit: float | None = 600.0
    step: int | None = None
    done: int = 0
    ended: bool = False
    failed: str | None = None

    def beat(self) -> dict[str, Any]:
        """What it says of itself."""
        names = ("step", "done", "ended", "failed")
        return {name: getattr(self, name) for name in names}


own = Self()
_names: list[str] = []


def name(index: int) -> str:
    """A process as others know it."""
    return _names[index] if _names else f"process {index}"


def at_step(step: int | None) -> None:
    """Notes the step that this process is about to take; None outside of training."""
    own.step = step


def going_on() -> None:
    """Notes that this process does something within a step, such as an evaluation."""
    own.done += 1


def leave() -> None:
    """Waits for the other processes, for a program that ends in a way of its own."""
    if jax.distributed.is_initialized():
        own.step, own.ended = None, True
        jax.distributed.shutdown()


class Watch(threading.Thread):
    """Sends and reads beats until the program ends."""

    def __init__(self, met: Met, index: int, silence: float):
        """Begins to watch.

        Args:
            met: the processes.
            index: which one this is.
            silence: seconds after which one that says nothing is lost.
        """
        super().__init__(name="lstm_jax watch", daemon=True)
        self._met, self.index, self._limit = met, index, silence
        now = time.monotonic()
        self._heard = dict.fromkeys(met.lines, now)
        self._beats = {n: Self().beat() for n in range(len(met.names))}
        self._stand, self._moved = [], now
        self._sending = threading.Lock()
        _names[:] = met.names
        _hook(self)
        self.start()

    def run(self) -> None:
        """Judges at each beat, on process 0 all others, elsewhere process 0."""
        pause, due = min(self._limit / 5, 1.0), 0.0
        while True:
            if time.monotonic() >= due:
                self.tell(own.beat())
                due = time.monotonic() + pause
            self._read(max(0.0, due - time.monotonic()))
            wrong = self.verdict()
            if wrong is not None:
                self.tell({"verdict": wrong})
                _end(f"process {self.index}: {wrong}")

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message to all that this process has a line to."""
        with self._sending:
            for line in self._met.lines.values():
                line.send(message)

    def left_alone(self) -> bool:
        """Whether all others have hung up."""
        return all(line.closed for line in self._met.lines.values())

    def _read(self, wait: float) -> None:
        """Reads what has come, or comes within ``wait`` seconds."""
        open_ = {line: n for n, line in self._met.lines.items() if not line.closed}
        if not open_:
            time.sleep(wait)
        ready: Any = connection.wait([*open_], wait)  # pyright: ignore  # has fileno
        for line in ready:
            index = open_[line]
            for message in _said(line):
                self._heard[index] = time.monotonic()
                if "verdict" not in message:
                    self._beats[index] = message
                elif own.failed is None:
                    _end(f"process {self.index}: {message['verdict']}")
                else:  # It ends because of this one.
                    self._beats[index] = Self().beat() | {"ended": True}
        self._beats[self.index] = own.beat()

    def verdict(self) -> str | None:
        """What is wrong with another process; None while all is well."""
        now = time.monotonic()
        for index, line in self._met.lines.items():
            name, beat = self._met.names[index], self._beats[index]
            if beat["failed"] is not None:
                return f"{name} failed: {beat['failed']}"
            if line.closed and not beat["ended"]:
                return f"{name} is gone, {self._where(index)}: it ended or was killed"
            silent = now - self._heard[index]
            if silent > self._limit and not (line.closed or beat["ended"]):
                return (
                    f"{name} has said nothing for {silent:.0f} s, "
                    f"{self._where(index)}: it was stopped, or can't be reached"
                )
        return self._stuck(now) if self.index == 0 else None

    def _stuck(self, now: float) -> str | None:
        """Whether processes wait for one that does not come; only process 0 knows."""
        steps = [beat["step"] for beat in self._beats.values()]
        stand = [
            (beat["step"], beat["done"], beat["ended"]) for beat in self._beats.values()
        ]
        if stand != self._stand:
            self._stand, self._moved = stand, now
        top = max((step for step in steps if step is not None), default=None)
        waited = now - self._moved
        if top is None:
            return self._left_alone(waited)
        late = [n for n, step in enumerate(steps) if step is None or step < top]
        left = [n for n in late if self._beats[n]["ended"]]
        if left and waited > self._limit:
            names = ", ".join(self._met.names[n] for n in left)
            return f"step {top}: {names} ended before it"
        if own.limit is None or waited <= own.limit:
            return None
        if not late:
            return f"step {top}: no process has come beyond it for {waited:.0f} s"
        names = ", ".join(f"{self._met.names[n]}, {self._where(n)}" for n in late)
        return f"step {top}: waited {waited:.0f} s for {names}"

    def _left_alone(self, waited: float) -> str | None:
        """Whether some have ended and others, outside of a step, do not."""
        ended = [beat["ended"] for beat in self._beats.values()]
        if own.limit is None or waited <= own.limit or all(ended):
            return None
        names = [
            name for name, over in zip(self._met.names, ended, strict=True) if over
        ]
        return f"{', '.join(names)} ended {waited:.0f} s ago" if names else None

    def _where(self, index: int) -> str:
        step = self._beats[index]["step"]
        return "outside of a step" if step is None else f"at step {step}"


_ending = threading.Lock()


def _said(line: Line) -> list[dict[str, Any]]:
    try:
        return line.messages(0)
    except (ValueError, OSError):
        return []


def _end(sentence: str) -> None:
    """Ends this process at once: its main thread may wait for ever."""
    if not _ending.acquire(blocking=False):
        time.sleep(5)  # Another thread is about to.
    with contextlib.suppress(OSError):
        os.write(2, f"lstm_jax: {sentence}.\n".encode())
    time.sleep(0.05)  # In which process 0's word reaches the others.
    os._exit(1)


def _hook(watch: Watch) -> None:
    """Lets the others know of an error that ends this program, and of its end."""
    before = sys.excepthook

    def failed(kind, error, trace):
        before(kind, error, trace)
        own.failed = f"{kind.__name__}: {error}".split("\n")[0][:300].rstrip(".: ")
        watch.tell(own.beat())

    sys.excepthook = failed

    @atexit.register
    def ended():
        own.step, own.ended = None, True
        watch.tell(own.beat())
        if own.failed is not None:
            # JAX would wait here for the others, which wait for this one; they end as
            # soon as they have heard of it.
            until = time.monotonic() + 1
            while time.monotonic() < until and not watch.left_alone():
                time.sleep(0.02)
            if (wrong := watch.verdict()) is not None:
                _end(f"process {watch.index}: {wrong}")  # What may be the cause.
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(1)
