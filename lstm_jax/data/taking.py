"""Arguments as NumPy reads them, checked: arrays, tokens, seeds and processes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lstm_jax.checks import border, options

MOST = np.iinfo(np.int32).max


def array(name: str, value: Any) -> np.ndarray:
    """An argument as an array, not copied where it is NumPy's.

    Raises:
        TypeError: if it is none, or masked: its mask would be lost.
    """
    if isinstance(value, (list, tuple)):
        for one in value:
            if isinstance(one, np.ma.MaskedArray):
                border.read(name, one)
    elif isinstance(value, (Sequence, memoryview)) and not isinstance(value, str):
        value = np.asarray(value)  # A range, or an array of the standard library.
    return border.read(name, value, allow_lists=True)


def sequences(name: str, values: Iterable[Any]) -> list[np.ndarray]:
    """Arrays ``[T_n, ...]`` that differ in ``T_n`` alone.

    An empty list says nothing of its dtype and features: it has those of the others.

    Raises:
        ValueError: if there is none, or features or dtypes differ.
        TypeError: if one is no array, or they are no arrays.
    """
    sized = hasattr(values, "__iter__") or hasattr(values, "__getitem__")
    if isinstance(values, (str, bytes)) or not sized:
        raise TypeError(
            f"{name}: expected arrays [T, ...], got {type(values).__name__}."
        )
    if isinstance(values, np.ma.MaskedArray):
        border.read(name, values)
    given = [*values]
    arrays = [array(f"{name}[{n}]", value) for n, value in enumerate(given)]
    if not arrays:
        raise ValueError(f"{name}: expected at least one, got none.")
    says = [not isinstance(value, (list, tuple)) or len(value) > 0 for value in given]
    first = says.index(True) if any(says) else 0
    features, dtype = arrays[first].shape[1:], arrays[first].dtype
    for n, one in enumerate(arrays):
        if not says[n]:
            arrays[n] = np.zeros((0, *features), dtype)
        elif one.ndim == 0 or one.shape[1:] != features or one.dtype != dtype:
            expected = ", ".join(["T", *map(str, features)])
            raise ValueError(
                f"{name}[{n}]: expected shape [{expected}] and dtype {dtype}, as "
                f"{name}[{first}] has, got {list(one.shape)} and {one.dtype}."
            )
    return arrays


def tokens(name: str, value: Any) -> np.ndarray:
    """Tokens ``[T]`` as int32, none of which changes.

    Raises:
        ValueError: if the shape is another, or one is negative or too large.
        TypeError: if they are no integers.
    """
    given = array(name, value)
    if given.ndim != 1:
        raise ValueError(f"{name}: expected shape [T], got {list(given.shape)}.")
    if given.size and given.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {given.dtype}.")
    check_tokens(name, given)
    return given.astype(np.int32)


def check_tokens(name: str, given: np.ndarray) -> None:
    """Checks that integers are tokens: a vocabulary has no others."""
    if given.size and (given.min() < 0 or given.max() > MOST):
        wrong = given.min() if given.min() < 0 else given.max()
        raise ValueError(f"{name}: expected tokens from 0 to {MOST}, got {wrong}.")


def integer(name: str, value: Any, least: int = -MOST - 1, most: int = MOST) -> int:
    """A number such as a token or a class, of any type of integers, as Python's.

    Raises:
        TypeError: if it is no integer, or a bool.
        ValueError: if it is out of range.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an integer, got {value!r} of type "
            f"{type(value).__name__}."
        ) from None
    if not least <= number <= most:
        raise ValueError(f"{name}: expected from {least} to {most}, got {number}.")
    return number


def check_seed(seed: Any) -> None:
    """Checks what orders are made of, before an epoch is."""
    if seed is None:
        return
    try:
        np.random.SeedSequence((seed, 0))
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"seed: expected an integer from 0 on, or None, got {seed!r}."
        ) from None


def process(given: Any, batch_size: int, last: int = 0) -> tuple[int, int]:
    """Which process this is, and of how many, which divide every batch.

    Args:
        given: the argument ``process``.
        batch_size: rows of a batch.
        last: rows of the last one of an epoch, 0 if there is no smaller one.

    Raises:
        TypeError: if it is no pair of integers.
        ValueError: if one is out of range, or the processes do not divide a batch.
    """
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(
            "process: expected two integers, which one this is and of how many, such "
            f"as (jax.process_index(), jax.process_count()), got {given!r}."
        )
    index, count = integer("process[0]", given[0]), given[1]
    options.check_positive("process[1]", count)
    if not 0 <= index < count:
        raise ValueError(
            f"process: expected a number below {count} first, got {index}."
        )
    for what, size in (("batch_size", batch_size), ("the last batch", last)):
        if size % count:
            left = what == "the last batch"
            hint = f"Leave out {size % count} of the examples." if left else ""
            raise ValueError(
                f"process: expected a number of processes that divides {what}, {size}, "
                f"got {count}. {hint}".rstrip()
            )
    return index, int(count)


def share(rows: np.ndarray, process: tuple[int, int]) -> np.ndarray:
    """The rows of a batch that one process has."""
    index, count = process
    each = len(rows) // count
    return rows[index * each : (index + 1) * each]
