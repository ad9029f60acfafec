"""The list of implementations, and which of them runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from lstm_jax.cells.base import Cell
from lstm_jax.checks import options
from lstm_jax.recurrence import lowering, xla
from lstm_jax.recurrence.contract import Implementation, Target
from lstm_jax.recurrence.cpu import Kernels
from lstm_jax.recurrence.pallas_tpu import TPUKernels
from lstm_jax.types import config

# The preferred first; the reference runs everything everywhere.
IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Kernels(),
    xla.Reference(),
    TPUKernels(),
)

VARIABLE = "LSTM_JAX_IMPLEMENTATION"

# Part of the key of every program that JAX keeps.
_chosen_for_all = jax.make_user_context(None)


def implementations() -> dict[str, str]:
    """Returns each implementation's name with "available", or the reason why not.

    The one that is preferred comes first; those behind "xla" run only where they are
    named, since no device was ever measured with them.

    Example:
        >>> import lstm_jax as lj
        >>> lj.implementations()["xla"]
        'available'
    """
    return {one.name: one.unavailable() or "available" for one in IMPLEMENTATIONS}


def implementation(name: str | None) -> contextlib._GeneratorContextManager[None]:
    """Chooses the implementation for all calls of a ``with`` block that name none.

    Or of a function, as its decorator.

    The environment variable ``LSTM_JAX_IMPLEMENTATION`` does the same for a whole
    program; this wins over it, and the argument ``implementation=`` of a call over
    both. What was compiled under another choice is not used.

    Args:
        name: one of :func:`implementations`; None for the fastest again.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> with lj.implementation("xla"):
        ...     lj.resolve_implementation(cell, params, jnp.ones((2, 7, 3)))
        'xla'
    """
    _check_name("name", name)
    return _choosing(name)


@contextlib.contextmanager
def _choosing(name: str | None) -> Iterator[None]:
    with _chosen_for_all(name or ""):
        yield


def permitted(name: str | None) -> tuple[Implementation, ...]:
    """The implementations that a call may run: the one that was named, or all.

    Raises:
        ValueError: if there is none of that name.
    """
    _check_name("implementation", name)
    if name is None:
        name = _chosen_for_all.value
    if name is None:
        name = os.environ.get(VARIABLE) or None
        _check_name(VARIABLE, name)
    if not name:
        return tuple(one for one in IMPLEMENTATIONS if one.by_default)
    return tuple(one for one in IMPLEMENTATIONS if one.name == name)


def _check_name(argument: str, name: Any) -> None:
    if name is not None:
        names = tuple(one.name for one in IMPLEMENTATIONS)
        options.check_choice(argument, name, names)


def candidates(
    permitted: tuple[Implementation, ...], cell: Cell, dtype: Any
) -> tuple[Implementation, ...]:
    """Those of the permitted implementations that can run a cell in a dtype.

    Raises:
        NotImplementedError: if one was named, and it can't.
    """
    able, reasons = [], []
    for one in permitted:
        if reason := one.why_not(cell, jnp.dtype(dtype)):
            reasons.append(f'"{one.name}" {reason}')
        else:
            able.append(one)
    if not able:
        raise NotImplementedError(
            f"implementation: {'; '.join(reasons)}. Leave it out for the fastest that "
            "can."
        )
    return tuple(able)


def resolve(able: tuple[Implementation, ...], platform: str | None, xs: Any) -> str:
    """The name of the candidate that runs on a platform, or on that of ``xs``."""
    target = Target(platform_of(xs) if platform is None else platform)
    return lowering.choose(able, target).name


def platform_of(array: Any) -> str:
    """The platform that an array is on, or that it would be put on."""
    if isinstance(array, jax.Array) and not isinstance(array, core.Tracer):
        return _canonical(next(iter(array.devices())).platform)
    device = config.jax_default_device
    if device is None:
        return _canonical(jax.default_backend())
    return _canonical(device if isinstance(device, str) else device.platform)


def _canonical(platform: str) -> str:
    return "cuda" if platform == "gpu" else platform
