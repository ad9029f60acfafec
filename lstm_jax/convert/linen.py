"""Weights and states of Flax Linen's LSTM cells, ``RNN`` and ``Bidirectional``.

The weights of ``LSTMCell`` and of ``OptimizedLSTMCell`` are the same here. ``flax.py``
says what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import options, slips
from lstm_jax.convert import flax, paths, targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array

LINEN = targets.Target(
    "Flax Linen",
    dict.fromkeys(targets.ACTIVATIONS, True),
    one_activation=True,
    merges=paths.MERGES,
)


@slips.explained
def from_linen(
    variables: Any,
    *,
    path: Any = (),
    gate_fn: Callable[[Array], Array] = jax.nn.sigmoid,
    activation_fn: Callable[[Array], Array] = jnp.tanh,
    merge: str = "concat",
) -> tuple[LSTM, Params]:
    """Takes over the weights of Flax Linen's LSTM layers.

    They are those of an ``LSTMCell`` or ``OptimizedLSTMCell``, of an ``RNN`` of one, or
    of a ``Bidirectional`` of two. H is read off the weights: Flax takes it from the
    carry that the cell was given, not from ``features``. ``RNN(reverse=True)`` is not
    seen in them: run such a layer with ``lstm_jax.scan(..., reverse=True)``.

    Args:
        variables: as from ``module.init``, or its ``["params"]``; of JAX or NumPy
            arrays, boxed as by ``with_partitioning`` or not, whose dtype is kept. For a
            stack a list of them, one a layer, or the variables of an ``nn.Sequential``
            of nothing but such layers. Two cells for two directions, as a
            ``Bidirectional`` in a compact method leaves them, go in as a tuple
            ``(forward, backward)``.
        path: where the layer is in the variables of a larger model: "encoder/RNN_0",
            with "/" or "." between names, or a tuple of them. For a stack a list of
            such, in the order in which layers feed each other.
        gate_fn: the cell's, which is not in the weights, as is not what follows.
        activation_fn: the cell's, of the candidate and of the output.
        merge: how ``Bidirectional`` merges: "concat", Flax's default, or what another
            ``merge_fn`` does, "sum", "mean" or "mul".

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``.

    Raises:
        ValueError: if a name is missing or unknown, a shape does not fit, the weights
            are another cell's, or there is nothing under ``path``.
        TypeError: if it is no dict, or a weight is no floating array.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> from flax import linen as nn
        >>> from lstm_jax.convert.linen import from_linen
        >>> variables = nn.RNN(nn.LSTMCell(5)).init(jax.random.key(0), jnp.ones((7, 3)))
        >>> model, params = from_linen(variables)
        >>> model.input_size, model.hidden_size, params[0].forward.kernel.shape
        (3, 5, (3, 20))
    """
    found = paths.layers_of("variables", variables, _inside(path), _open)
    found = paths.expand(found, r"layers_(\d+)")
    cells = flax.cells_of(found, ("ii/kernel", "hi/kernel"))
    layers = [[flax.join(cell) for cell in layer] for layer in cells]
    return flax.build("variables", cells, layers, gate_fn, activation_fn, merge=merge)


def to_linen(model: LSTM, params: Params, *, module: str = "RNN") -> Any:
    """Returns the weights as Flax Linen's ``init`` does.

    Activations that are not Flax's defaults go to the cell: ``nn.LSTMCell(H,
    gate_fn=..., activation_fn=...)``, and another merge than "concat" to
    ``nn.Bidirectional(..., merge_fn=...)``. A model without bias has one of 0 in Flax.

    Args:
        model: the stack.
        params: its parameters.
        module: "RNN" for ``nn.RNN``, and with two directions ``nn.Bidirectional``;
            "cell" for the cell alone, and with two directions a tuple of two.

    Returns:
        ``{"params": ...}``, of a stack of several layers a list of them, of new JAX
        arrays. ``nn.LSTMCell`` and ``nn.OptimizedLSTMCell`` both take it.

    Raises:
        ValueError: if the model has something that Flax lacks, by name, or ``params``
            are not its own.
        TypeError: if ``model`` is no stack.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> from flax import linen as nn
        >>> from lstm_jax.convert.linen import to_linen
        >>> model = lj.LSTM(3, 5)
        >>> variables = to_linen(model, model.init(jax.random.key(0)))
        >>> nn.RNN(nn.LSTMCell(5)).apply(variables, jnp.ones((7, 3))).shape
        (7, 5)
    """
    options.check_choice("module", module, ("RNN", "cell"))

    def layer(_, directions):
        nested = flax.nest(module, list(map(flax.split, directions)))
        if isinstance(nested, tuple):
            return tuple({"params": one} for one in nested)
        return {"params": nested}

    return paths.give(LINEN, model, params, layer)


@slips.explained
def state_from_linen(model: LSTM, carry: Any) -> State:
    """Takes over the carries of Flax's layers, whose order is (c, h).

    Args:
        model: the stack the state is for.
        carry: ``(c, h)``, each ``[*batch, H]``; of two directions ``((c, h), (c, h))``,
            forward first; of a stack of several layers a list of such.

    Raises:
        ValueError: if the number of layers or a shape is not the model's.
        TypeError: if one is no pair of floating arrays, or ``model`` no stack.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> from lstm_jax.convert.linen import state_from_linen
        >>> carry = c, h = jnp.ones((4, 5)), jnp.zeros((4, 5))
        >>> state_from_linen(lj.LSTM(3, 5), carry)[0].forward.c[0, 0].item()
        1.0
    """
    return flax.take_carries(LINEN.name, model, carry)


@slips.explained
def state_to_linen(model: LSTM, state: State) -> Any:
    """Returns what :func:`state_from_linen` takes, of new JAX arrays.

    Raises:
        ValueError: if the state is not the model's, or one that Flax has not.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> from lstm_jax.convert.linen import state_to_linen
        >>> model = lj.LSTM(3, 5)
        >>> c, h = state_to_linen(model, model.zero_state((4,)))
        >>> c.shape
        (4, 5)
    """
    return flax.give_carries(LINEN.name, model, state)


def _inside(path: Any) -> Any:
    """A path, or a list of them, from the parameters on."""
    if isinstance(path, list):
        return [_inside(place) for place in path]
    keys = paths.keys_of(path)
    return keys[1:] if keys[:1] == ("params",) else keys


def _open(name: str, variables: Any) -> paths.Part:
    """The parameters among variables; other collections are no weights of an LSTM."""
    tree = paths.flatten(name, variables)
    return tree.under("params")._replace(name="") if tree.has("params") else tree
