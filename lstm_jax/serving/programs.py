"""The table of all streams' states, and the compiled programs that change it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lstm_jax.serving.runners import Runner


class Row(NamedTuple):
    """One chunk of a batch.

    Attributes:
        slot: the row of the table.
        new: whether the stream begins, whatever stands in the row.
        xs: its inputs, ``[T, ...]``.
    """

    slot: int
    new: bool
    xs: np.ndarray


class TableLost(RuntimeError):
    """The table was given away to a program that failed; there is a new, empty one."""


class Programs:
    """One compiled program for each size of a batch and of its chunks.

    A batch is two programs: the first reads the rows and runs the steps, the second
    writes the rows that came out. Only the second may overwrite the table in place, so
    that a step which raises leaves every stream where it was.

    To be used by one thread at a time.

    Args:
        runner: what runs.
        slots: rows; one more is there, for padding.
        batch_sizes: ascending.
        chunk_sizes: ascending.
    """

    def __init__(
        self,
        runner: Runner,
        slots: int,
        batch_sizes: Sequence[int],
        chunk_sizes: Sequence[int],
    ):
        """Traces every program: what is wrong with the model is said here."""
        self._params, self._step = runner.params, runner.step
        self._state, self._spare = runner.state, slots
        self._batch_sizes = tuple(batch_sizes)
        self._chunk_sizes = tuple(chunk_sizes)
        self._table = self._new_table()
        self.names = [
            jax.tree_util.keystr(path)
            for path, _ in jax.tree.leaves_with_path(runner.state)
        ]
        self.shapes = jax.tree.leaves(runner.state)
        self._lowered = self._lower(runner)
        self._compiled: dict[Any, Any] = {}

    def _new_table(self) -> Any:
        rows, where = self._spare + 1, _place(self._params)
        empty = lambda leaf: jnp.zeros((rows, *leaf.shape), leaf.dtype, device=where)
        return jax.tree.map(empty, self._state)

    def _lower(self, runner: Runner) -> dict[Any, Any]:
        def compute(params, table, rows, new, lengths, xs):
            state = jax.tree.map(lambda leaf: leaf[rows], table)
            return runner.run(params, state, xs, lengths, new)

        def commit(table, rows, state):
            put = lambda leaf, one: leaf.at[rows].set(one)
            return jax.tree.map(put, table, state)

        lowered, shape = {}, jax.ShapeDtypeStruct
        compute, commit = jax.jit(compute), jax.jit(commit, donate_argnums=0)
        for size in self._batch_sizes:
            rows = shape((size,), np.int32)
            for steps in self._chunk_sizes:
                xs = shape((size, steps, *self._step.shape), self._step.dtype)
                traced = compute.trace(
                    self._params, self._table, rows, shape((size,), np.bool_), rows, xs
                )
                lowered[size, steps] = traced.lower()
            state, _ = traced.out_info
            lowered[size, "commit"] = commit.lower(self._table, rows, state)
        # States of streams come and go one at a time.
        one = shape((), np.int32)
        read = jax.jit(lambda table, row: jax.tree.map(lambda a: a[row], table))
        lowered["read"] = read.lower(self._table, one)
        lowered["write"] = commit.lower(self._table, one, self._state)
        return lowered

    def compile(self) -> int:
        """Compiles every program, and runs those of batches once on padding."""
        for name, lowered in self._lowered.items():
            self._compiled[name] = lowered.compile()
        self._lowered.clear()
        for size in self._batch_sizes:
            for steps in self._chunk_sizes:
                self._run(size, steps, [])
        return len(self._compiled)

    def run(self, steps: int, chunks: Sequence[Row]) -> list[np.ndarray]:
        """Runs one batch; each chunk's outputs, as many steps as it has."""
        size = next(size for size in self._batch_sizes if size >= len(chunks))
        ys = self._run(size, steps, chunks)
        # Copies: a view would keep the whole batch in memory as long as one of it.
        return [ys[n, : len(chunk.xs)].copy() for n, chunk in enumerate(chunks)]

    def _run(self, size: int, steps: int, chunks: Sequence[Row]) -> np.ndarray:
        rows = np.full(size, self._spare, np.int32)
        new, lengths = np.ones(size, np.bool_), np.zeros(size, np.int32)
        xs = np.zeros((size, steps, *self._step.shape), self._step.dtype)
        for n, chunk in enumerate(chunks):
            rows[n], new[n], lengths[n] = chunk.slot, chunk.new, len(chunk.xs)
            xs[n, : len(chunk.xs)] = chunk.xs
        compute, commit = (self._compiled[size, name] for name in (steps, "commit"))
        state, ys = jax.block_until_ready(
            compute(self._params, self._table, rows, new, lengths, xs)
        )
        self._commit(commit, rows, state)
        return np.asarray(ys)

    def _commit(self, commit: Any, rows: Any, state: Any) -> None:
        table = self._table
        try:
            self._table = jax.block_until_ready(commit(table, rows, state))
        except Exception as error:
            if any(leaf.is_deleted() for leaf in jax.tree.leaves(table)):
                self._table = self._new_table()
                raise TableLost(f"the states of all streams are lost: {error}") from (
                    error
                )
            raise

    def read(self, slot: int) -> list[np.ndarray]:
        """The state in a row, leaf by leaf."""
        state = self._compiled["read"](self._table, np.int32(slot))
        return [np.array(leaf) for leaf in jax.tree.leaves(state)]

    def read_all(self) -> list[np.ndarray]:
        """The states in all rows, leaf by leaf."""
        return [np.array(leaf) for leaf in jax.tree.leaves(self._table)]

    def write(self, slot: int, leaves: Sequence[np.ndarray]) -> None:
        """Puts a state into a row."""
        state = jax.tree.structure(self._state).unflatten(leaves)
        self._commit(self._compiled["write"], np.int32(slot), state)


def _place(params: Any) -> Any:
    """Where the parameters were put, by whoever put them somewhere; None elsewhere."""
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and leaf.committed:
            place = leaf.sharding
            if isinstance(place, NamedSharding):
                return NamedSharding(place.mesh, PartitionSpec())
            return place
    return None
