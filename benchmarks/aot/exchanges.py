"""What devices exchange, read in the text of a compiled program."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks.aot.reading import Operation, computations, operations

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4}
_BYTES |= {"u32": 4, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b(pred|bf16|[usf]\d+)\[([\d,]*)\]")
_RESULT = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)")


class Exchanged(NamedTuple):
    """All exchanges of one kind, in loops or outside of them.

    Attributes:
        times: how often one run of the program does one.
        numbers: how many numbers all of them exchange: those that a device has after
            it gathered, or before a sum or a transposition.
        nbytes: their bytes. A compiler may exchange what products round to.
    """

    times: int
    numbers: int
    nbytes: int


def exchanged(text: str) -> dict[tuple[str, bool], Exchanged]:
    """By kind, and by whether they are in a loop, what one run exchanges."""
    every, _ = computations(text)
    types = {
        found[1]: (found[2], found[3], found[4])
        for lines in every.values()
        for line in lines
        if (found := _RESULT.match(line))
    }
    totals: dict[tuple[str, bool], list[int]] = collections.defaultdict(
        lambda: [0, 0, 0]
    )
    for one in operations(text):
        if found := _exchange(one, every):
            kind, name = found
            size = _exchanged(kind, name, types)
            total = totals[kind, one.in_loop]
            for n, value in enumerate((1, *size)):
                total[n] += one.times * value
    return {key: Exchanged(*total) for key, total in sorted(totals.items())}


def _exchange(
    one: Operation, every: Mapping[str, Sequence[str]]
) -> tuple[str, str] | None:
    """Kind and name of the exchange that an operation is, or begins, or contains."""
    kind = one.kind.removesuffix("-start")
    if kind in KINDS:
        return kind, one.name
    called = re.search(r"calls=%?([\w.\-]+)", one.line)
    if one.kind != "fusion" or called is None:
        return None
    for line in every.get(called[1], ()):
        found = _RESULT.match(line)
        if found is None or found[3] not in KINDS:
            continue
        # A TPU goes on with what has begun in what it computes meanwhile, loops too.
        if "chain_id=" in line and not one.name.startswith("async-collective-start"):
            return None
        # A TPU's sum of which each device takes its part.
        is_part = called[1].startswith("all-reduce-scatter")
        return "reduce-scatter" if is_part else found[3], found[1]
    return None


class _Size(NamedTuple):
    numbers: int
    nbytes: int


def _exchanged(
    kind: str, name: str, types: Mapping[str, tuple[str, str, str]]
) -> _Size:
    """What an exchange has before or after, whichever is more."""
    result, operation, rest = types[name]
    operands = re.findall(r"%([\w.\-]+)", rest[: rest.index(")")])
    sizes = [_size(types[one][0]) for one in operands]
    given = _Size(*map(sum, zip(*sizes, strict=True)))
    if kind == "collective-permute":
        return given
    after = _size(result)
    # What has begun has its operands beside its results, but for a sum.
    if operation.endswith("-start") and kind != "all-reduce":
        after = _Size(after.numbers - given.numbers, after.nbytes - given.nbytes)
    return max(given, after)


def _size(type_: str) -> _Size:
    numbers = nbytes = 0
    for dtype, dims in _ARRAY.findall(type_):
        size = math.prod(int(n) for n in dims.split(",") if n)
        numbers += size
        nbytes += size * _BYTES[dtype]
    return _Size(numbers, nbytes)
