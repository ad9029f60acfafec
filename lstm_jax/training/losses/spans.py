"""Spans of labels, and the F1 of those that are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstm_jax.checks import options, slips
from lstm_jax.checks.border import read
from lstm_jax.training.losses.weighted import Weighted

# Where a span begins and ends, and what it is.
Span = tuple[int, int, str]

_SCHEMES = ("IOB2", "conll")
_MEASURES = ("f1", "precision", "recall")


@slips.explained
def span_f1(
    predictions: Any,
    targets: Any,
    labels: Sequence[str] | None = None,
    mask: Any = None,
    *,
    lengths: Any = None,
    scheme: str = "IOB2",
    measure: str = "f1",
    weighted: bool = False,
) -> float | Weighted:
    """The F1 of spans, such as names, that a tagger labels: found whole, or not at all.

    A label is ``O``, or ``B-`` or ``I-`` and a type. A span is right where one with the
    same tokens and the same type is true. Counts are pooled over all rows: the F1 is
    2 times the right spans, by the predicted and the true ones together. It runs on the
    host, in NumPy.

    Args:
        predictions: a row of labels for each sequence; rows may differ in length. Label
            ids, as an array ``[B, T]`` or rows of integers, or the labels, as strings.
        targets: rows of the same lengths, in the same form.
        labels: the label of each id; None where rows hold strings.
        mask: ``[B, T]`` bool, or a row of bools for each sequence, True where a token
            counts; all if None. The others are dropped, and their neighbours are
            adjacent then, as words are whose further pieces bear no label.
        lengths: a number for each row: only so many of its tokens count.
        scheme: ``"IOB2"``, strict: a span begins with ``B-``, and an ``I-`` that
            continues no span of its type is none. ``"conll"``, as the evaluation of the
            CoNLL shared tasks: such an ``I-`` begins one.
        measure: ``"f1"``; ``"precision"``, right by predicted; or ``"recall"``, right
            by true.
        weighted: whether numerator and denominator come back as :class:`Weighted`, of
            NumPy scalars, so that those of batches add up.

    Returns:
        A float from 0 to 1. 0 by 0, as where there are no spans at all, is 0.

    Raises:
        ValueError: if the numbers of rows or their lengths differ, an id that counts
            has no label, a label is none of the scheme, or an option is unknown.
        TypeError: if rows are neither strings nor integers with ``labels``.

    Example:
        >>> from lstm_jax.training import span_f1
        >>> targets = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC"]]
        >>> predictions = [["B-PER", "I-PER", "O", "O"], ["I-LOC"]]
        >>> span_f1(predictions, targets)  # 1 right, 1 predicted, 3 true
        0.5
        >>> span_f1(predictions, targets, scheme="conll")  # 2 right, 2 predicted
        0.8

    References:
        Tjong Kim Sang and De Meulder 2003, aclanthology.org/W03-0419, section 2.
    """
    options.check_choice("scheme", scheme, _SCHEMES)
    options.check_choice("measure", measure, _MEASURES)
    options.check_flag("weighted", weighted)
    found, true = _rows("predictions", predictions), _rows("targets", targets)
    counted = _counted(found, true, mask, lengths)
    right = predicted = existing = 0
    for number, keep in enumerate(counted):
        ours, theirs = (
            _spans(_labels(f"{name}[{number}]", rows[number][keep], labels), scheme)
            for name, rows in (("predictions", found), ("targets", true))
        )
        right += len(ours & theirs)
        predicted += len(ours)
        existing += len(theirs)
    total, weight = {
        "f1": (2 * right, predicted + existing),
        "precision": (right, predicted),
        "recall": (right, existing),
    }[measure]
    if weighted:
        return Weighted(np.float32(total), np.int32(weight))  # pyright: ignore
    return total / weight if weight else 0.0


def _rows(name: str, given: Any) -> list[np.ndarray]:
    """Rows of ids or of strings, each an array ``[T]``."""
    if isinstance(given, str):
        raise TypeError(f"{name}: expected a row for each sequence, got a string.")
    if not isinstance(given, (list, tuple, np.ndarray)):
        given = read(name, given)
    return [_row(f"{name}[{number}]", row) for number, row in enumerate(given)]


def _row(name: str, given: Any) -> np.ndarray:
    if isinstance(given, (list, tuple)):
        row = np.asarray(given)
    elif isinstance(given, np.ndarray) and given.dtype.kind in "OU":
        row = given.astype(str)
    else:
        row = np.asarray(given) if isinstance(given, str) else read(name, given)
    if row.shape == (0,):  # Of no dtype that anyone meant.
        return row.astype(np.int32)
    if row.ndim != 1 or row.dtype.kind not in "iuUb":
        kind = type(given).__name__
        raise TypeError(
            f"{name}: expected a row of label ids or of labels, got {kind} "
            f"{np.shape(row)} of {row.dtype}. There is one row for each sequence."
        )
    return row


def _counted(found: list, true: list, mask: Any, lengths: Any) -> list[np.ndarray]:
    """Checks that rows fit; returns for each which of its tokens count."""
    _check_number("predictions", len(found), len(true))
    keep = [np.ones(len(row), bool) for row in true]
    for number, row in enumerate(found):
        _check_length(f"predictions[{number}]", row, keep[number])
    if mask is not None:
        rows = _rows("mask", mask)
        _check_number("mask", len(rows), len(true))
        for number, row in enumerate(rows):
            _check_length(f"mask[{number}]", row, keep[number])
            if row.size and row.dtype != bool:
                raise TypeError(f"mask[{number}]: expected bool, got {row.dtype}.")
            keep[number] &= row.astype(bool)
    if lengths is not None:
        (numbers,) = _rows("lengths", [lengths])
        _check_number("lengths", len(numbers), len(true))
        for number, length in enumerate(numbers.tolist()):
            if not 0 <= length <= len(keep[number]):
                raise ValueError(
                    f"lengths[{number}]: expected 0 to {len(keep[number])}, the tokens "
                    f"of the row, got {length}."
                )
            keep[number][length:] = False
    return keep


def _check_number(name: str, got: int, rows: int) -> None:
    if got != rows:
        raise ValueError(f"{name}: expected {rows} rows, as targets, got {got}.")


def _check_length(name: str, row: np.ndarray, like: np.ndarray) -> None:
    if len(row) != len(like):
        raise ValueError(
            f"{name}: expected {len(like)} tokens, as that row of targets, got "
            f"{len(row)}."
        )


def _labels(name: str, row: np.ndarray, labels: Sequence[str] | None) -> list[str]:
    """A row as labels."""
    if row.dtype.kind == "U" or not row.size:
        return [str(label) for label in row]
    if labels is None:
        raise TypeError(f"labels: expected the label of each id, since {name} has ids.")
    if row.min() < 0 or row.max() >= len(labels):
        wrong = row[(row < 0) | (row >= len(labels))][0]
        padding = f" Where it marks padding, pass mask=targets != {wrong}."
        raise ValueError(
            f"{name}: expected ids from 0 to {len(labels) - 1}, one of {len(labels)} "
            f"labels, got {wrong}.{padding if wrong < 0 else ''}"
        )
    return [labels[int(number)] for number in row]


def _spans(row: list[str], scheme: str) -> set[Span]:
    """The spans of a row of labels."""
    spans, start, inside = set(), 0, None
    for place, label in enumerate([*row, "O"]):
        mark, _, kind = label.partition("-")
        if mark not in ("B", "I", "O") or (mark == "O" and label != "O"):
            raise ValueError(
                f"labels: expected O, or B- or I- and a type, got {label!r}."
            )
        if mark == "I" and kind == inside:
            continue
        if inside is not None:
            spans.add((start, place, inside))
        begins = mark == "B" or (mark == "I" and scheme == "conll")
        start, inside = place, kind if begins else None
    return spans
