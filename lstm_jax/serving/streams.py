"""What is known of a stream while it is open, and of each of its chunks."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.serving.errors import ServingError
from lstm_jax.serving.slots import Lease


class Result(NamedTuple):
    """The answer to a chunk.

    Attributes:
        number: of the chunk.
        ys: its outputs, ``[T, ...]``, as many steps as it had.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import serving
        >>> serving.Result(0, np.zeros((2, 5), np.float32)).ys.shape
        (2, 5)
    """

    number: int
    ys: np.ndarray


@dataclasses.dataclass(slots=True, eq=False)
class Chunk:
    """Some steps of one stream, from when they are accepted to their answer."""

    stream: Stream
    number: int
    xs: np.ndarray
    digest: bytes
    future: Any
    arrived: float
    # When it became the next of its stream, so that batches may take it.
    ready: float = 0.0


@dataclasses.dataclass(slots=True, eq=False)
class Stream:
    """A sequence that comes in chunks, and the row of the table that it has.

    Attributes:
        id: the name that it is known by outside, never used twice.
        client: who opened it; empty for no one in particular.
        lease: its row.
        ended: a future, done with the reason when the stream is gone.
        number: of the next chunk that is accepted.
        fresh: whether no step has been taken, so that the next starts from the start.
        waiting: chunks that are in no batch yet, in order.
        running: the chunk that is in one.
        last: the answer to the last chunk that ran.
        digest: of what was in that chunk.
        idle_since: when there was last something to do for it.
        closing: whether no more chunks are accepted.
        end: why it is gone; None while it is open.
    """

    id: str
    client: str
    lease: Lease
    ended: Any
    idle_since: float
    number: int = 0
    fresh: bool = True
    waiting: collections.deque[Chunk] = dataclasses.field(
        default_factory=collections.deque
    )
    running: Chunk | None = None
    last: Result | None = None
    digest: bytes = b""
    closing: bool = False
    end: ServingError | None = None

    @property
    def pending(self) -> int:
        """How many chunks have been accepted and not answered."""
        return len(self.waiting) + (self.running is not None)

    @property
    def newest(self) -> Chunk | None:
        """The last chunk accepted, unless it has been answered."""
        return self.waiting[-1] if self.waiting else self.running


class Batch(NamedTuple):
    """Chunks of different streams that run at once.

    Attributes:
        steps: how many steps the program runs; chunks may be shorter.
        chunks: at most one of each stream.
        started: when it was cut.
    """

    steps: int
    chunks: list[Chunk]
    started: float


def settle(future: Any, value: Any = None, error: BaseException | None = None) -> None:
    """Answers whoever waits, unless they have been answered or have left."""
    if future.done():
        return
    if error is None:
        future.set_result(value)
        return
    future.set_exception(error)
    # So that no one is told of an error that no one waits for any more.
    future.exception()
