"""What a server counts, and Prometheus's text of it."""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any

# Upper bounds of the classes that times are counted in, in seconds.
BOUNDS_S = (
    *(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064),
    *(0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192),
)


def _gauge(help: str) -> Any:
    return dataclasses.field(default=0, metadata={"kind": "gauge", "help": help})


def _counter(help: str, start: float = 0) -> Any:
    return dataclasses.field(default=start, metadata={"kind": "counter", "help": help})


@dataclasses.dataclass
class Metrics:
    """What a server has done so far, and what stands now.

    ``latencies`` counts chunks by the seconds from their acceptance to their answer,
    by the bounds ``BOUNDS_S``, and what is slower than all of them.

    Example:
        >>> from lstm_jax import serving
        >>> metrics = serving.Metrics(streams=2)
        >>> metrics.observe(0.003)
        >>> metrics.quantile(0.99)
        0.004
        >>> print(metrics.prometheus().splitlines()[2])
        lstm_jax_streams 2
    """

    streams: int = _gauge("Streams that are open.")
    slots_free: int = _gauge("Slots that can be had.")
    queued: int = _gauge("Chunks that wait.")
    running: int = _gauge("Chunks in the batch that runs.")
    opened: int = _counter("Streams opened or restored.")
    closed: int = _counter("Streams closed by their clients.")
    dropped: int = _counter("Streams whose clients left.")
    evicted: int = _counter("Streams evicted for being idle.")
    lost: int = _counter("Streams that the server ended.")
    accepted: int = _counter("Chunks accepted.")
    answered: int = _counter("Chunks answered.")
    repeated: int = _counter("Chunks that came again, answered with what was stored.")
    failed: int = _counter("Chunks whose step raised.")
    discarded: int = _counter("Chunks whose stream was gone before their answer.")
    refused: int = _counter("Requests for streams and for chunks refused.")
    batches: int = _counter("Batches that ran.")
    steps: int = _counter("Steps that ran, of all streams, without padding.")
    compiled: int = _counter("Programs compiled, all of them before the first batch.")
    busy_s: float = _counter("Seconds in which a batch ran.", 0.0)
    latency_sum_s: float = _counter("Seconds of all answers together.", 0.0)
    latencies: list[int] = dataclasses.field(
        default_factory=lambda: [0] * (len(BOUNDS_S) + 1)
    )

    def observe(self, seconds: float) -> None:
        """Counts the time of one answer."""
        self.latencies[bisect.bisect_left(BOUNDS_S, seconds)] += 1
        self.latency_sum_s += seconds

    def quantile(self, share: float) -> float:
        """The upper bound, in seconds, of the class that a share of answers is within.

        0 where nothing has been answered, infinity beyond the last bound.
        """
        wanted, seen = share * sum(self.latencies), 0
        for bound, count in zip((*BOUNDS_S, float("inf")), self.latencies, strict=True):
            seen += count
            if seen >= wanted:
                return bound if seen else 0.0
        return float("inf")

    def copy(self) -> Metrics:
        """What stands now, which no longer changes."""
        return dataclasses.replace(self, latencies=list(self.latencies))

    def prometheus(self) -> str:
        """The text that Prometheus reads."""
        lines = []
        for field in dataclasses.fields(self):
            if "kind" not in field.metadata or field.name == "latency_sum_s":
                continue
            kind, name = field.metadata["kind"], f"lstm_jax_{field.name}"
            name = f"{name[:-2]}_seconds" if name.endswith("_s") else name
            name += "_total" if kind == "counter" else ""
            lines.append(f"# HELP {name} {field.metadata['help']}")
            lines.append(f"# TYPE {name} {kind}")
            lines.append(f"{name} {getattr(self, field.name):.9g}")
        return "\n".join([*lines, *self._histogram(), ""])

    def _histogram(self) -> list[str]:
        name, seen = "lstm_jax_latency_seconds", 0
        lines = [
            f"# HELP {name} From a chunk's acceptance to its answer.",
            f"# TYPE {name} histogram",
        ]
        for bound, count in zip((*BOUNDS_S, "+Inf"), self.latencies, strict=True):
            seen += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {seen}')
        lines.append(f"{name}_sum {self.latency_sum_s:.9g}")
        return [*lines, f"{name}_count {seen}"]
