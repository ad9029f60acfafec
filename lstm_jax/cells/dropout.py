"""Dropout as functions of arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lstm_jax import meshes
from lstm_jax.checks import arrays, options
from lstm_jax.types import Array


def inverted_dropout(
    key: Array, rate: float, x: Array, shape: tuple[int, ...] | None = None
) -> Array:
    """Sets entries to 0 at a rate and divides the others by 1 - rate.

    Args:
        key: a random key.
        rate: in [0, 1).
        x: any array.
        shape: of the mask, which is broadcast: 1 where entries share their fate; by
            default that of ``x``.
    """
    keep = jax.random.bernoulli(key, 1 - rate, x.shape if shape is None else shape)
    keep = jnp.broadcast_to(keep, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def embedding_dropout(key: Array | None, rate: float, table: Array) -> Array:
    """Drops whole rows of an embedding table: a word is gone wherever it stands.

    Shapes:
        ``table`` is ``[V, E]``, and so is the result.

    Args:
        key: a random key; None leaves the table as it is.
        rate: the rate of rows set to 0, in [0, 1); the others are divided by 1 - rate.
        table: one row for each of V words.

    Raises:
        ValueError: if the rate is not in [0, 1), or ``table`` is no matrix.
        TypeError: if an argument has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> table = jnp.ones((6, 4))
        >>> dropped = lj.embedding_dropout(jax.random.key(0), 0.5, table)
        >>> sorted({tuple(row) for row in dropped.tolist()})
        [(0.0, 0.0, 0.0, 0.0), (2.0, 2.0, 2.0, 2.0)]

    References:
        Gal and Ghahramani 2016, arXiv:1512.05287; Merity et al. 2017, arXiv:1708.02182.
    """
    options.check_rate("rate", rate)
    table = arrays.take_array("table", table)
    if len(table.shape) != 2:
        raise ValueError(
            f"table: expected shape [V, E], got {list(table.shape)}. Pass the "
            "embedding table, not the embedded words."
        )
    if key is None or not rate:
        return table
    key = arrays.check_key(key)
    drop = lambda key, table: inverted_dropout(key, rate, table, (table.shape[0], 1))
    return meshes.alike(drop, (key, table), table)
