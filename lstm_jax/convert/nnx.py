"""Weights and states of Flax NNX's LSTM cells, ``RNN`` and ``Bidirectional``.

``LSTMCell`` has a dense layer for each gate and side (``flax.py``), the forget gate's
called ``if_`` here; ``OptimizedLSTMCell`` has one for each side, ``dense_i`` and
``dense_h``, whatever its docstring says. Both are read; modules tell what is not in
their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import options, slips
from lstm_jax.convert import flax, nnx_modules, paths, targets
from lstm_jax.layers import LSTM, Params, State
from lstm_jax.types import Array, LSTMParams

NNX = targets.Target(
    "Flax NNX",
    dict.fromkeys(targets.ACTIVATIONS, True),
    one_activation=True,
    merges=paths.MERGES,
)

_FORGET = "if_"
_JOINED = {
    "dense_i/kernel": "[I, 4H]",
    "dense_h/kernel": "[H, 4H]",
    "dense_h/bias": "[4H]",
}


@slips.explained
def from_nnx(
    weights: Any,
    *,
    path: Any = (),
    gate_fn: Callable[[Array], Array] | None = None,
    activation_fn: Callable[[Array], Array] | None = None,
    merge: str | None = None,
) -> tuple[LSTM, Params]:
    """Takes over the weights of Flax NNX's LSTM layers.

    They are those of an ``LSTMCell`` or ``OptimizedLSTMCell``, of an ``RNN`` of one, or
    of a ``Bidirectional`` of two. Random streams (``rngs``) beside them are no weights.

    Args:
        weights: the module; or its ``nnx.State``, or the dicts that
            ``nnx.to_pure_dict`` makes of that, of JAX or NumPy arrays or variables,
            whose dtype is kept. For a stack a list of them, one a layer, or an
            ``nnx.Sequential`` or ``nnx.List`` of nothing but such layers. Two cells for
            two directions go in as a tuple ``(forward, backward)``.
        path: where the layer is in a larger model: "encoder.rnn", with "." or "/"
            between names, or a tuple of them. For a stack a list of such, in the order
            in which layers feed each other.
        gate_fn: the cell's; by default what the module says, and the sigmoid where
            there are weights alone.
        activation_fn: the cell's, of the candidate and of the output; by default what
            the module says, or tanh.
        merge: how ``Bidirectional`` merges: "concat", Flax's default, or what another
            ``merge_fn`` does, "sum", "mean" or "mul".

    Returns:
        ``(model, params)``: run them with ``model.apply(params, xs)``. The ``dtype`` of
        a module's cells is the model's.

    Raises:
        ValueError: if a name is missing or unknown, a shape does not fit, the weights
            are another cell's, there is nothing under ``path``, or a module computes
            something that the model cannot: an ``RNN(reverse=True)`` on its own, or a
            ``merge_fn`` that ``merge`` does not name.
        TypeError: if it is none of all that, or a weight is no floating array.

    Example:
        >>> import lstm_jax as lj
        >>> from flax import nnx
        >>> from lstm_jax.convert.nnx import from_nnx
        >>> rnn = nnx.RNN(nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0)))
        >>> model, params = from_nnx(rnn)
        >>> model.input_size, model.hidden_size, params[0].forward.kernel.shape
        (3, 5, (3, 20))
    """
    reader = nnx_modules.Reader(merge)
    if reader.reads(weights):
        weights, path = reader.open(weights, path), ()
    found = paths.layers_of("weights", weights, path, _open)
    found = paths.expand(found, r"(?:layers/)?(\d+)")
    cells = flax.cells_of(
        found, ("ii/kernel", "hi/kernel", "dense_i/kernel", "dense_h/kernel")
    )
    layers = [[_record(cell) for cell in layer] for layer in cells]
    return flax.build(
        "weights",
        cells,
        layers,
        gate_fn or reader.said("gate_fn", jax.nn.sigmoid),
        activation_fn or reader.said("activation_fn", jnp.tanh),
        merge=merge or "concat",
        dtype=reader.said("dtype", None),
    )


def to_nnx(
    model: LSTM, params: Params, *, module: str = "RNN", cell: str = "LSTMCell"
) -> Any:
    """Returns the weights as an ``nnx.State``, which ``nnx.update`` puts in a module.

    Activations that are not Flax's defaults go to the cell: ``nnx.LSTMCell(I, H,
    gate_fn=..., activation_fn=..., rngs=...)``, and another merge than "concat" to
    ``nnx.Bidirectional(..., merge_fn=...)``. A model without bias has one of 0 in Flax.

    Args:
        model: the stack.
        params: its parameters.
        module: "RNN" for ``nnx.RNN``, and with two directions ``nnx.Bidirectional``;
            "cell" for the cell alone, and with two directions a tuple of two states.
        cell: the kind of cell, "LSTMCell" or "OptimizedLSTMCell".

    Returns:
        A state, of a stack of several layers a list of them, of new JAX arrays.

    Raises:
        ValueError: if the model has something that Flax lacks, by name, or ``params``
            are not its own.
        TypeError: if ``model`` is no stack.
        ImportError: if Flax is not installed.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from flax import nnx
        >>> from lstm_jax.convert.nnx import to_nnx
        >>> model = lj.LSTM(3, 5)
        >>> rnn = nnx.RNN(nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0)))
        >>> nnx.update(rnn, to_nnx(model, model.init(jax.random.key(0))))
    """
    try:
        from flax import nnx
    except ImportError as error:
        raise ImportError('to_nnx needs Flax: pip install "lstm_jax".') from error
    options.check_choice("module", module, ("RNN", "cell"))
    options.check_choice("cell", cell, nnx_modules.CELLS)

    def state(tree):
        return nnx.State(jax.tree.map(nnx.Param, tree))

    def layer(_, directions):
        cells = [
            flax.split(one, _FORGET) if cell == "LSTMCell" else _joined(one)
            for one in directions
        ]
        nested = flax.nest(module, cells)
        if isinstance(nested, tuple):
            return tuple(map(state, nested))
        return state(nested)

    return paths.give(NNX, model, params, layer)


@slips.explained
def state_from_nnx(model: LSTM, carry: Any) -> State:
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
        >>> from lstm_jax.convert.nnx import state_from_nnx
        >>> carry = c, h = jnp.ones((4, 5)), jnp.zeros((4, 5))
        >>> state_from_nnx(lj.LSTM(3, 5), carry)[0].forward.c[0, 0].item()
        1.0
    """
    return flax.take_carries(NNX.name, model, carry)


@slips.explained
def state_to_nnx(model: LSTM, state: State) -> Any:
    """Returns what :func:`state_from_nnx` takes, of new JAX arrays.

    Raises:
        ValueError: if the state is not the model's, or one that Flax has not.
        TypeError: if it is no stack's, or ``model`` no stack.

    Example:
        >>> import lstm_jax as lj
        >>> from lstm_jax.convert.nnx import state_to_nnx
        >>> model = lj.LSTM(3, 5)
        >>> c, h = state_to_nnx(model, model.zero_state((4,)))
        >>> c.shape
        (4, 5)
    """
    return flax.give_carries(NNX.name, model, state)


def _open(name: str, state: Any) -> paths.Part:
    """The weights in a state, without the random streams."""
    part = paths.flatten(name, state)
    leaves = {
        name: leaf
        for name, leaf in part.leaves.items()
        if "rngs" not in name.split("/")[:-1]
    }
    return part._replace(leaves=leaves)


def _record(part: paths.Part) -> LSTMParams:
    """A cell in our layout."""
    if not part.has("dense_i", "dense_h"):
        return flax.join(part, _FORGET)
    if "dense_i/bias" in part.leaves:
        kernel = getattr(part.leaves.get("dense_h/kernel"), "shape", (1, 0))
        other = "a GRUCell" if kernel[-1] == 3 * kernel[0] else "a SimpleCell"
        raise ValueError(
            f"{part.name}dense_i/bias: expected none, since an OptimizedLSTMCell has "
            f"its bias in dense_h, got one beside dense_h/kernel of shape "
            f"{list(kernel)}. These look like the weights of {other}."
        )
    arrays = part.take(_JOINED, _JOINED)
    return LSTMParams(*(paths.own(arrays[name]) for name in _JOINED))


def _joined(one: LSTMParams) -> dict[str, dict[str, Array]]:
    """A layer as the dense layers of an ``OptimizedLSTMCell``."""
    return {
        "dense_i": {"kernel": paths.own(one.kernel)},
        "dense_h": {
            "kernel": paths.own(one.recurrent_kernel),
            "bias": paths.own(paths.bias_of(one)),
        },
    }
