"""How much a server takes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lstm_jax.checks import options


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much a server takes on, and how long it waits.

    Args:
        idle_s: seconds without a chunk after which a stream is evicted. One with queued
            or running work is not idle.
        queue: most chunks that wait, of all streams together.
        queue_per_stream: most chunks of one stream that wait or run.
        streams_per_client: most streams that are open at once with one name of a
            client; None for no limit. Streams without a name are not counted.
        linger_s: most seconds that a batch waits to become full. It does not wait where
            every open stream is in it.
        stuck_s: seconds in one batch after which the server says that it is not
            healthy.
        remembered: of how many streams that are gone the server remembers why.

    Raises:
        ValueError: if one is out of range.
        TypeError: if one is no number.

    Example:
        >>> from lstm_jax import serving
        >>> serving.Limits(idle_s=30.0).queue
        4096
    """

    idle_s: float = 60.0
    queue: int = 4096
    queue_per_stream: int = 8
    streams_per_client: int | None = None
    linger_s: float = 0.002
    stuck_s: float = 30.0
    remembered: int = 10_000

    def __post_init__(self) -> None:
        """Checks each by itself."""
        for name in ("queue", "queue_per_stream", "remembered"):
            options.check_positive(name, getattr(self, name))
        if self.streams_per_client is not None:
            options.check_positive("streams_per_client", self.streams_per_client)
        for name in ("idle_s", "stuck_s"):
            options.check_limit(name, getattr(self, name))
        options.check_finite("linger_s", self.linger_s)
        if self.linger_s < 0:
            raise ValueError(f"linger_s: expected 0 or more, got {self.linger_s}.")


def take_batch_sizes(sizes: Any, slots: int) -> tuple[int, ...]:
    """How many chunks batches have room for, ascending."""
    if sizes is None:
        return (*(4**n for n in range(4) if 4**n < slots), min(slots, 256))
    sizes = take_sizes("batch_sizes", sizes)
    if sizes[-1] > slots:
        raise ValueError(
            f"batch_sizes: expected at most slots = {slots}, got {sizes[-1]}. A batch "
            "has one chunk of a stream at most."
        )
    return sizes


def take_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """Ascending sizes, each once."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not sizes:
        raise TypeError(f"{name}: expected a tuple of sizes, got {sizes!r}.")
    for size in sizes:
        options.check_positive(name, size)
    return tuple(sorted({int(size) for size in sizes}))
