"""Chunks that may run, and which of them make the next batch."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from lstm_jax.serving.streams import Chunk

Queue = collections.OrderedDict[str, Chunk]


class Waiting:
    """The next chunk of every stream that has one, by the size it runs as.

    Chunks of different sizes do not share a batch: the short ones would run as long as
    the long ones. What has waited longest decides which size is next.

    Args:
        batch_sizes: how many chunks a batch has room for, ascending.
        chunk_sizes: for how many steps there are programs, ascending.
        linger_s: most seconds that a batch waits to become full.
    """

    def __init__(
        self, batch_sizes: Sequence[int], chunk_sizes: Sequence[int], linger_s: float
    ):
        """Starts with none."""
        self._batch_sizes, self._linger_s = tuple(batch_sizes), linger_s
        self._queues: dict[int, Queue] = {
            size: collections.OrderedDict() for size in chunk_sizes
        }

    def __len__(self) -> int:
        """How many streams have a chunk that may run."""
        return sum(map(len, self._queues.values()))

    def add(self, chunk: Chunk, now: float) -> None:
        """Takes the next chunk of a stream."""
        chunk.ready = now
        size = next(size for size in self._queues if size >= len(chunk.xs))
        assert chunk.stream.id not in self._queues[size]
        self._queues[size][chunk.stream.id] = chunk

    def remove(self, id: str) -> None:
        """Forgets the chunk of a stream, if there is one."""
        for queue in self._queues.values():
            queue.pop(id, None)

    def take(self, now: float, at_once: bool) -> tuple[int, list[Chunk]] | None:
        """The steps and the chunks of the next batch.

        Args:
            now: the time.
            at_once: whether nothing more is to be waited for.

        Returns:
            None where no chunk may run, or more are worth waiting for.
        """
        ripe = [
            (_head(queue).ready, steps)
            for steps, queue in self._queues.items()
            if queue and self._due(queue, at_once) <= now
        ]
        if not ripe:
            return None
        steps = min(ripe)[1]
        queue = self._queues[steps]
        count = self._rows(len(queue))
        return steps, [queue.popitem(last=False)[1] for _ in range(count)]

    def due(self, at_once: bool) -> float | None:
        """When a batch is worth cutting, if nothing else comes; None where none is."""
        queues = filter(None, self._queues.values())
        return min((self._due(queue, at_once) for queue in queues), default=None)

    def _due(self, queue: Queue, at_once: bool) -> float:
        full = len(queue) >= self._batch_sizes[-1]
        return _head(queue).ready + (0.0 if full or at_once else self._linger_s)

    def _rows(self, waiting: int) -> int:
        """How many to take, so that at most half of a batch is padding."""
        smaller = 0
        for size in self._batch_sizes:
            if size >= waiting:
                return waiting if 2 * waiting > size or not smaller else smaller
            smaller = size
        return smaller


def _head(queue: Queue) -> Chunk:
    return next(iter(queue.values()))
