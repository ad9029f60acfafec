"""Rows of the table: who has which, and since when."""

from __future__ import annotations

import collections
from typing import NamedTuple


class Lease(NamedTuple):
    """The right to one row, until it is released.

    Attributes:
        slot: the row.
        generation: how often the row had been released before. A lease of an earlier
            generation is worth nothing.
    """

    slot: int
    generation: int


class Slots:
    """Which rows are free; each is given back once by whoever had it.

    Args:
        count: rows.

    Example:
        >>> from lstm_jax.serving.slots import Slots
        >>> slots = Slots(1)
        >>> lease = slots.acquire()
        >>> slots.acquire() is None, slots.release(lease), slots.release(lease)
        (True, True, False)
        >>> slots.acquire()
        Lease(slot=0, generation=1)
    """

    def __init__(self, count: int):
        """Makes all rows free."""
        # The row that was left longest ago is taken first.
        self._free = collections.deque(range(count))
        self._generations = [0] * count
        self._taken = [False] * count

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._taken)

    @property
    def free(self) -> int:
        """How many rows can be had."""
        return len(self._free)

    def acquire(self) -> Lease | None:
        """Takes a row; None where all are taken."""
        if not self._free:
            return None
        slot = self._free.popleft()
        assert not self._taken[slot], f"slot {slot} was free and taken at once"
        self._taken[slot] = True
        return Lease(slot, self._generations[slot])

    def holds(self, lease: Lease) -> bool:
        """Whether a lease is still good."""
        slot, generation = lease
        return self._taken[slot] and self._generations[slot] == generation

    def release(self, lease: Lease) -> bool:
        """Gives a row back; False, and nothing happens, where it has been before."""
        if not self.holds(lease):
            return False
        self._taken[lease.slot] = False
        self._generations[lease.slot] += 1
        self._free.append(lease.slot)
        return True

    def check(self) -> None:
        """Asserts that every row is either free, once, or taken."""
        free = set(self._free)
        assert len(free) == len(self._free), f"free twice: {sorted(self._free)}"
        assert free == {n for n, taken in enumerate(self._taken) if not taken}
