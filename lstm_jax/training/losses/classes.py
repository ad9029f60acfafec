"""Targets that are classes: which of them count, and which are no class."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks.border import take
from lstm_jax.training.losses.counted import valid_tokens
from lstm_jax.types import Array


class Classes(NamedTuple):
    """Targets that can be looked up, whatever was given.

    Attributes:
        targets: ``[...]``, a class each: 0 where the one that was given is none.
        valid: ``[...]`` bool, where a token counts.
        wrong: ``[...]`` bool, where a token counts and its target is no class; where
            values are known there is no such token.
    """

    targets: Array
    valid: Array
    wrong: Array

    def poison(self, values: Array) -> Array:
        """``values`` ``[...]`` with NaN where targets are wrong, in gradients too."""
        if not isinstance(self.wrong, jax.core.Tracer):
            return values
        nan = jnp.where(self.wrong, jnp.nan, 0.0).astype(values.dtype)
        # The product is for gradients. It does not do for values: where they were bools
        # XLA selects by them, and what was False stays 0.
        return values * (1 + nan) + nan


def take_classes(
    targets: Any,
    shape: tuple[int, ...],
    classes: int,
    mask: Any,
    lengths: Any,
    *,
    of: str = "logits",
    last: str = "the last axis of logits",
) -> Classes:
    """Checks targets, ``[...]``, against V and the array that has a row for each.

    Args:
        targets: as they were given.
        shape: of the array ``of``, ``[..., size]``.
        classes: V, which is ``last``.
        mask: ``[...]`` bool, or None.
        lengths: ``[*batch]`` integers, or None.
        of: the name of the array whose leading axes targets have.
        last: what V is, in words.
    """
    targets = take("targets", targets)
    shapes.check_array("targets", targets, jnp.integer)
    if not shape or shape[:-1] != targets.shape:
        raise ValueError(
            f"targets: expected shape {list(shape[:-1])}, the leading axes of {of}, "
            f"got {list(targets.shape)}."
        )
    valid = valid_tokens(targets, mask, lengths)
    # Wide enough to be compared with V; 64 bits only where they are on.
    targets = targets.astype(jnp.int64 if targets.dtype.itemsize > 4 else jnp.int32)
    wrong = valid & ((targets < 0) | (targets >= classes))
    _check_range(targets, wrong, classes, last)
    targets = jnp.where(valid & ~wrong, targets, jnp.zeros((), targets.dtype))
    return Classes(targets, valid, wrong)


def _check_range(targets: Array, wrong: Array, classes: int, last: str) -> None:
    """Checks that every target is a class, where the values are known."""
    if isinstance(wrong, jax.core.Tracer) or isinstance(targets, jax.core.Tracer):
        return
    if not (places := np.asarray(wrong)).any():
        return
    value = np.asarray(targets)[places][0]
    padding = f" Where it marks padding, pass mask=targets != {value}."
    raise ValueError(
        f"targets: expected classes from 0 to V - 1 = {classes - 1}, with V {last}, "
        f"got {value}; {places.sum()} of {places.size} are out of "
        f"range.{padding if value < 0 else ''}"
    )
