"""What a loss function takes and returns, checked in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import options
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import Array, PyTree

# A mean, or terms that are each to be divided by their own weight.
Value = Array | tuple[Weighted, ...]
Loss = tuple[Any, tuple[PyTree, PyTree]]
LossFn = Callable[[PyTree, PyTree, Any, Array], Loss]

_SIGNATURE = "loss_fn(params, carry, batch, key) -> (loss, (carry, metrics))"


def check_loss_fn(loss_fn: Any) -> None:
    """Checks that a loss function takes the four arguments."""
    options.check_callable("loss_fn", loss_fn, _SIGNATURE)
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # Some builtins have none.
        return
    try:
        signature.bind(None, None, None, None)
    except TypeError:
        raise TypeError(
            f"loss_fn: expected {_SIGNATURE}, got one that takes {signature}. Where "
            "nothing is carried, carry is () and goes back as it came; batch and key "
            "may be None."
        ) from None


def check_tx(tx: Any) -> None:
    """Checks that an optimizer is one of Optax."""
    if hasattr(tx, "init") and hasattr(tx, "update"):
        return
    hint, name = "", getattr(tx, "__name__", "")
    if callable(tx) and name:
        hint = f"{name} is a function that makes one: {name}(1e-3)."
    raise TypeError(
        "tx: expected an Optax transformation such as optax.adam(1e-3), got "
        f"{type(tx).__name__}. {hint}".rstrip()
    )


def call(
    loss_fn: LossFn,
    params: PyTree,
    carry: PyTree,
    batch: Any,
    key: Any,
    *,
    exact: bool = False,
    weighted: bool = False,
) -> Loss:
    """Calls a loss function and checks what it returns.

    ``exact`` asks for a carry of the shapes and dtypes of the one that came, and of its
    structure even where it was empty, as a scan does. Where ``weighted`` totals are
    allowed, they come back as a tuple of :class:`Weighted`.
    """
    result = loss_fn(params, carry, batch, key)
    if not _is_pair(result):
        raise TypeError(f"loss_fn: expected {_SIGNATURE}, got {_describe(result)}.")
    loss, aux = result
    expected = jax.tree.structure(carry)
    lone = jax.tree.structure(aux) == expected
    if lone or not _is_pair(aux):
        hint = "The metrics are missing: {} is for none." if lone else ""
        raise TypeError(
            f"loss_fn: expected {_SIGNATURE}, got (loss, {_describe(aux)}). "
            f"{hint}".rstrip()
        )
    loss = _take_terms(loss) if weighted else _take_scalar(loss)
    after, metrics = aux
    if exact or expected.num_leaves:
        _check_structure(expected, after, metrics)
    if exact:
        check_leaves(carry, after)
    return loss, (after, metrics)


def _take_scalar(loss: Any, name: str = "loss") -> Any:
    if isinstance(loss, Weighted):
        raise TypeError(
            f"{name}: expected a scalar from loss_fn, got a Weighted. Return its "
            ".total where parts are summed, its .mean() where each counts alike."
        )
    if isinstance(loss, (tuple, list, dict)):
        raise TypeError(f"{name}: expected a scalar from loss_fn, got {_kind(loss)}.")
    if jnp.shape(loss):
        raise ValueError(
            f"{name}: expected a scalar from loss_fn, got shape "
            f"{list(jnp.shape(loss))}. Return its mean or sum."
        )
    return loss


def _take_terms(loss: Any) -> Any:
    """A scalar as it is, one term or several as a tuple."""
    terms = (loss,) if isinstance(loss, Weighted) else loss
    if not isinstance(terms, (tuple, list)):
        return _take_scalar(loss)
    if not terms or not all(isinstance(term, Weighted) for term in terms):
        raise TypeError(
            "loss: expected a scalar, a Weighted, or several of them from loss_fn, got "
            f"{_kind(loss)}. Weighted(total, weight) has names so that no pair is "
            "mistaken for one; a term without tokens, such as a penalty, is "
            "Weighted(penalty, 1)."
        )
    for n, term in enumerate(terms):
        for field, value in zip(term._fields, term, strict=True):
            _take_scalar(value, f"loss[{n}].{field}")
    return tuple(Weighted(*map(jnp.asarray, term)) for term in terms)


def _check_structure(expected: Any, after: PyTree, metrics: PyTree) -> None:
    got, hint = jax.tree.structure(after), ""
    if got == expected:
        return
    if jax.tree.structure(metrics) == expected:
        hint = "Carry and metrics look swapped."
    elif not expected.num_leaves:
        hint = "Start from a state such as model.zero_state(batch_shape)."
    raise ValueError(
        "carry: expected loss_fn to return one of the structure it was given, "
        f"{expected}, got {got}. {hint}".rstrip()
    )


def check_leaves(before: PyTree, after: PyTree) -> None:
    """Checks that a carry has the shapes and dtypes of the one that came."""
    leaves, _ = jax.tree.flatten_with_path(before)
    for (path, old), new in zip(leaves, jax.tree.leaves(after), strict=True):
        old, new = jax.typeof(old), jax.typeof(new)
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"carry{jax.tree_util.keystr(path)}: expected loss_fn to return "
                f"{old.dtype} {list(old.shape)}, as it was given, got {new.dtype} "
                f"{list(new.shape)}."
            )


def _is_pair(value: Any) -> bool:
    """Whether a value is a plain pair: a state is a named one."""
    return type(value) in (tuple, list) and len(value) == 2


def _kind(value: Any) -> str:
    inside = ", ".join(type(part).__name__ for part in value)
    return f"a {type(value).__name__} of ({inside})"


def _describe(value: Any) -> str:
    if isinstance(value, jax.Array):
        return jax.typeof(value).str_short()
    if type(value) in (tuple, list):
        return f"({', '.join(map(_describe, value))})"
    return type(value).__name__
