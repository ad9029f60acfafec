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

from lstm_jax.checks import slips
from lstm_jax.checks.border import take
from lstm_jax.types import Options, config

BATCH_AND_TIME = (
    "Batch and time look swapped: xs is [*batch, T, I], and [T, *batch, I] only with "
    "time_major=True."
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
    jnp.floating: ("a floating dtype", "Cast numbers: value.astype(jnp.float32)."),
    jnp.integer: ("an integer dtype", ""),
    jnp.bool_: ("a bool dtype", "Write {} != 0 to make bools of numbers."),
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
        if kind is jnp.floating and name in ("x", "xs"):
            hint = "Embed or one-hot encode tokens first; cast numbers."
        hint = hint.format(name)
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


def take_param(name: str, value: Any, dtype: Any) -> Any:
    """Returns a parameter as an array of JAX's own: any floating, or one of integers.

    Integers are in a format of their own, and nothing else is taken for them.
    """
    if jnp.issubdtype(dtype, jnp.floating):
        return take_array(name, value)
    value = take(name, value)
    if value.dtype != dtype:
        raise TypeError(
            f"{name}: expected {dtype}, got {value.dtype}. lstm_jax.quantize makes the "
            "parameters of a quantised model."
        )
    return value


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
    slips.check_inputs(xs)
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
    known = getattr(cell, "input_dtypes", None)
    if known is not None and jnp.dtype(xs.dtype).name not in known:
        raise TypeError(
            f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, all that "
            f"{type(cell).__name__} takes, got {xs.dtype}. Cast it."
        )
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
    batch = batch_letters(batch_shape)
    if lengths is not None:
        lengths = take("lengths", lengths, allow_lists=True)
        check_array("lengths", lengths, jnp.integer)
        swapped = batch_shape != (length,) == tuple(lengths.shape)
        hint = BATCH_AND_TIME if swapped else ""
        check_shape("lengths", f"[{batch}]", batch_shape, lengths, hint)
        check_length_values(lengths, length)
    mask, reset = (
        _take_steps(name, value, batch_shape, length, given.time_major)
        for name, value in (("mask", mask), ("reset", reset))
    )
    key = None if given.key is None else check_key(given.key)
    return given._replace(lengths=lengths, mask=mask, reset=reset, key=key)


def _take_steps(
    name: str, value: Any, batch_shape: tuple[int, ...], length: int, time_major: bool
) -> Any:
    """Takes what has a bool for each step of each row."""
    if value is None:
        return None
    value = take_array(name, value, jnp.bool_)
    check_steps(name, value, batch_shape, length, time_major)
    return value


def check_steps(
    name: str, value: Any, batch_shape: tuple[int, ...], length: int, time_major: bool
) -> None:
    """Checks the shape of what has a bool for each step of each row."""
    check_array(name, value, jnp.bool_)
    batch = batch_letters(batch_shape)
    expected = (length, *batch_shape) if time_major else (*batch_shape, length)
    parts = ("T", batch) if time_major else (batch, "T")
    letters = f"[{', '.join(part for part in parts if part)}]"
    other = (*batch_shape, length) if time_major else (length, *batch_shape)
    swapped = expected != other == tuple(value.shape)
    check_shape(name, letters, expected, value, BATCH_AND_TIME if swapped else "")


def check_length_values(lengths: Any, length: int) -> None:
    """Checks that lengths are from 0 to T, where their values are known."""
    if isinstance(lengths, jax.core.Tracer) or not lengths.is_fully_addressable:
        return
    values = np.asarray(lengths)
    if values.size and (values.min() < 0 or values.max() > length):
        raise ValueError(
            f"lengths: expected values from 0 to T = {length}, the steps of each row "
            f"that are valid, got {values.min()} to {values.max()}."
        )


def batch_letters(batch_shape: tuple[int, ...]) -> str:
    """The letters of the batch axes: B, or B1, B2 and so on."""
    if len(batch_shape) == 1:
        return "B"
    return ", ".join(f"B{n + 1}" for n in range(len(batch_shape)))


def check_key(key: Any) -> Any:
    """Checks a random key, and returns it."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if dtype is None:
        kind = type(key).__name__
        raise TypeError(f"key: expected a key such as jax.random.key(0), got {kind}.")
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    one = () if typed else _raw_key_shape(str(config.jax_default_prng_impl))
    if not typed and dtype != jnp.uint32:
        raise TypeError(
            f"key: expected a key such as jax.random.key(0), got an array of {dtype}."
        )
    if shape != one:
        raise TypeError(
            f"key: expected one key such as jax.random.key(0), of shape {list(one)}, "
            f"got shape {list(shape or ())}. A batch of keys goes through jax.vmap."
        )
    return key if typed else take("key", key)


@functools.lru_cache(maxsize=16)
def _raw_key_shape(implementation: str) -> tuple[int, ...]:
    data = lambda: jax.random.key_data(jax.random.key(0, impl=implementation))
    return jax.eval_shape(data).shape
