"""The next token from its logits: the likeliest, or drawn from some of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from lstm_jax.checks import arrays, border, options
from lstm_jax.types import Array


def sample(
    logits: Any,
    key: Any = None,
    *,
    temperature: Any = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Array:
    """Draws a token of each row.

    First logits are divided by the temperature; then the k largest are kept, of equal
    ones those that come first; then, of what these make of 1 together, the smallest
    number of the largest that reach p: at least one. All of it is computed in float32,
    and so is the noise, fine enough for tokens of a probability of 1e-30.

    Args:
        logits: ``[..., V]``.
        key: a typed key; or one for each row, ``[...]``, so that a row draws what it
            would draw alone. None where nothing is drawn.
        temperature: a number, or a scalar of JAX's; at 0 the largest logit is taken,
            the first of equal ones.
        top_k: how many to draw from; all if None.
        top_p: the probability to draw from; all if None or 1.

    Returns:
        Tokens, int32 ``[...]``.

    Raises:
        ValueError: if an option is out of range, there is no key to draw with, or no
            logit to draw.
        TypeError: if logits are no floating array, or an option is of another type.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax import decoding
        >>> logits = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
        >>> int(decoding.sample(logits, temperature=0.0))
        0
        >>> draw = lambda key: decoding.sample(logits, key, top_p=0.6)
        >>> tokens = jax.vmap(draw)(jax.random.split(jax.random.key(0), 100))
        >>> sorted({int(token) for token in tokens})
        [0, 1]
    """
    logits = border.take("logits", logits)
    arrays.check_array("logits", logits)
    if not logits.shape or not logits.shape[-1]:
        raise ValueError(
            f"logits: expected shape [..., V] with V above 0, got {list(logits.shape)}."
        )
    check_options(key, temperature, top_k, top_p)
    rows = logits.shape[:-1]
    if key is None:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    if key.shape not in ((), rows):
        raise ValueError(
            f"key: expected one, or one for each row, {list(rows)}, got "
            f"{list(key.shape)}."
        )
    return draw(logits, key, temperature, top_k, top_p)


def check_options(key: Any, temperature: Any, top_k: Any, top_p: Any) -> None:
    """Checks what can be checked before anything is traced."""
    temperature = _number(temperature)
    if temperature is not None:
        options.check_finite("temperature", temperature)
        if temperature < 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}.")
    if key is None and temperature != 0:
        raise ValueError(
            "key: expected one, since tokens are drawn, got None. temperature=0.0 "
            "takes the likeliest ones and needs none."
        )
    if key is not None and not _is_key(key):
        raise TypeError(f"key: expected jax.random.key(seed), got {key!r}.")
    if top_k is not None:
        options.check_positive("top_k", top_k)
    if top_p is not None:
        options.check_probability("top_p", top_p)


def _number(temperature: Any) -> Any:
    """A temperature as a number; None where it is traced."""
    if not isinstance(temperature, jax.Array):
        return temperature
    numbers = jnp.floating, jnp.integer
    real = any(jnp.issubdtype(temperature.dtype, kind) for kind in numbers)
    if temperature.shape or not real:
        raise TypeError(
            "temperature: expected a number, one for all rows, got an array of "
            f"{temperature.dtype} {list(temperature.shape)}."
        )
    return None if isinstance(temperature, jax.core.Tracer) else temperature.item()


def _is_key(value: Any) -> bool:
    typed = isinstance(value, jax.Array)
    return typed and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def draw(logits: Array, key: Array, temperature: Any, top_k: Any, top_p: Any) -> Array:
    """Draws, with options that were checked."""
    logits = logits.astype(jnp.float32)
    temperature = jnp.float32(temperature)
    cold = temperature <= 0
    warm = _divided(logits, jnp.where(cold, jnp.float32(1), temperature))
    order = None
    if top_k is not None or top_p is not None:
        order = jnp.argsort(-warm, -1, stable=True)
        warm = _kept(jnp.take_along_axis(warm, order, -1), top_k, top_p)
    categorical = lambda key, row: jax.random.categorical(key, row, mode="high")
    places = by_key(categorical, key, warm)
    if order is not None:
        places = jnp.take_along_axis(order, places[..., None], -1)[..., 0]
    tokens = jnp.where(cold, jnp.argmax(logits, -1), places)
    return tokens.astype(jnp.int32)


def by_key(function: Any, key: Array, *args: Array) -> Any:
    """A function of each key and what belongs to it, as of that key alone.

    Side by side where keys are threefry's: others draw something else under ``vmap``.
    """
    threefry = jax.random.key_impl(key) == "threefry2x32"
    for _ in key.shape:
        function = jax.vmap(function) if threefry else _one_by_one(function)
    return function(key, *args)


def _one_by_one(function: Any) -> Any:
    return lambda *args: jax.lax.map(lambda row: function(*row), args)


def _divided(logits: Array, temperature: Array) -> Array:
    """Logits divided by a temperature; what overflows, counted from the largest."""
    warm = logits / temperature
    most = logits.max(-1, keepdims=True)
    over = (jnp.isinf(warm) & jnp.isfinite(logits)).any(-1, keepdims=True)
    return jnp.where(over & jnp.isfinite(most), (logits - most) / temperature, warm)


def _kept(falling: Array, top_k: int | None, top_p: float | None) -> Array:
    """Logits in falling order; those that are not drawn from are -inf."""
    never = jnp.float32(-jnp.inf)
    if top_k is not None:
        falling = falling.at[..., top_k:].set(never)
    if top_p is not None and top_p < 1:  # Sums that round may come to 1 too early.
        each = jax.nn.softmax(falling, -1)
        before = jnp.cumsum(each, -1) - each
        keep = (before < top_p).at[..., 0].set(True)
        falling = jnp.where(keep, falling, never)
    return falling
