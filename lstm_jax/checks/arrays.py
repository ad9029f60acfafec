"""Every contract on shapes and dtypes, checked before anything is traced.

Each check raises ValueError, or TypeError for a wrong type, and says which argument is
wrong, what was expected in letters and numbers, what came, and the likely mistake.
"""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks.border import take
from lstm_jax.types import Directions, LSTMParams, LSTMState, Options, PyTree

_BATCH_AND_TIME = (
    "Batch and time look swapped: xs is [*batch, T, I], and [T, *batch, I] only with "
    "time_major=True."
)
_LAST_BATCH = (
    "If this is the last, partial batch of an epoch, drop it, pad it (lengths=0 for "
    "the rows that are not there), or take as many rows of the state."
)
_PAIR = (
    "A bare pair could be (h, c), as in PyTorch and Keras, or (c, h), as in Flax: "
    "write lstm_jax.LSTMState(h=..., c=...)."
)
_TORCH_STATE = (
    "This looks like PyTorch's [L*D, B, H] state: "
    "lstm_jax.convert.state_from_torch(model, h, c) converts it."
)


def check_batch_shape(batch_shape: Any) -> tuple[int, ...]:
    """Returns a batch shape as a tuple."""
    if isinstance(batch_shape, (int, np.integer)):
        raise TypeError(
            f"batch_shape: expected a tuple such as ({batch_shape},), got the number "
            f"{batch_shape}."
        )
    return tuple(batch_shape)


_KINDS = {
    jnp.floating: (
        "a floating dtype",
        "Embed or one-hot encode tokens first; cast numbers.",
    ),
    jnp.integer: ("an integer dtype", ""),
    jnp.bool_: ("a bool dtype", "Write mask != 0 to make bools of a mask of numbers."),
}


def check_array(name: str, value: Any, kind: Any = jnp.floating) -> None:
    """Checks that an argument is an array of a kind of dtype."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(
            f"{name}: expected an array, got {type(value).__name__}. Convert it with "
            "jnp.asarray."
        )
    if not jnp.issubdtype(value.dtype, kind):
        expected, hint = _KINDS[kind]
        raise TypeError(
            f"{name}: expected {expected}, got {value.dtype}. {hint}".rstrip()
        )


def check_shape(
    name: str, letters: str, expected: tuple[int, ...], value: Any, hint: str = ""
) -> None:
    """Checks the shape of an array against ``letters`` that stand for ``expected``."""
    if not _has_shape(value, expected):
        raise ValueError(
            f"{name}: expected shape {letters} = {list(expected)}, got "
            f"{list(value.shape)}. {hint}".rstrip()
        )


def _has_shape(value: Any, expected: tuple[int, ...]) -> bool:
    try:
        chex.assert_shape(value, expected)
    except AssertionError:
        return False
    # Programs that call chex.disable_asserts() turn off their own checks, not ours.
    return tuple(value.shape) == tuple(expected)


def take_array(name: str, value: Any, kind: Any = jnp.floating) -> Any:
    """Returns an argument as an array of JAX's own, of a kind of dtype."""
    value = take(name, value)
    check_array(name, value, kind)
    return value


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
    cell, x64 = cell.for_program(), bool(jax.config.jax_enable_x64)
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
        value = take_array(f"{name}{field}", value)
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


def check_step_input(cell: Any, x: Any, name: str = "x") -> tuple[Any, tuple]:
    """Checks the input of one step; returns it and its batch shape."""
    x = take_array(name, x)
    return x, _leading(cell, name, "[*batch, I]", x)


def check_sequence(cell: Any, xs: Any, time_major: bool) -> tuple[Any, tuple, int]:
    """Checks a sequence of inputs; returns it, its batch shape and its length T."""
    xs = take_sequence(xs)
    batch_shape, length = sequence_shape(cell, xs, time_major)
    return xs, batch_shape, length


def take_sequence(xs: Any) -> Any:
    """Returns the inputs of a sequence as an array of JAX's own."""
    if isinstance(xs, tuple) and len(xs) == 2 and not hasattr(xs, "_fields"):
        raise TypeError(
            "xs: expected an array, got a tuple of 2. If it is the (state, ys) of "
            "another call, take its second part."
        )
    return take_array("xs", xs)


def sequence_shape(cell: Any, xs: Any, time_major: bool) -> tuple[tuple[int, ...], int]:
    """Checks the shape of a sequence of inputs; returns its batch shape and T."""
    check_array("xs", xs)
    letters = "[T, *batch, I]" if time_major else "[*batch, T, I]"
    leading = _leading(cell, "xs", letters, xs)
    if not leading:
        raise ValueError(
            f"xs: expected shape {letters}, got {list(xs.shape)}, which has no time "
            "axis. For one step call cell(params, state, x) or "
            "model.step(params, state, x)."
        )
    if time_major:
        return leading[1:], leading[0]
    return leading[:-1], leading[-1]


def input_ndim(cell: Any) -> int:
    """How many axes one input has."""
    return 1 if cell.input_shape is None else len(cell.input_shape)


def _leading(cell: Any, name: str, letters: str, xs: Any) -> tuple[int, ...]:
    """Checks that the last axes are one input's; returns the others."""
    ndim = input_ndim(cell)
    shape = tuple(xs.shape)
    leading = shape[: max(len(shape) - ndim, 0)]
    expected = cell.input_shape
    if expected is None:
        expected = shape[len(leading) :]
    hint = ""
    if ndim != 1:
        letters = letters.replace("I", "*S, I")
    elif expected and expected[0] in leading:
        hint = f"The features, I = {expected[0]}, belong on the last axis."
    check_shape(name, letters, (*leading, *expected), xs, hint)
    return leading


def take_controls(batch_shape: tuple[int, ...], length: int, given: Options) -> Options:
    """Checks lengths, mask, reset and key; returns them as arrays of JAX's own.

    The values of lengths are looked at where they are known.
    """
    lengths, mask, reset = given.lengths, given.mask, given.reset
    batch = _letters(batch_shape)
    if lengths is not None:
        lengths = take("lengths", lengths, allow_lists=True)
        check_array("lengths", lengths, jnp.integer)
        swapped = batch_shape != (length,) == tuple(lengths.shape)
        hint = _BATCH_AND_TIME if swapped else ""
        check_shape("lengths", f"[{batch}]", batch_shape, lengths, hint)
        _check_lengths_values(lengths, length)
    mask, reset = (
        _take_steps(name, value, batch_shape, length, given.time_major)
        for name, value in (("mask", mask), ("reset", reset))
    )
    key = None if given.key is None else check_key(given.key)
    return given._replace(lengths=lengths, mask=mask, reset=reset, key=key)


def _take_steps(
    name: str, value: Any, batch_shape: tuple[int, ...], length: int, time_major: bool
) -> Any:
    """Checks what has a bool for each step of each row."""
    if value is None:
        return None
    value = take_array(name, value, jnp.bool_)
    batch = _letters(batch_shape)
    expected = (length, *batch_shape) if time_major else (*batch_shape, length)
    parts = ("T", batch) if time_major else (batch, "T")
    letters = f"[{', '.join(part for part in parts if part)}]"
    other = (*batch_shape, length) if time_major else (length, *batch_shape)
    swapped = expected != other == tuple(value.shape)
    check_shape(name, letters, expected, value, _BATCH_AND_TIME if swapped else "")
    return value


def _check_lengths_values(lengths: Any, length: int) -> None:
    if isinstance(lengths, jax.core.Tracer) or not lengths.is_fully_addressable:
        return
    values = np.asarray(lengths)
    if values.size and (values.min() < 0 or values.max() > length):
        raise ValueError(
            f"lengths: expected values from 0 to T = {length}, the steps of each row "
            f"that are valid, got {values.min()} to {values.max()}."
        )


def _letters(batch_shape: tuple[int, ...]) -> str:
    if len(batch_shape) == 1:
        return "B"
    return ", ".join(f"B{n + 1}" for n in range(len(batch_shape)))


def conform_state(
    cell: Any,
    name: str,
    state: Any,
    params: Any,
    batch_shape: tuple[int, ...],
    dtype: Any,
    length: int | None = None,
) -> Any:
    """Checks a state, the cell's own start if None, and casts it to the steps' dtypes.

    ``params`` hold what the cell has learned to start from; ``length`` is T, where
    there is a time axis to mistake for the batch.
    """
    dtype = jnp.dtype(dtype if cell.dtype is None else cell.dtype)
    if state is None:
        return cell.initial_state(params, batch_shape, dtype)
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
        letters = f"[{', '.join(filter(None, (_letters(batch_shape), last)))}]"
        hint = _state_hint(tuple(value.shape), leaf.shape, batch_shape, length)
        check_shape(f"{name}{field}", letters, leaf.shape, value, hint)
        leaves.append(value.astype(leaf.dtype))
    return structure.unflatten(leaves)


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
        mistake = _BATCH_AND_TIME if shape[0] == length else _LAST_BATCH
        return f"The batch is {expected[0]} in xs and {shape[0]} here. {mistake}"
    return ""


def check_key(key: Any) -> Any:
    """Checks a random key, and returns it."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is None:
        kind = type(key).__name__
        raise TypeError(f"key: expected a key such as jax.random.key(0), got {kind}.")
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    one = () if typed else _raw_key_shape(str(jax.config.jax_default_prng_impl))
    if not typed and dtype != jnp.uint32:
        raise TypeError(
            f"key: expected a key such as jax.random.key(0), got an array of {dtype}."
        )
    if shape != one:
        raise TypeError(
            f"key: expected one key such as jax.random.key(0), of shape {list(one)}, "
            f"got shape {list(shape)}. A batch of keys goes through jax.vmap."
        )
    return key if typed else take("key", key)


@functools.lru_cache(maxsize=16)
def _raw_key_shape(implementation: str) -> tuple[int, ...]:
    data = lambda: jax.random.key_data(jax.random.key(0, impl=implementation))
    return jax.eval_shape(data).shape


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
    if isinstance(value, kind):
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
        is_pair = kind is LSTMState and isinstance(value, (tuple, list))
        pair = is_pair and len(value) == 2 and hasattr(value[0], "shape")
        hint = _PAIR if pair else ""
        if name == "state" and not isinstance(value, (tuple, list)):
            hint = _not_a_state(value)
        raise TypeError(
            f"{name}: expected {expected}, got {type(value).__name__}. {hint}".rstrip()
        )
    if len(value) != layers:
        raise ValueError(f"{name}: expected {expected}, got {len(value)} layers.")
    for index, layer in enumerate(value):
        if (layer.backward is not None) != bidirectional:
            expected, got = "one, the model is bidirectional", "None"
            if not bidirectional:
                expected, got = "None, the model is one-directional", "one"
            raise ValueError(
                f"{name}[{index}].backward: expected {expected}, got {got}."
            )
