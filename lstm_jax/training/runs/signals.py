"""Ctrl-C and SIGTERM: noticed, not obeyed at once; and how the program then ends."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import signal
import threading
from typing import Any

from lstm_jax.distributed import watching

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is entered, the first signal is remembered, the second acts as before.

    Off the main thread, where Python allows no handlers, and for signals that the
    program ignores, nothing changes.

    Attributes:
        number: of the signal that came; None before.
    """

    def __init__(self, run: str | None = None) -> None:
        """Nothing has come yet; ``run`` is what one that goes on is known by."""
        self._run = run
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: Any) -> None:
        """Gives the handlers back to those that had them."""
        while self._before:
            signal.signal(*self._before.popitem())
        _note(self._run, self.number)

    def _notice(self, number: int, _: Any) -> None:
        self.number = number
        while self._before:
            signal.signal(*self._before.popitem())


# The signals that ended runs which have not gone on since, by run.
_interrupted: dict[Any, int] = {}


def _note(run: str | None, number: int | None) -> None:
    if number is not None:
        _interrupted[object() if run is None else run] = number
    elif run is not None:
        _interrupted.pop(run, None)


def forget() -> None:
    """Lets the program end as if no run had been interrupted."""
    _interrupted.clear()


@atexit.register
def _end() -> None:
    """Status 0 means finished, to shells, job queues and Kubernetes."""
    if not _interrupted:
        return
    watching.leave()
    # Nothing else runs after this, so that what is still to be written is written here.
    for file in gc.get_objects():
        if isinstance(file, io.IOBase) and not file.closed:
            with contextlib.suppress(OSError, ValueError):
                file.flush()
    os._exit(128 + [*_interrupted.values()][-1])
