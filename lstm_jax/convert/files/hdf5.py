"""HDF5 files of Keras's, read by a process of its own: :mod:`hdf5_child` says why."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lstm_jax.convert.files import hdf5_child

# Of processor time, and of time on the clock; and bytes for each second more.
SECONDS, PACE = 30, 2**24
_DTYPES = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("<f2", "<f4", "<f8")},
    **{f">f{size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Described(NamedTuple):
    """An array in a file, unread: ``shape`` is None for what is no array of numbers."""

    shape: tuple[int, ...] | None
    dtype: str


class HDF5:
    """A file that is open in another process, for a ``with`` statement.

    Args:
        path: the file: HDF5, or a zip file that holds one.

    Attributes:
        groups: for each group by its path, the root's "", the attributes that Keras
            writes, each a text or a list of texts.
        datasets: for each array by its path what is known before it is read.
        config: the text of the zip file's ``config.json``, or None.
        metadata: that of its ``metadata.json``, or None.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if h5py is not installed.
        ValueError: if the file can't be read within the limits, or holds links or what
            else could lead out of it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file, and lists what is in it."""
        self.path = os.fsdecode(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"path: expected a file, got {self.path!r}.")
        if importlib.util.find_spec("h5py") is None:
            raise ImportError(
                'load_keras needs h5py: pip install "lstm_jax[keras]"'
            ) from None
        self._late = False
        self._seconds = SECONDS + os.path.getsize(self.path) // PACE
        self._process = start(os.path.abspath(self.path), self._seconds)
        self._timer = threading.Timer(self._seconds, self._stop)
        self._timer.daemon = True
        self._timer.start()
        try:
            answer = self._answer()
            self.groups: dict[str, Any] = answer["groups"]
            self.datasets = {
                name: Described(None if shape is None else tuple(shape), dtype)
                for name, (shape, dtype) in sorted(answer["datasets"].items())
            }
            self.config: str | None = answer.get("config")
            self.metadata: str | None = answer.get("metadata")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> HDF5:
        """Returns the file."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Ends the process."""
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()

    def read(self, names: list[str]) -> dict[str, np.ndarray]:
        """The floating arrays of these paths, in this machine's byte order.

        Raises:
            ValueError: if one is of another kind, or can't be read within the limits.
        """
        for name in names:
            self._check_kind(name)
        self._ask(names)
        arrays = {}
        for name in names:
            shape, dtype = self.datasets[name].shape, _DTYPES[self.datasets[name].dtype]
            assert shape is not None  # of a kind that was checked
            size = math.prod(shape) * dtype.itemsize
            if self._answer()["bytes"] != size:
                raise ValueError(f"{self.path}: {name}: not all of it came.")
            data = self._process.stdout.read(size)
            if len(data) != size:
                raise ValueError(self._why())
            flat = np.frombuffer(data, dtype)
            arrays[name] = flat.reshape(shape).astype(dtype.newbyteorder("="))
        return arrays

    def _check_kind(self, name: str) -> None:
        shape, dtype = self.datasets[name]
        if shape is not None and dtype in _DTYPES:
            return
        hint = ""
        if dtype == "|V2":
            hint = (
                " bfloat16 looks so in HDF5, but then .keras and .weights.h5 say it in "
                "an attribute, which is missing here."
            )
        raise ValueError(
            f"{self.path}: {name}: expected floating numbers, got {dtype}.{hint}"
        )

    def _ask(self, names: list[str]) -> None:
        try:
            self._process.stdin.write(json.dumps(names).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended
            raise ValueError(self._why()) from None

    def _answer(self) -> Any:
        line = self._process.stdout.readline(hdf5_child.LISTING + 1)
        if not line.endswith(b"\n"):
            raise ValueError(self._why())
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self.path}: {answer['error']}")
        return answer

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def _why(self) -> str:
        """What is said when the process has ended before its answer."""
        self._process.wait()
        if self._late:
            return f"{self.path}: not read within {self._seconds} seconds."
        return (
            f"{self.path}: the process that reads it ended with "
            f"{self._process.returncode}; the file is likely to be damaged."
        )


def start(path: str, seconds: int) -> Any:
    """Starts the other process, with this one's places to import from."""
    places = [place for place in sys.path if place]
    asked = {"file": path, "seconds": seconds, "sys_path": places}
    program = os.path.abspath(hdf5_child.__file__)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # No plugins, and no threads whose stacks would count as memory.
        env=os.environ | {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    return process
