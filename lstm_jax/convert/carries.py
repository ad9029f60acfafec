"""States of other JAX libraries: nested as their weights are, see ``paths.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lstm_jax.checks import border, trees
from lstm_jax.convert import layers as records
from lstm_jax.convert import paths
from lstm_jax.layers import State
from lstm_jax.types import Directions, LSTMState


def take(
    library: str,
    model: Any,
    state: Any,
    one: Callable[[str, Any], LSTMState],
    kind: str,
) -> State:
    """Returns a stack's state from what another library has for its layers.

    Args:
        library: its name.
        model: the stack.
        state: of one layer, or a list of them; of two directions a pair of each.
        one: takes the state of one layer in one direction, by its name.
        kind: what that is.

    Raises:
        ValueError: if the number of layers or a shape is not the model's, or its layers
            have states that the library has not.
        TypeError: if it is nested otherwise, or ``model`` is no stack.
    """
    cells, _ = records.check_states_of(library, model)
    kind = f"a pair of {kind} for two directions" if model.bidirectional else kind
    taken = []
    for index, layer in enumerate(_layers(len(cells), state, kind)):
        name = f"state[{index}]"
        if not model.bidirectional:
            taken.append(Directions(one(name, layer)))
            continue
        if not isinstance(layer, (list, tuple)) or len(layer) != 2:
            raise TypeError(f"{name}: expected {kind}, got {type(layer).__name__}.")
        pair = [one(f"{name}[{n}]", value) for n, value in enumerate(layer)]
        taken.append(Directions(*pair))
    state = trees.take_state(cells, tuple(taken), model.bidirectional)
    return jax.tree.map(paths.own, state)


def give(
    library: str, model: Any, state: State, one: Callable[[LSTMState], Any]
) -> list[Any]:
    """Returns, for each layer, what another library has for its state.

    Raises:
        ValueError: if the state is not the model's, or one that the library has not.
        TypeError: if it is no stack's, or ``model`` no stack.
    """
    cells, _ = records.check_states_of(library, model)
    layers = []
    for layer in trees.take_state(cells, state, model.bidirectional):
        made = [jax.tree.map(paths.own, there) for there in layer if there is not None]
        made = tuple(map(one, made))
        layers.append(made if model.bidirectional else made[0])
    return layers


def take_pair(name: str, pair: Any, letters: str) -> list[Any]:
    """Takes a pair of arrays.

    Raises:
        TypeError: if it is none.
    """
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise TypeError(
            f"{name}: expected a pair {letters}, got {type(pair).__name__}."
        )
    return [border.take(f"{name}[{n}]", one) for n, one in enumerate(pair)]


def _layers(count: int, state: Any, kind: str) -> list[Any]:
    """The states of a stack's layers; that of one may come alone."""
    nested = isinstance(state, (list, tuple))
    alone = not nested or (isinstance(state, tuple) and len(state) != 1)
    if count == 1 and alone:
        return [state]
    if not nested or len(state) != count:
        got = f"{len(state)} of them" if nested else type(state).__name__
        raise ValueError(
            f"state: expected a list of L = {count} layers, each {kind}, got {got}."
        )
    return list(state)
