"""The tensors that an ONNX file holds, read with distrust.

Nothing is allocated before the sizes that a tensor declares are those of the bytes at
hand, and no file is opened but one that lies beside the model.
"""

from __future__ import annotations

import math
import os
import stat
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

_MAX_AXES = 32


class _Kind(NamedTuple):
    """A dtype, where its values are if not in ``raw_data``, and what holds them."""

    dtype: np.dtype
    field: str
    held_as: Any


# By ``TensorProto.DataType``.
_KINDS = {
    1: _Kind(np.dtype(np.float32), "float_data", np.float32),
    6: _Kind(np.dtype(np.int32), "int32_data", np.int32),
    7: _Kind(np.dtype(np.int64), "int64_data", np.int64),
    10: _Kind(np.dtype(np.float16), "int32_data", np.uint16),
    11: _Kind(np.dtype(np.float64), "double_data", np.float64),
    16: _Kind(np.dtype(jnp.bfloat16), "int32_data", np.uint16),
}
FLOATING = tuple(
    kind.dtype for kind in _KINDS.values() if jnp.issubdtype(kind.dtype, jnp.floating)
)
_EXTERNAL = 1
_KEYS = ("location", "offset", "length", "checksum")


def dtype_of(where: str, code: int) -> np.dtype:
    """The dtype of one of ONNX's codes.

    Raises:
        ValueError: if it is none that weights or shapes are made of.
    """
    if code not in _KINDS:
        names = ", ".join(str(kind.dtype) for kind in _KINDS.values())
        raise ValueError(
            f"{where}: expected one of the dtypes {names}, got ONNX's number {code}. "
            "A quantized model's weights are in another form: take it as it was before."
        )
    return _KINDS[code].dtype


def read(tensor: Any, folder: str | None) -> np.ndarray:
    """The values of a ``TensorProto``.

    Args:
        tensor: the tensor.
        folder: that of the file, where data may lie beside it; None if it is not known.

    Raises:
        ValueError: if declared sizes and bytes differ, or its data lies elsewhere.
    """
    where = f"tensor {tensor.name!r}"
    dtype, dims = dtype_of(where, tensor.data_type), tuple(tensor.dims)
    if len(dims) > _MAX_AXES or any(size < 0 for size in dims):
        raise ValueError(f"{where}: expected sizes of its axes, got {dims}.")
    if tensor.HasField("segment"):
        raise ValueError(f"{where}: expected a whole tensor, got a segment of one.")
    count = math.prod(dims)
    if tensor.data_location == _EXTERNAL:
        values = _from_bytes(
            where,
            dtype,
            count,
            _external(where, tensor, folder, count * dtype.itemsize),
        )
    elif tensor.HasField("raw_data"):
        values = _from_bytes(where, dtype, count, tensor.raw_data)
    else:
        values = _from_numbers(where, tensor, count)
    return values.reshape(dims)


def _check_count(where: str, declared: int, got: int, unit: str) -> None:
    if declared != got:
        raise ValueError(
            f"{where}: expected {declared} {unit}, as its shape and dtype say, got "
            f"{got}. The file may be cut off."
        )


def _from_bytes(where: str, dtype: np.dtype, count: int, data: bytes) -> np.ndarray:
    _check_count(where, count * dtype.itemsize, len(data), "bytes")
    if not count:
        return np.zeros(0, dtype)
    stored = np.dtype(f"<u{dtype.itemsize}")
    values = np.frombuffer(data, stored)
    return values.astype(stored.newbyteorder("="), copy=False).view(dtype)


def _from_numbers(where: str, tensor: Any, count: int) -> np.ndarray:
    kind = _KINDS[tensor.data_type]
    numbers = getattr(tensor, kind.field)
    _check_count(where, count, len(numbers), f"numbers in {kind.field}")
    try:
        held = np.fromiter(numbers, kind.held_as, count)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"{where}: {kind.field}: {error}.") from error
    return held.view(kind.dtype)


def _external(where: str, tensor: Any, folder: str | None, size: int) -> bytes:
    """The bytes of a tensor whose data lies in a file beside the model's."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = sorted(set(entries) - set(_KEYS))
    if (
        unknown
        or len(entries) != len(tensor.external_data)
        or "location" not in entries
    ):
        raise ValueError(
            f"{where}: external data: expected one location and perhaps one offset, "
            f"length and checksum, got {[entry.key for entry in tensor.external_data]}."
        )
    if folder is None:
        raise ValueError(
            f"{where}: expected its data in the file, got external data in "
            f"{entries['location']!r}. Pass the path of the model that it lies beside."
        )
    offset = _natural(where, "offset", entries.get("offset", "0"))
    length = _natural(where, "length", entries.get("length", str(size)))
    _check_count(where, size, length, "bytes of external data")
    return _read_beside(where, folder, entries["location"], offset, size)


def _natural(where: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(
            f"{where}: external data: {key}: expected a natural number, got {text!r}."
        )
    return int(text)


def _read_beside(
    where: str, folder: str, location: str, offset: int, size: int
) -> bytes:
    """Part of a plain file that lies in ``folder`` itself."""
    if location in ("", ".", "..") or any(sign in location for sign in "/\\\0:"):
        raise ValueError(
            f"{where}: external data: expected the name of a file beside the model's, "
            f"got {location!r}. Files elsewhere are not read."
        )
    path = os.path.join(folder, location)
    if not os.path.lexists(path):
        raise ValueError(
            f"{where}: external data: expected the file {location!r} beside the "
            "model's, got none."
        )
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(
            f"{where}: external data: expected a plain file, got {location!r}, which "
            "is a link or no file. Links are not followed: copy the file beside the "
            "model's."
        )
    if offset + size > found.st_size:
        raise ValueError(
            f"{where}: external data: expected bytes {offset} to {offset + size} of "
            f"{location!r}, got {found.st_size} bytes in all."
        )
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(handle, "rb") as file:
        file.seek(offset)
        return file.read(size)
