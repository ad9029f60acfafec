"""Batches that are made while others are trained on."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lstm_jax.checks import options
from lstm_jax.data import nests


class Loaded:
    """Epochs of batches, ``batches(epoch)``, that something else makes.

    Attributes:
        continues: whether the rows of a batch go on where those of the one before
            ended.
        in_order: whether examples come in the order that they were given in.
    """

    def __init__(
        self,
        epoch: Callable[[int], Iterator[Any]],
        continues: bool = False,
        in_order: bool = True,
    ):
        """Keeps what goes through an epoch."""
        self._epoch, self.continues, self.in_order = epoch, continues, in_order

    def __call__(self, epoch: int) -> Iterator[Any]:
        """Goes through an epoch."""
        return self._epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Goes through the first epoch."""
        return self(0)


def prefetch(batches: Any, ahead: int = 2) -> Loaded:
    """Makes the next batches in a thread, while one is trained on.

    For batches that take long to read or to make. They are the same, in the same order,
    and what :func:`lstm_jax.training.fit` counts are those it was given, not those that
    are ready. Arrays are copied, NumPy's and PyTorch's, so that a loader may use their
    memory again; tuples, lists, mappings and dataclasses keep their classes.

    Args:
        batches: ``epoch -> batches``, or batches that can be gone through again.
        ahead: how many are ready at most.

    Returns:
        Batches, for any number of epochs. What making one raises is raised where it
        would have come; so is a TypeError for one with a part that is no array, number
        or string.

    Raises:
        TypeError: if ``batches`` cannot be gone through, or only once.
        ValueError: if ``ahead`` is not positive.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import data
        >>> batches = data.prefetch(data.shuffled_batches(np.arange(5), 2))
        >>> sorted(np.concatenate([*batches(7)]).tolist())
        [0, 1, 2, 3, 4]
    """
    options.check_positive("ahead", ahead)
    once = hasattr(batches, "__next__") and iter(batches) is batches
    if once or not (callable(batches) or hasattr(batches, "__iter__")):
        raise TypeError(
            "batches: expected what can be gone through again, such as a list or a "
            f"function from the number of an epoch, got {type(batches).__name__}."
        )

    def epoch(number):
        source = batches(number) if callable(batches) else batches
        return _Ahead(source, ahead)

    return Loaded(
        epoch, getattr(batches, "continues", False), getattr(batches, "in_order", True)
    )


def from_grain(dataset: Any) -> Loaded:
    """Makes epochs of a Grain dataset, shuffled anew in each if the dataset shuffles.

    Examples are read by Grain's threads.

    Args:
        dataset: a ``grain.MapDataset`` of batches that is not repeated. A
            ``grain.IterDataset`` has no order for another epoch:
            :func:`lstm_jax.training.fit` takes it as it is, each epoch the same.

    Returns:
        Batches, for any number of epochs; what a filter left out is left out.

    Raises:
        TypeError: if the dataset is another.
        ValueError: if it has no batch, or is repeated without end.
        ImportError: if Grain is not installed.

    Example:
        >>> import grain, numpy as np
        >>> from lstm_jax import data
        >>> dataset = grain.MapDataset.source(np.arange(5)).seed(1).shuffle().batch(2)
        >>> batches = data.from_grain(dataset)
        >>> first, second = ([b.tolist() for b in batches(n)] for n in (0, 1))
        >>> first != second, sorted(sum(second, []))
        (True, [0, 1, 2, 3, 4])
    """
    try:
        import grain
    except ImportError as error:
        raise ImportError(
            f'from_grain needs {error.name}: pip install "lstm_jax[grain]".'
        ) from error
    if not isinstance(dataset, grain.MapDataset):
        raise TypeError(
            f"dataset: expected a grain.MapDataset, got {type(dataset).__name__}."
        )
    if not 0 < len(dataset) < 2**62:
        raise ValueError(
            f"dataset: expected batches and no repeat(), got {len(dataset)} of them."
        )

    def epoch(number):
        # Grain shuffles, and draws what is random, by the number of the repetition.
        return iter(dataset.repeat(number + 1)[number * len(dataset) :])

    return Loaded(epoch)


class _Ahead:
    """Batches, some of which are ready before they are asked for."""

    def __init__(self, batches: Any, count: int):
        self.continues = getattr(batches, "continues", False)
        self._made = _made_ahead(iter(batches), count)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._made)


def _made_ahead(batches: Iterator[Any], count: int) -> Iterator[Any]:
    def make():
        batch = next(batches, _END)
        return batch if batch is _END else nests.copied(batch)

    worker = ThreadPoolExecutor(1, "prefetch")
    try:
        ahead = collections.deque(worker.submit(make) for _ in range(count))
        while (batch := ahead.popleft().result()) is not _END:
            ahead.append(worker.submit(make))
            yield batch
    finally:
        worker.shutdown(wait=False, cancel_futures=True)


_END = object()
