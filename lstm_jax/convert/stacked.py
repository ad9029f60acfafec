"""States as PyTorch and cuDNN hold them: one array of all layers and directions."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from lstm_jax.cells.base import Cell
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import trees
from lstm_jax.convert import layers as records
from lstm_jax.convert import targets, torch_names
from lstm_jax.layers import LSTM, State
from lstm_jax.types import Directions, LSTMState


def take(library: str, model: LSTM, h: Any, c: Any) -> State:
    """The state of a model from ``h``, ``[L*D, *batch, P]``, and ``c``.

    Raises:
        ValueError: if an axis has another size, or the model's layers have states that
            ``library`` has not.
        TypeError: if one is no floating array, or ``model`` no stack.
    """
    cells, row = _cells(library, model)
    layers, directions = len(cells), 2 if model.bidirectional else 1
    arrays = torch_names.read("h", h), torch_names.read("c", c)
    for name, value, letter, one in zip("hc", arrays, "PH", row, strict=True):
        shapes.check_array(name, value)
        first, size = layers * directions, one.shape[0]
        if value.ndim < 2 or (value.shape[0], value.shape[-1]) != (first, size):
            raise ValueError(
                f"{name}: expected shape [L*D, *batch, {letter}] with L*D = {layers} * "
                f"{directions} and {letter} = {size}, got {list(value.shape)}."
            )
    if arrays[0].shape[:-1] != arrays[1].shape[:-1]:
        raise ValueError(
            f"c: expected the batch of h, {list(arrays[0].shape[1:-1])}, got "
            f"{list(arrays[1].shape[1:-1])}."
        )
    pairs = [LSTMState(*pair) for pair in zip(*arrays, strict=True)]
    return tuple(
        Directions(*pairs[start : start + directions])
        for start in range(0, len(pairs), directions)
    )


def give(library: str, model: LSTM, state: State) -> tuple[Any, Any]:
    """The inverse of :func:`take`, as NumPy's arrays; traced ones stay JAX's.

    Raises:
        ValueError: if the state is not the model's, or one that ``library`` has not.
        TypeError: if it is no stack's, or ``model`` no stack.
    """
    cells, _ = _cells(library, model)
    state = trees.take_state(cells, state, model.bidirectional)
    flat = [one for layer in state for one in layer if one is not None]
    h, c = (jnp.stack(leaves) for leaves in zip(*flat, strict=True))
    return records.give_state(h), records.give_state(c)


def _cells(library: str, model: Any) -> tuple[list[Cell], LSTMState]:
    """The cells of a stack, and the shapes of a row's state, the same in all."""
    cells, rows = records.check_states_of(library, model)
    targets.check_one_size(library, [(row.c.shape[0], row.h.shape[0]) for row in rows])
    return cells, rows[0]
