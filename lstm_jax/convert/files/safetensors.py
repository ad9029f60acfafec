"""Files in the safetensors format, and PyTorch's habits with them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lstm_jax.replacing import replacing

_INSTALL = 'needs safetensors: pip install "lstm_jax[training]"'
# How files of torch.save begin: as a zip file, or as a pickle.
_PICKLES = (b"PK\x03\x04", b"\x80")


class StateDict(Mapping[str, np.ndarray]):
    """The arrays of a file by name, each read when it is asked for.

    Where several names of a module mean one tensor, PyTorch's files keep it under one
    of them, and the others in the metadata. Those are names here too, if what they
    stand for is in the file.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or has a name twice.
        ImportError: if safetensors is not installed.

    Warns:
        UserWarning: where an array is float64 and 64-bit types are off, so that it
            becomes float32.

    Example:
        >>> import pathlib, tempfile, numpy as np
        >>> from safetensors.numpy import save_file
        >>> from lstm_jax.convert.files.safetensors import StateDict
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_file({"a": np.ones(3, np.float32)}, path, {"b": "a", "format": "pt"})
        >>> weights = StateDict(path)
        >>> sorted(weights), weights["b"].tolist()
        (['a', 'b'], [1.0, 1.0, 1.0])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file, and reads its header."""
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError(f"Reading {os.fspath(path)} {_INSTALL}") from error
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):
            raise FileNotFoundError(f"{self.path}: no such file.")
        try:
            self._file = safe_open(self.path, framework="np")
            _check_names(self.path)
            names = set(self._file.keys())
            told = self._file.metadata() or {}
        except (SafetensorError, ValueError) as error:
            said = str(error).removesuffix(".")
            raise ValueError(
                f"{self.path}: no safetensors file: {said}.{_hint(self.path)}"
            ) from error
        aliases = {name: to for name, to in told.items() if to in names}
        self._names = aliases | {name: name for name in sorted(names)}

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of a name."""
        from safetensors import SafetensorError

        try:
            array = self._file.get_tensor(self._names[name])
        except (SafetensorError, AttributeError, TypeError) as error:
            # A dtype that the format has and NumPy has not.
            raise ValueError(f"{self.path}: {name} can't be read: {error}") from error
        if array.dtype == np.float64 != jax.dtypes.canonicalize_dtype(array.dtype):
            warnings.warn(
                f"{self.path}: {name} is float64 and becomes float32, since 64-bit "
                "types are off: jax.enable_x64 turns them on.",
                stacklevel=2,
            )
        return array

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._names)


def opened(state_dict: Any) -> Any:
    """The arrays of a file by name, where ``state_dict`` is a path; else itself."""
    if isinstance(state_dict, (str, os.PathLike)):
        return StateDict(state_dict)
    return state_dict


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], **metadata: str
) -> None:
    """Writes arrays that own their memory; a file that is there is replaced at once.

    Raises:
        OSError: if the file can't be written.
        ImportError: if safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(f"Writing {os.fspath(path)} {_INSTALL}") from error
    data = save(dict(arrays), metadata or None)
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data)


def _check_names(path: str) -> None:
    """Checks that no name is there twice, of which the library takes the last."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{', '.join(twice)} is there twice.")
        return found

    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")  # which the library has checked
        json.loads(file.read(size), object_pairs_hook=once)


def _hint(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(4).startswith(_PICKLES):
            return (
                " It looks like one of torch.save: from_torch takes what "
                "torch.load(path, weights_only=True) makes of it."
            )
    return ""
