"""Ctrl-C and SIGTERM: noticed, not obeyed at once; and how the program then ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """While it is entered, the first signal is remembered, the second acts as before.

    Off the main thread, where Python allows no handlers, and for signals that the
    program ignores, nothing changes.

    Attributes:
        number: of the signal that came; None before.
    """

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Installs the handlers."""
        end_with(None)
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
        end_with(self.number)

    def _notice(self, number: int, _: Any) -> None:
        self.number = number
        while self._before:
            signal.signal(*self._before.popitem())


_last: list[int | None] = [None]


def end_with(number: int | None) -> None:
    """Makes the program end as one that a signal ended; None: as it likes."""
    _last[0] = number


@atexit.register
def _end() -> None:
    """Status 0 means finished, to shells, job queues and Kubernetes."""
    if _last[0] is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + _last[0])
