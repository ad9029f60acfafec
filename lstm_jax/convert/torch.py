"""Weights and states of PyTorch's ``nn.LSTM`` and ``nn.LSTMCell``.

PyTorch keeps its weights transposed, its gates in our order (i, f, g, o), and two
biases that it only ever adds. The sum is one bias here: outputs are the same, training
is not, since an optimizer moves two biases twice as far as one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, slips, trees
from lstm_jax.convert import layers as records
from lstm_jax.convert import targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

_SUFFIXES = ("", "_reverse")
_KINDS = {
    "kernel": "weight_ih",
    "recurrent_kernel": "weight_hh",
    "bias": "bias_ih",
    "projection_kernel": "weight_hr",
}

PYTORCH = targets.Target("PyTorch", {"proj_size": True}, each_size=False)

# What wraps a module without changing it: DataParallel, weight drop, torch.compile.
_WRAPPERS = ("module", "_orig_mod")
# Other forms of the same weights by their names, and what makes plain ones of them.
_OTHER_FORMS = {
    r"parametrizations\.weight_(ih|hh)": "are parametrized: call torch.nn.utils."
    "parametrize.remove_parametrizations(lstm, name)",
    r"weight_(ih|hh)\w*_v$": "are normalised: call torch.nn.utils."
    "remove_weight_norm(lstm, name)",
    r"(weight|bias)_\w+_(orig|mask)$": "are pruned: call torch.nn.utils.prune.remove("
    "lstm, name)",
    r"_all_weight_values\.": "are quantized: take the LSTM as it was before",
}


def from_torch(
    state_dict: Mapping[str, Any], *, prefix: str = ""
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
            weight, whether ``weight_hh_l0``, a dropped copy, is beside it or not.
        prefix: what the names begin with, such as ``"lstm."`` where the LSTM is the
            attribute ``lstm`` of a larger module. Other names are left alone. What
            wraps the LSTM after it (``module.``, ``_orig_mod.``) need not be said.

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
        >>> weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        >>> model, params = lj.convert.from_torch(weights)
        >>> model.input_size, model.hidden_size, params[0].forward.kernel.shape
        (3, 5, (3, 20))
    """
    names = _names(state_dict, prefix)
    ends = _ends(names)
    _check_names(names, ends, prefix)
    arrays = {name: _array(there, state_dict[there]) for name, there in names.items()}

    def name_of(index, direction, field):
        return names[_KINDS[field] + ends[index][direction]]

    layers = [[_record(arrays, names, end) for end in layer] for layer in ends]
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
            for field, kind in _KINDS.items():
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
    cells, row = records.check_states_of("PyTorch", model)
    layers, directions = len(cells), len(_suffixes(model))
    arrays = _array("h", h), _array("c", c)
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
    cells, _ = records.check_states_of("PyTorch", model)
    state = trees.take_state(cells, state, model.bidirectional)
    flat = [one for layer in state for one in layer if one is not None]
    h, c = (jnp.stack(leaves) for leaves in zip(*flat, strict=True))
    return records.give_state(h), records.give_state(c)


def _suffixes(model: LSTM) -> tuple[str, ...]:
    return _SUFFIXES if model.bidirectional else _SUFFIXES[:1]


def _names(state_dict: Any, prefix: str) -> dict[str, str]:
    """The names in the dict by those that an ``nn.LSTM`` would give."""
    _check_mapping(state_dict)
    names = {}
    for there in state_dict:
        if not str(there).startswith(prefix):
            continue
        parts = str(there).removeprefix(prefix).split(".")
        name = ".".join(part for part in parts if part not in _WRAPPERS)
        if name in names:
            raise ValueError(
                f"state_dict: {names[name]} and {there} are both {name} after the "
                f"prefix {prefix!r}. Pass a longer one."
            )
        names[name] = there
    # Weight drop keeps the weight on the module it wraps, or on what wraps that one.
    outside = prefix.removesuffix("module.")
    for there in state_dict:
        inner = str(there).removeprefix(outside)
        found = inner.endswith("_raw") and "." not in inner
        if found and outside != prefix and outside + inner == there:
            names.setdefault(inner, there)
    for name in [name for name in names if name.endswith("_raw")]:
        names[name.removesuffix("_raw")] = names.pop(name)
    for kind in (*_KINDS.values(), "bias_hh"):
        if kind in names:
            names[f"{kind}_l0"] = names.pop(kind)
    if "weight_ih_l0" not in names:
        raise ValueError(
            f"state_dict: {prefix}weight_ih_l0 is missing. "
            f"{_other_form(names) or _elsewhere(state_dict, prefix)}"
        )
    return names


def _check_mapping(state_dict: Any) -> None:
    if isinstance(state_dict, Mapping):
        return
    hint = ""
    if hasattr(state_dict, "state_dict"):
        hint = "Pass module.state_dict()."
    elif isinstance(state_dict, (str, os.PathLike)):
        hint = "Read the file first: torch.load(path, weights_only=True)."
    raise TypeError(
        "state_dict: expected a dict of arrays by name, got "
        f"{type(state_dict).__name__}. {hint}".rstrip()
    )


def _elsewhere(state_dict: Mapping[str, Any], prefix: str) -> str:
    """Where else an LSTM's names are, or which names there are."""
    ends = ("weight_ih_l0", "weight_ih")
    found = {
        there.removesuffix(end)
        for there in map(str, state_dict)
        for end in ends
        if there.endswith(end)
    }
    if found:
        return f"It is there with prefix={' or '.join(map(repr, sorted(found)))}."
    for name, value in state_dict.items():
        if isinstance(value, Mapping) and any(str(n).endswith(ends) for n in value):
            return f"It is in the dict under {name!r}: pass that one."
    begins = sorted({str(name).split(".")[0] for name in state_dict})
    return (
        f"Names begin with {', '.join(begins) or 'nothing'}; the prefix is {prefix!r}."
    )


def _other_form(names: Mapping[str, str]) -> str:
    """Names the form that weights are in, where it is not the plain one."""
    for pattern, words in _OTHER_FORMS.items():
        for name, there in names.items():
            if re.search(pattern, name):
                return f"Weights such as {there} {words}, and then state_dict()."
    return ""


def _ends(names: Mapping[str, str]) -> list[list[str]]:
    """For each layer the ends of its names, one a direction."""
    suffixes = _SUFFIXES if "weight_ih_l0_reverse" in names else _SUFFIXES[:1]
    ends = []
    while f"weight_ih_l{len(ends)}" in names:
        ends.append([f"_l{len(ends)}{suffix}" for suffix in suffixes])
    return ends


def _check_names(names: Mapping[str, str], ends: list[list[str]], prefix: str) -> None:
    """Checks that nothing is missing and nothing else there."""
    kinds = ["weight_ih", "weight_hh"]
    if any(name.startswith("bias_") for name in names):
        kinds += ["bias_ih", "bias_hh"]
    if any(name.startswith("weight_hr") for name in names):
        kinds.append("weight_hr")
    known = [kind + end for layer in ends for end in layer for kind in kinds]
    if missing := [prefix + name for name in known if name not in names]:
        hint = _other_form(names)
        if not hint and any("weight_" in name for name in missing):
            hint = (
                "Files lose weights that share memory, as a GPU's do: save "
                "{name: value.clone() for name, value in module.state_dict().items()}."
            )
        verb = "is" if len(missing) == 1 else "are"
        raise ValueError(
            f"state_dict: {', '.join(missing)} {verb} missing. {hint}".rstrip()
        )
    if unknown := sorted(names[name] for name in set(names) - set(known)):
        hint = _other_form(names)
        if not hint and any("." in name.removeprefix(prefix) for name in unknown):
            hint = (
                "For an LSTM inside a larger module pass prefix, such as "
                "prefix='lstm.'."
            )
        raise ValueError(
            f"state_dict: unknown names {', '.join(unknown)}. {hint}".rstrip()
        )


def _record(
    arrays: Mapping[str, Array], names: Mapping[str, str], end: str
) -> LSTMParams:
    """One layer in one direction, in our layout."""
    recurrent, bias = arrays[f"weight_hh{end}"], arrays.get(f"bias_ih{end}")
    if bias is not None:
        other = arrays[f"bias_hh{end}"]
        if bias.shape != other.shape:
            for kind, one in (("bias_ih", bias), ("bias_hh", other)):
                shapes.check_shape(names[kind + end], "[4H]", recurrent.shape[:1], one)
        bias += other.astype(bias.dtype)
    projection = arrays.get(f"weight_hr{end}")
    return LSTMParams(
        kernel=arrays[f"weight_ih{end}"].T,
        recurrent_kernel=recurrent.T,
        bias=bias,
        projection_kernel=None if projection is None else projection.T,
    )


def _array(name: str, value: Any) -> Array:
    """A tensor of any device, NumPy or JAX array as a JAX array."""
    return border.take(
        name, value.detach().cpu() if hasattr(value, "detach") else value
    )
