"""Weights of TensorFlow 1's ``BasicLSTMCell`` and ``LSTMCell``.

Their gates stand in the order i, j, f, o (their j is our g), one kernel ``[I + P, 4H]``
holds the input weights and below them the recurrent ones, and ``forget_bias`` is added
to f at run time: it is not in the variables. Here it is part of the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import as_cell
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, options
from lstm_jax.convert import layers as records
from lstm_jax.convert import paths, targets
from lstm_jax.convert import tf1_names as names
from lstm_jax.layers import LSTM, Params
from lstm_jax.types import Array, LSTMParams

TF1 = targets.Target(
    "TensorFlow 1",
    dict.fromkeys(
        (
            "proj_size",
            "peephole",
            "cell_clip",
            "candidate_activation",
            "output_activation",
        ),
        True,
    ),
    one_activation=True,
)
# Cells that have none of these, by their names.
_PLAIN_CELLS = ("basic_lstm_cell", names.CUDNN_COMPATIBLE)
_ONLY_LSTM_CELL = ("peephole", "proj_size", "cell_clip")


def from_tf1(
    weights: Mapping[str, Any],
    *,
    path: str | Sequence[str] = "",
    forget_bias: float | None = None,
    activation: Callable[[Array], Array] = jnp.tanh,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
) -> tuple[LSTM, Params]:
    """Takes over the variables of ``BasicLSTMCell`` or ``LSTMCell``.

    Layers, directions, sizes, peepholes and projection are read off the names and the
    shapes. What the cells are run by may be ``dynamic_rnn`` over one cell or a
    ``MultiRNNCell``, ``bidirectional_dynamic_rnn`` over two cells, and
    ``stack_bidirectional_dynamic_rnn``. ``LSTMBlockCell`` has the same variables, and
    so have the ``cudnn_compatible_lstm_cell`` that ``CudnnLSTM`` is saved as.

    Args:
        weights: arrays by name, as from ``tf.train.load_checkpoint`` or ``{v.name:
            value}``, with ``:0`` or without; their dtype is kept. For each cell
            ``kernel [I + P, 4H]``, ``bias [4H]``, and of ``LSTMCell`` ``w_i_diag
            [H]``, ``w_f_diag``, ``w_o_diag`` and ``projection/kernel [H, P]``, or the
            words of TensorFlow 1.0, ``weights`` and ``biases``. What hangs below a
            variable, ``kernel/Adam``, is left alone.
        path: where in ``weights`` the LSTM is, such as ``"encoder/rnn"`` or
            ``("encoder", "rnn")``. Other names are left alone.
        forget_bias: what the cells add to f at run time; None for their own default,
            1, and 0 for ``cudnn_compatible_lstm_cell``.
        activation: theirs, of j and of c on its way out; as a function of JAX's.
        cell_clip: that of ``LSTMCell``.
        proj_clip: that of ``LSTMCell``, which nothing here has: expected None.

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``; ``xs`` is batch
        first unless ``time_major=True``.

    Raises:
        ValueError: if a name is missing, unknown or another cell's, a shape does not
            fit, or an option is out of its range.
        TypeError: if it is no dict, or a variable no floating array.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> weights = {"rnn/lstm_cell/kernel:0": np.ones((8, 20), np.float32),
        ...            "rnn/lstm_cell/bias:0": np.zeros(20, np.float32)}
        >>> model, params = lj.convert.from_tf1(weights)
        >>> model.input_size, model.hidden_size, params[0].forward.bias[5].item()
        (3, 5, 1.0)
    """
    if proj_clip is not None:
        raise ValueError(
            "proj_clip: expected None, since no cell here clips its projection, got "
            f"{proj_clip}."
        )
    if forget_bias is not None:
        options.check_finite("forget_bias", forget_bias)
    layers, output = [], 0
    for found in names.find(weights, path):
        cells = [_read(weights, cell) for cell in found]
        sizes = _sizes(cells[0], output * len(cells))
        for cell in cells:
            _check_shapes(cell, sizes)
        output = sizes["P"]
        layers.append([_record(cell, sizes, forget_bias) for cell in cells])

    def name_of(layer, direction, field):
        return f"{field} of cell_{layer} {('fw', 'bw')[direction]}"

    return records.build(
        layers,
        name_of,
        candidate_activation=activation,
        output_activation=activation,
        cell_clip=cell_clip,
    )


def to_tf1(
    model: LSTM,
    params: Params,
    *,
    forget_bias: float | None = None,
    cell: str = "lstm_cell",
) -> dict[str, np.ndarray]:
    """Returns the variables by the names that TensorFlow 1 gives them.

    They are those of ``dynamic_rnn`` over one cell or a ``MultiRNNCell``, of
    ``bidirectional_dynamic_rnn``, or of ``stack_bidirectional_dynamic_rnn``, without
    ``:0``. A model without bias gets one that adds up to 0. Activation and
    ``cell_clip`` are not in the variables: pass them to the cells. The arrays are new
    ones that nothing else uses.

    Args:
        model: the stack.
        params: its parameters.
        forget_bias: that of the cells, which is taken off the bias; None as in
            :func:`from_tf1`.
        cell: the name of the cells: "lstm_cell", "basic_lstm_cell",
            "cudnn_compatible_lstm_cell", or one of your own.

    Raises:
        ValueError: if the model has something that the cells lack, by name; or if
            ``params`` are not its own.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> params = model.init(jax.random.key(0))
        >>> weights = lj.convert.to_tf1(model, params, cell="basic_lstm_cell")
        >>> weights["rnn/multi_rnn_cell/cell_1/basic_lstm_cell/kernel"].shape
        (10, 20)
    """
    targets.check(TF1, model, params)
    if forget_bias is not None:
        options.check_finite("forget_bias", forget_bias)
    for index, one in enumerate(model.cells):
        _check_sayable(index, as_cell(one), cell)
    many, weights = len(params) > 1, {}
    for index, layer in enumerate(params):
        for direction, one in enumerate(layer):
            if one is None:
                continue
            scope = f"cell_{index}/" if many else ""
            if model.bidirectional:
                scope = f"{scope}bidirectional_rnn/{('fw', 'bw')[direction]}/"
                scope = f"stack_bidirectional_rnn/{scope}" if many else scope
            else:
                scope = f"rnn/multi_rnn_cell/{scope}" if many else "rnn/"
            for name, value in _variables(one, cell, forget_bias).items():
                weights[f"{scope}{cell}/{name}"] = border.give(value)
    return weights


class _Read(NamedTuple):
    """A cell's arrays by our words, with their keys."""

    cell: names.Cell
    arrays: dict[str, Array]


def _read(weights: Mapping[str, Any], cell: names.Cell) -> _Read:
    arrays = {
        word: paths.take(str(key), weights[key]) for word, key in cell.keys.items()
    }
    return _Read(cell, arrays)


def _sizes(cell: _Read, inputs: int) -> dict[str, int]:
    """I, H and P of a layer, where its inputs come from the layer before."""
    kernel, key = cell.arrays["kernel"], cell.cell.keys["kernel"]
    if kernel.ndim != 2 or kernel.shape[1] % 4:
        raise ValueError(
            f"{key}: expected shape [I + P, 4H], got {list(kernel.shape)}."
        )
    hidden = output = kernel.shape[1] // 4
    projection = cell.arrays.get("projection")
    if projection is not None and projection.ndim == 2:
        output = projection.shape[1]
    if kernel.shape[0] <= output:
        raise ValueError(
            f"{key}: expected shape [I + P, 4H] with P = {output}, got "
            f"{list(kernel.shape)}, which leaves no inputs. Is it transposed, or "
            "another cell's?"
        )
    return {"I": inputs or kernel.shape[0] - output, "H": hidden, "P": output}


def _check_shapes(cell: _Read, sizes: dict[str, int]) -> None:
    I, H, P = (sizes[letter] for letter in "IHP")
    expected = {
        "kernel": ("[I + P, 4H]", (I + P, 4 * H)),
        "bias": ("[4H]", (4 * H,)),
        "projection": ("[H, P]", (H, P)),
    }
    for word, value in cell.arrays.items():
        letters, shape = expected.get(word, ("[H]", (H,)))
        shapes.check_shape(str(cell.cell.keys[word]), letters, shape, value)


def _record(
    cell: _Read, sizes: dict[str, int], forget_bias: float | None
) -> LSTMParams:
    """One layer in one direction, in our layout."""
    arrays, inputs = cell.arrays, sizes["I"]
    added = _added(cell.cell.name, forget_bias)
    kernel = _swapped(arrays["kernel"])
    bias = _swapped(arrays["bias"])
    peephole = None
    if names.PEEPHOLES[0] in arrays:
        peephole = jnp.stack([arrays[name] for name in names.PEEPHOLES])
    return LSTMParams(
        kernel=kernel[:inputs],
        recurrent_kernel=kernel[inputs:],
        bias=_to_forget_gate(bias, added),
        projection_kernel=arrays.get("projection"),
        peephole=peephole,
    )


def _variables(
    one: LSTMParams, cell: str, forget_bias: float | None
) -> dict[str, Array]:
    """The variables of one cell by their names."""
    kernel = jnp.concatenate([one.kernel, one.recurrent_kernel])
    bias = one.bias
    if bias is None:
        bias = jnp.zeros(kernel.shape[1], kernel.dtype)
    bias = _to_forget_gate(jnp.asarray(bias), -_added(cell, forget_bias))
    variables = {"kernel": _swapped(kernel), "bias": _swapped(bias)}
    if one.peephole is not None:
        variables.update(zip(names.PEEPHOLES, one.peephole, strict=True))
    if one.projection_kernel is not None:
        variables["projection/kernel"] = one.projection_kernel
    return variables


def _swapped(array: Array) -> Array:
    """Gates in the order i, j, f, o as i, f, g, o; or the other way round."""
    first, second, third, fourth = jnp.split(array, 4, axis=-1)
    return jnp.concatenate([first, third, second, fourth], axis=-1)


def _to_forget_gate(bias: Array, added: float) -> Array:
    """A bias, in our order, with something added to that of f."""
    hidden = bias.shape[0] // 4
    return bias.at[hidden : 2 * hidden].add(jnp.asarray(added, bias.dtype))


def _added(cell: str, forget_bias: float | None) -> float:
    """What a cell of some name adds to f at run time."""
    compatible = names.CUDNN_COMPATIBLE in cell
    if compatible and forget_bias:
        raise ValueError(
            f"forget_bias: expected 0, which is what {cell} adds, got {forget_bias}."
        )
    if forget_bias is None:
        return 0.0 if compatible else 1.0
    return forget_bias


def _check_sayable(index: int, one: Any, name: str) -> None:
    """Checks that cells of a name have all that one of ours has."""
    one = getattr(one, "cell", one)
    for option in _ONLY_LSTM_CELL:
        if any(plain in name for plain in _PLAIN_CELLS) and getattr(one, option):
            raise ValueError(
                f"cell: expected 'lstm_cell', since {name} has no {option}, which "
                f"layer {index} has."
            )
