"""Weights and states of Equinox's ``LSTMCell``.

Equinox keeps its weights transposed, its gates in our order (i, f, g, o), and one bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from lstm_jax.checks import slips
from lstm_jax.convert import carries, paths, targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import LSTMParams, LSTMState

EQUINOX = targets.Target("Equinox", merges=paths.MERGES)

_LETTERS = {"weight_ih": "[4H, I]", "weight_hh": "[4H, H]", "bias": "[4H]"}
_NAMES = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias"}


@slips.explained
def from_equinox(
    cells: Any, *, path: Any = (), merge: str = "concat"
) -> tuple[LSTM, Params]:
    """Takes over the weights of Equinox's ``LSTMCell``.

    Args:
        cells: an ``eqx.nn.LSTMCell``, or a dict of its arrays: ``weight_ih``
            ``[4H, I]``, ``weight_hh`` ``[4H, H]`` and, unless ``use_bias=False``,
            ``bias`` ``[4H]``, of JAX or NumPy, whose dtype is kept. For a stack a list
            of them, one a layer; two cells for two directions are a tuple
            ``(forward, backward)``.
        path: where the cell is in a larger module: "encoder.cells.0", with "." or "/"
            between attributes, keys and positions, or a tuple of them. For a stack a
            list of such, in the order in which layers feed each other; a list that the
            module itself has is one too.
        merge: how the model merges two directions, which Equinox leaves to its users:
            "concat", "sum", "mean" or "mul".

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``, over any number
        of batch axes, none included.

    Raises:
        ValueError: if an array is missing or one too many, a shape does not fit, or
            there is nothing under ``path``.
        TypeError: if one is no cell, or a weight is no floating array.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax.convert.equinox import from_equinox
        >>> cell = {"weight_ih": jnp.ones((20, 3)), "weight_hh": jnp.ones((20, 5))}
        >>> model, params = from_equinox(cell | {"bias": jnp.zeros(20)})
        >>> model.input_size, model.hidden_size, params[0].forward.kernel.shape
        (3, 5, (3, 20))
    """
    if path not in ((), "") and not isinstance(cells, (list, tuple)):
        places = path if isinstance(path, list) else [path]
        found = [paths.walk("cells", cells, place) for place in places]
        cells, path = found if isinstance(path, list) else found[0], ()
        _check_found(cells)
    parts = paths.layers_of("cells", cells, path, _open)
    layers = [[_record(part) for part in layer] for layer in parts]

    def called(index, direction, field):
        return parts[index][direction].name + _NAMES[field]

    return paths.build("cells", layers, called, flipped=True, merge=merge)


def to_equinox(model: LSTM, params: Params) -> Any:
    """Returns the weights in an ``eqx.nn.LSTMCell``.

    Args:
        model: the stack.
        params: its parameters.

    Returns:
        A cell, for two directions a tuple of two, and of a stack of several layers a
        list of such. The arrays are new ones of JAX.

    Raises:
        ValueError: if the model has something that Equinox lacks, by name, or
            ``params`` are not its own.
        TypeError: if ``model`` is no stack.
        ImportError: if Equinox is not installed.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax.convert.equinox import to_equinox
        >>> model = lj.LSTM(3, 5)
        >>> params = model.init(jax.random.key(0))
        >>> cell = to_equinox(model, params)  # doctest: +SKIP
        >>> cell.weight_ih.shape  # doctest: +SKIP
        (20, 3)
    """
    try:
        import equinox as eqx
    except ImportError as error:
        raise ImportError(
            'to_equinox needs Equinox: pip install "lstm_jax[peers]".'
        ) from error

    def cell(one):
        made = {"weight_ih": one.kernel.T, "weight_hh": one.recurrent_kernel.T}
        if one.bias is not None:
            made["bias"] = paths.own(one.bias)
        inputs, hidden = one.kernel.shape[0], one.recurrent_kernel.shape[0]
        empty = eqx.filter_eval_shape(
            eqx.nn.LSTMCell, inputs, hidden, "bias" in made, key=jax.random.key(0)
        )
        return eqx.tree_at(
            lambda cell: [getattr(cell, name) for name in made],
            empty,
            list(made.values()),
        )

    def layer(_, directions):
        made = tuple(map(cell, directions))
        return made if len(made) == 2 else made[0]

    return paths.give(EQUINOX, model, params, layer)


@slips.explained
def state_from_equinox(model: LSTM, state: Any) -> State:
    """Takes over the states of Equinox's cells.

    Args:
        model: the stack the state is for.
        state: ``(h, c)``, each ``[H]``, or ``[*batch, H]`` as of a cell under ``vmap``;
            of two directions ``((h, c), (h, c))``, forward first; of a stack of several
            layers a list of such.

    Raises:
        ValueError: if the number of layers or a shape is not the model's.
        TypeError: if one is no pair of floating arrays, or ``model`` no stack.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> from lstm_jax.convert.equinox import state_from_equinox
        >>> h, c = jnp.zeros(5), jnp.ones(5)
        >>> state_from_equinox(lj.LSTM(3, 5), (h, c))[0].forward.c[0].item()
        1.0
    """

    def one(name, pair):
        return LSTMState(*carries.take_pair(name, pair, "(h, c)"))

    return carries.take(EQUINOX.name, model, state, one, "(h, c)")


@slips.explained
def state_to_equinox(model: LSTM, state: State) -> Any:
    """Returns what :func:`state_from_equinox` takes, of new JAX arrays.

    Raises:
        ValueError: if the state is not the model's, or one that Equinox has not.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> from lstm_jax.convert.equinox import state_to_equinox
        >>> model = lj.LSTM(3, 5)
        >>> h, c = state_to_equinox(model, model.zero_state())
        >>> h.shape
        (5,)
    """
    layers = carries.give(EQUINOX.name, model, state, tuple)
    return layers[0] if len(layers) == 1 else layers


def _check_found(found: Any) -> None:
    """Checks that a path leads to a cell; what several are is said by several."""
    if isinstance(found, tuple):
        raise ValueError(
            "path: expected the place of one cell or of a list of them, got that of a "
            f"tuple of {len(found)}. For a stack pass a list of places."
        )


def _open(name: str, cell: Any) -> paths.Part:
    """The arrays of a cell by name."""
    if not isinstance(cell, Mapping):
        there = paths.members(cell)
        if not there.keys() & _NAMES.values():
            raise TypeError(
                f"{name}: expected an eqx.nn.LSTMCell or a dict of its arrays, got "
                f"{type(cell).__name__}, in which there is {', '.join(there)}. Of a "
                "larger module pass path."
            )
        names = (*_NAMES.values(), "bias_n")
        cell = {key: there[key] for key in names if key in there}
    return paths.Part("", {key: one for key, one in cell.items() if one is not None})


def _record(part: paths.Part) -> LSTMParams:
    """A cell in our layout."""
    if {"bias_n", "weight_hh"} <= part.leaves.keys():
        raise ValueError(
            f"{part.name}bias_n: expected none beside weight_hh of shape [4H, H], got "
            f"one beside {part.shape('weight_hh')}. These look like the weights of a "
            "GRUCell."
        )
    arrays = part.take(_LETTERS, ("weight_ih", "weight_hh"))
    kernel, recurrent = arrays["weight_ih"], arrays["weight_hh"]
    bias = paths.own(arrays["bias"]) if "bias" in arrays else None
    return LSTMParams(kernel.T, recurrent.T, bias)
