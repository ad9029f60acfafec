"""Text as tokens, and one long stream of tokens as batches."""

from __future__ import annotations

import collections
import dataclasses
import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from lstm_jax.checks import options
from lstm_jax.data import taking


@dataclasses.dataclass(frozen=True, init=False)
class Vocabulary:
    """The characters or the words that a model knows, each with its number.

    Nothing in it stands for padding: what counts is said by lengths. A word of one's
    own that begins or ends a sentence is one of its words.

    Args:
        symbols: characters, as one string; or words, as a sequence of strings. Each
            once; its place is its number.
        unknown: the one of them that stands for whatever is not in it; None where that
            is an error.
        characters: the old name of ``symbols``.

    Raises:
        ValueError: if there is none, one twice, or ``unknown`` is none of them.
        TypeError: if they are not strings.

    Example:
        >>> from lstm_jax.data import Vocabulary
        >>> vocabulary = Vocabulary.of("hello")
        >>> vocabulary.symbols, vocabulary.encode("hole").tolist()
        ('ehlo', [1, 3, 2, 0])
        >>> vocabulary.decode([1, 0])
        'he'
        >>> sentences = [["the", "cat", "sat"], ["the", "cat", "ran"]]
        >>> words = Vocabulary.of(sentences, least_count=2, unknown="<unk>")
        >>> words.symbols, words.encode(["the", "dog"]).tolist()
        (('<unk>', 'cat', 'the'), [2, 0])
    """

    symbols: str | tuple[str, ...]
    unknown: str | None = None

    def __init__(
        self,
        symbols: str | Sequence[str] | None = None,
        unknown: str | None = None,
        *,
        characters: str | None = None,
    ):
        """Checks and keeps the symbols."""
        if characters is not None:
            _say_renamed()
            symbols = characters
        if not isinstance(symbols, str):
            symbols = _words("symbols", symbols)
        if not symbols or len(set(symbols)) != len(symbols):
            raise ValueError(
                f"symbols: expected every one once, got {symbols!r}. Vocabulary.of "
                "collects those of a text."
            )
        if unknown is not None and unknown not in tuple(symbols):
            raise ValueError(
                f"unknown: expected one of the symbols, got {unknown!r}. Vocabulary.of "
                "adds it to those of a text."
            )
        object.__setattr__(self, "symbols", symbols)
        object.__setattr__(self, "unknown", unknown)

    @classmethod
    def of(
        cls,
        text: str | Iterable[Sequence[str]],
        *,
        least_count: int = 1,
        unknown: str | None = None,
    ) -> Vocabulary:
        """Returns the vocabulary of a text, in alphabetical order.

        Args:
            text: a string, of characters; or sentences, each a sequence of words. Those
                of training alone, since what is only in others is unknown.
            least_count: how often a symbol has to occur.
            unknown: what stands for the others; it comes first.

        Raises:
            ValueError: if symbols are left out and nothing stands for them.
            TypeError: if a sentence is a string: its words are ``sentence.split()``.
        """
        options.check_positive("least_count", least_count)
        if isinstance(text, str):
            if unknown is not None and len(unknown) != 1:
                raise ValueError(
                    f"unknown: expected one character, as '\ufffd' is, got {unknown!r}."
                )
            counts = collections.Counter(text)
        else:
            counts = collections.Counter(
                word
                for n, sentence in enumerate(text)
                for word in _words(f"text[{n}]", sentence)
            )
        if not counts:
            raise ValueError("text: expected characters or words, got none.")
        kept = sorted(s for s, count in counts.items() if count >= least_count)
        if unknown is None and len(kept) < len(counts):
            raise ValueError(
                "unknown: expected a symbol that stands for those that occur less than "
                f"{least_count} times, {len(counts) - len(kept)} of {len(counts)}, got "
                "None."
            )
        if unknown is not None:
            kept = [unknown, *(symbol for symbol in kept if symbol != unknown)]
        return cls("".join(kept) if isinstance(text, str) else kept, unknown)

    @property
    def characters(self) -> str | tuple[str, ...]:
        """The old name of ``symbols``."""
        _say_renamed()
        return self.symbols

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {symbol: n for n, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        """Returns how many symbols there are."""
        return len(self.symbols)

    def encode(self, text: str | Sequence[str]) -> np.ndarray:
        """Returns the numbers of a text's characters or words, ``[T]`` int32.

        Args:
            text: of characters a string, or a sequence of single ones; of words a
                sequence of them.

        Raises:
            ValueError: if one is not in the vocabulary and nothing stands for it, or
                one of a sequence of characters is none or several.
            TypeError: if words are asked for and ``text`` is one string, or ``text`` is
                none and no strings.
        """
        characters = isinstance(self.symbols, str)
        symbols = _characters("text", text) if characters else _words("text", text)
        missing = sorted(set(symbols) - set(self._numbers))
        if missing and self.unknown is None:
            shown = "".join(missing) if characters else missing[:10]
            raise ValueError(f"text: not in the vocabulary: {shown!r}.")
        other = -1 if self.unknown is None else self._numbers[self.unknown]
        return np.array([self._numbers.get(one, other) for one in symbols], np.int32)

    def decode(self, tokens: Any) -> Any:
        """Returns the text that the numbers, ``[T]``, stand for; of words a list.

        Raises:
            ValueError: if a number is no symbol's.
            TypeError: if they are no integers.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(
                f"tokens: expected shape [T], got {list(tokens.shape)}. Decode row by "
                "row."
            )
        if tokens.size and tokens.dtype.kind not in "iu":
            raise TypeError(f"tokens: expected integers, got {tokens.dtype}.")
        if tokens.size and (tokens.min() < 0 or tokens.max() >= len(self)):
            raise ValueError(
                f"tokens: expected numbers from 0 to {len(self) - 1}, got "
                f"{tokens.min()} to {tokens.max()}."
            )
        symbols = [self.symbols[int(token)] for token in tokens]
        return "".join(symbols) if isinstance(self.symbols, str) else symbols


def _words(name: str, words: Any) -> tuple[str, ...]:
    if isinstance(words, (str, bytes)) or not isinstance(words, Iterable):
        raise TypeError(
            f"{name}: expected a sequence of words, got {type(words).__name__}. The "
            "words of a string are string.split()."
        )
    words = tuple(words)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(
                f"{name}: expected words, strings, got one of {type(word).__name__}."
            )
    return words


def _characters(name: str, text: Any) -> Sequence[str]:
    if isinstance(text, str):
        return text
    if isinstance(text, (bytes, bytearray)) or not isinstance(text, Iterable):
        raise TypeError(
            f"{name}: expected a string, got {type(text).__name__}. That of bytes is "
            "bytes.decode()."
        )
    characters = tuple(text)
    for one in characters:
        if not isinstance(one, str):
            raise TypeError(
                f"{name}: expected a string, or single characters, got one of "
                f"{type(one).__name__}."
            )
        if len(one) != 1:
            raise ValueError(
                f"{name}: expected a string, or single characters, got {one!r}. A "
                'string of several is "".join(...).'
            )
    return characters


def _say_renamed() -> None:
    message = "Vocabulary.characters is Vocabulary.symbols now, words or characters."
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def stream_batches(
    tokens: np.ndarray,
    batch_size: int,
    window: int,
    *,
    tail: bool = False,
    process: tuple[int, int] = (0, 1),
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
        tokens: ``[N]``. They are not copied: leave them while batches are used.
        batch_size: B.
        window: T, steps in one batch.
        tail: whether what is left of the rows is a batch too.
        process: as for :func:`shuffled_batches`: each has its share of the rows.

    Returns:
        Batches ``(inputs, targets)``, ``[B, T]`` each, new arrays that nothing else
        uses. They can be gone through any number of times.

    Raises:
        ValueError: if there are too few tokens for one batch, they are no single
            stream, a size is not positive, or the processes do not divide B.
        TypeError: if a size is not an integer, or tokens are no array.

    Example:
        >>> import numpy as np
        >>> from lstm_jax.data import stream_batches
        >>> inputs, targets = next(stream_batches(np.arange(10), 2, 2))
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1], [5, 6]], [[1, 2], [6, 7]])
    """
    options.check_positive("batch_size", batch_size)
    options.check_positive("window", window)
    mine = taking.process(process, batch_size)
    tokens = taking.array("tokens", tokens)
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
    return StreamBatches(taking.share(rows, mine), window, tail)


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
