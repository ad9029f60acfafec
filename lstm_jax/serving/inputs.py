"""What clients send: arrays, lists of numbers, or bytes, as chunks of steps."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border
from lstm_jax.serving.errors import BadRequest


class Inputs:
    """What one step of one stream takes.

    Args:
        step: its shape, without batch and time, and its dtype.
        most: most steps of a chunk.
        finite: whether NaN and infinity are refused.

    Example:
        >>> import jax, numpy as np
        >>> from lstm_jax.serving.inputs import Inputs
        >>> inputs = Inputs(jax.ShapeDtypeStruct((3,), np.float32), most=16)
        >>> inputs.read(bytes(24)).shape
        (2, 3)
    """

    def __init__(self, step: jax.ShapeDtypeStruct, most: int, finite: bool = True):
        """Takes what is expected."""
        self.shape, self.dtype = tuple(step.shape), np.dtype(step.dtype)
        self.most, self.finite = most, finite
        self.bytes_per_step = self.dtype.itemsize * math.prod(self.shape)
        self._floating = jnp.issubdtype(self.dtype, np.floating)

    def read(self, xs: Any) -> np.ndarray:
        """Returns a chunk, ``[T, ...]``, that no one else writes to.

        Args:
            xs: an array, nested lists of numbers, or bytes (little-endian, in C order).

        Raises:
            BadRequest: if that is no chunk.
        """
        if isinstance(xs, (bytes, bytearray, memoryview)):
            chunk = self._of_bytes(bytes(xs))
        else:
            chunk = self._of_array(xs)
        if not 1 <= len(chunk) <= self.most:
            raise BadRequest(
                f"xs: expected 1 to {self.most} steps in a chunk, got {len(chunk)}."
            )
        if self.finite and self._floating and not np.isfinite(chunk).all():
            rest = tuple(range(1, chunk.ndim))
            step = int(np.isfinite(chunk).all(rest).argmin())
            raise BadRequest(
                f"xs: expected finite numbers, got NaN or infinity at step {step}."
            )
        return chunk

    def _of_bytes(self, data: bytes) -> np.ndarray:
        size, count = self.dtype.itemsize, self.bytes_per_step // self.dtype.itemsize
        if len(data) % self.bytes_per_step:
            raise BadRequest(
                f"xs: expected a multiple of {size}·{count} bytes, got {len(data)}. "
                f"One step is {list(self.shape)} of {self.dtype}, little-endian."
            )
        little = (
            self.dtype.newbyteorder("<") if self.dtype.kind in "iuf" else self.dtype
        )
        array = np.frombuffer(data, little).reshape(-1, *self.shape)
        return array.astype(self.dtype)

    def _of_array(self, xs: Any) -> np.ndarray:
        try:
            array = border.read("xs", xs, allow_lists=True)
        except TypeError as error:
            raise BadRequest(str(error)) from None
        if array.ndim != 1 + len(self.shape) or array.shape[1:] != self.shape:
            letters = ", ".join(["T", *map(str, self.shape)])
            raise BadRequest(
                f"xs: expected shape [{letters}], the steps of one chunk, got "
                f"{list(array.shape)}."
            )
        integers = array.dtype.kind in "iu"
        floating = self._floating and jnp.issubdtype(array.dtype, np.floating)
        if not integers and not floating:
            raise BadRequest(
                f"xs: expected numbers that {self.dtype} holds, got {array.dtype}."
            )
        with np.errstate(over="ignore"):
            chunk = array.astype(self.dtype)
        if not self._floating and (chunk != array).any():
            raise BadRequest(
                f"xs: expected integers that fit in {self.dtype}, got {array.min()} to "
                f"{array.max()}."
            )
        return chunk


def check_number(number: Any) -> None:
    """Checks the number of a chunk."""
    integer = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    if not integer or number < 0:
        raise BadRequest(f"number: expected an integer from 0, got {number!r}.")


def digest(chunk: np.ndarray) -> bytes:
    """What tells a chunk that is sent again from another one."""
    return hashlib.blake2b(chunk.tobytes(), digest_size=16).digest()
