"""Who is examined: every cell, by every implementation that runs it, in every dtype."""

import functools
import zlib
from typing import NamedTuple

import jax
import pytest

import lstm_jax as lj
from lstm_jax.cells.base import as_cell
from lstm_jax.recurrence import choice
from tests.common import (
    cell_cases,
    random_controls,
    random_inputs,
    random_like,
    random_params,
    random_state,
)
from tests.contract.loops import GPULoops, TPULoops
from tests.contract.toy import Toy

CELLS = cell_cases()
DTYPES = ("float32", "float64", "bfloat16", "float16")
# Implementations that are there for tests alone.
EXTRA = (Toy(), TPULoops(), GPULoops())
ALL = ("lengths", "mask", "reset")


class Subject(NamedTuple):
    """One cell, run by one implementation in one dtype.

    Arguments are ``(params, xs, state, reset_state)``, all of them random.
    """

    name: str
    implementation: str
    dtype: str

    def __str__(self):
        return "-".join(self)

    @property
    def cell(self):
        return CELLS[self.name]

    def arguments(self, batch_shape, length, seed=0):
        return (
            random_params(self.cell, seed, self.dtype),
            random_inputs(self.cell, [seed, 1], batch_shape, length, self.dtype),
            random_state(self.cell, [seed, 2], batch_shape, self.dtype),
            random_state(self.cell, [seed, 3], batch_shape, self.dtype),
        )

    def scan(self, params, xs, state=None, reset_state=None, **options):
        """``lj.scan``; ``reset_state`` is left out where nothing is reset."""
        return lj.scan(
            self.cell,
            params,
            xs,
            state,
            reset_state=reset_state if "reset" in options else None,
            implementation=self.implementation,
            **options,
        )

    def case(self, batch_shape=(3,), length=4, names=ALL, **options):
        """A function of all float arguments, and those arguments."""
        controls = random_controls(4, batch_shape, length, names)
        run = functools.partial(self.scan, **controls, **options)
        return run, self.arguments(batch_shape, length)

    @property
    def noise(self):
        """What turns the noise of a cell on that has some."""
        noisy = as_cell(self.cell).noisy
        return {"key": jax.random.key(7)} if noisy else {}

    def loss(self, run, args):
        """A scalar that every output takes part in."""
        weights = random_like(8, jax.eval_shape(run, *args))
        wide = "float64" if self.dtype == "float64" else "float32"

        def function(*args):
            products = jax.tree.map(
                lambda w, y: (w * y).astype(wide).sum(), weights, run(*args)
            )
            return sum(jax.tree.leaves(products)) / 4

        return function


def _subjects():
    runners = [one for one in choice.IMPLEMENTATIONS if one.unavailable() is None]
    return [
        Subject(name, one.name, dtype)
        for one in (*runners, *EXTRA)
        for name, cell in CELLS.items()
        for dtype in DTYPES
        if one.why_not(as_cell(cell).without_noise, dtype) is None
    ]


SUBJECTS = _subjects()


def is_standard(subject):
    """Whether it is what the kernels are for."""
    return isinstance(subject.cell, lj.LSTMCell) and subject.cell.standard


def contract(where=lambda subject: True, every_cell=False):
    """A test of every subject that ``where`` lets through.

    ``every_cell`` says that a sample of its subjects has every cell, and pairs have
    every cell in every dtype.
    """
    subjects = [one for one in SUBJECTS if where(one)]

    def decorate(function):
        function.every_cell = every_cell
        return pytest.mark.parametrize("subject", subjects, ids=str)(function)

    return decorate


def cover(check, examples, parts):
    """Few examples of a check that have, together, all that single ones have.

    A hash decides which, so that each check has others, and the same every time.

    Args:
        check: its name.
        examples: a list of pairs: a subject, and what else the check is given, such as
            one of its cases.
        parts: what an example has.
    """
    had_by = {one: parts(*one) for one in examples}
    hashed = lambda example: zlib.crc32(f"{check} {example}".encode())
    in_order, chosen = sorted(examples, key=hashed), []
    missing = set().union(*had_by.values())
    while missing:
        chosen.append(max(in_order, key=lambda one: len(missing & had_by[one])))
        missing -= had_by[chosen[-1]]
    return chosen


def singly(subject, given, every_cell):
    """Every implementation, dtype and case, and every cell where that is asked for."""
    who = {("cell", subject.name)} if every_cell else set()
    return {("case", given), subject.implementation, subject.dtype} | who


def in_pairs(subject, given, every_cell):
    """Every cell by every implementation and in every case.

    Not every cell in every dtype, unless that is asked for: a check has each cell in
    some of them, other checks in others.
    """
    cell, by = ("cell", subject.name), subject.implementation
    pairs = {(by, cell), (by, subject.dtype), (by, ("case", given)), (given, cell)}
    return pairs | ({subject} if every_cell else set())
