"""Prompts: checked, as wide as the bucket they are compiled for, and read by a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.checks import border, options
from lstm_jax.data import taking
from lstm_jax.data.sequences import pad_sequences
from lstm_jax.types import Array, PyTree

Step = Callable[[Any, Any, Array], tuple[Any, Array]]


class Given(NamedTuple):
    """What decoding begins with; ``tokens`` are prompts, ``[B, T]``, padded."""

    params: PyTree
    state: PyTree
    tokens: Any
    lengths: Any


def checked(
    step: Any, params: Any, state: Any, prompts: Any, length: Any, stop: Any
) -> tuple[Given, np.ndarray]:
    """Checks and takes what every kind of decoding is given, and the stop tokens."""
    options.check_callable("step", step, "lambda params, state, tokens: ...")
    options.check_positive("length", length)
    stop = _stops(stop)
    tokens, lengths = _padded(prompts)
    state = border.take_leaves("state", state)
    _check_rows(state, len(tokens))
    given = Given(border.take_leaves("params", params), state, tokens, lengths)
    return given, stop


def check_stops(stop: np.ndarray, classes: Array) -> None:
    """Checks that each stop token is one of the V of :func:`classes`."""
    if stop.size and stop.max() >= len(classes):
        raise ValueError(
            f"stop: expected tokens below {len(classes)}, which step has logits of, "
            f"got {stop.max()}."
        )


def classes(step: Step, given: Given) -> Array:
    """``[V, 0]``, for V, of which a step makes logits, is known where it is traced."""
    rows = len(given.tokens)
    token = jax.ShapeDtypeStruct((rows,), jnp.int32)
    made = jax.eval_shape(step, given.params, given.state, token)
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        raise TypeError(
            f"step: expected it to return (state, logits), got {type(made).__name__}."
        )
    shape = getattr(made[1], "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != rows or not shape[1]:
        got = type(made[1]).__name__ if shape is None else list(shape)
        raise ValueError(
            f"step: expected logits [B, V] with B = {rows}, as it was given tokens, "
            f"got {got}."
        )
    return jnp.zeros((shape[1], 0))


def read(step: Step, given: Given) -> tuple[PyTree, Array]:
    """The state before each prompt's last token, and that token."""
    before = given.lengths - 1

    def ahead(state, at):
        number, tokens = at
        return chosen(
            number < before, step(given.params, state, tokens)[0], state
        ), None

    numbers = jnp.arange(given.tokens.shape[1])
    state, _ = lax.scan(ahead, given.state, (numbers, jnp.transpose(given.tokens)))
    return state, jnp.take_along_axis(given.tokens, before[:, None], 1)[:, 0]


def chosen(rows: Array, one: PyTree, other: PyTree) -> PyTree:
    """One of two states for each row."""

    def choose(new, old):
        return jnp.where(jnp.expand_dims(rows, tuple(range(1, new.ndim))), new, old)

    return jax.tree.map(choose, one, other)


def bucket(number: int) -> int:
    """The power of two that a number is compiled for, 8 or more."""
    return max(8, 1 << (int(number) - 1).bit_length())


def _stops(stop: int | Sequence[int]) -> np.ndarray:
    """The tokens that end a row."""
    tokens = np.atleast_1d(np.asarray(stop))
    if tokens.size and tokens.dtype.kind not in "iu":
        raise TypeError(f"stop: expected a token or several, got {stop!r}.")
    taking.check_tokens("stop", tokens)
    return np.unique(tokens.astype(np.int32))


def _padded(prompts: Any) -> tuple[Any, Any]:
    """Prompts as an array as wide as their bucket, and their lengths."""
    if isinstance(prompts, jax.Array):
        _check_prompt("prompts", prompts, 2)
        if not isinstance(prompts, jax.core.Tracer) and prompts.is_fully_addressable:
            taking.check_tokens("prompts", np.asarray(prompts))
        rows, width = prompts.shape
        padding = (0, 0), (0, bucket(width) - width)
        tokens = jnp.pad(prompts.astype(jnp.int32), padding)
        return tokens, jnp.full(rows, width, jnp.int32)
    if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__len__"):
        raise TypeError(
            f"prompts: expected B sequences of integers, got {type(prompts).__name__}. "
            "Vocabulary.encode makes numbers of text."
        )
    if not len(prompts):
        raise ValueError("prompts: expected at least one, got none.")
    sequences = [
        border.read(f"prompts[{n}]", prompt, allow_lists=True)
        for n, prompt in enumerate(prompts)
    ]
    for n, sequence in enumerate(sequences):
        _check_prompt(f"prompts[{n}]", sequence, 1)
        taking.check_tokens(f"prompts[{n}]", sequence)
    # One dtype for all: an array and a list may stand side by side.
    tokens, lengths = pad_sequences([one.astype(np.int32) for one in sequences])
    wide = np.pad(tokens, ((0, 0), (0, bucket(tokens.shape[1]) - tokens.shape[1])))
    return wide, lengths


def _check_prompt(name: str, prompt: Any, ndim: int) -> None:
    if prompt.ndim != ndim:
        letters = "[B, T]" if ndim == 2 else "[T]"
        raise ValueError(
            f"{name}: expected shape {letters}, got {list(prompt.shape)}. One prompt "
            "alone is [prompt]."
        )
    if not prompt.size:
        raise ValueError(f"{name}: expected a token to begin with, got none.")
    if not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, got {prompt.dtype}.")


def _check_rows(state: PyTree, rows: int) -> None:
    for path, leaf in jax.tree.leaves_with_path(state):
        shape = jnp.shape(leaf)
        if shape[:1] != (rows,):
            raise ValueError(
                f"state{jax.tree_util.keystr(path)}: expected {rows} rows, as prompts "
                f"has, got shape {list(shape)}. model.zero_state(({rows},)) has them."
            )
