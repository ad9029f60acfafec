"""How layers and directions are connected."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import as_cell
from lstm_jax.cells.regularized import inverted_dropout
from lstm_jax.checks import options
from lstm_jax.types import Array, Directions, LSTMState

MERGES = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "mul": jnp.multiply,
}


def check_options(model: Any) -> None:
    """Checks the options of a stack, and that its layers fit on top of each other."""
    options.check_choice("merge", model.merge, tuple(MERGES))
    options.check_rate("dropout", model.dropout)
    if model.dropout and len(model.cells) == 1:
        _warn(
            "dropout: it is between layers, and there is only one, so that it drops "
            "nothing. output_dropout drops outputs, input_dropout inputs (Keras's "
            "dropout)."
        )
    cells, widening = [as_cell(cell) for cell in model.cells], model._widening
    for index in range(1, len(cells)):
        below = cells[index - 1].output_size * widening
        expected = below
        if model.skip:
            expected += cells[0].input_shape[-1]
        got = cells[index].input_shape[-1]
        if got != expected:
            raise ValueError(
                f"cells[{index}]: expected an input size of {expected}, what it gets "
                f"from the layer below{' and from the input' if model.skip else ''}, "
                f"got {got}."
            )
        size = cells[index].output_size * widening
        if model.residual and size != below:
            raise ValueError(
                f"residual: expected layers with outputs of one size, got {below} from "
                f"layer {index - 1} and {size} from layer {index}."
            )


def through_layers(
    model: Any,
    xs: Array,
    run: Callable[[int, Any, Array], tuple[Any, Array]],
    key: Array | None = None,
) -> tuple[tuple, Array]:
    """Leads inputs, of one step or of all, through the layers and what connects them.

    Args:
        model: a stack.
        xs: the inputs.
        run: ``run(index, cell, xs) -> (state, ys)`` runs one layer.
        key: a random key for the dropout between layers, or None.
    """
    states, outputs, below = [], [], xs
    for index, cell in enumerate(map(as_cell, model.cells)):
        inputs = below
        if index and key is not None and model.dropout:
            inputs = inverted_dropout(
                jax.random.fold_in(key, index), model.dropout, inputs
            )
        if index and model.skip:
            inputs = jnp.concatenate([inputs, xs.astype(inputs.dtype)], axis=-1)
        after, ys = run(index, cell, inputs)
        if index and model.residual:
            ys = ys + below
        states.append(after)
        outputs.append(ys)
        below = ys
    return tuple(states), jnp.concatenate(outputs, -1) if model.skip else below


def last_output(model: Any, state: tuple[Directions, ...]) -> Array:
    """What the last steps put out, from the states after them."""
    outputs, below = [], None
    for layer in state:
        hidden = [one.h for one in layer if one is not None]
        out = hidden[0] if len(hidden) == 1 else MERGES[model.merge](*hidden)
        if below is not None and model.residual:
            out = out + below
        outputs.append(out)
        below = out
    return jnp.concatenate(outputs, -1) if model.skip else outputs[-1]


def bridge(state: tuple[Directions, ...], merge: str) -> tuple[Directions, ...]:
    """The states of both directions of each layer as one of one direction."""
    options.check_choice("merge", merge, ("concat", "sum", "mean"))
    layers = []
    for index, layer in enumerate(state):
        kind = type(layer.forward)
        if merge != "concat" and kind is not LSTMState:
            raise ValueError(
                f"merge: expected 'concat', since layer {index} has a state of "
                f"{kind.__name__}, whose parts don't add up, got {merge!r}."
            )
        joined = jax.tree.map(MERGES[merge], layer.forward, layer.backward)
        layers.append(Directions(joined))
    return tuple(layers)


def _warn(message: str) -> None:
    """Says that an option does nothing, where the model is made."""
    warnings.warn(message, UserWarning, stacklevel=5)
