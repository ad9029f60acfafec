"""Weights and states of Haiku's ``LSTM``, alone or in a ``DeepRNN``.

Haiku has one matrix, for inputs and then hidden state, with the gates in the order i,
g, f, o, and adds 1 to the forget gate as it runs. That 1 is in our bias: it is added on
the way in and taken off on the way out, which costs one rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, options, slips
from lstm_jax.convert import carries, paths, targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

HAIKU = targets.Target("Haiku", {"skip": (True,)}, merges=paths.MERGES)

_KERNEL, _BIAS = "linear/w", "linear/b"
_LETTERS = {_KERNEL: "[I+H, 4H]", _BIAS: "[4H]"}
# Other cores by names of arrays that no LSTM has.
_OTHERS = {
    "w_h": "a GRU",
    "linear_1/w": "a VanillaRNN",
    "hidden_to_hidden/w": "a convolutional LSTM",
}
# Of all of them, below the core's module.
_NAMES = {
    *(_KERNEL, _BIAS, "linear_1/w", "linear_1/b", "w_i", "w_h", "b"),
    *(f"{side}_to_hidden/{name}" for side in ("input", "hidden") for name in "wb"),
}


@slips.explained
def from_haiku(
    params: Any, *, path: Any = (), merge: str = "concat"
) -> tuple[LSTM, Params]:
    """Takes over the weights of Haiku's ``LSTM`` cores.

    Args:
        params: as from ``transformed.init``, for a core in the module ``lstm``
            ``{"lstm/linear": {"w": [I+H, 4H], "b": [4H]}}``; of JAX or NumPy arrays,
            whose dtype is kept. Cores side by side whose names differ by their numbers
            alone, ``lstm`` and ``lstm_1``, are the layers of a ``DeepRNN`` in that
            order; one made by ``deep_rnn_with_skip_connections`` shows in the shapes.
            Else a stack is a list of params, one a layer, and two cores for two
            directions are a tuple ``(forward, backward)``.
        path: where the core is in the params of a larger model: its module's name, such
            as "agent/~/lstm", or that of what is around the cores of a ``DeepRNN``. For
            a stack a list of names, in the order in which layers feed each other.
        merge: how the model merges two directions, which Haiku leaves to its users:
            "concat", "sum", "mean" or "mul".

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``. Batch is first
        in ``xs`` unless ``time_major=True``, Haiku's default.

    Raises:
        ValueError: if a name is missing or unknown, a shape does not fit, the weights
            are another core's, or there is nothing under ``path``.
        TypeError: if it is no dict, or a weight is no floating array.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.convert.haiku import from_haiku
        >>> weights = {"lstm/linear": {"w": jnp.ones((8, 20)), "b": jnp.zeros(20)}}
        >>> model, params = from_haiku(weights)
        >>> model.input_size, model.hidden_size, params[0].forward.bias[5].item()
        (3, 5, 1.0)
    """
    cores = _cores_of(paths.layers_of("params", params, path, paths.flatten))
    layers = [[_record(core) for core in layer] for layer in cores]

    def called(index, direction, field):
        name = _BIAS if field == "bias" else _KERNEL
        return cores[index][direction].name + name

    widening = 2 if len(layers[0]) == 2 and merge == "concat" else 1
    if _skips(layers, widening):
        return _with_skip(layers, called, merge)
    _check_inputs(layers, called, widening)
    return paths.build("params", layers, called, merge=merge)


def to_haiku(
    model: LSTM, params: Params, *, module: str = "LSTM", name: str = "lstm"
) -> Any:
    """Returns the weights as Haiku's ``init`` does.

    Args:
        model: the stack; one with ``skip=True`` is what
            ``hk.deep_rnn_with_skip_connections`` makes. A model without bias has one in
            Haiku that undoes its 1.
        params: its parameters.
        module: "LSTM" for cores one by one; "DeepRNN" for all layers in one dict.
        name: of the module, such as "agent/~/lstm". Behind that of a later layer of a
            ``DeepRNN`` is its number, as in ``lstm_1``.

    Returns:
        ``{"lstm/linear": {"w": [I+H, 4H], "b": [4H]}}``, for two directions a tuple of
        two, and of a stack of several layers a list of such; or one dict of all layers.
        The arrays are new ones of JAX.

    Raises:
        ValueError: if the model has something that Haiku lacks, by name, or ``params``
            are not its own.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax.convert.haiku import to_haiku
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> weights = to_haiku(model, model.init(jax.random.key(0)), module="DeepRNN")
        >>> sorted(weights), weights["lstm_1/linear"]["w"].shape
        (['lstm/linear', 'lstm_1/linear'], (10, 20))
    """
    options.check_choice("module", module, ("LSTM", "DeepRNN"))

    def layer(index, directions):
        skipped = model.input_size if model.skip and index else 0
        own = f"{name}_{index}" if module == "DeepRNN" and index else name
        made = [{f"{own}/linear": _linear(one, skipped)} for one in directions]
        return tuple(made) if len(made) == 2 else made[0]

    layers = paths.give(HAIKU, model, params, layer)
    if module == "LSTM":
        return layers
    if model.bidirectional:
        raise ValueError(
            "bidirectional: expected False, since a DeepRNN has one direction, got "
            "True. module='LSTM' gives the cores one by one."
        )
    layers = layers if isinstance(layers, list) else [layers]
    return {key: arrays for one in layers for key, arrays in one.items()}


@slips.explained
def state_from_haiku(model: LSTM, state: Any) -> State:
    """Takes over the states of Haiku's cores.

    Args:
        model: the stack the state is for.
        state: an ``hk.LSTMState``, or a dict of its ``hidden`` and ``cell``, each
            ``[*batch, H]``; of two directions a tuple of two, forward first; of a stack
            of several layers a ``DeepRNN``'s tuple, or a list, of such.

    Raises:
        ValueError: if the number of layers or a shape is not the model's.
        TypeError: if one is no such state of floating arrays, or ``model`` no stack.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> from lstm_jax.convert.haiku import state_from_haiku
        >>> state = {"hidden": jnp.zeros((4, 5)), "cell": jnp.ones((4, 5))}
        >>> state_from_haiku(lj.LSTM(3, 5), state)[0].forward.c[0, 0].item()
        1.0
    """
    kind = "an LSTMState of hidden and cell"

    def one(name, value):
        if not isinstance(value, Mapping):
            fields = ("hidden", "cell")
            value = {key: getattr(value, key) for key in fields if hasattr(value, key)}
        if set(value) != {"hidden", "cell"}:
            raise TypeError(f"{name}: expected {kind}, got another type.")
        taken = (border.take(f"{name}.{key}", value[key]) for key in ("hidden", "cell"))
        return LSTMState(*taken)

    return carries.take(HAIKU.name, model, state, one, kind)


@slips.explained
def state_to_haiku(model: LSTM, state: State) -> Any:
    """Returns an ``hk.LSTMState``, of a stack of several layers a ``DeepRNN``'s tuple.

    Those of two directions are a tuple of two. The arrays are new ones of JAX.

    Raises:
        ValueError: if the state is not the model's, or one that Haiku has not.
        TypeError: if it is no stack's, or ``model`` no stack.
        ImportError: if Haiku is not installed.

    Example:
        >>> import lstm_jax as lj
        >>> from lstm_jax.convert.haiku import state_to_haiku
        >>> model = lj.LSTM(3, 5)
        >>> state = state_to_haiku(model, model.zero_state((4,)))  # doctest: +SKIP
        >>> state.cell.shape  # doctest: +SKIP
        (4, 5)
    """
    try:
        import haiku as hk
    except ImportError as error:
        raise ImportError(
            'state_to_haiku needs Haiku: pip install "lstm_jax[peers]".'
        ) from error

    def one(state):
        return hk.LSTMState(hidden=state.h, cell=state.c)

    layers = carries.give(HAIKU.name, model, state, one)
    return layers[0] if len(layers) == 1 else tuple(layers)


def _cores_of(layers: Sequence[tuple[paths.Part, ...]]) -> list[list[paths.Part]]:
    """The cores of each layer; those of a ``DeepRNN`` where one stands for a layer."""
    if len(layers) == 1 and len(layers[0]) == 1:
        return [[core] for core in _cores_in(layers[0][0])]
    found = [[_cores_in(part) for part in layer] for layer in layers]
    for cores in (cores for layer in found for cores in layer):
        if len(cores) > 1:
            raise ValueError(
                f"params: expected one core for each layer and direction, got "
                f"{', '.join(core.shown for core in cores)} for one."
            )
    return [[core for (core,) in layer] for layer in found]


def _cores_in(part: paths.Part) -> list[paths.Part]:
    """The cores that a part consists of, in the order of their numbers."""
    if part.leaves and _NAMES.issuperset(part.leaves):
        return [part]
    numbered = {}
    for name in part.leaves:
        ends = [end for end in _NAMES if name.endswith(f"/{end}")]
        place = name.removesuffix(f"/{max(ends, key=len)}") if ends else name
        base, _, number = place.rpartition("_")
        if not number.isdecimal():
            base, number = place, "0"
        numbered[base, int(number)] = place
    keys = sorted(numbered)
    expected = (
        [(keys[0][0], keys[0][1] + n) for n in range(len(keys))] if keys else None
    )
    if keys != expected:
        there = ", ".join(numbered[key] for key in keys) or "nothing"
        raise ValueError(
            f"{part.shown}: expected a core, or the cores of a DeepRNN by number, and "
            f"nothing else, got {there}. "
            f"{paths.elsewhere(part, (_KERNEL,), fits=_fits)}"
        )
    return [part.under((numbered[key],)) for key in keys]


def _fits(kernel: Any) -> bool:
    """Whether a matrix may be a core's, by its shape; others' modules have some too."""
    rows, columns = (*getattr(kernel, "shape", ()), 0, 0)[:2]
    return columns % 4 == 0 and rows > columns // 4 > 0


def _record(part: paths.Part) -> LSTMParams:
    """A core in our layout."""
    for name, core in _OTHERS.items():
        if name in part.leaves:
            raise ValueError(
                f"{part.name}{name}: expected {_KERNEL} of shape [I+H, 4H] and {_BIAS} "
                f"of shape [4H] alone, got one of shape {part.shape(name)}. These look "
                f"like the weights of {core}."
            )
    arrays = part.take(_LETTERS, _LETTERS)
    kernel, bias = arrays[_KERNEL], arrays[_BIAS]
    rows, columns = kernel.shape if kernel.ndim == 2 else (0, 0)
    hidden = columns // 4
    transposed = bias.shape == (rows,) != (columns,)
    if transposed or columns % 4 or rows <= hidden:
        hint = "It is transposed." if transposed else ""
        raise ValueError(
            f"{part.name}{_KERNEL}: expected shape [I+H, 4H], got "
            f"{list(kernel.shape)}. {hint}".rstrip()
        )
    shapes.check_shape(part.name + _BIAS, "[4H]", (4 * hidden,), bias)
    i, f, g, o = jnp.split(_reorder(bias), 4)
    kernel = _reorder(kernel)
    return LSTMParams(
        kernel[:-hidden], kernel[-hidden:], jnp.concatenate([i, f + 1, g, o])
    )


def _linear(one: LSTMParams, skipped: int) -> dict[str, Array]:
    """A core's arrays; ``skipped``: the rows of the stack's inputs, first in Haiku."""
    below = one.kernel.shape[0] - skipped
    kernels = (one.kernel[below:], one.kernel[:below], one.recurrent_kernel)
    i, f, g, o = jnp.split(paths.bias_of(one), 4)
    bias = jnp.concatenate([i, f - 1, g, o])
    return {"w": _reorder(jnp.concatenate(kernels)), "b": _reorder(bias)}


def _reorder(array: Array) -> Array:
    """Gates i, g, f, o as i, f, g, o, and the other way round."""
    first, second, third, fourth = jnp.split(array, 4, -1)
    return jnp.concatenate([first, third, second, fourth], -1)


def _skips(layers: Sequence[Sequence[LSTMParams]], widening: int) -> bool:
    """Whether each later layer takes the inputs of the first too, by its rows."""
    inputs = layers[0][0].kernel.shape[0]
    return len(layers) > 1 and all(
        one.kernel.shape[0] == inputs + widening * below[0].recurrent_kernel.shape[0]
        for below, layer in itertools.pairwise(layers)
        for one in layer
    )


def _with_skip(
    layers: Sequence[Sequence[LSTMParams]],
    called: Callable[[int, int, str], str],
    merge: str,
) -> tuple[LSTM, Params]:
    """The model of layers with skip connections; ours take the inputs last."""
    first, *later = layers
    inputs = first[0].kernel.shape[0]

    def changed(change):
        change_one = lambda one: one._replace(kernel=change(one.kernel))
        return [first, *([*map(change_one, layer)] for layer in later)]

    cut = changed(lambda kernel: kernel[inputs:])
    model, _ = paths.build("params", cut, called, merge=merge)
    turned = changed(lambda kernel: jnp.roll(kernel, -inputs, axis=0))
    params = tuple(Directions(*layer) for layer in turned)
    return dataclasses.replace(model, skip=True), params


def _check_inputs(
    layers: Sequence[Sequence[LSTMParams]],
    called: Callable[[int, int, str], str],
    widening: int,
) -> None:
    """Checks that layers take what those below put out, in Haiku's shapes."""
    for index, (below, layer) in enumerate(itertools.pairwise(layers), 1):
        for direction, one in enumerate(layer):
            expected = widening * below[0].recurrent_kernel.shape[0]
            (hidden, columns), got = one.recurrent_kernel.shape, one.kernel.shape[0]
            if got != expected:
                raise ValueError(
                    f"{called(index, direction, 'kernel')}: expected shape [I+H, 4H] = "
                    f"{[expected + hidden, columns]}, where I is what the layer below "
                    f"puts out, got {[got + hidden, columns]}."
                )
