"""Figures in the text of a compiled program: cycles, launches, collectives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

# What no kernel is launched for.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while after-all copy-done "
    "all-reduce-done all-gather-done collective-permute-done partition-id".split()
)
_COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    "collective-permute",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{\s*$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a computation.

    Attributes:
        name: its name.
        kind: the operation, such as "fusion".
        line: its whole line.
        times: how often it runs in one run of the program.
        in_loop: whether it is in a loop.
    """

    name: str
    kind: str
    line: str
    times: int
    in_loop: bool

    @property
    def cycles(self) -> int:
        """XLA's own estimate for a TPU; 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        return int(found[1]) if found else 0


@dataclasses.dataclass(frozen=True)
class Figures:
    """A program in numbers.

    Attributes:
        cycles: estimated, for a whole run.
        cycles_in_loops: those of them in loops.
        launches: kernels launched in loops.
        launches_outside: those outside.
        collectives: how many collectives one run executes in loops.
        collectives_outside: those outside.
        two_in_place: how many fusions update two buffers or more in place.
    """

    cycles: int
    cycles_in_loops: int
    launches: int
    launches_outside: int
    collectives: int
    collectives_outside: int
    two_in_place: int


def figures(text: str) -> Figures:
    """Reads the text of a compiled program."""
    every, entry = computations(text)
    operations = list(_executed(every, entry, 1, False))
    loops = [one for one in operations if one.in_loop]
    count = lambda some: sum(one.times for one in some)
    launched = lambda some: count(one for one in some if one.kind not in _FREE)
    met = lambda some: count(one for one in some if one.kind.startswith(_COLLECTIVES))
    updated = [line for name in every for line in [_in_place(every, name)]]
    return Figures(
        cycles=sum(one.cycles * one.times for one in operations),
        cycles_in_loops=sum(one.cycles * one.times for one in loops),
        launches=launched(loops),
        launches_outside=launched(operations) - launched(loops),
        collectives=met(loops),
        collectives_outside=met(operations) - met(loops),
        two_in_place=sum(roots > 1 for roots in updated),
    )


def operations(text: str) -> list[Operation]:
    """Every operation that a run of the program executes, but for those in fusions."""
    return list(_executed(*computations(text), 1, False))


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of that which is run."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    if not entry:
        raise ValueError("text: expected a compiled program, got none with an ENTRY")
    return computations, entry


def _executed(
    computations: dict[str, list[str]], name: str, times: int, in_loop: bool
) -> Iterator[Operation]:
    for line in computations[name]:
        found = _OPERATION.match(line)
        if not found:
            continue
        yield Operation(found[1], found[3], line, times, in_loop)
        if found[3] == "while":
            body = re.search(r"body=%?([\w.\-]+)", line)
            assert body is not None
            more = times * _trips(computations, line)
            yield from _executed(computations, body[1], more, True)


def _trips(computations: dict[str, list[str]], line: str) -> int:
    """How often the body of a loop runs."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    assert condition is not None
    limits = [
        int(limit)
        for one in computations[condition[1]]
        for limit in re.findall(r"s32\[\]\S* constant\((\d+)\)", one)
    ]
    if not limits:
        raise ValueError(f"a loop whose length is not in the text: {line.strip()}")
    return max(limits)


def _in_place(computations: dict[str, list[str]], name: str) -> int:
    """How many of the results of a fused computation are updates in place."""
    root = next((o for o in computations[name] if o.lstrip().startswith("ROOT")), "")
    found = _OPERATION.match(root)
    if found is None:
        return 0
    kinds = {}
    for line in computations[name]:
        if one := _OPERATION.match(line):
            kinds[one[1]] = one[3]
    results = [found[1]]
    if found[3] == "tuple":
        results = re.findall(r"%([\w.\-]+)", root[root.index("tuple(") :])
    return sum(kinds.get(result) == "dynamic-update-slice" for result in results)
