"""States of TensorFlow 1's cells: ``LSTMStateTuple(c, h)``, in tuples."""

from __future__ import annotations

from typing import Any, NamedTuple

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import trees
from lstm_jax.convert import layers as records
from lstm_jax.convert import paths
from lstm_jax.layers import LSTM, State
from lstm_jax.types import Directions, LSTMState

_LIBRARY = "TensorFlow 1"


class LSTMStateTuple(NamedTuple):
    """A state with the fields, and in the order, of TensorFlow 1's class of this name.

    Attributes:
        c: cell state, ``[*batch, H]``.
        h: hidden state, ``[*batch, P]``.

    Example:
        >>> import numpy as np
        >>> from lstm_jax.convert.tf1_states import LSTMStateTuple
        >>> LSTMStateTuple(np.zeros((2, 5)), np.ones((2, 3))).h.shape
        (2, 3)
    """

    c: Any
    h: Any


def state_from_tf1(model: LSTM, state: Any) -> State:
    """Takes over a state of TensorFlow 1's cells.

    Args:
        model: the stack the state is for.
        state: of one layer an ``LSTMStateTuple(c, h)``, or a pair in that order, of
            more a tuple of these; of two directions ``(forward, backward)`` of such,
            as TensorFlow returns them. c is ``[*batch, H]``, h ``[*batch, P]``.

    Raises:
        ValueError: if there are more or fewer, a shape does not fit, or the model's
            layers have states that TensorFlow 1 has not.
        TypeError: if one is no floating array, or ``model`` no stack.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, proj_size=2)
        >>> pair = np.zeros((4, 5), "f4"), np.ones((4, 2), "f4")
        >>> lj.convert.state_from_tf1(model, pair)[0].forward.h.shape
        (4, 2)
    """
    _, rows = records.check_states_of(_LIBRARY, model)
    sides: list[tuple[str, Any]] = [("state", state)]
    if model.bidirectional:
        _check_count("state", state, 2, "(forward, backward)")
        sides = [("forward", state[0]), ("backward", state[1])]
    taken = [_take_side(name, side, rows) for name, side in sides]
    return tuple(Directions(*pairs) for pairs in zip(*taken, strict=True))


def state_to_tf1(model: LSTM, state: State) -> Any:
    """Returns a state as :func:`state_from_tf1` takes it, of :class:`LSTMStateTuple`.

    The arrays are new ones that nothing else uses; where JAX traces, they are JAX's.

    Raises:
        ValueError: if the state is not the model's, or one that TensorFlow 1 has not.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
        >>> forward, backward = lj.convert.state_to_tf1(model, model.zero_state((4,)))
        >>> len(forward), forward[1]._fields
        (2, ('c', 'h'))
    """
    cells, _ = records.check_states_of(_LIBRARY, model)
    state = trees.take_state(cells, state, model.bidirectional)
    sides: list[Any] = []
    for direction in range(1 + model.bidirectional):
        pairs = [layer[direction] for layer in state]
        side = tuple(
            LSTMStateTuple(*map(records.give_state, (pair.c, pair.h))) for pair in pairs
        )
        sides.append(side if len(pairs) > 1 else side[0])
    return tuple(sides) if model.bidirectional else sides[0]


def _take_side(name: str, side: Any, rows: list[LSTMState]) -> list[LSTMState]:
    """The states of all layers in one direction."""
    if len(rows) == 1 and _is_pair(side):
        return [_take_pair(name, side, rows[0])]
    _check_count(name, side, len(rows), "an LSTMStateTuple for each layer")
    return [
        _take_pair(f"{name}[{index}]", *pair)
        for index, pair in enumerate(zip(side, rows, strict=True))
    ]


def _is_pair(value: Any) -> bool:
    return hasattr(value, "c") or (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(hasattr(one, "shape") for one in value)
    )


def _take_pair(name: str, pair: Any, row: LSTMState) -> LSTMState:
    if not _is_pair(pair):
        hint = ""
        if hasattr(pair, "shape"):
            hint = (
                " With state_is_tuple=False c and h stand side by side: pass "
                "(state[:, :H], state[:, H:])."
            )
        raise ValueError(
            f"{name}: expected LSTMStateTuple(c, h), got {type(pair).__name__}.{hint}"
        )
    c, h = (pair.c, pair.h) if hasattr(pair, "c") else pair
    c, h = paths.take(f"{name}.c", c), paths.take(f"{name}.h", h)
    batch = c.shape[:-1]
    for field, letter, value, one in (("c", "H", c, row.c), ("h", "P", h, row.h)):
        expected = (*batch, *one.shape)
        shapes.check_shape(f"{name}.{field}", f"[*batch, {letter}]", expected, value)
    return LSTMState(h, c)


def _check_count(name: str, value: Any, count: int, what: str) -> None:
    if not isinstance(value, (tuple, list)) or len(value) != count:
        got = f"{len(value)}" if isinstance(value, (tuple, list)) else "no tuple"
        raise ValueError(f"{name}: expected {what}, {count} of them, got {got}.")
