"""Every contract on options: of cells, stacks and functions.

Each check raises ValueError, or TypeError for a wrong type, and says which option is
wrong, what was expected, what came, and where it helps the likely mistake.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

# Those that are initializers themselves. All others of JAX return one.
_INITIALIZERS = (initializers.zeros, initializers.ones)


def check_flags(description: Any) -> None:
    """Checks that what is on or off is a bool."""
    for field in dataclasses.fields(description):
        if field.type in ("bool", bool):
            check_flag(field.name, getattr(description, field.name))


def check_flag(name: str, value: Any) -> None:
    """Checks that an option is a bool, NumPy's too: any word would be true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {_got(value)}.")


def check_forward(name: str, model: Any) -> None:
    """Checks that a model can begin before it has seen the whole sequence."""
    if np.any(getattr(model, "bidirectional", False)):
        raise ValueError(
            f"{name}: expected a one-directional model, got bidirectional=True. Its "
            "backward half needs the whole sequence: use apply."
        )
    if np.any(getattr(model, "reverse", False)):
        raise ValueError(
            f"{name}: expected a model that runs forward, got reverse={model.reverse}. "
            "A layer in reverse needs the whole sequence: use apply."
        )


def check_plain(name: str, value: Any) -> None:
    """Checks that an option is no array: an array is equal to nothing as a whole."""
    if not isinstance(value, (np.ndarray, jax.Array)):
        return
    got = f"an array of {value.dtype} {list(value.shape)}"
    if isinstance(value, jax.core.Tracer):
        got = _got(value)
    elif not value.shape:
        got = f"{got}: write {name}=value.item()"
    raise TypeError(f"{name}: expected a plain value, got {got}.")


def _got(value: Any) -> str:
    """What came instead of a plain value."""
    if isinstance(value, jax.core.Tracer):
        return (
            "a traced value, since jax.jit traces all arguments. Bind it before, "
            "functools.partial(function, name=value), or mark it in static_argnames"
        )
    return f"{value!r} of type {type(value).__name__}"


def check_cell(cell: Any) -> None:
    """Checks the flags, sizes, dtypes and initializers of a cell."""
    check_flags(cell)
    for name in ("input_size", "hidden_size", "proj_size", "num_heads"):
        size = getattr(cell, name, None)
        if size is not None:
            check_positive(name, size)
    proj_size = getattr(cell, "proj_size", None)
    if proj_size is not None and proj_size >= cell.hidden_size:
        raise ValueError(
            f"proj_size: expected less than hidden_size = {cell.hidden_size}, got "
            f"{cell.proj_size}. A projection makes h smaller; None is for none."
        )
    for name in ("dtype", "param_dtype"):
        check_floating(name, getattr(cell, name))
    check_finite("forget_bias", getattr(cell, "forget_bias", 0.0))
    for field in dataclasses.fields(cell):
        value = getattr(cell, field.name)
        if field.name.endswith("_init") and (value, field.default) != (None, None):
            check_initializer(field.name, value)


def check_floating(name: str, dtype: Any) -> None:
    """Checks that an option is a floating dtype, or None."""
    if dtype is not None and not _is_floating(dtype):
        raise TypeError(
            f"{name}: expected a floating dtype such as jnp.bfloat16, got {dtype}."
        )


def _is_floating(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(dtype, jnp.floating)
    except TypeError:  # It names no dtype.
        return False


def check_initializer(name: str, value: Any) -> None:
    """Checks that an option is an initializer, and not what makes one."""
    check_callable(name, value, "jax.nn.initializers.he_normal()")
    for factory, made in vars(initializers).items():
        if value is made and value not in _INITIALIZERS:
            raise TypeError(
                f"{name}: expected an initializer, got jax.nn.initializers.{factory}, "
                f"which makes one. Call it: {name}={factory}()."
            )


def check_heads(num_heads: int, **sizes: int) -> None:
    """Checks that a number of heads divides sizes, given by name."""
    for name, size in sizes.items():
        if size % num_heads:
            raise ValueError(
                f"num_heads: expected a divisor of {name} = {size}, got {num_heads}."
            )


def check_spatial_shape(name: str, shape: Any) -> int:
    """Checks the shape of a cell's images; returns how many spatial axes they have."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(
            f"{name}: expected a tuple such as (16, 16, 3), got {shape!r} of type "
            f"{type(shape).__name__}."
        )
    for size in shape:
        check_positive(name, size)
    if not 2 <= len(shape) <= 4:
        raise ValueError(
            f"{name}: expected 1 to 3 spatial axes and the channels, got {shape}. "
            "Neither the batch nor the time axis belongs to it."
        )
    return len(shape) - 1


def one_each(name: str, value: Any, axes: int) -> tuple[int, ...]:
    """An option with one size for all spatial axes, or one each, as one each."""
    sizes = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    for size in sizes:
        check_positive(name, size)
    if len(sizes) != axes:
        raise ValueError(
            f"{name}: expected one size or {axes}, one for each spatial axis, got "
            f"{value}."
        )
    return sizes


def check_callable(name: str, value: Any, example: str) -> None:
    """Checks that an option is a function."""
    if not callable(value):
        raise TypeError(
            f"{name}: expected a function such as {example}, got {value!r}."
        )


def check_limit(name: str, value: Any) -> None:
    """Checks that an option is a positive number, or None for no limit."""
    if value is None:
        return
    if not _is_number(value):
        raise TypeError(f"{name}: expected a number or None, got {_got(value)}.")
    if not value > 0:
        raise ValueError(f"{name}: expected a limit above 0, got {value}.")


def check_finite(name: str, value: Any) -> None:
    """Checks that an option is a finite number."""
    _check_number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}.")


def _is_number(value: Any) -> bool:
    kinds = (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _check_number(name: str, value: Any) -> None:
    if not _is_number(value):
        raise TypeError(f"{name}: expected a number, got {_got(value)}.")


def check_positive(name: str, size: Any) -> None:
    """Checks that an option is a positive integer."""
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {_got(size)}.")
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}.")


def check_rate(name: str, rate: float) -> None:
    """Checks the rate of a dropout."""
    _check_number(name, rate)
    if not 0 <= rate < 1:
        raise ValueError(f"{name}: expected a rate in [0, 1), got {rate}.")


def check_probability(name: str, rate: Any) -> None:
    """Checks that an option is a number from 0 to 1."""
    _check_number(name, rate)
    if not 0 <= rate <= 1:
        raise ValueError(f"{name}: expected from 0 to 1, got {rate}.")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Checks that an option is one of a few."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}.")
