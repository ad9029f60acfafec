"""Weights and states of PyTorch's ``nn.LSTM`` and ``nn.LSTMCell``.

PyTorch keeps its weights transposed, its gates in our order (i, f, g, o), and two
biases that it only ever adds. The sum is one bias here: outputs are the same, training
is not, since an optimizer moves two biases twice as far as one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, slips
from lstm_jax.convert import layers as records
from lstm_jax.convert import stacked, targets
from lstm_jax.convert import torch_names as names
from lstm_jax.convert.files import safetensors
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, LSTMParams

PYTORCH = targets.Target("PyTorch", {"proj_size": True}, each_size=False)


def from_torch(
    state_dict: Mapping[str, Any] | str | os.PathLike[str], *, prefix: str = ""
) -> tuple[LSTM, Params]:
    """Takes over the weights of a ``torch.nn.LSTM`` or ``torch.nn.LSTMCell``.

    Layers, directions, sizes, bias and projection are read off the names and the
    shapes.

    Args:
        state_dict: as from ``module.state_dict()``; of tensors, NumPy or JAX arrays,
            whose dtype is kept (float64 where 64-bit types are on). ``weight_ih_l0`` is
            ``[4H, I]``, ``weight_hh_l0`` ``[4H, P]``, ``bias_ih_l0`` and ``bias_hh_l0``
            ``[4H]``, ``weight_hr_l0`` ``[P, H]``, and so on for ``_l1``,
            ``_l0_reverse``. Names without ``_l0`` are a cell's, which is a model of one
            layer. With weight drop (AWD-LSTM, ULMFiT) ``weight_hh_l0_raw`` is the
            weight, whether ``weight_hh_l0``, a dropped copy, is beside it or not. The
            two arrays that weight norm (in both its forms) and pruning keep for one
            weight are multiplied out. The path of a ``.safetensors`` file of such
            names will do, the aliases in its metadata included; a ``.pt`` file is read
            with ``torch.load(path, weights_only=True)`` first.
        prefix: what the names begin with, such as ``"lstm."`` where the LSTM is the
            attribute ``lstm`` of a larger module. Other names are left alone. What
            wraps modules (``module.``, ``_orig_mod.`` and the like) need not be said.

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``; ``xs`` is batch
        first unless ``time_major=True``.

    Raises:
        ValueError: if a name is missing or unknown, or a shape does not fit.
        TypeError: if it is no state dict, or a weight is no floating array.

    Example:
        >>> import numpy as np, lstm_jax as lj
        >>> rng = np.random.default_rng(0)
        >>> shapes = dict(weight_ih_l0=(20, 3), weight_hh_l0=(20, 5),
        ...               bias_ih_l0=(20,), bias_hh_l0=(20,))
        >>> weights = {name: rng.normal(size=shape).astype("float32")
        ...            for name, shape in shapes.items()}
        >>> model, params = lj.convert.from_torch(weights)
        >>> model.input_size, model.hidden_size, params[0].forward.kernel.shape
        (3, 5, (3, 20))
    """
    opened = safetensors.opened(state_dict)
    sources = names.find(opened, prefix)
    ends = names.ends_of(sources)
    names.check(sources, ends, prefix)
    arrays = {name: source.read(opened) for name, source in sources.items()}

    def name_of(index, direction, field):
        return sources[names.KINDS[field] + ends[index][direction]].key

    layers = [[_record(arrays, sources, end) for end in layer] for layer in ends]
    return records.build(layers, name_of, flipped=True)


def to_torch(model: LSTM, params: Params) -> dict[str, np.ndarray]:
    """Returns the weights under PyTorch's names, in PyTorch's layout.

    The bias goes to ``bias_ih``; ``bias_hh`` is 0. Load them into
    ``torch.nn.LSTM(I, H, L, ...)`` with
    ``module.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})``;
    bfloat16, which PyTorch does not take from NumPy, goes through
    ``torch.from_numpy(v.astype("float32")).bfloat16()``. The arrays are new ones that
    nothing else uses.

    Raises:
        ValueError: if the model has per-layer sizes, merges by anything but "concat",
            or is no stack of standard layers: PyTorch has nothing else; or if
            ``params`` are not its own.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, bidirectional=True)
        >>> weights = lj.convert.to_torch(model, model.init(jax.random.key(0)))
        >>> weights["weight_hh_l0_reverse"].shape
        (20, 5)
    """
    targets.check(PYTORCH, model, params)
    weights = {}
    for index, layer in enumerate(params):
        for suffix, one in zip(_suffixes(model), layer, strict=False):
            end = f"_l{index}{suffix}"
            for field, kind in names.KINDS.items():
                value = getattr(one, field)
                if value is not None:
                    weights[kind + end] = border.give(value.T)
            if one.bias is not None:
                weights[f"bias_hh{end}"] = np.zeros_like(weights[f"bias_ih{end}"])
    return weights


@slips.explained
def state_from_torch(model: LSTM, h: Any, c: Any) -> State:
    """Takes over PyTorch's ``(h_0, c_0)``.

    Args:
        model: the stack the state is for.
        h: ``[L*D, B, P]``, or ``[L*D, P]`` without a batch.
        c: ``[L*D, B, H]``, or ``[L*D, H]``.

    Raises:
        ValueError: if an axis has another size, or the model's layers have states that
            PyTorch has not.
        TypeError: if one is no floating array, or ``model`` no stack.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> h = c = jnp.ones((2, 4, 5))
        >>> state = lj.convert.state_from_torch(model, h, c)
        >>> state[1].forward.h.shape
        (4, 5)
    """
    return stacked.take(PYTORCH.name, model, h, c)


def state_to_torch(model: LSTM, state: State) -> tuple[Any, Any]:
    """Returns ``(h, c)``, ``[L*D, *batch, P]`` and ``[L*D, *batch, H]``, as NumPy's.

    The arrays are new ones that nothing else uses; where JAX traces, they are JAX's.

    Raises:
        ValueError: if the state is not the model's, or one that PyTorch has not.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
        >>> h, c = lj.convert.state_to_torch(model, model.zero_state((4,)))
        >>> h.shape
        (4, 4, 5)
    """
    return stacked.give(PYTORCH.name, model, state)


def _suffixes(model: LSTM) -> tuple[str, ...]:
    return names.SUFFIXES if model.bidirectional else names.SUFFIXES[:1]


def _record(
    arrays: Mapping[str, Array], sources: Mapping[str, names.Source], end: str
) -> LSTMParams:
    """One layer in one direction, in our layout."""
    recurrent, bias = arrays[f"weight_hh{end}"], arrays.get(f"bias_ih{end}")
    if bias is not None:
        other = arrays[f"bias_hh{end}"]
        if bias.shape != other.shape:
            for kind, one in (("bias_ih", bias), ("bias_hh", other)):
                key, expected = sources[kind + end].key, recurrent.shape[:1]
                shapes.check_shape(key, "[4H]", expected, one)
        for kind, one in (("bias_ih", bias), ("bias_hh", other)):
            shapes.check_array(sources[kind + end].key, one)
        with jax.numpy_dtype_promotion("standard"):  # The wider dtype holds both.
            bias = bias + other
    projection = arrays.get(f"weight_hr{end}")
    return LSTMParams(
        kernel=arrays[f"weight_ih{end}"].T,
        recurrent_kernel=recurrent.T,
        bias=bias,
        projection_kernel=None if projection is None else projection.T,
    )
