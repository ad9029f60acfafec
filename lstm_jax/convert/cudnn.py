"""Weights and states of cuDNN's LSTM, as ``jax.experimental.rnn`` holds them.

All weights are one flat vector. First come the matrices, layer after layer, forward
before backward: ``W_ih [4H, I]``, ``W_hh [4H, P]`` and, with a projection, ``W_hr
[P, H]``, row by row; then the biases in the same order, ``b_ih [4H]`` and ``b_hh
[4H]``. Gates stand in our order (i, f, g, o). The two biases are only ever added. Their
sum is one bias here: outputs are the same, training is not, since an optimizer moves
two biases twice as far as one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.checks import border, options
from lstm_jax.convert import layers as records
from lstm_jax.convert import paths, stacked, targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import LSTMParams

CUDNN = targets.Target("cuDNN", {"proj_size": True}, each_size=False)

_MATRICES = {
    "kernel": "W_ih",
    "recurrent_kernel": "W_hh",
    "projection_kernel": "W_hr",
}
_BIASES = ("b_ih", "b_hh")


class _Sizes(NamedTuple):
    """All that the length of a vector depends on."""

    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    proj_size: int | None
    biases: int

    @property
    def output_size(self) -> int:
        """P, or H without a projection."""
        return self.hidden_size if self.proj_size is None else self.proj_size

    def parts(self) -> Iterator[tuple[int, int, str, tuple[int, ...]]]:
        """Layer, direction, name and shape of each array, in the vector's order."""
        directions = 1 + self.bidirectional
        places = list(itertools.product(range(self.num_layers), range(directions)))
        rows, output = 4 * self.hidden_size, self.output_size
        for layer, direction in places:
            inputs = directions * output if layer else self.input_size
            yield layer, direction, "W_ih", (rows, inputs)
            yield layer, direction, "W_hh", (rows, output)
            if self.proj_size is not None:
                yield layer, direction, "W_hr", (output, self.hidden_size)
        for layer, direction in places:
            for name in _BIASES[: self.biases]:
                yield layer, direction, name, (rows,)

    def count(self) -> int:
        """The length of the vector; all layers but the first are alike."""
        first, two = (
            sum(math.prod(shape) for *_, shape in self._replace(num_layers=n).parts())
            for n in (1, 2)
        )
        return first + (self.num_layers - 1) * (two - first)

    def words(self, names: tuple[str, ...] = ()) -> str:
        """The sizes, or some of them, as arguments."""
        names = names or self._fields
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def from_cudnn(
    vector: Any,
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    proj_size: int | None = None,
    biases: int = 2,
) -> tuple[LSTM, Params]:
    """Takes over the flat weights of cuDNN's LSTM.

    Args:
        vector: as from ``jax.experimental.rnn.init_lstm_weight``, ``[count]``; its
            dtype is kept (float64 where 64-bit types are on). It holds no sizes, so
            they have to be said.
        input_size: I, features of one input.
        hidden_size: H, units of every layer and direction.
        num_layers: L.
        bidirectional: whether there are two directions.
        proj_size: P, where there is a projection. ``jax.experimental.rnn`` has none;
            cuDNN keeps its matrix behind the recurrent one.
        biases: how many there are, 2 in ``jax.experimental.rnn``; cuDNN can have 1, or
            none.

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``.

    Raises:
        ValueError: if the vector has not exactly as many values as there are weights,
            with the sizes that have; or if an option is out of its range.
        TypeError: if it is no floating array, or an option has the wrong type.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from jax.experimental import rnn
        >>> vector = rnn.init_lstm_weight(jax.random.key(0), 3, 5, 2, True)
        >>> model, params = lj.convert.from_cudnn(
        ...     vector, input_size=3, hidden_size=5, num_layers=2, bidirectional=True
        ... )
        >>> params[1].backward.kernel.shape
        (10, 20)
    """
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        options.check_positive(name, size)
    options.check_positive("num_layers", num_layers)
    options.check_flag("bidirectional", bidirectional)
    _check_biases(biases)
    if proj_size is not None:
        options.check_positive("proj_size", proj_size)
    sizes = _Sizes(
        input_size, hidden_size, num_layers, bool(bidirectional), proj_size, biases
    )
    arrays = _cut(vector, sizes)
    layers = [
        [_record(arrays, layer, direction) for direction in range(1 + bidirectional)]
        for layer in range(num_layers)
    ]

    def name_of(layer, direction, field):
        return f"{_MATRICES.get(field, _BIASES[0])} of layer {layer}"

    return records.build(layers, name_of, flipped=True)


def to_cudnn(model: LSTM, params: Params, *, biases: int = 2) -> np.ndarray:
    """Returns the weights as cuDNN's flat vector, ``[count]``.

    The bias goes to ``b_ih``; ``b_hh`` is 0, and so are both of a model without bias.
    The array is a new one that nothing else uses.

    Args:
        model: the stack.
        params: its parameters.
        biases: how many the vector has: 2, as ``jax.experimental.rnn`` has it, 1, or 0
            for a model without bias.

    Raises:
        ValueError: if the model has something that cuDNN lacks, by name: per-layer
            sizes, another merge than "concat", options that make it no standard LSTM;
            or if ``params`` are not its own.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5)
        >>> lj.convert.to_cudnn(model, model.init(jax.random.key(0))).shape
        (200,)
    """
    targets.check(CUDNN, model, params)
    _check_biases(biases)
    first = params[0].forward
    if first.bias is not None and not biases:
        raise ValueError("biases: expected 1 or 2, since the model has a bias, got 0.")
    projection = first.projection_kernel
    sizes = _Sizes(
        first.kernel.shape[0],
        first.recurrent_kernel.shape[1] // 4,
        len(model.cells),
        model.bidirectional,
        None if projection is None else projection.shape[1],
        biases,
    )
    fields = {name: field for field, name in _MATRICES.items()}
    flat = []
    for layer, direction, name, shape in sizes.parts():
        value = getattr(params[layer][direction], fields.get(name, "bias"))
        if value is None or name == "b_hh":
            value = np.zeros(shape, first.kernel.dtype)
        flat.append(np.ravel(np.asarray(value).T))
    return border.give(np.concatenate(flat))


def state_from_cudnn(model: LSTM, h: Any, c: Any) -> State:
    """Takes over cuDNN's ``h_0`` and ``c_0``, or ``h_n`` and ``c_n``.

    Args:
        model: the stack the state is for.
        h: ``[L*D, B, P]``; a layer's directions stand side by side, forward first.
        c: ``[L*D, B, H]``.

    Raises:
        ValueError: if an axis has another size, or the model's layers have states that
            cuDNN has not.
        TypeError: if one is no floating array, or ``model`` no stack.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> h = c = jnp.ones((2, 4, 5))
        >>> lj.convert.state_from_cudnn(model, h, c)[1].forward.h.shape
        (4, 5)
    """
    return stacked.take(CUDNN.name, model, h, c)


def state_to_cudnn(model: LSTM, state: State) -> tuple[Any, Any]:
    """Returns ``(h, c)``, ``[L*D, B, P]`` and ``[L*D, B, H]``, as NumPy's.

    The arrays are new ones that nothing else uses; where JAX traces, they are JAX's.

    Raises:
        ValueError: if the state is not the model's, or one that cuDNN has not.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
        >>> h, c = lj.convert.state_to_cudnn(model, model.zero_state((4,)))
        >>> h.shape
        (4, 4, 5)
    """
    return stacked.give(CUDNN.name, model, state)


def _check_biases(biases: Any) -> None:
    if isinstance(biases, bool):
        raise TypeError(f"biases: expected how many, 0, 1 or 2, got {biases}.")
    options.check_choice("biases", biases, (0, 1, 2))


def _cut(vector: Any, sizes: _Sizes) -> dict[tuple[int, int, str], Any]:
    """The arrays in a vector, by layer, direction and name."""
    vector = paths.take("vector", vector)
    if vector.ndim != 1:
        raise ValueError(
            f"vector: expected one axis, as cuDNN's weights have it, got shape "
            f"{list(vector.shape)}."
        )
    if vector.shape[0] != sizes.count():
        raise ValueError(
            f"vector: expected {sizes.count()} values, as many as {sizes.words()} "
            f"have, got {vector.shape[0]}. {_nearest(vector.shape[0], sizes)}"
        )
    arrays, start = {}, 0
    for layer, direction, name, shape in sizes.parts():
        stop = start + math.prod(shape)
        arrays[layer, direction, name] = vector[start:stop].reshape(shape)
        start = stop
    return arrays


def _record(arrays: dict[Any, Any], layer: int, direction: int) -> LSTMParams:
    """One layer in one direction, in our layout."""
    found = {
        field: arrays[layer, direction, name].T
        for field, name in _MATRICES.items()
        if (layer, direction, name) in arrays
    }
    biases = [
        arrays[layer, direction, name]
        for name in _BIASES
        if (layer, direction, name) in arrays
    ]
    return LSTMParams(**found, bias=sum(biases[1:], biases[0]) if biases else None)


def _nearest(length: int, sizes: _Sizes) -> str:
    """The sizes nearest to some that a vector of another length has."""
    for changed in _others(length, sizes):
        if changed.count() == length:
            names = tuple(
                name
                for name in sizes._fields
                if getattr(changed, name) != getattr(sizes, name)
            )
            return f"That many are those of {changed.words(names)}."
    return "No one of these sizes accounts for that many."


def _others(length: int, sizes: _Sizes) -> Iterator[_Sizes]:
    """Other sizes, those first that are more likely to be meant.

    Layers, directions, biases, no projection; two of these; then the size of a
    projection, of the layers, of the inputs.
    """
    choices = {
        "num_layers": range(1, min(sizes.num_layers, 100) + 9),
        "bidirectional": (False, True),
        "biases": (0, 1, 2),
        "proj_size": (sizes.proj_size, None),
    }
    every = [
        sizes._replace(**dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]
    for changes in (1, 2):
        yield from (one for one in every if _changes(one, sizes) == changes)
    proj_size = _fitting(length, sizes, "proj_size")
    if 0 < proj_size < sizes.hidden_size:
        yield sizes._replace(proj_size=proj_size)
    for hidden_size in range(1, math.isqrt(length) + 1):
        yield sizes._replace(hidden_size=hidden_size)
    yield sizes._replace(input_size=max(_fitting(length, sizes, "input_size"), 1))


def _fitting(length: int, sizes: _Sizes, name: str) -> int:
    """The size of a name that makes a vector so long, which grows evenly with it."""
    none, one = (sizes._replace(**{name: size}).count() for size in (0, 1))
    return (length - none) // (one - none)


def _changes(one: _Sizes, other: _Sizes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))
