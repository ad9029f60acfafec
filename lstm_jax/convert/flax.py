"""What Flax's two APIs have in common: cells of dense layers, ``RNN``, carries (c, h).

Each gate has a dense layer for the inputs and one for the hidden state, which has the
one bias there is. The gates are in our order: i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lstm_jax.checks import arrays as shapes
from lstm_jax.convert import carries, paths, targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, LSTMParams, LSTMState

DIRECTIONS = ("forward_rnn", "backward_rnn")
# Other cells by the names of their layers.
_OTHERS = {
    ("hn", "hr", "hz", "in", "ir", "iz"): "a GRUCell",
    ("hf", "hn", "if", "in"): "an MGUCell",
    ("hh", "ih"): "a ConvLSTMCell",
    ("h", "i"): "a SimpleCell",
}
# What errors call our arrays: the gates' together, and each where Flax has one.
_APART = {"recurrent_kernel": "h*/kernel", "kernel": "i*/kernel", "bias": "h*/bias"}
_JOINED = {
    "recurrent_kernel": "dense_h/kernel",
    "kernel": "dense_i/kernel",
    "bias": "dense_h/bias",
}


def cells_of(
    layers: Sequence[tuple[paths.Part, ...]], ends: Sequence[str]
) -> list[list[paths.Part]]:
    """The cells of each layer: one, or two of two directions.

    Args:
        layers: for each a cell, an ``RNN``, a ``Bidirectional``, or two of the first
            two.
        ends: names of which a cell has one.

    Raises:
        ValueError: if one is none of them.
    """
    found = []
    for layer in layers:
        if len(layer) == 1 and layer[0].has(*DIRECTIONS):
            _check_heads(layer[0], *DIRECTIONS)
            layer = tuple(layer[0].under(name) for name in DIRECTIONS)
        found.append([_cell_of(part, ends) for part in layer])
    return found


def _cell_of(part: paths.Part, ends: Sequence[str]) -> paths.Part:
    if part.has("cell"):
        _check_heads(part, "cell")
        part = part.under("cell")
    heads = part.heads()
    if tuple(heads) in _OTHERS:
        raise ValueError(
            f"{part.shown}: expected the weights of an LSTM cell, got "
            f"{', '.join(heads)}: these look like those of {_OTHERS[tuple(heads)]}."
        )
    if not any(end in part.leaves for end in ends):
        raise ValueError(
            f"{part.name}{ends[0]}: expected an array, got none. "
            f"{paths.elsewhere(part, ends, ('cell', *DIRECTIONS))}"
        )
    return part


def _check_heads(part: paths.Part, *expected: str) -> None:
    if sorted(expected) != part.heads():
        raise ValueError(
            f"{part.shown}: expected {' and '.join(expected)} and nothing else, got "
            f"{', '.join(part.heads())}. Of a larger model's tree pass the path too."
        )


def join(part: paths.Part, forget: str = "if") -> LSTMParams:
    """The dense layers of a cell in our layout.

    Args:
        part: the cell.
        forget: what the layer of the inputs is called for the forget gate.

    Raises:
        ValueError: if a name is missing or unknown, or a shape does not fit.
        TypeError: if one is no floating array.
    """
    inputs, hidden = _names(forget)
    letters = {f"{name}/kernel": "IH" for name in inputs}
    letters |= {f"{name}/kernel": "HH" for name in hidden}
    letters |= {f"{name}/bias": "H" for name in hidden}
    arrays = part.take(letters)
    _check_shapes(part, arrays, letters, _sizes(arrays, inputs, hidden))

    def side(names, kind):
        first, *others = (arrays[f"{name}/{kind}"] for name in names)
        for name, other in zip(names[1:], others, strict=True):
            if other.dtype != first.dtype:
                raise ValueError(
                    f"{part.name}{name}/{kind}: expected the dtype of "
                    f"{names[0]}/{kind}, {first.dtype}, got {other.dtype}."
                )
        return jnp.concatenate([first, *others], -1)

    return LSTMParams(
        side(inputs, "kernel"), side(hidden, "kernel"), side(hidden, "bias")
    )


def split(one: LSTMParams, forget: str = "if") -> dict[str, dict[str, Array]]:
    """A layer in our layout as the dense layers of a cell; see :func:`join`."""
    inputs, hidden = _names(forget)
    gates = [
        jnp.split(array, 4, -1)
        for array in (one.kernel, one.recurrent_kernel, paths.bias_of(one))
    ]
    tree = {}
    for i, h, *arrays in zip(inputs, hidden, *gates, strict=True):
        kernel, recurrent, bias = map(paths.own, arrays)
        tree[i] = {"kernel": kernel}
        tree[h] = {"kernel": recurrent, "bias": bias}
    return tree


def _names(forget: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return ("ii", forget, "ig", "io"), ("hi", "hf", "hg", "ho")


def _sizes(
    arrays: Mapping[str, Array], inputs: Sequence[str], hidden: Sequence[str]
) -> dict[str, int]:
    """H and I, as far as they show; the hidden side's kernels are square."""

    def first(names):
        there = (arrays.get(f"{name}/kernel") for name in names)
        matrices = (one.shape[-2:] for one in there if one is not None and one.ndim > 1)
        return next(matrices, None)

    square, wide = first(hidden), first(inputs)
    sizes = {"H": square[0]} if square else {}
    if wide:
        size = sizes.setdefault("H", wide[1])
        sizes["I"] = wide[1] if wide[0] == size != wide[1] else wide[0]
    return sizes


def _check_shapes(
    part: paths.Part,
    arrays: Mapping[str, Array],
    letters: Mapping[str, str],
    sizes: Mapping[str, int],
) -> None:
    for name, axes in letters.items():
        value, joined = arrays.get(name), f"[{', '.join(axes)}]"
        expected = tuple(sizes[axis] for axis in axes if axis in sizes)
        known = len(expected) == len(axes)
        if value is None or not known:
            joined += f" = {list(expected)}" if known else ""
            got = "none" if value is None else list(value.shape)
            raise ValueError(f"{part.name}{name}: expected shape {joined}, got {got}.")
        hint = ""
        if value.shape == expected[::-1]:
            hint = "It is transposed."
        elif value.shape[1:] == expected:
            hint = "An axis more, as nn.vmap and nn.scan add one: pass one layer of it."
        shapes.check_shape(part.name + name, joined, expected, value, hint)


def build(
    argument: str,
    cells: Sequence[Sequence[paths.Part]],
    layers: Sequence[Sequence[LSTMParams]],
    gate_fn: Any,
    activation_fn: Any,
    **options: Any,
) -> tuple[LSTM, Params]:
    """The model of cells that are taken already; errors call arrays as their parts."""

    def called(index: int, direction: int, field: str) -> str:
        part = cells[index][direction]
        return part.name + (_JOINED if part.has("dense_h") else _APART)[field]

    activations = (gate_fn, activation_fn, activation_fn)
    options |= zip(targets.ACTIVATIONS, activations, strict=True)
    return paths.build(argument, layers, called, **options)


def nest(module: str, cells: Sequence[Any]) -> Any:
    """A layer's cells, one or two, as those of a "cell" or of an "RNN" around it."""
    if module == "cell":
        return cells[0] if len(cells) == 1 else tuple(cells)
    around = [{"cell": cell} for cell in cells]
    if len(around) == 1:
        return around[0]
    return dict(zip(DIRECTIONS, around, strict=True))


def take_carries(library: str, model: Any, carry: Any) -> State:
    """Takes the carries of cells."""

    def one(name, carry):
        c, h = carries.take_pair(name, carry, "(c, h)")
        return LSTMState(h=h, c=c)

    return carries.take(library, model, carry, one, "(c, h)")


def give_carries(library: str, model: Any, state: State) -> Any:
    """Gives the carry of the one layer, or a list of them."""
    layers = carries.give(library, model, state, lambda one: (one.c, one.h))
    return layers[0] if len(layers) == 1 else layers
