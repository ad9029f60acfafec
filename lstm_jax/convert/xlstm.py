"""Weights and states of the sLSTM in xLSTM's own package, ``xlstm``.

Its ``sLSTMCell`` takes pre-activations, ``[..., 4H]``, gates in the order i, f, z, o
(their z is our g). Its ``sLSTMLayer`` makes them of its inputs, head by head, and puts
a convolution before and a normalisation behind the cell, which are no part of an sLSTM.
The names of two weights are swapped there: ``fgate`` feeds i, and ``igate`` feeds f.
Its two backends keep the recurrent weights and the bias in two layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lstm_jax.cells.base import as_cell
from lstm_jax.cells.slstm import SLSTMCell, SLSTMState
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, options, trees
from lstm_jax.convert import layers as records
from lstm_jax.convert import paths, targets
from lstm_jax.convert import xlstm_layouts as layouts
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Directions

XLSTM = targets.Target(
    "xLSTM", {"variant": ("sLSTM",), "num_heads": True}, cells=(SLSTMCell,)
)

_INPUTS = ("x", "conv1d", "gates")


def from_xlstm(
    weights: Any, *, path: str | tuple[str, ...] = "", leave_out: Sequence[str] = ()
) -> tuple[LSTM, Params]:
    """Takes over the weights of an ``sLSTMLayer`` or an ``sLSTMCell``.

    Sizes, heads and the backend, which the layout depends on, are read off the shapes.
    The cell is the one of ``function="slstm"``, the package's default.

    Args:
        weights: a layer's ``state_dict()``: ``slstm_cell._recurrent_kernel_``, ``[N, D,
            4D]`` of the CUDA backend or ``[N, 4D, D]`` of the other, with D = H/N units
            a head; ``slstm_cell._bias_ [4H]``; and ``fgate.weight [N, D, I/N]`` and so
            on. Their dtype is kept. A cell has the first two alone: the model then
            takes its pre-activations, so that I is 4H and ``kernel`` the identity.
            For two directions a tuple ``(forward, backward)`` of dicts, for several
            layers a list.
        path: where in the one dict the layer is, such as ``"blocks.0.xlstm"``. Other
            names are left alone.
        leave_out: what is around the cell in such a layer, and is left to the caller:
            "conv1d", "group_norm", or both. Without the convolution, the model takes
            ``[silu(conv1d(x)), x]``, side by side, so that I is twice the layer's.

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``.

    Raises:
        ValueError: if a name is missing or unknown, a shape does not fit, or something
            around the cell is there that is not to be left out.
        TypeError: if it is no dict of floating arrays.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> shapes = {f"{gate}gate.weight": (2, 4, 4) for gate in "fizo"}
        >>> shapes |= {"slstm_cell._recurrent_kernel_": (2, 4, 16),
        ...            "slstm_cell._bias_": (32,)}
        >>> weights = {name: np.ones(shape, "f4") for name, shape in shapes.items()}
        >>> model, params = lj.convert.from_xlstm(weights)
        >>> model.hidden_size, model.num_heads, params[0].forward.recurrent_kernel.shape
        (8, 2, (2, 4, 16))

    References:
        Beck et al. 2024, arXiv:2405.04517; github.com/NX-AI/xlstm.
    """
    leave_out = _check_leave_out(leave_out)
    first, layers, hidden, size = None, [], [], 0
    prefix = "".join(f"{key}." for key in paths.keys_of(path))
    for name, sides in _layers(weights, path):
        read = [layouts.read(name, one, prefix, leave_out) for one in sides]
        first = first or read[0]
        for one in read:
            _check_alike(one, first, read[0], size)
        if len(read) != (len(layers[0]) if layers else len(read)):
            raise ValueError(
                f"{name}: expected as many directions as in the first layer, "
                f"{len(layers[0])}, got {len(read)}."
            )
        layers.append([one.params for one in read])
        hidden.append(read[0].units)
        size = read[0].units * len(read)
    assert first is not None
    model = LSTM(
        first.params.kernel.shape[0],
        hidden[0] if len(set(hidden)) == 1 else tuple(hidden),
        len(hidden),
        bidirectional=len(layers[0]) == 2,
        variant="sLSTM",
        num_heads=first.heads,
        param_dtype=first.params.kernel.dtype.type,
    )
    return model, tuple(Directions(*layer) for layer in layers)


def to_xlstm(
    model: LSTM, params: Params, *, backend: str = "cuda", inputs: str = "x"
) -> Any:
    """Returns what :func:`from_xlstm` takes: for one layer, or a list of several.

    What is around the cell in an ``sLSTMLayer`` is not there: load the weights with
    ``strict=False``. A model without bias gets zeros. The arrays are new ones that
    nothing else uses.

    Args:
        model: the stack.
        params: its parameters.
        backend: "cuda", the package's default, or "vanilla".
        inputs: what the model takes: "x", what the layer takes; "conv1d" for
            ``[silu(conv1d(x)), x]``; "gates" for pre-activations, which gives the two
            arrays of a cell.

    Raises:
        ValueError: if the model has something that xLSTM lacks, by name; if a kernel is
            not made of blocks, one a head, as the layer's are; or if ``params`` are not
            the model's.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(8, 8, variant="sLSTM")
        >>> params = model.init(jax.random.key(0))
        >>> weights = lj.convert.to_xlstm(model, params, backend="vanilla")
        >>> weights["slstm_cell._recurrent_kernel_"].shape
        (1, 32, 8)
    """
    targets.check(XLSTM, model, params)
    options.check_choice("backend", backend, ("cuda", "vanilla"))
    options.check_choice("inputs", inputs, _INPUTS)
    layers = []
    for index, layer in enumerate(params):
        cell = getattr(as_cell(model.cells[index]), "cell", model.cells[index])
        if cell.forget_gate != "sigmoid":
            raise ValueError(
                "forget_gate: expected 'sigmoid', since xLSTM has no other, got "
                f"{cell.forget_gate!r} in layer {index}."
            )
        given = []
        for one, way in zip(layer, Directions._fields, strict=True):
            if one is None:
                continue
            weights = layouts.cell_weights(one, cell.num_heads, backend)
            if inputs != "gates":
                weights = {
                    layouts.INSIDE + name: value for name, value in weights.items()
                }
            name = f"params[{index}].{way}.kernel"
            weights |= layouts.input_weights(name, one.kernel, cell.num_heads, inputs)
            given.append({key: border.give(value) for key, value in weights.items()})
        layers.append(tuple(given) if model.bidirectional else given[0])
    return layers if len(layers) > 1 else layers[0]


def state_from_xlstm(model: LSTM, state: Any) -> State:
    """Takes over the states of the package's cells.

    Args:
        model: the stack the state is for.
        state: of one layer ``[4, *batch, H]``, which is (y, c, n, m); of two directions
            a tuple ``(forward, backward)``, of several layers a list.

    Raises:
        ValueError: if a shape or the number of layers does not fit, or the model's
            layers are no sLSTMs.
        TypeError: if one is no floating array, or ``model`` no stack.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> model = lj.LSTM(3, 8, variant="sLSTM")
        >>> state = lj.convert.state_from_xlstm(model, np.ones((4, 2, 8), np.float32))
        >>> state[0].forward.m.shape
        (2, 8)
    """
    cells = _cells(model)
    layers = state if isinstance(state, list) else [state]
    if len(layers) != len(cells):
        raise ValueError(
            f"state: expected a list of L = {len(cells)} layers' states, got "
            f"{len(layers)}."
        )
    taken = []
    for index, (layer, cell) in enumerate(zip(layers, cells, strict=True)):
        name, sides = f"state[{index}]", [layer]
        if model.bidirectional:
            if not isinstance(layer, tuple) or len(layer) != 2:
                raise ValueError(
                    f"{name}: expected a tuple (forward, backward), got "
                    f"{type(layer).__name__}."
                )
            sides = list(layer)
        taken.append(Directions(*(_take_state(name, one, cell) for one in sides)))
    return tuple(taken)


def state_to_xlstm(model: LSTM, state: State) -> Any:
    """Returns a state as :func:`state_from_xlstm` takes it, as NumPy's arrays.

    The arrays are new ones that nothing else uses; where JAX traces, they are JAX's.

    Raises:
        ValueError: if the state is not the model's, or its layers are no sLSTMs.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> model = lj.LSTM(3, 8, num_layers=2, variant="sLSTM")
        >>> first, second = lj.convert.state_to_xlstm(model, model.zero_state((2,)))
        >>> second.shape
        (4, 2, 8)
    """
    cells = _cells(model)
    layers = []
    for layer in trees.take_state(cells, state, model.bidirectional):
        given = [
            records.give_state(jnp.stack([leaf.astype(one.c.dtype) for leaf in one]))
            for one in layer
            if one is not None
        ]
        layers.append(tuple(given) if model.bidirectional else given[0])
    return layers if len(layers) > 1 else layers[0]


def _check_leave_out(leave_out: Any) -> tuple[str, ...]:
    if isinstance(leave_out, str):
        leave_out = (leave_out,)
    for part in leave_out:
        options.check_choice("leave_out", part, tuple(layouts.AROUND))
    return tuple(leave_out)


def _layers(weights: Any, path: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """For each layer its name, and the dicts of its directions."""
    if isinstance(weights, (list, tuple)) and path:
        raise ValueError(
            f"path: expected none where weights is a {type(weights).__name__}, got "
            f"{path!r}. It says where in one dict a layer is."
        )
    layers = weights if isinstance(weights, list) else [weights]
    if not layers:
        raise ValueError("weights: expected at least one layer, got none.")
    found = []
    for index, layer in enumerate(layers):
        name = f"weights[{index}]" if len(layers) > 1 else "weights"
        sides = layer if isinstance(layer, tuple) else (layer,)
        if isinstance(layer, tuple) and len(layer) != 2:
            raise ValueError(
                f"{name}: expected two directions in a tuple, (forward, backward), got "
                f"{len(layer)}. Layers are a list."
            )
        for one in sides:
            _check_mapping(name, one)
        found.append((name, sides))
    return found


def _check_mapping(name: str, weights: Any) -> None:
    if isinstance(weights, Mapping):
        return
    hint = " Pass layer.state_dict()." if hasattr(weights, "state_dict") else ""
    raise TypeError(
        f"{name}: expected a dict of arrays by name, got {type(weights).__name__}."
        f"{hint}"
    )


def _check_alike(
    one: layouts.Read, first: layouts.Read, forward: layouts.Read, inputs: int
) -> None:
    """Checks a layer in a direction against the first, and the layer before it."""
    key = one.keys[layouts.CELL[0]]
    feeding = one.keys.get(layouts.GATES[0], key)
    if (one.heads, one.units) != (first.heads, forward.units):
        raise ValueError(
            f"{key}: expected N = {first.heads} heads, as in the first layer, and H = "
            f"{forward.units} in both directions, got {one.heads} and {one.units}."
        )
    expected = inputs or forward.params.kernel.shape[0]
    if one.params.kernel.shape[0] != expected:
        raise ValueError(
            f"{feeding}: expected I = {expected} inputs, got "
            f"{one.params.kernel.shape[0]}. A layer takes all outputs of the one "
            "before; one with a convolution, or a cell alone, is a model of its own."
        )


def _cells(model: Any) -> list[Any]:
    """The cells of a stack, if they are sLSTMs."""
    targets.check_stack(model)
    cells = [as_cell(cell) for cell in model.cells]
    for index, cell in enumerate(cells):
        if type(trees.state_template(cell)) is not SLSTMState:
            raise ValueError(
                "model: expected sLSTMs, whose states are h, c, n and m, got "
                f"{cell!r} as layer {index}."
            )
    return cells


def _take_state(name: str, value: Any, cell: Any) -> SLSTMState:
    if isinstance(value, Mapping):
        raise TypeError(
            f"{name}: expected an array, got {type(value).__name__}. Pass its "
            "slstm_state."
        )
    value = layouts.take(name, value)
    size = trees.state_template(cell).h.shape[0]
    expected = (4, *value.shape[1:-1], size)
    if value.ndim < 2:
        expected = (4, size)
    shapes.check_shape(name, "[4, *batch, H]", expected, value)
    return SLSTMState(*value)
