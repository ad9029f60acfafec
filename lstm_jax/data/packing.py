"""Documents one after the other in rows, with their borders."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.checks import options
from lstm_jax.data import taking
from lstm_jax.data.batches import Batches


class Packed(NamedTuple):
    """One window of every row, ``[B, T]`` each.

    Attributes:
        inputs: tokens, int32.
        targets: the next tokens.
        mask: where the target is of the same document.
        reset: where a document begins: the state starts anew there.

    Example:
        >>> from lstm_jax import data
        >>> batches = data.pack_documents([[1, 2], [3, 4]], 2, 3, seed=None)
        >>> next(batches(0)).targets.tolist()
        [[2, 0, 0], [4, 0, 0]]
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    reset: np.ndarray


class PackedBatches(Batches):
    """What :func:`pack_documents` makes: rows go on from one batch to the next."""

    continues = True


def pack_documents(
    documents: Sequence[Any],
    batch_size: int,
    window: int,
    *,
    seed: int | None = 0,
    end: int | None = None,
    process: tuple[int, int] = (0, 1),
) -> PackedBatches:
    """Packs documents into rows, window by window.

    A document is whole in one row and may go on into the next windows, so that the
    state is to be handed on. ``reset`` starts it anew at each document, and no target
    is the next document's first token, which ``reset`` alone does not prevent. Every
    document is in an epoch once, in rows that are filled evenly; the ends of shorter
    rows are masked, and a window without any target is left out. So epochs may differ
    by some batches; ``len`` is that of the first one.

    Args:
        documents: N arrays of tokens, ``[T_n]``.
        batch_size: B rows.
        window: T, steps in one batch.
        seed: of the orders, another one each epoch; None for the order they have.
        end: a token that each document is given at its end, so that it is learned.
        process: as for :func:`shuffled_batches`: each has its share of the rows, and
            all of them have as many batches.

    Returns:
        Batches of :class:`Packed`. ``padding`` is the share of steps without a target
        in the first epoch.

    Raises:
        ValueError: if there is no document with a target, one is no ``[T]``, a token is
            negative or beyond int32, or the processes do not divide B.
        TypeError: if tokens are no integers.

    Example:
        >>> from lstm_jax import data
        >>> batches = data.pack_documents([[1, 2, 3], [4, 5]], 1, 8, seed=None)
        >>> packed = next(batches(0))
        >>> for part in packed:
        ...     print(part[0].astype(int).tolist())
        [1, 2, 3, 4, 5, 0, 0, 0]
        [2, 3, 0, 5, 0, 0, 0, 0]
        [1, 1, 0, 1, 0, 0, 0, 0]
        [1, 0, 0, 1, 0, 0, 0, 0]
    """
    options.check_positive("batch_size", batch_size)
    options.check_positive("window", window)
    taking.check_seed(seed)
    mine = taking.process(process, batch_size)
    last = [] if end is None else [taking.integer("end", end, 0)]
    last = np.array(last, np.int32)
    if isinstance(documents, np.ma.MaskedArray):
        taking.array("documents", documents)
    tokens = [
        np.append(taking.tokens(f"documents[{n}]", document), last)
        for n, document in enumerate(documents)
    ]
    if not any(len(one) > 1 for one in tokens):
        raise ValueError(
            "documents: expected at least one with two tokens, got none: the first one "
            "is no target."
        )

    def plan(epoch):
        order = np.arange(len(tokens))
        if seed is not None:
            order = np.random.default_rng((seed, epoch)).permutation(len(tokens))
        rows = _rows(tokens, order, batch_size)
        width = max(len(row.inputs) for row in rows)
        whole = _stacked(rows, -(-width // window) * window)
        # After a window without a target every row begins anew, or has ended.
        return [
            Packed(*(part[:, n : n + window].copy() for part in whole))
            for n in range(0, whole.inputs.shape[1], window)
            if whole.mask[:, n : n + window].any()
        ]

    first = plan(0)
    share = 1 - sum(part.mask.mean() for part in first) / len(first)
    take = lambda batch: Packed(*(taking.share(part, mine) for part in batch))
    return PackedBatches(plan, take, padding=float(share))


def _rows(tokens: list, order: np.ndarray, batch_size: int) -> list[Packed]:
    """Rows of whole documents, each put where there is least."""
    shortest = [(0, row) for row in range(batch_size)]
    rows: list[list[np.ndarray]] = [[] for _ in range(batch_size)]
    for n in order:
        size, row = heapq.heappop(shortest)
        rows[row].append(tokens[n])
        heapq.heappush(shortest, (size + len(tokens[n]), row))
    return [_row([one for one in row if len(one)]) for row in rows]


def _row(documents: list[np.ndarray]) -> Packed:
    """Documents one after the other."""
    sizes = np.array([len(one) for one in documents], int)
    inputs = np.concatenate([*documents, np.zeros(0, np.int32)])
    starts = np.zeros(len(inputs), bool)
    starts[np.cumsum(sizes) - sizes] = True
    mask = np.append(~starts[1:], np.zeros(min(len(starts), 1), bool))
    targets = np.where(mask, np.roll(inputs, -1), np.int32(0))
    return Packed(inputs, targets, mask, starts)


def _stacked(rows: list[Packed], width: int) -> Packed:
    pad = lambda part: np.pad(part, (0, width - len(part)))
    return Packed(
        *(np.stack([pad(p) for p in parts]) for parts in zip(*rows, strict=True))
    )
