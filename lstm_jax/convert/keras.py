"""Weights and states of Keras's ``LSTM`` and ``Bidirectional(LSTM)``.

Keras keeps them as this library does: gates i, f, c, o (its c is our g), one bias, the
forget bias stored in it. What is not in the weights has to be asked of the layer: a
layer with another ``activation`` or ``recurrent_activation`` computes something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border, options
from lstm_jax.convert import layers as records
from lstm_jax.convert import targets
from lstm_jax.convert.files.activations import as_function
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

_MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "mul"}
_FIELDS = ("kernel", "recurrent_kernel", "bias")

KERAS = targets.Target(
    "Keras",
    dict.fromkeys((*targets.ACTIVATIONS, "reverse"), True),
    one_activation=True,
    merges=tuple(_MERGES.values()),
)


def from_keras(
    *layers: Sequence[Any],
    bidirectional: bool = False,
    go_backwards: bool | Sequence[bool] = False,
    merge_mode: str = "concat",
    activation: str | Callable[[Array], Array] = "tanh",
    recurrent_activation: str | Callable[[Array], Array] = "sigmoid",
) -> tuple[LSTM, Params]:
    """Takes over the weights of one or more Keras layers.

    Activations are not in the weights: unless they are passed, the model is the plain
    LSTM of Keras's defaults since TensorFlow 2, with the sigmoid for its gates and
    tanh. ``LSTM`` of TensorFlow 1 and of Keras before 2.3 has a *hard* sigmoid by
    default, which is another function, and outputs differ by some hundredths:
    ``clip(0.2 x + 0.5, 0, 1)``, and with 1/6 in place of 0.2 since Keras 3, which is
    ``jax.nn.hard_sigmoid``. For such a layer pass the function.

    Neither is the direction. A layer with ``go_backwards=True`` puts its outputs out in
    the order in which they are made, and the next layer takes them in that order: it
    runs backward itself, unless it has ``go_backwards=True`` too. ``reverse`` of the
    model says which do. Its outputs stand at their inputs' times: where the last layer
    runs backward, Keras's are ``jnp.flip(ys, 1)``.

    Args:
        *layers: for each layer, first to last, what ``layer.get_weights()`` returns:
            ``kernel [I, 4H]``, ``recurrent_kernel [H, 4H]`` and, unless
            ``use_bias=False``, ``bias [4H]``; of ``Bidirectional`` those of the forward
            layer and then those of the backward layer. Those of ``CuDNNLSTM``, whose
            bias is ``[8H]``, are taken too. Their dtype is kept (float64 where 64-bit
            types are on).
        bidirectional: whether the layers are ``Bidirectional``.
        go_backwards: theirs, one for all or one for each layer.
        merge_mode: theirs: "concat", "sum", "ave" or "mul".
        activation: theirs, as Keras names it or as a function of an array.
        recurrent_activation: the same, of the gates. "hard_sigmoid", which says two
            functions, is passed as one.

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``. Keras's
        ``return_sequences=False`` is ``model.last(state)``.

    Raises:
        ValueError: if the number of arrays, a shape, ``go_backwards``, ``merge_mode``
            or the name of an activation does not fit.
        TypeError: if a layer is no list of floating arrays.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> ones = lambda *shape: np.ones(shape, np.float32)
        >>> weights = [ones(3, 20), ones(5, 20), ones(20)]
        >>> model, params = lj.convert.from_keras(weights)
        >>> model.input_size, model.hidden_size
        (3, 5)
    """
    merge = merge_of(merge_mode)
    if not layers:
        raise ValueError(
            "layers: expected the weights of at least one layer, got none."
        )
    directions = 2 if bidirectional else 1

    def name_of(index, direction, field):
        side = ("forward ", "backward ")[direction] if bidirectional else ""
        return f"layers[{index}] {side}{field}"

    taken = [_split(index, weights, directions) for index, weights in enumerate(layers)]
    function = as_function("activation", activation)
    return records.build(
        taken,
        name_of,
        merge=merge,
        reverse=_directions(go_backwards, len(layers)),
        gate_activation=as_function("recurrent_activation", recurrent_activation),
        candidate_activation=function,
        output_activation=function,
    )


def _directions(go_backwards: Any, layers: int) -> tuple[bool, ...]:
    """Of each layer whether it runs backward in the time of the first one's inputs."""
    each = go_backwards
    if not isinstance(each, (tuple, list)):
        each = (each,) * layers
    if len(each) != layers:
        raise ValueError(
            f"go_backwards: expected one value or {layers} of them, got {each!r}."
        )
    for one in each:
        options.check_flag("go_backwards", one)
    return tuple(sum(each[: n + 1]) % 2 == 1 for n in range(layers))


def merge_of(merge_mode: Any) -> str:
    """Our name of a ``merge_mode``.

    Raises:
        ValueError: if Keras has none such, or both outputs stay apart.
    """
    if merge_mode not in _MERGES:
        raise ValueError(
            f"merge_mode: expected one of {', '.join(map(repr, _MERGES))}, got "
            f"{merge_mode!r}."
        )
    return _MERGES[merge_mode]


def to_keras(model: LSTM, params: Params) -> list[list[np.ndarray]]:
    """Returns, for each layer, what ``layer.set_weights`` takes.

    Activations are not in the weights: make the layer with those of the model. Nor is
    the direction: a layer has ``go_backwards=True`` where ``reverse`` is another than
    that of the layer below, and at the first one where it is True; see
    :func:`from_keras` for the order of the outputs. The arrays are new ones that
    nothing else uses.

    Raises:
        ValueError: if the model has a projection, or is no stack of standard layers:
            Keras has nothing else; or if ``params`` are not its own.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, bidirectional=True)
        >>> (weights,) = lj.convert.to_keras(model, model.init(jax.random.key(0)))
        >>> len(weights)
        6
    """
    targets.check(KERAS, model, params)
    return [
        [
            border.give(getattr(one, field))
            for one in layer
            if one is not None
            for field in _FIELDS
            if getattr(one, field) is not None
        ]
        for layer in params
    ]


def state_from_keras(*states: Sequence[Any]) -> State:
    """Takes over the states of one or more Keras layers.

    Args:
        *states: for each layer ``[h, c]``, or ``[h, c, h, c]`` of ``Bidirectional``,
            forward first; each ``[B, H]``.

    Raises:
        ValueError: if there are not two or four arrays, or their shapes differ.
        TypeError: if one is no array.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> state = lj.convert.state_from_keras([np.zeros((4, 5)), np.ones((4, 5))])
        >>> state[0].forward.c.shape
        (4, 5)
    """
    layers = []
    for index, arrays in enumerate(states):
        listed = isinstance(arrays, (list, tuple))
        if not listed or len(arrays) not in (2, 4):
            got = f"{len(arrays)} arrays" if listed else type(arrays).__name__
            if hasattr(arrays, "shape"):
                got = f"one array of shape {list(np.shape(arrays))}"
            raise ValueError(
                f"states[{index}]: expected [h, c] or [h, c, h, c], got {got}."
            )
        name = f"states[{index}]"
        taken = [border.take(f"{name}[{n}]", one) for n, one in enumerate(arrays)]
        for n, one in enumerate(taken):
            if one.shape != taken[0].shape:
                raise ValueError(
                    f"{name}[{n}]: expected shape {list(taken[0].shape)}, as "
                    f"{name}[0] has, got {list(one.shape)}."
                )
        pairs = [LSTMState(*taken[n : n + 2]) for n in range(0, len(taken), 2)]
        layers.append(Directions(*pairs))
    return tuple(layers)


def state_to_keras(state: State) -> list[list[Any]]:
    """Returns, for each layer, ``[h, c]`` or ``[h, c, h, c]``, as NumPy's.

    The arrays are new ones that nothing else uses; where JAX traces, they are JAX's.

    Raises:
        TypeError: if it is no stack's state, or one that Keras has not.

    Example:
        >>> import lstm_jax as lj
        >>> states = lj.convert.state_to_keras(lj.LSTM(3, 5).zero_state((4,)))
        >>> [array.shape for array in states[0]]
        [(4, 5), (4, 5)]
    """
    if not isinstance(state, (tuple, list)) or not all(map(_is_layer, state)):
        raise TypeError(
            "state: expected a tuple of Directions of LSTMState, as a model returns, "
            f"got {type(state).__name__}. One layer's is (lstm_jax.Directions(state),)."
        )
    return [
        [records.give_state(leaf) for one in layer if one is not None for leaf in one]
        for layer in border.take_leaves("state", state)
    ]


def _is_layer(value: Any) -> bool:
    return isinstance(value, Directions) and all(
        one is None or isinstance(one, LSTMState) for one in value
    )


def _split(index: int, weights: Any, directions: int) -> list[LSTMParams]:
    """The arrays of one layer as one record a direction."""
    _check_list(index, weights)
    each, left = divmod(len(weights), directions)
    if left or each not in (2, 3):
        raise ValueError(
            f"layers[{index}]: expected {2 * directions} or {3 * directions} arrays "
            f"(kernel, recurrent_kernel and, with use_bias, bias"
            f"{', forward then backward' if directions == 2 else ''}), got "
            f"{len(weights)}. {_count_hint(weights, directions)}".rstrip()
        )
    arrays = [
        records.take_weight(f"layers[{index}][{n}]", array)
        for n, array in enumerate(weights)
    ]
    return [
        from_cudnn_layout(LSTMParams(*arrays[n : n + each]))
        for n in range(0, len(arrays), each)
    ]


def _check_list(index: int, weights: Any) -> None:
    if isinstance(weights, (list, tuple)):
        return
    got, hint = type(weights).__name__, ""
    if hasattr(weights, "get_weights"):
        hint = "Pass layer.get_weights()."
    elif hasattr(weights, "shape"):
        got = f"one array of shape {list(weights.shape)}"
        hint = "Each layer's arrays are one argument: from_keras(layer.get_weights())."
    raise TypeError(
        f"layers[{index}]: expected a list of arrays, got {got}. {hint}".rstrip()
    )


def _count_hint(weights: Sequence[Any], directions: int) -> str:
    """The likely mistake, where numbers and shapes of the arrays show it."""
    half, left = divmod(len(weights), 2)
    if directions == 2 or left or half not in (2, 3):
        return ""
    if np.shape(weights[0]) == np.shape(weights[half]):
        return "These are a Bidirectional layer's: pass bidirectional=True."
    return "These are two layers': pass a list for each."


def from_cudnn_layout(one: LSTMParams) -> LSTMParams:
    """The weights of ``CuDNNLSTM`` as those of ``LSTM``, all others as they are.

    cuDNN's own layout shows through: gate by gate, the memory of the input weights is
    that of ``[H, I]``, the recurrent weights are transposed, and there are two biases
    that are only ever added.
    """
    kernel, recurrent, bias = one.kernel, one.recurrent_kernel, one.bias
    if bias is None or kernel.ndim != 2 or recurrent.ndim != 2:
        return one
    (inputs, columns), hidden = kernel.shape, recurrent.shape[0]
    if recurrent.shape != (hidden, 4 * hidden) or bias.shape != (8 * hidden,):
        return one
    if columns != 4 * hidden:
        return one
    gates = jnp.moveaxis(kernel.reshape(inputs, 4, hidden), 1, 0)
    gates = gates.reshape(4, hidden, inputs)
    return LSTMParams(
        kernel=jnp.moveaxis(gates, 2, 0).reshape(inputs, columns),
        recurrent_kernel=recurrent.reshape(hidden, 4, hidden).T.reshape(
            hidden, columns
        ),
        bias=bias.reshape(2, columns).sum(0),
    )
