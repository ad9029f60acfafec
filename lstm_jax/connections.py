"""How layers and directions are connected, and run one after the other."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import meshes, sequence
from lstm_jax.cells.base import as_cell, compute_dtype, step
from lstm_jax.cells.dropout import inverted_dropout
from lstm_jax.checks import arrays, options
from lstm_jax.numerics import where_rows
from lstm_jax.recurrence import loop, units
from lstm_jax.types import Array, Directions, LSTMState, Options

MERGES = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "mul": jnp.multiply,
}


def check_options(model: Any) -> None:
    """Checks the options of a stack, and that its layers fit on top of each other."""
    options.check_flags(model)
    _check_reverse(model)
    options.check_choice("merge", model.merge, tuple(MERGES))
    options.check_rate("dropout", model.dropout)
    if model.dropout and len(model.cells) == 1:
        _warn(
            "dropout: it is between layers, and there is only one, so that it drops "
            "nothing. output_dropout drops outputs, input_dropout inputs (Keras's "
            "dropout)."
        )
    cells, widening = [as_cell(cell) for cell in model.cells], model._widening
    if len(cells) > 1:
        _check_sizes(model, cells)
    for index in range(1, len(cells)):
        below = cells[index - 1].output_size * widening
        expected = below
        if model.skip:
            expected += cells[0].input_shape[-1]
        got = cells[index].input_shape[-1]
        if got != expected:
            raise ValueError(
                f"cells[{index}]: expected an input size of {expected}, what it gets "
                f"from the layer below{' and from the input' if model.skip else ''}, "
                f"got {got}."
            )
        size = cells[index].output_size * widening
        if model.residual and size != below:
            raise ValueError(
                f"residual: expected layers with outputs of one size, got {below} from "
                f"layer {index - 1} and {size} from layer {index}."
            )


def _check_reverse(model: Any) -> None:
    """Checks the directions of one-directional layers, and gives them one spelling."""
    each = model._reversed
    for one in each:
        options.check_flag("reverse", one)
    if len(each) != len(model.cells):
        raise ValueError(
            f"reverse: expected one value or L = {len(model.cells)} of them, got "
            f"{len(each)}: {each}."
        )
    if any(each) and model.bidirectional:
        raise ValueError(
            f"reverse: expected False with bidirectional=True, whose layers run both "
            f"ways, got {model.reverse}."
        )
    if len(set(each)) == 1:
        object.__setattr__(model, "reverse", each[0])


def _check_sizes(model: Any, cells: list[Any]) -> None:
    """Checks that cells say what the layers above and below them fit by."""
    for index, cell in enumerate(cells):
        needed = {
            "input_shape": index > 0 or model.skip,
            "output_size": index < len(cells) - 1 or model.residual,
        }
        for name, asked in needed.items():
            if asked and getattr(cell, name) is None:
                raise TypeError(
                    f"cells[{index}].{name}: expected the size that layers fit by, got "
                    f"None from {cell!r}. Give the cell both, as properties or fields: "
                    "input_shape, such as (3,), and output_size, such as 5."
                )


def through_layers(
    model: Any,
    xs: Array,
    run: Callable[[int, Any, Array], tuple[Any, Array]],
    key: Array | None = None,
) -> tuple[tuple, Array]:
    """Leads inputs, of one step or of all, through the layers and what connects them.

    Args:
        model: a stack.
        xs: the inputs.
        run: ``run(index, cell, xs) -> (state, ys)`` runs one layer.
        key: a random key for the dropout between layers, or None.
    """
    states, outputs, below = [], [], xs
    for index, cell in enumerate(map(as_cell, model.cells)):
        inputs = below
        if index and key is not None and model.dropout:
            inputs = inverted_dropout(
                jax.random.fold_in(key, index), model.dropout, inputs
            )
        if index and model.skip:
            inputs = jnp.concatenate([inputs, xs.astype(inputs.dtype)], axis=-1)
        after, ys = run(index, cell, inputs)
        if index and model.residual:
            ys = ys + below
        states.append(after)
        outputs.append(ys)
        below = ys
    return tuple(states), jnp.concatenate(outputs, -1) if model.skip else below


def last_output(model: Any, state: tuple[Directions, ...]) -> Array:
    """What the last steps put out, from the states after them."""
    if model.residual and len(set(model._reversed)) > 1:
        raise ValueError(
            "last: expected layers that end at the same step, since residual adds what "
            f"they put out, got reverse={model.reverse}. Take ys where it is needed."
        )
    outputs, below = [], None
    for layer in state:
        hidden = [_hidden(one) for one in layer if one is not None]
        out = hidden[0] if len(hidden) == 1 else MERGES[model.merge](*hidden)
        if below is not None and model.residual:
            out = out + below
        outputs.append(out)
        below = out
    return jnp.concatenate(outputs, -1) if model.skip else outputs[-1]


def _hidden(state: Any) -> Array:
    """The output of the step that a state came from."""
    if not hasattr(state, "h"):
        raise TypeError(
            f"state: expected one with an h, what a step puts out, got "
            f"{type(state).__name__}. Of such a cell take it from ys, at lengths - 1."
        )
    return state.h


def bridge(state: tuple[Directions, ...], merge: str) -> tuple[Directions, ...]:
    """The states of both directions of each layer as one of one direction."""
    options.check_choice("merge", merge, ("concat", "sum", "mean"))
    layers = []
    for index, layer in enumerate(state):
        kind = type(layer.forward)
        if merge != "concat" and kind is not LSTMState:
            raise ValueError(
                f"merge: expected 'concat', since layer {index} has a state of "
                f"{kind.__name__}, whose parts don't add up, got {merge!r}."
            )
        joined = jax.tree.map(MERGES[merge], layer.forward, layer.backward)
        layers.append(Directions(joined))
    return tuple(layers)


def _warn(message: str) -> None:
    """Says that an option does nothing, where the model is made."""
    warnings.warn(message, UserWarning, stacklevel=5)


@functools.partial(jax.jit, static_argnames=("model", "static"))
def apply(model, params, xs, state, traced, *, static):
    """Runs a stack over time, on checked arguments."""
    axis = xs.ndim - arrays.input_ndim(as_cell(model.cells[0])) - 1

    def whole(params, xs, state, traced):
        given = Options(*traced, *static)
        if not given.time_major:
            xs, mask, reset = sequence.time_in_front(axis, xs, given)
            given = given._replace(mask=mask, reset=reset)

        def run(index, cell, xs):
            key = None if given.key is None else jax.random.fold_in(given.key, index)
            layer = given._replace(key=key)
            return _layer(model, index, cell, params[index], xs, state[index], layer)

        after, ys = through_layers(model, xs, run, given.key)
        return after, ys if given.time_major else jnp.moveaxis(ys, 0, axis)

    first = int(Options(*traced, *static).time_major)
    args = (params, xs, state, traced)
    outs = units.state_places(state, 0), first
    return meshes.automatic(whole, args, xs, (first, axis), outs)


def _layer(model, index, cell, params, xs, state, given):
    """One layer over time, in one direction or in two."""
    directions, reverse = [], (model._reversed[index], True)
    for n in range(model._directions):
        reset_state = None
        if given.reset is not None:
            batch_shape = given.reset.shape[1:]
            dtype = compute_dtype(cell, xs.dtype)
            reset_state = cell.initial_state(params[n], batch_shape, dtype)
        key = None if given.key is None else jax.random.fold_in(given.key, 1 + n)
        directions.append(
            loop.Direction(params[n], state[n], reset_state, key, reverse[n])
        )
    results = loop.run(cell, xs, directions, given, given.implementation)
    afters, outputs = zip(*results, strict=True)
    ys = outputs[0] if len(outputs) == 1 else MERGES[model.merge](*outputs)
    return Directions(*afters), ys


@functools.partial(jax.jit, static_argnames="model")
def take_step(model, params, state, x, reset):
    """One step through a stack, on checked arguments."""

    def whole(params, state, x, reset):
        run = functools.partial(_layer_step, params, state, reset)
        return through_layers(model, x, run)

    batch = 0, x.ndim - arrays.input_ndim(as_cell(model.cells[0]))
    return meshes.automatic(whole, (params, state, x, reset), x, batch, (0, 0))


def _layer_step(params, state, reset, index, cell, x):
    """One step of one layer."""
    one, before = params[index].forward, state[index].forward
    if reset is not None:
        dtype = compute_dtype(cell, x.dtype)
        start = cell.initial_state(one, reset.shape, dtype)
        before = where_rows(reset, start, before)
    after, y = step(cell, one, before, x)
    return Directions(after), y
