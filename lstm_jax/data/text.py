"""Text as tokens, and one long stream of tokens as batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from lstm_jax.checks import options


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The characters a model knows, each with its number.

    Args:
        characters: every character once; its place is its number.

    Raises:
        ValueError: if there is none, or one twice.

    Example:
        >>> from lstm_jax.data import Vocabulary
        >>> vocabulary = Vocabulary.of("hello")
        >>> vocabulary.characters, vocabulary.encode("hole").tolist()
        ('ehlo', [1, 3, 2, 0])
        >>> vocabulary.decode([1, 0])
        'he'
    """

    characters: str

    def __post_init__(self) -> None:
        """Checks the characters."""
        if not self.characters or len(set(self.characters)) != len(self.characters):
            raise ValueError(
                "characters: expected every character once, got "
                f"{self.characters!r}. Vocabulary.of(text) collects those of a text."
            )

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Returns the vocabulary of the characters of a text, in order."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        """Returns how many characters there are."""
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Returns the numbers of a text's characters, ``[T]`` int32.

        Raises:
            ValueError: if a character is not in the vocabulary.
        """
        table = {character: n for n, character in enumerate(self.characters)}
        unknown = sorted(set(text) - set(table))
        if unknown:
            raise ValueError(f"text: not in the vocabulary: {''.join(unknown)!r}.")
        return np.array([table[character] for character in text], np.int32)

    def decode(self, tokens: Any) -> str:
        """Returns the text that the numbers, ``[T]``, stand for.

        Raises:
            ValueError: if a number is no character's.
            TypeError: if they are no integers.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(
                f"tokens: expected shape [T], got {list(tokens.shape)}. Decode row by "
                "row."
            )
        if not tokens.size:
            return ""
        if tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens: expected integers, got {tokens.dtype}.")
        if tokens.min() < 0 or tokens.max() >= len(self):
            raise ValueError(
                f"tokens: expected numbers from 0 to {len(self) - 1}, got "
                f"{tokens.min()} to {tokens.max()}."
            )
        return "".join(self.characters[token] for token in tokens.tolist())


def stream_batches(
    tokens: np.ndarray, batch_size: int, window: int, *, tail: bool = False
) -> StreamBatches:
    """Cuts one long stream into B parallel ones, window by window.

    Row b of each batch goes on where row b of the batch before ended, so that the state
    can be handed on from batch to batch::

        tokens      0 1 2 3 4 5 6 7 8 9 ...     B = 2, window = 2

        batch       1st    2nd                  targets are the next tokens:
        row 0       0 1    2 3                  1 2    3 4
        row 1       5 6    7 8                  6 7    8 9

    Every row has the same number of whole windows; the tokens left over, fewer than
    ``B * (window + 1) + 1``, are at the end of the rows and of the stream. With
    ``tail`` those at the end of the rows are a last, shorter batch; with one row that
    is every token, as an evaluation needs whose figure does not depend on the window.

    Args:
        tokens: ``[N]``.
        batch_size: B.
        window: T, steps in one batch.
        tail: whether what is left of the rows is a batch too.

    Returns:
        Batches ``(inputs, targets)``, ``[B, T]`` each, new arrays that nothing else
        uses. They can be gone through any number of times.

    Raises:
        ValueError: if there are too few tokens for one batch, they are no single
            stream, or a size is not positive.
        TypeError: if a size is not an integer.

    Example:
        >>> import numpy as np
        >>> from lstm_jax.data import stream_batches
        >>> inputs, targets = next(stream_batches(np.arange(10), 2, 2))
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1], [5, 6]], [[1, 2], [6, 7]])
    """
    options.check_positive("batch_size", batch_size)
    options.check_positive("window", window)
    tokens = np.asarray(tokens)
    if tokens.ndim != 1:
        raise ValueError(
            f"tokens: expected one stream of shape [N], got {list(tokens.shape)}."
        )
    options.check_flag("tail", tail)
    row = len(tokens) // batch_size
    least = 2 if tail else window + 1
    if row < least:
        needed = "2" if tail else "(window + 1)"
        raise ValueError(
            f"tokens: expected at least batch_size * {needed} = {batch_size} * {least} "
            f"= {batch_size * least}, got {len(tokens)}."
        )
    rows = tokens[: batch_size * row].reshape(batch_size, -1)
    return StreamBatches(rows, window, tail)


class StreamBatches:
    """The batches that :func:`stream_batches` makes.

    Attributes:
        continues: True: each row goes on where that of the batch before ended, so that
            a state can be handed on.
    """

    continues = True

    def __init__(self, rows: np.ndarray, window: int, tail: bool = False):
        """Takes the rows, ``[B, N]``, and T, steps in one batch."""
        self._rows, self._window, self._tail = rows, window, tail
        self._next = iter(self)

    def __len__(self) -> int:
        """Returns how many batches there are."""
        targets = self._rows.shape[1] - 1
        return -(-targets // self._window) if self._tail else targets // self._window

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Goes through all of them."""
        for n in range(len(self)):
            start, stop = n * self._window, (n + 1) * self._window
            inputs, targets = self._rows[:, :-1], self._rows[:, 1:]
            yield inputs[:, start:stop].copy(), targets[:, start:stop].copy()

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns one after the other, once."""
        return next(self._next)
