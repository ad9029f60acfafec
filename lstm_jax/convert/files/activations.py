"""Keras's activations by the names that its configurations give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import activations
from lstm_jax.cells.variants import identity
from lstm_jax.types import Array

_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "exponential": jnp.exp,
    "gelu": activations.gelu,
    "linear": identity,
    "mish": jax.nn.mish,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def as_function(argument: str, value: Any, keras_version: str | None = None) -> Any:
    """The function of this library that an activation is.

    Args:
        argument: what it is called, for errors.
        value: the name that Keras gives it, or a function, which comes back.
        keras_version: of the Keras that gave the name, such as "2.15.0"; None where
            that is not known. "hard_sigmoid" depends on it.

    Raises:
        ValueError: if the name is unknown, or says two functions.
        TypeError: if it is neither a name nor a function.

    Example:
        >>> from lstm_jax.convert.files.activations import as_function
        >>> as_function("activation", "hard_sigmoid", "2.15.0").__name__
        'hard_sigmoid'
        >>> round(float(as_function("activation", "hard_sigmoid", "2.15.0")(1.0)), 3)
        0.7
        >>> round(float(as_function("activation", "hard_sigmoid", "3.6.0")(1.0)), 3)
        0.667
    """
    if callable(value):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"{argument}: expected a function, or the name that Keras gives it, got "
            f"{type(value).__name__}."
        )
    if value == "hard_sigmoid":
        if keras_version is None:
            raise ValueError(
                f"{argument}: 'hard_sigmoid' is 0.2 x + 0.5 in Keras 1 and 2, and "
                "x / 6 + 0.5 in Keras 3. Pass the function: jax.nn.hard_sigmoid is "
                "Keras 3's, lstm_jax.activations.hard_sigmoid the other."
            )
        later = int(keras_version.split(".")[0]) >= 3
        return jax.nn.hard_sigmoid if later else activations.hard_sigmoid
    if value not in _FUNCTIONS:
        raise ValueError(
            f"{argument}: expected one of {', '.join(map(repr, _FUNCTIONS))}, "
            f"'hard_sigmoid' or a function of an array, got {value!r}."
        )
    return _FUNCTIONS[value]
