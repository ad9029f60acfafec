"""How a call is cut into blocks, and what of it stays in memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from lstm_jax.cells.lstm_cell import LSTMCell

LANES = 128
MOST_ROWS, MOST_STEPS = 128, 16
MIB = 1 << 20
# Of a core's VMEM, what kernels ask for: the least of v5e, v6e and v5p has 64 MiB.
LIMIT = 60 * MIB
# What is left has room for a step of 128 rows.
MOST_WEIGHTS = 40 * MIB


class Shape(NamedTuple):
    """Sizes that tiles divide, and how they are cut.

    Attributes:
        length: T.
        batch: B.
        hidden: H.
        output: P.
        steps: of a block; they divide T.
        rows: of a block; they divide B.
    """

    length: int
    batch: int
    hidden: int
    output: int
    steps: int
    rows: int


def rounded(size: int, to: int) -> int:
    """The next multiple."""
    return -(-size // to) * to


def shape_of(
    length: int, batch: int, hidden: int, output: int, dtype: Any, weights: int
) -> Shape:
    """How to cut a call; ``weights`` are the bytes that stay in VMEM."""
    itemsize = jnp.dtype(dtype).itemsize
    tile = 8 * (4 // itemsize)  # rows of one tile
    hidden, output = rounded(hidden, LANES), rounded(output, LANES)
    batch = rounded(max(batch, 1), tile)
    parts = -(-batch // MOST_ROWS)
    rows = rounded(-(-batch // parts), tile)
    # The most that a pass reads and writes of a row in one step, each twice: one block
    # is there while another is on its way.
    step = 2 * rows * (8 * hidden * itemsize + 3 * hidden * 4 + 2 * output * itemsize)
    # The float32 values that are there while a step is computed.
    working = rows * 12 * hidden * 4
    most = (LIMIT - weights - working) // step
    steps = _steps(length, max(1, min(MOST_STEPS, most)))
    return Shape(rounded(length, steps), parts * rows, hidden, output, steps, rows)


def _steps(length: int, most: int) -> int:
    """The steps of a block: some that divide the length, where not too few do."""
    divide = [n for n in range(1, most + 1) if length % n == 0]
    return divide[-1] if 2 * divide[-1] > min(most, length) else min(most, length)


def resident_bytes(cell: LSTMCell, dtype: Any) -> int:
    """Bytes of the weights that stay in VMEM."""
    hidden, output = (
        rounded(size, LANES) for size in (cell.hidden_size, cell.output_size)
    )
    matrices = [(output, 4 * hidden)]
    if cell.proj_size is not None:
        matrices.append((hidden, output))
    return sum(map(math.prod, matrices)) * jnp.dtype(dtype).itemsize
