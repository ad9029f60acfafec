"""Weights and states of Keras's ``LSTM`` and ``Bidirectional(LSTM)``.

Keras keeps them as this library does: gates i, f, c, o (its c is our g), one bias, the
forget bias stored in it. What is not in the weights has to be asked of the layer: a
layer with another ``activation`` or ``recurrent_activation`` computes something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border, options
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

_MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "mul"}


def from_keras(
    *layers: Sequence[Any], bidirectional: bool = False, merge_mode: str = "concat"
) -> tuple[LSTM, Params]:
    """Takes over the weights of one or more Keras layers.

    Args:
        *layers: for each layer, first to last, what ``layer.get_weights()`` returns:
            ``kernel [I, 4H]``, ``recurrent_kernel [H, 4H]`` and, unless
            ``use_bias=False``, ``bias [4H]``; of ``Bidirectional`` those of the forward
            layer and then those of the backward layer.
        bidirectional: whether the layers are ``Bidirectional``.
        merge_mode: theirs: "concat", "sum", "ave" or "mul".

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``. Keras's
        ``return_sequences=False`` is ``state[-1].forward.h``.

    Raises:
        ValueError: if the number of arrays, a shape or ``merge_mode`` does not fit.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> weights = [np.ones((3, 20)), np.ones((5, 20)), np.zeros(20)]
        >>> model, params = lj.convert.from_keras(weights)
        >>> model.input_size, model.hidden_size
        (3, 5)
    """
    if merge_mode not in _MERGES:
        raise ValueError(
            f"merge_mode: expected one of {', '.join(map(repr, _MERGES))}, got "
            f"{merge_mode!r}."
        )
    directions = 2 if bidirectional else 1
    params = tuple(
        Directions(*_split(index, weights, directions))
        for index, weights in enumerate(layers)
    )
    if not params:
        raise ValueError(
            "layers: expected the weights of at least one layer, got none."
        )
    first = params[0].forward
    sizes = tuple(layer.forward.recurrent_kernel.shape[0] for layer in params)
    model = LSTM(
        first.kernel.shape[0],
        sizes[0] if len(set(sizes)) == 1 else sizes,
        len(sizes),
        bidirectional=bidirectional,
        merge=_MERGES[merge_mode],
        use_bias=first.bias is not None,
    )
    for index, (cell, layer) in enumerate(zip(model.cells, params, strict=True)):
        for one in layer[:directions]:
            _check(index, cell, one)
    return model, params


def to_keras(model: LSTM, params: Params) -> list[list[np.ndarray]]:
    """Returns, for each layer, what ``layer.set_weights`` takes.

    Raises:
        ValueError: if the model has a projection, or is no stack of standard layers:
            Keras has nothing else.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, bidirectional=True)
        >>> (weights,) = lj.convert.to_keras(model, model.init(jax.random.key(0)))
        >>> len(weights)
        6
    """
    options.check_exportable(model, "Keras")
    if model.proj_size is not None:
        raise ValueError(
            f"proj_size: expected None, since Keras has no projection, got "
            f"{model.proj_size}."
        )
    return [
        [
            border.give(leaf)
            for one in layer
            if one is not None
            for leaf in (one.kernel, one.recurrent_kernel, one.bias)
            if leaf is not None
        ]
        for layer in params
    ]


def state_from_keras(*states: Sequence[Any]) -> State:
    """Takes over the states of one or more Keras layers.

    Args:
        *states: for each layer ``[h, c]``, or ``[h, c, h, c]`` of ``Bidirectional``,
            forward first; each ``[B, H]``.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> state = lj.convert.state_from_keras([np.zeros((4, 5)), np.ones((4, 5))])
        >>> state[0].forward.c.shape
        (4, 5)
    """
    layers = []
    for index, arrays in enumerate(states):
        if len(arrays) not in (2, 4):
            raise ValueError(
                f"states[{index}]: expected [h, c] or [h, c, h, c], got {len(arrays)} "
                "arrays."
            )
        pairs = [jnp.asarray(array) for array in arrays]
        layers.append(
            Directions(*(LSTMState(*pairs[n : n + 2]) for n in range(0, len(pairs), 2)))
        )
    return tuple(layers)


def state_to_keras(state: State) -> list[list[Array]]:
    """Returns, for each layer, ``[h, c]`` or ``[h, c, h, c]``.

    Example:
        >>> import lstm_jax as lj
        >>> states = lj.convert.state_to_keras(lj.LSTM(3, 5).zero_state((4,)))
        >>> [array.shape for array in states[0]]
        [(4, 5), (4, 5)]
    """
    return [
        [leaf for one in layer if one is not None for leaf in one] for layer in state
    ]


def _split(index: int, weights: Sequence[Any], directions: int) -> list[LSTMParams]:
    """The arrays of one layer as one set of parameters a direction."""
    each, left = divmod(len(weights), directions)
    if left or each not in (2, 3):
        raise ValueError(
            f"layers[{index}]: expected {2 * directions} or {3 * directions} arrays "
            f"(kernel, recurrent_kernel and, with use_bias, bias"
            f"{', forward then backward' if directions == 2 else ''}), got "
            f"{len(weights)}. Six arrays are those of a Bidirectional layer: pass "
            "bidirectional=True."
        )
    arrays = [jnp.asarray(array) for array in weights]
    return [LSTMParams(*arrays[n : n + each]) for n in range(0, len(arrays), each)]


def _check(index: int, cell: Any, params: LSTMParams) -> None:
    gates = 4 * cell.hidden_size
    expected = {
        "kernel": ("[I, 4H]", (cell.input_size, gates)),
        "recurrent_kernel": ("[H, 4H]", (cell.hidden_size, gates)),
        "bias": ("[4H]", (gates,) if cell.use_bias else None),
    }
    for name, (letters, shape) in expected.items():
        value = getattr(params, name)
        got = None if value is None else value.shape
        if got != shape:
            raise ValueError(
                f"layers[{index}] {name}: expected shape {letters} = {shape}, got "
                f"{got}. A GRU has 3H columns; a layer after a Bidirectional one has "
                "twice the inputs."
            )
