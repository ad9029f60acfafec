"""Weights and states of PyTorch's ``nn.LSTM``.

PyTorch keeps its weights transposed, its gates in our order (i, f, g, o), and two
biases that it only ever adds. The sum is one bias here: outputs are the same, training
is not, since an optimizer moves two biases twice as far as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border, options
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

_SUFFIXES = ("", "_reverse")


def from_torch(
    state_dict: Mapping[str, Any], *, prefix: str = ""
) -> tuple[LSTM, Params]:
    """Takes over the weights of a ``torch.nn.LSTM``.

    Layers, directions, sizes, bias and projection are read off the names and the
    shapes.

    Args:
        state_dict: as from ``module.state_dict()``; of tensors, NumPy or JAX arrays,
            whose dtype is kept. ``weight_ih_l0`` is ``[4H, I]``, ``weight_hh_l0``
            ``[4H, P]``, ``bias_ih_l0`` and ``bias_hh_l0`` ``[4H]``, ``weight_hr_l0``
            ``[P, H]``, and so on for ``_l1``, ``_l0_reverse``.
        prefix: what the names begin with, such as ``"lstm."`` where the LSTM is the
            attribute ``lstm`` of a larger module. Other names are left alone.

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``; ``xs`` is batch
        first unless ``time_major=True``.

    Raises:
        ValueError: if a name is missing or unknown, or a shape does not fit.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> rng = np.random.default_rng(0)
        >>> shapes = dict(weight_ih_l0=(20, 3), weight_hh_l0=(20, 5),
        ...               bias_ih_l0=(20,), bias_hh_l0=(20,))
        >>> weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        >>> model, params = lj.convert.from_torch(weights)
        >>> model.input_size, model.hidden_size, params[0].forward.kernel.shape
        (3, 5, (3, 20))
    """
    weights = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    model = _model(weights, prefix)
    known = set(_names(model))
    if unknown := sorted(set(weights) - known):
        raise ValueError(
            f"state_dict: unknown names {', '.join(prefix + n for n in unknown)}. "
            "For an LSTM inside a larger module pass prefix, such as prefix='lstm.'."
        )
    params = tuple(
        Directions(
            *(
                _params(weights, prefix, cell, f"_l{index}{suffix}")
                for suffix in _suffixes(model)
            )
        )
        for index, cell in enumerate(model.cells)
    )
    return model, params


def to_torch(model: LSTM, params: Params) -> dict[str, np.ndarray]:
    """Returns the weights under PyTorch's names, in PyTorch's layout.

    The bias goes to ``bias_ih``; ``bias_hh`` is 0. Load them into
    ``torch.nn.LSTM(I, H, L, ...)`` with
    ``module.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})``.

    Raises:
        ValueError: if the model has per-layer sizes, merges by anything but "concat",
            or is no stack of standard layers: PyTorch has nothing else.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, bidirectional=True)
        >>> weights = lj.convert.to_torch(model, model.init(jax.random.key(0)))
        >>> weights["weight_hh_l0_reverse"].shape
        (20, 5)
    """
    options.check_exportable(model, "PyTorch")
    if isinstance(model.hidden_size, tuple) and len(set(model.hidden_size)) > 1:
        raise ValueError(
            "hidden_size: expected one size for all layers, as PyTorch has, got "
            f"{model.hidden_size}."
        )
    if model.bidirectional and model.merge != "concat":
        raise ValueError(
            f"merge: expected 'concat', which is all that PyTorch has, got "
            f"{model.merge!r}."
        )
    weights = {}
    for index, layer in enumerate(params):
        for suffix, one in zip(_suffixes(model), layer, strict=False):
            end = f"_l{index}{suffix}"
            weights[f"weight_ih{end}"] = border.give(one.kernel.T)
            weights[f"weight_hh{end}"] = border.give(one.recurrent_kernel.T)
            if one.bias is not None:
                weights[f"bias_ih{end}"] = border.give(one.bias)
                weights[f"bias_hh{end}"] = np.zeros_like(weights[f"bias_ih{end}"])
            if one.projection_kernel is not None:
                weights[f"weight_hr{end}"] = border.give(one.projection_kernel.T)
    return weights


def state_from_torch(model: LSTM, h: Any, c: Any) -> State:
    """Takes over PyTorch's ``(h_0, c_0)``.

    Args:
        model: the stack the state is for.
        h: ``[L*D, B, P]``, or ``[L*D, P]`` without a batch.
        c: ``[L*D, B, H]``, or ``[L*D, H]``.

    Raises:
        ValueError: if the leading axis is not L*D.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> h = c = jnp.ones((2, 4, 5))
        >>> state = lj.convert.state_from_torch(model, h, c)
        >>> state[1].forward.h.shape
        (4, 5)
    """
    h, c = _array(h), _array(c)
    directions = len(_suffixes(model))
    for name, value in (("h", h), ("c", c)):
        if value.ndim < 2 or value.shape[0] != model.num_layers * directions:
            raise ValueError(
                f"{name}: expected shape [L*D, *batch, ...] with L*D = "
                f"{model.num_layers} * {directions}, got {list(value.shape)}."
            )
    pairs = [LSTMState(*pair) for pair in zip(h, c, strict=True)]
    return tuple(
        Directions(*pairs[start : start + directions])
        for start in range(0, len(pairs), directions)
    )


def state_to_torch(model: LSTM, state: State) -> tuple[Array, Array]:
    """Returns ``(h, c)``, ``[L*D, *batch, P]`` and ``[L*D, *batch, H]``.

    Example:
        >>> import lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
        >>> h, c = lj.convert.state_to_torch(model, model.zero_state((4,)))
        >>> h.shape
        (4, 4, 5)
    """
    directions = len(_suffixes(model))
    flat = [one for layer in state for one in layer[:directions]]
    return jnp.stack([one.h for one in flat]), jnp.stack([one.c for one in flat])


def _suffixes(model: LSTM) -> tuple[str, ...]:
    return _SUFFIXES if model.bidirectional else _SUFFIXES[:1]


def _model(weights: Mapping[str, Any], prefix: str) -> LSTM:
    """The stack that the names and the first layer's shapes describe."""
    for name in ("weight_ih_l0", "weight_hh_l0"):
        if name not in weights:
            raise ValueError(
                f"state_dict: {prefix + name} is missing. Names begin with "
                f"{', '.join(sorted({n.split('.')[0] for n in weights})) or 'nothing'}"
                f" after the prefix {prefix!r}; is the prefix right?"
            )
    rows, input_size = weights["weight_ih_l0"].shape
    output_size = weights["weight_hh_l0"].shape[1]
    projected = "weight_hr_l0" in weights
    if projected:
        output_size, hidden_size = weights["weight_hr_l0"].shape
    else:
        hidden_size = output_size
    if rows != 4 * hidden_size:
        kind = {3: "a GRU", 1: "a plain RNN"}.get(rows // hidden_size, "no LSTM")
        raise ValueError(
            f"{prefix}weight_ih_l0: expected shape [4H, I] with H = {hidden_size}, got "
            f"{[rows, input_size]}. These look like the weights of {kind}."
        )
    layers = 0
    while f"weight_ih_l{layers}" in weights:
        layers += 1
    return LSTM(
        input_size,
        hidden_size,
        layers,
        bidirectional="weight_ih_l0_reverse" in weights,
        proj_size=output_size if projected else None,
        use_bias="bias_ih_l0" in weights,
    )


def _names(model: LSTM) -> list[str]:
    kinds = ["weight_ih", "weight_hh"]
    if model.use_bias:
        kinds += ["bias_ih", "bias_hh"]
    if model.proj_size is not None:
        kinds.append("weight_hr")
    return [
        f"{kind}_l{index}{suffix}"
        for index in range(model.num_layers)
        for suffix in _suffixes(model)
        for kind in kinds
    ]


def _params(weights: Mapping[str, Any], prefix: str, cell: Any, end: str) -> LSTMParams:
    """One layer in one direction."""
    gates, hidden = 4 * cell.hidden_size, cell.output_size

    def take(kind, letters, *shape):
        name = kind + end
        if name not in weights:
            raise ValueError(f"state_dict: {prefix + name} is missing.")
        value = _array(weights[name])
        if value.shape != shape:
            raise ValueError(
                f"{prefix + name}: expected shape {letters} = {list(shape)}, got "
                f"{list(value.shape)}."
            )
        return value

    bias = projection_kernel = None
    if cell.use_bias:
        bias = take("bias_ih", "[4H]", gates) + take("bias_hh", "[4H]", gates)
    if cell.proj_size is not None:
        projection_kernel = take("weight_hr", "[P, H]", hidden, cell.hidden_size).T
    return LSTMParams(
        kernel=take("weight_ih", "[4H, I]", gates, cell.input_size).T,
        recurrent_kernel=take("weight_hh", "[4H, P]", gates, hidden).T,
        bias=bias,
        projection_kernel=projection_kernel,
    )


def _array(value: Any) -> Array:
    """A tensor, NumPy or JAX array as a JAX array of the same dtype."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            # NumPy has no bfloat16; float32 holds each one exactly.
            return jnp.asarray(value.float().numpy(), jnp.bfloat16)
        value = value.numpy()
    return jnp.asarray(value)
