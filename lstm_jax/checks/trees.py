"""Every contract on parameters and states, of cells and of stacks.

Each check raises ValueError, or TypeError for a wrong type, and says which leaf is
wrong, what was expected in letters and numbers, what came, and the likely mistake.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from lstm_jax import meshes
from lstm_jax.checks.arrays import (
    BATCH_AND_TIME,
    batch_letters,
    check_array,
    check_shape,
    take_array,
    take_param,
)
from lstm_jax.checks.border import take_leaves
from lstm_jax.types import Directions, LSTMParams, LSTMState, PyTree, config

_LAST_BATCH = (
    "If this is the last, partial batch of an epoch, drop it, pad it (lengths=0 for "
    "the rows that are not there), or take as many rows of the state."
)
_PAIR = (
    "A bare pair could be (h, c), as in PyTorch and Keras, or (c, h), as in Flax: "
    "write lstm_jax.LSTMState(h=..., c=...)."
)
_NO_CARRY = (
    "Is it the carry of a run that was given none? carry=model.zero_state(batch_shape) "
    "is where it starts."
)
_TORCH_STATE = (
    "This looks like PyTorch's [L*D, B, H] state: "
    "lstm_jax.convert.state_from_torch(model, h, c) converts it."
)


def sizes_of(params: Any) -> tuple[int, int, int | None]:
    """Returns (I, H, P or None) of the parameters of a standard cell."""
    _check_params_type(params)
    for name in ("gate_kernel", "norm_scale"):
        if getattr(params, name) is not None:
            raise ValueError(
                f"params.{name}: expected None for the standard cell, got an array. "
                "These are a variant's: pass its cell to scan(cell, params, xs)."
            )
    kernel, recurrent_kernel = params.kernel, params.recurrent_kernel
    for name, value in (("kernel", kernel), ("recurrent_kernel", recurrent_kernel)):
        check_array(f"params.{name}", value)
        if len(value.shape) != 2 or value.shape[1] % 4:
            raise ValueError(
                f"params.{name}: expected a matrix with 4H columns, got "
                f"{list(value.shape)}. PyTorch's weights are the other way round, "
                "[4H, ...]: lstm_jax.convert.from_torch converts them."
            )
    proj_size = None
    if params.projection_kernel is not None:
        proj_size = recurrent_kernel.shape[0]
    return kernel.shape[0], kernel.shape[1] // 4, proj_size


def _check_params_type(params: Any) -> None:
    if not isinstance(params, LSTMParams):
        raise TypeError(
            f"params: expected an LSTMParams, got {type(params).__name__}. "
            "cell.init(key) makes one; a stack's parameters go to model.apply."
        )


@functools.lru_cache(maxsize=256)
def _params_template(cell: Any) -> Any:
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(cell.init, key)


@functools.lru_cache(maxsize=256)
def _cached_state_template(cell: Any, batch_shape: tuple, dtype: Any, x64: bool) -> Any:
    del x64  # another answer, where float64 is switched on between two calls
    return jax.eval_shape(lambda: cell.zero_state(batch_shape, dtype))


def state_template(cell: Any, batch_shape: tuple[int, ...] = (), dtype: Any = None):
    """Shapes and dtypes of a cell's state."""
    cell, x64 = cell.for_program(), bool(config.jax_enable_x64)
    try:
        return _cached_state_template(cell, batch_shape, dtype, x64)
    except TypeError:  # a symbolic size can't be hashed everywhere
        return jax.eval_shape(lambda: cell.zero_state(batch_shape, dtype))


def check_params(cell: Any, params: PyTree, name: str = "params") -> PyTree:
    """Checks a cell's parameters against those that it would make itself.

    Returns:
        The parameters, each an array of JAX's own.
    """
    template = _params_template(cell.for_program())
    if isinstance(template, LSTMParams):
        _check_params_type(params)
    expected, structure = jax.tree.flatten_with_path(template)
    actual, got = jax.tree.flatten_with_path(params)
    if structure != got:
        raise ValueError(
            f"{name}: expected the fields {_fields(expected)}, got {_fields(actual)}. "
            "Were they made by a cell with other options (use_bias, proj_size)?"
        )
    leaves = []
    for (path, leaf), (_, value) in zip(expected, actual, strict=True):
        field = jax.tree_util.keystr(path)
        value = take_param(f"{name}{field}", value, leaf.dtype)
        hint = ""
        if len(value.shape) == 2 and value.shape[::-1] == leaf.shape:
            hint = (
                "It is transposed, as PyTorch keeps its weights: "
                "lstm_jax.convert.from_torch converts them."
            )
        letters = cell.param_letters.get(field, "of the cell")
        check_shape(f"{name}{field}", letters, leaf.shape, value, hint)
        leaves.append(value)
    return structure.unflatten(leaves)


def _fields(leaves: list) -> str:
    return ", ".join(jax.tree_util.keystr(path).lstrip(".") for path, _ in leaves)


def conform_state(
    cell: Any,
    name: str,
    state: Any,
    params: Any,
    xs: Any,
    batch: tuple[int, int],
    dtype: Any,
    length: int | None = None,
) -> Any:
    """Checks a state, the cell's own start if None, and casts it to the steps' dtypes.

    Args:
        cell: the cell.
        name: of the argument.
        state: the state, or None.
        params: they hold what the cell has learned to start from.
        xs: the inputs, of one step or of a sequence.
        batch: where the batch axes of ``xs`` begin, and how many there are.
        dtype: of the inputs of this cell.
        length: T, where there is a time axis to mistake for the batch.
    """
    start, count = batch
    batch_shape = xs.shape[start : start + count]
    dtype = jnp.dtype(dtype if cell.dtype is None else cell.dtype)
    if state is None:
        made = lambda params: (cell.initial_state(params, batch_shape, dtype),)
        steps = jax.tree.structure(cell.params_of_steps(params))
        if steps == jax.tree.structure(params) or not isinstance(xs, core.Tracer):
            return made(params)[0]
        # What was learned is made where the rows are: its gradient comes from there.
        return meshes.automatic(made, (params,), xs, batch, (0,))[0]
    return check_state(cell, name, state, batch_shape, dtype, length)


def check_state(
    cell: Any,
    name: str,
    state: Any,
    batch_shape: tuple[int, ...],
    dtype: Any,
    length: int | None = None,
) -> Any:
    """Checks a state, and casts it to what the steps in a dtype carry."""
    template = state_template(cell, batch_shape, dtype)
    if hasattr(template, "_fields") and type(state) is not type(template):
        expected = type(template).__name__
        raise TypeError(
            f"{name}: expected {_article(expected)}, got {type(state).__name__}. "
            f"{_not_a_state(state)}".rstrip()
        )
    expected, structure = jax.tree.flatten_with_path(template)
    actual, got = jax.tree.flatten_with_path(state)
    if structure != got:
        raise ValueError(
            f"{name}: expected the structure that cell.zero_state returns, "
            f"{structure}, got {got}."
        )
    leaves = []
    for (path, leaf), (_, value) in zip(expected, actual, strict=True):
        field = jax.tree_util.keystr(path)
        value = take_array(f"{name}{field}", value)
        last = cell.state_letters.get(field, "...")
        letters = f"[{', '.join(filter(None, (batch_letters(batch_shape), last)))}]"
        hint = _state_hint(tuple(value.shape), leaf.shape, batch_shape, length)
        check_shape(f"{name}{field}", letters, leaf.shape, value, hint)
        leaves.append(value.astype(leaf.dtype))
    return structure.unflatten(leaves)


def take_params(cells: Sequence[Any], params: Any, bidirectional: bool) -> Any:
    """Checks a stack's parameters, and returns them as JAX's arrays."""
    check_layers("params", cells, params, bidirectional)
    return tuple(
        Directions(
            *(
                None
                if one is None
                else check_params(cell, one, f"params[{index}].{name}")
                for name, one in zip(layer._fields, layer, strict=True)
            )
        )
        for index, (cell, layer) in enumerate(zip(cells, params, strict=True))
    )


def take_state(cells: Sequence[Any], state: Any, bidirectional: bool) -> Any:
    """Checks a stack's state, of any batch, and returns it as JAX's arrays."""
    check_layers("state", cells, state, bidirectional)
    state = take_leaves("state", state)
    first = jax.tree.leaves(state)[0]
    (one_row, *_) = jax.tree.leaves(state_template(cells[0], (), first.dtype))
    batch_shape = first.shape[: max(first.ndim - one_row.ndim, 0)]

    def take(cell, name, one):
        if one is None:
            return None
        # Layers may compute in dtypes of their own.
        dtype = jax.tree.leaves(one)[0].dtype
        return check_state(cell, name, one, batch_shape, dtype)

    return tuple(
        Directions(
            take(cell, f"state[{index}].forward", layer.forward),
            take(cell, f"state[{index}].backward", layer.backward),
        )
        for index, (cell, layer) in enumerate(zip(cells, state, strict=True))
    )


def _not_a_state(value: Any) -> str:
    """The likely mistake behind what is no state."""
    if isinstance(value, Directions):
        return "This is one layer of a stack's state: take its .forward."
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return _PAIR
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jnp.integer):
        return "Lengths are given by name: lengths=..."
    if dtype is not None and jnp.issubdtype(dtype, jnp.bool_):
        return "A mask is given by name: mask=..."
    return ""


def _nesting_hint(name: str, kind: type, value: Any) -> str:
    """The likely mistake behind what is not nested as a stack's are."""
    if not isinstance(value, (tuple, list)):
        return _not_a_state(value) if name == "state" else ""
    if len(value) != 2:
        return ""
    if name == "state" and isinstance(value[0], tuple) and hasattr(value[1], "shape"):
        return "A call returns both: state, ys = model.apply(params, xs)."
    return _PAIR if kind is LSTMState and hasattr(value[0], "shape") else ""


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOULS' else 'a'} {name}"


def _state_hint(
    shape: tuple[int, ...],
    expected: tuple[int, ...],
    batch_shape: tuple[int, ...],
    length: int | None,
) -> str:
    """The likely mistake behind a state of the wrong shape."""
    features = expected[len(batch_shape) :]
    if shape[1:] == expected:
        return _TORCH_STATE
    if batch_shape and shape == features:
        return "Nothing is broadcast: jnp.broadcast_to gives every row the same state."
    if len(batch_shape) == 1 and shape[1:] == features:
        mistake = BATCH_AND_TIME if shape[0] == length else _LAST_BATCH
        return f"The batch is {expected[0]} in xs and {shape[0]} here. {mistake}"
    return ""


def check_layers(name: str, cells: Any, value: Any, bidirectional: bool) -> None:
    """Checks the nesting of a stack's ``params`` or ``state``."""
    layers = len(cells)
    if name == "params":
        kind, maker = type(_params_template(cells[0].for_program())), "init(key)"
    else:
        kind, maker = type(state_template(cells[0])), "zero_state(batch_shape)"
    expected = (
        f"a tuple of L = {layers} Directions of {kind.__name__}, as from model.{maker}"
    )
    if isinstance(value, kind) and hasattr(kind, "_fields"):
        hint = ""
        if layers == 1:
            hint = f"Write (lstm_jax.Directions({name}),)."
        if kind is LSTMState and len(getattr(value.h, "shape", ())) == 3:
            hint = _TORCH_STATE
        raise TypeError(
            f"{name}: expected {expected}, got {kind.__name__}. {hint}".rstrip()
        )
    nested = isinstance(value, (tuple, list)) and all(
        isinstance(layer, Directions) for layer in value
    )
    if not nested:
        hint = _nesting_hint(name, kind, value)
        raise TypeError(
            f"{name}: expected {expected}, got {type(value).__name__}. {hint}".rstrip()
        )
    if len(value) != layers:
        hint = _NO_CARRY if name == "state" and not value else ""
        raise ValueError(
            f"{name}: expected {expected}, got {len(value)} layers. {hint}".rstrip()
        )
    for index, layer in enumerate(value):
        if (layer.backward is not None) != bidirectional:
            expected, got = "one, the model is bidirectional", "None"
            if not bidirectional:
                expected, got = "None, the model is one-directional", "one"
            raise ValueError(
                f"{name}[{index}].backward: expected {expected}, got {got}."
            )


def check_after(cell: Any, before: PyTree, returned: Any) -> None:
    """Checks that the state after a step has the form of that before it."""
    expected = f"update: expected (state, y) from {cell!r}"
    if type(returned) is not tuple or len(returned) != 2:
        raise TypeError(f"{expected}, got {type(returned).__name__}.")
    got, form = jax.tree.structure(returned[0]), jax.tree.structure(before)
    if got != form:
        raise ValueError(
            f"{expected}, with a state of the structure {form}, got {got}."
        )
    for (path, old), new in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(returned[0]), strict=True
    ):
        if old.shape != new.shape:
            raise ValueError(
                f"{expected}, with state{jax.tree_util.keystr(path)} of shape "
                f"{list(old.shape)}, as it was given, got {list(new.shape)}."
            )
