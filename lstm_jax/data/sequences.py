"""Ragged sequences as one padded array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstm_jax.checks import slips
from lstm_jax.data import taking


@slips.explained
def pad_sequences(
    sequences: Sequence[np.ndarray], *, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads sequences with zeros on the right.

    Args:
        sequences: B arrays of shapes ``[T_b, ...]`` that differ in ``T_b`` only; 0 is a
            length, and an empty list is of the others' dtype.
        length: T; by default that of the longest. A fixed one keeps a jitted function
            from being compiled for every new length.

    Returns:
        ``(xs, lengths)``: ``[B, T, ...]`` in the sequences' dtype, and ``[B]`` int32,
        as :func:`lstm_jax.scan` takes them.

    Raises:
        ValueError: if there is no sequence, their features or dtypes differ, or one is
            longer than ``length``: nothing is cut off.
        TypeError: if one is no array, or a masked one, or ``length`` no integer.

    Example:
        >>> import numpy as np
        >>> from lstm_jax.data import pad_sequences
        >>> xs, lengths = pad_sequences([np.ones((2, 3)), np.ones((5, 3))])
        >>> xs.shape, lengths.tolist()
        ((2, 5, 3), [2, 5])
    """
    arrays = taking.sequences("sequences", sequences)
    features, dtype = arrays[0].shape[1:], arrays[0].dtype
    lengths = np.array([len(array) for array in arrays], np.int32)
    longest = int(lengths.max())
    length = longest if length is None else taking.integer("length", length)
    if longest > length:
        raise ValueError(
            f"length: expected at least {longest}, the longest sequence, got {length}."
        )
    xs = np.zeros((len(arrays), length, *features), dtype)
    for row, array in zip(xs, arrays, strict=True):
        row[: len(array)] = array
    return xs, lengths
