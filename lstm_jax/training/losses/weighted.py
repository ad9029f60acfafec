"""A sum and what it has to be divided by."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from lstm_jax.types import Array


class Weighted(NamedTuple):
    """A mean that is not yet divided: parts of it are added up, then divided once.

    The mean of means over parts with unequal numbers of tokens is not the mean over the
    tokens. Losses and metrics that are to be accumulated, over the parts of a batch or
    the batches of an evaluation, therefore come as a total and a weight.

    Attributes:
        total: the sum over what counts, a scalar, float32 or wider.
        weight: how much counts, a scalar: a number of tokens, int32, or of other
            weights, floating.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax.training import Weighted
        >>> parts = Weighted(jnp.float32(6), jnp.int32(3)), Weighted(jnp.float32(2), 1)
        >>> total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        >>> float(total.mean())
        2.0
    """

    total: Array
    weight: Array

    def mean(self) -> Array:
        """Returns total / weight, a scalar; 0 where the weight is 0."""
        total, weight = jnp.asarray(self.total), jnp.asarray(self.weight)
        some = weight != 0
        weight = jnp.where(some, weight, jnp.ones_like(weight)).astype(total.dtype)
        return jnp.where(some, total / weight, jnp.zeros_like(total))
