"""What a compiled program does, read from its text, and how many there are."""

import math
import re
from typing import NamedTuple

import jax

_COLLECTIVES = (
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "all-reduce",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
_SHAPE = re.compile(r"\b(?:pred|bf16|[usf]\d+)\[([\d,]*)\]")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")


class Operation(NamedTuple):
    """One operation of a program.

    Attributes:
        name: as HLO calls it.
        shapes: of its results.
        line: the whole text.
        in_loop: whether it is in the body of a while loop, at any depth.
    """

    name: str
    shapes: list[tuple[int, ...]]
    line: str
    in_loop: bool


def operations(text: str) -> list[Operation]:
    """All operations of a program, from ``compiled.as_text()``."""
    lines: dict[str, list[str]] = {}
    computation = ""
    for line in text.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            computation = header.group(1)
        lines.setdefault(computation, []).append(line)
    in_loops = _reached(lines, _BODY.findall(text))
    return [
        Operation(match.group(2), shapes(match.group(1)), line, computation in in_loops)
        for computation, body in lines.items()
        for line in body
        if (match := _OPERATION.match(line))
    ]


def _reached(lines: dict[str, list[str]], start: list[str]) -> set[str]:
    """Computations called from some, directly or not."""
    reached, left = set(), list(start)
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            left += _CALLED.findall("\n".join(lines.get(name, ())))
    return reached


def shapes(text: str) -> list[tuple[int, ...]]:
    """All shapes that stand in a piece of text."""
    return [
        tuple(int(n) for n in dims.split(",") if n) for dims in _SHAPE.findall(text)
    ]


def collectives(text: str) -> list[Operation]:
    """The operations in which devices exchange anything."""
    return [
        operation
        for operation in operations(text)
        if operation.name.removesuffix("-start") in _COLLECTIVES
    ]


def sizes(found: list[Operation]) -> list[int]:
    """How many numbers each result of some operations holds, in order of size."""
    return sorted(math.prod(shape) for one in found for shape in one.shapes)


def calls(text: str, target: str) -> list[Operation]:
    """The calls of compiled code of our own."""
    return [
        operation
        for operation in operations(text)
        if f'custom_call_target="{target}"' in operation.line
    ]


def compilations(function):
    """How many programs XLA compiles while ``function`` runs."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(function())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)
