"""What is measured: named shapes with their sources, and the work each one is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

MODES = ("forward", "training")


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape of the LSTM.

    Attributes:
        name: what the command line and the reports call it.
        batch: B.
        length: T.
        input_size: I.
        hidden_size: H.
        layers: L.
        bidirectional: whether each layer runs both ways.
        source: where the shape comes from.
        gpu_only: whether ``--all`` leaves it out on a CPU.
    """

    name: str
    batch: int
    length: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    source: str = ""
    gpu_only: bool = False

    @property
    def directions(self) -> int:
        """D: 1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """The input size of each layer: I, then D*H."""
        rest = (self.directions * self.hidden_size,) * (self.layers - 1)
        return (self.input_size, *rest)

    def describe(self) -> str:
        """The sizes in the letters of the documentation."""
        both = ", bidirectional" if self.bidirectional else ""
        return (
            f"B {self.batch}, T {self.length}, I {self.input_size}, "
            f"H {self.hidden_size}, L {self.layers}{both}"
        )


_CASES = (
    Case("seed", 32, 20, 100, 256, source="a first PyTorch program"),
    Case("stream", 1, 1000, 128, 128, source="one stream, as in serving"),
    Case("rl", 128, 128, 256, 256, source="rollouts in reinforcement learning"),
    Case("small-long", 8, 2048, 64, 64, source="sensor streams"),
    Case("ptb-small", 20, 20, 200, 200, 2, source="arXiv:1409.2329"),
    Case("ptb-medium", 20, 35, 650, 650, 2, source="arXiv:1409.2329"),
    Case("ptb-large", 20, 35, 1500, 1500, 2, source="arXiv:1409.2329"),
    Case("char", 64, 128, 256, 512, source="character models"),
    Case("flashrnn", 16, 1024, 768, 768, source="arXiv:2412.07752"),
    Case("deepbench-a", 16, 25, 512, 512, source="Baidu DeepBench"),
    Case("deepbench-b", 64, 25, 1024, 1024, source="Baidu DeepBench"),
    Case("deepbench-c", 16, 50, 1536, 1536, source="Baidu DeepBench"),
    Case("speech", 64, 100, 125, 320, 2, True, source="speech encoders"),
    Case("basecall", 64, 1600, 384, 384, 5, source="nanopore", gpu_only=True),
    Case("long", 8, 8192, 256, 256, source="long context"),
)
CASES = {case.name: case for case in _CASES}

# One of each kind: tiny, serial, long, stacked, wide, bidirectional.
QUICK = ("seed", "stream", "small-long", "ptb-small", "deepbench-a", "speech")


def flops(case: Case, mode: str) -> int:
    """Floating-point operations of the matrix products of one run.

    ``2*T*B*4H*(I+H)`` for each layer and direction, I being the layer's own input size;
    three times that for a training step, which takes the gradients of both factors of
    each product.
    """
    gates = 4 * case.hidden_size
    columns = sum(size + case.hidden_size for size in case.input_sizes)
    forward = 2 * case.length * case.batch * gates * columns * case.directions
    return forward if mode == "forward" else 3 * forward


def choose(what: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Splits a list such as ``a,b`` from the command line.

    Raises:
        ValueError: if a name is not one of ``known``, which it lists.
    """
    known = tuple(known)
    parts = (name.strip() for name in text.split(","))
    names = tuple(dict.fromkeys(name for name in parts if name))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = ", ".join(unknown) or "none"
        raise ValueError(f"{what}: expected some of {', '.join(known)}; got {got}.")
    return names
