"""Beside the checkpoints: what goes out of the way, and what is being written."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

FOLDER = "aside"


def move(path: pathlib.Path) -> pathlib.Path:
    """Moves to the folder beside, under a name that nothing there has."""
    folder = path.parent / FOLDER
    folder.mkdir(exist_ok=True)
    to, number = folder / path.name, 0
    while os.path.lexists(to):
        number += 1
        to = folder / f"{path.name}_{number}"
    os.rename(path, to)
    return to


def tried(path: pathlib.Path) -> str:
    """Moves where that can be done; says what became of it."""
    try:
        return f"moved to {FOLDER}/{move(path).name}"
    except OSError as error:
        return f"could not be moved aside ({error})"


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
    """Marks a folder as being written, for as long as this process lives."""
    holder = os.open(path, os.O_RDONLY)
    try:
        _lock(holder)
        yield
    finally:
        os.close(holder)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Keeps a folder to whoever is inside; another one's is an error."""
    holder = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(holder):
            raise BlockingIOError(
                f"out: expected a folder that no one else trains in, got {folder}, "
                "where another process or thread does."
            )
        yield
    finally:
        os.close(holder)


def is_held(path: pathlib.Path) -> bool:
    """Whether a living process writes there, or has until just now."""
    try:
        if not os.listdir(path):
            return True  # It is just made, and about to be marked.
        holder = os.open(path, os.O_RDONLY)
    except OSError:
        return True  # Whatever it is, it is left alone.
    try:
        return not _lock(holder)
    finally:
        os.close(holder)


def _lock(holder: int) -> bool:
    """Whether the lock could be had; it could where there are no locks."""
    try:
        import fcntl

        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True
