"""The activations of ONNX's recurrent operators, and JAX's functions for them.

ONNX names eleven. ``functools.partial`` gives those that take an alpha or a beta their
numbers.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import activations
from lstm_jax.cells import variants
from lstm_jax.descriptions.functions import canonical, describe

Function = Callable[..., Any]


class Activation(NamedTuple):
    """An activation as a node writes it; None for a number it does not take."""

    name: str
    alpha: float | None = None
    beta: float | None = None


class _Kind(NamedTuple):
    """A function of JAX, what it calls alpha and beta, and what they are by default."""

    function: Function
    arguments: tuple[str, ...] = ()
    defaults: tuple[float, ...] = ()


_KINDS = {
    "Affine": _Kind(activations.affine, ("alpha", "beta")),
    "Relu": _Kind(jax.nn.relu),
    "LeakyRelu": _Kind(jax.nn.leaky_relu, ("negative_slope",), (0.01,)),
    "ThresholdedRelu": _Kind(activations.thresholded_relu, ("alpha",)),
    "Tanh": _Kind(jnp.tanh),
    "ScaledTanh": _Kind(activations.scaled_tanh, ("alpha", "beta")),
    "Sigmoid": _Kind(jax.nn.sigmoid),
    "HardSigmoid": _Kind(activations.hard_sigmoid, ("alpha", "beta"), (0.2, 0.5)),
    "Elu": _Kind(jax.nn.elu, ("alpha",), (1.0,)),
    "Softsign": _Kind(jax.nn.soft_sign),
    "Softplus": _Kind(jax.nn.softplus),
}
_BY_LETTERS = {name.lower(): name for name in _KINDS}
# Functions of JAX that are another one with numbers of their own.
_SPECIAL = {
    jax.nn.hard_sigmoid: Activation("HardSigmoid", 1 / 6, 0.5),
    jax.nn.identity: Activation("Affine", 1.0, 0.0),
    variants.identity: Activation("Affine", 1.0, 0.0),
}
DEFAULTS = tuple(Activation(name) for name in ("Sigmoid", "Tanh", "Tanh"))


def said(option: str, function: Function) -> Activation:
    """How a node says an activation.

    Args:
        option: the name of the model's option, for errors.
        function: its value.

    Raises:
        ValueError: if ONNX has no such activation.
    """
    function = canonical(function)
    if function in _SPECIAL:
        return _SPECIAL[function]
    plain, args, keywords = function, (), {}
    if isinstance(function, functools.partial):
        plain, args, keywords = function.func, function.args, function.keywords
    for name, kind in _KINDS.items():
        if plain is kind.function:
            numbers = _numbers(kind, args, keywords)
            if numbers is not None:
                return Activation(name, *numbers)
    known = ", ".join(describe(kind.function) for kind in _KINDS.values())
    raise ValueError(
        f"{option}: expected jax.nn.hard_sigmoid, jax.nn.identity or one of {known}, "
        "with numbers as alpha and beta, since ONNX has no other, got "
        f"{describe(function)}."
    )


def _numbers(kind: _Kind, args: tuple, keywords: dict[str, Any]) -> list[float] | None:
    """A function's alpha and beta; None if it is given anything else."""
    try:
        bound = inspect.signature(kind.function).bind(None, *args, **keywords)
    except TypeError:  # An argument is missing, or there is none of that name.
        return None
    bound.apply_defaults()
    values = [bound.arguments[name] for name in kind.arguments]
    if not all(isinstance(v, (int, float, np.number)) for v in values):
        return None
    return [float(value) for value in values]


def take(
    where: str, names: Sequence[str], alphas: Iterable[float], betas: Iterable[float]
) -> list[Function]:
    """The functions that a node's attributes name, in their order.

    As onnxruntime does, each activation that takes an alpha (or a beta) takes the next
    one of the list, and its default where the list has come to its end.

    Args:
        where: which node it is, for errors.
        names: in any letter case.
        alphas: its ``activation_alpha``.
        betas: its ``activation_beta``.

    Raises:
        ValueError: if there is no such activation, or a number is missing or not
            finite.
    """
    left = {"alpha": list(alphas), "beta": list(betas)}
    functions = [_function(where, given, left) for given in names]
    for attribute, numbers in left.items():
        if numbers:
            warnings.warn(
                f"{where}: activation_{attribute} has {len(numbers)} more numbers than "
                f"its activations take. The first ones count, as in onnxruntime.",
                stacklevel=2,
            )
    return functions


def _function(where: str, given: str, left: dict[str, list[float]]) -> Function:
    """The function of one activation, whose numbers are taken out of ``left``."""
    name = _BY_LETTERS.get(given.lower())
    if name is None:
        raise ValueError(
            f"{where}: activations: expected some of {', '.join(_KINDS)}, got "
            f"{given!r}."
        )
    kind, numbers = _KINDS[name], []
    for n, attribute in enumerate(("alpha", "beta")[: len(kind.arguments)]):
        if left[attribute]:
            numbers.append(shortest(left[attribute].pop(0)))
        elif kind.defaults:
            numbers.append(kind.defaults[n])
        else:
            raise ValueError(
                f"{where}: activation_{attribute}: expected one for {name}, for which "
                "the specification and onnxruntime have different defaults, got none. "
                f"Write it into the file."
            )
        if not math.isfinite(numbers[-1]):
            raise ValueError(
                f"{where}: activation_{attribute}: expected finite numbers, got "
                f"{numbers[-1]}."
            )
    return _with_numbers(name, numbers)


def _with_numbers(name: str, numbers: list[float]) -> Function:
    """JAX's own function where there is one for these numbers, or else a partial."""
    kind = _KINDS[name]
    for function, activation in _SPECIAL.items():
        if activation.name == name and np.array_equal(
            np.array(activation[1:], np.float32), np.array(numbers, np.float32)
        ):
            return function
    if tuple(numbers) == kind.defaults:
        return kind.function
    keywords = dict(zip(kind.arguments, numbers, strict=True))
    return canonical(functools.partial(kind.function, **keywords))


def shortest(number: float) -> float:
    """The shortest decimal that is this number in float32, as attributes are."""
    return float(str(np.float32(number)))
