"""Every contract on options: of cells, stacks and functions.

Each check raises ValueError, or TypeError for a wrong type, and says which option is
wrong, what was expected, what came, and where it helps the likely mistake.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np


def check_sizes(cell: Any) -> None:
    """Checks the sizes and dtypes of a cell."""
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
        dtype = getattr(cell, name)
        if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {dtype}.")


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
    if isinstance(value, bool) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(
            f"{name}: expected a number or None, got {value!r} of type "
            f"{type(value).__name__}."
        )
    if not value > 0:
        raise ValueError(f"{name}: expected a limit above 0, got {value}.")


def check_positive(name: str, size: Any) -> None:
    """Checks that an option is a positive integer."""
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)):
        raise TypeError(
            f"{name}: expected an integer, got {size!r} of type {type(size).__name__}."
        )
    if size < 1:
        raise ValueError(f"{name}: expected at least 1, got {size}.")


def check_rate(name: str, rate: float) -> None:
    """Checks the rate of a dropout."""
    if isinstance(rate, bool) or not isinstance(
        rate, (int, float, np.integer, np.floating)
    ):
        raise TypeError(
            f"{name}: expected a number, got {rate!r} of type {type(rate).__name__}."
        )
    if not 0 <= rate < 1:
        raise ValueError(f"{name}: expected a rate in [0, 1), got {rate}.")


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Checks that an option is one of a few."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}.")


def check_exportable(model: Any, library: str) -> None:
    """Checks that a stack is one of standard LSTM layers, as other libraries have."""
    for index, cell in enumerate(model.cells):
        if not getattr(cell, "standard", False):
            raise ValueError(
                f"model: expected standard LSTM layers, all that {library} has, got "
                f"{cell!r} as layer {index}."
            )
        for name in ("learn_initial_state", "zoneout_h", "zoneout_c"):
            if getattr(cell, name, False):
                raise ValueError(
                    f"{name}: expected none, since {library} has none, got it in layer "
                    f"{index}."
                )
    for name in ("residual", "skip"):
        if getattr(model, name):
            raise ValueError(f"{name}: expected False, since {library} has none.")
