"""What every converter needs: layers in one neutral form, and their sizes.

The neutral form of a layer in one direction is an :class:`LSTMParams`: kernels
``[I, 4H]`` and ``[P, 4H]``, gates in the order i, f, g, o, one bias, and the projection
``[H, P]`` and peepholes ``[3, H]`` if there are any. A converter brings another
library's arrays into that form or out of it; what they have to fit is said here, what
the other library lacks in ``targets.py``.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp

from lstm_jax.cells.base import Cell, as_cell
from lstm_jax.cells.variants import gates_of, peephole_gates
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, trees
from lstm_jax.convert import targets
from lstm_jax.layers import LSTM, Params
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

Layers = Sequence[Sequence[LSTMParams]]
# What an array is called where it comes from, by layer, direction and our name of it.
NameOf = Callable[[int, int, str], str]

# The first shows how many gates there are, so it is looked at first.
_LETTERS = {
    "recurrent_kernel": ("P", "4H"),
    "projection_kernel": ("H", "P"),
    "kernel": ("I", "4H"),
    "bias": ("4H",),
    "peephole": ("3", "H"),
}
_GATES = {3: "a GRU", 1: "a plain RNN"}


def build(
    layers: Layers,
    name_of: NameOf,
    *,
    flipped: bool = False,
    merge: str = "concat",
    **chosen: Any,
) -> tuple[LSTM, Params]:
    """Returns the model of some layers, and the layers as its parameters.

    Args:
        layers: for each layer the arrays of its one or two directions, as JAX's own.
        name_of: what an array is called, for errors.
        flipped: whether matrices are transposed there, and so are shapes in errors.
        merge: how the directions are merged.
        **chosen: options of the model that its weights do not show.

    Raises:
        ValueError: if the shapes do not fit together.
        TypeError: if an array is not floating.
    """
    first, bidirectional = layers[0][0], len(layers[0]) == 2
    widening = 2 if bidirectional and merge == "concat" else 1
    hidden, sizes = [], {}
    for index, layer in enumerate(layers):
        for direction, one in enumerate(layer):
            named = _Named(
                functools.partial(name_of, index, direction),
                flipped,
                one,
                chosen.get("variant"),
            )
            named.check_kinds(first)
            if not direction:
                sizes = _sizes(one, first, sizes.get("P", 0) * widening)
            named.check_sizes(sizes)
        hidden.append(sizes["H"])
    model = LSTM(
        first.kernel.shape[0],
        hidden[0] if len(set(hidden)) == 1 else tuple(hidden),
        len(hidden),
        bidirectional=bidirectional,
        merge=merge,
        proj_size=None if first.projection_kernel is None else sizes["P"],
        use_bias=first.bias is not None,
        peephole=first.peephole is not None,
        param_dtype=first.kernel.dtype.type,
        **chosen,
    )
    return model, tuple(Directions(*layer) for layer in layers)


def _sizes(one: LSTMParams, first: LSTMParams, input_size: int) -> dict[str, int]:
    """I, H and P of a layer, where its inputs come from the layer before.

    One projection size serves all layers.
    """
    if one.projection_kernel is None or first.projection_kernel is None:
        hidden = output = one.recurrent_kernel.shape[0]
    else:
        hidden, output = (
            one.projection_kernel.shape[0],
            first.projection_kernel.shape[1],
        )
    return {"I": input_size or one.kernel.shape[0], "H": hidden, "P": output}


class _Named(NamedTuple):
    """One layer in one direction, with the names and shapes that its maker gave it."""

    name_of: Callable[[str], str]
    flipped: bool
    arrays: LSTMParams
    variant: str | None

    def check_kinds(self, first: LSTMParams) -> None:
        """Checks which arrays there are, their dtypes and numbers of axes."""
        for field, letters in _LETTERS.items():
            value, wanted = getattr(self.arrays, field), getattr(first, field)
            if (value is None) != (wanted is None):
                expected, got = "one", "none"
                if wanted is None:
                    expected, got = got, expected
                raise ValueError(
                    f"{self.name_of(field)}: expected {expected}, as for the first "
                    f"layer, got {got}."
                )
            if value is None:
                continue
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise TypeError(
                    f"{self.name_of(field)}: expected a floating dtype, got "
                    f"{value.dtype}."
                )
            if len(letters) == 2 != value.ndim:
                raise ValueError(
                    f"{self.name_of(field)}: expected shape {self._joined(letters)}, "
                    f"got {list((value.T if self.flipped else value).shape)}."
                )

    def check_sizes(self, sizes: dict[str, int]) -> None:
        """Checks the shapes."""
        gates, seen = (len(found(self.variant)) for found in (gates_of, peephole_gates))
        sizes = {**sizes, "3": seen, "4H": gates * sizes["H"]}
        for field, letters in _LETTERS.items():
            value = getattr(self.arrays, field)
            if value is None:
                continue
            expected, value = [sizes[letter] for letter in letters], value
            hint = self._hint(field, value.shape, expected)
            if self.arrays.projection_kernel is None:
                letters = tuple(letter.replace("P", "H") for letter in letters)
            if self.flipped:
                expected, value = expected[::-1], value.T
            shapes.check_shape(
                self.name_of(field), self._joined(letters), tuple(expected), value, hint
            )

    def _joined(self, letters: tuple[str, ...]) -> str:
        letters = letters[::-1] if self.flipped else letters
        return f"[{', '.join(letters)}]"

    def _hint(self, field: str, got: tuple[int, ...], expected: list[int]) -> str:
        """The likely mistake, where the shapes show it."""
        if field == "recurrent_kernel" and self.arrays.projection_kernel is None:
            if got[0] == 4 * got[1]:
                return "It is transposed."
            gates, rest = divmod(got[1], max(got[0], 1))
            kind = None if rest else _GATES.get(gates)
            return f"These look like the weights of {kind}." if kind else ""
        if field == "kernel" and 2 * got[0] == expected[0]:
            return "A layer after a bidirectional one takes both outputs."
        if field == "kernel" and got[0] == 2 * expected[0]:
            return "Twice the inputs follow a bidirectional layer."
        return ""


def check_states_of(library: str, model: Any) -> tuple[list[Cell], list[LSTMState]]:
    """Checks that the states of a model's layers are an LSTM's.

    Returns:
        The cells, and of each the shapes of a row's h and c.

    Raises:
        ValueError: if they are not, which is what ``library`` has.
        TypeError: if ``model`` is no stack.
    """
    targets.check_stack(model)
    cells = [as_cell(cell) for cell in model.cells]
    rows = [trees.state_template(cell) for cell in cells]
    for index, row in enumerate(rows):
        if type(row) is not LSTMState or row.h.ndim != 1:
            raise ValueError(
                f"model: expected layers whose states are h and c, all that {library} "
                f"has, got {cells[index]!r} as layer {index}."
            )
    return cells, rows


def take_weight(name: str, value: Any) -> Array:
    """Takes an array of weights, with a warning where its numbers are rounded.

    Raises:
        TypeError: if it is no array.
    """
    taken = border.take(name, value)
    given = getattr(value, "dtype", taken.dtype)
    if jnp.issubdtype(taken.dtype, jnp.floating) and "float64" in str(given):
        if taken.dtype != jnp.float64:
            warnings.warn(
                f"{name}: float64 becomes {taken.dtype}, since 64-bit types are off. "
                "jax.enable_x64 turns them on.",
                stacklevel=2,
            )
    return taken


def give_state(array: Any) -> Any:
    """An array of a state for others; a traced one, which has no values, as it is."""
    return array if isinstance(array, jax.core.Tracer) else border.give(array)
