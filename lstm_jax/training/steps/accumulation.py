"""The gradient of one batch, in parts of its rows or at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax import meshes
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.training.steps import contract
from lstm_jax.training.steps.contract import LossFn, Value
from lstm_jax.training.steps.state import Start, reset_rows, rows_of, start_of
from lstm_jax.types import Array, PyTree


class Objective(NamedTuple):
    """What is differentiated, and how."""

    loss_fn: LossFn
    accumulate: int = 1
    compute_dtype: Any = None
    reset_rate: float = 0.0
    start: Start | None = None

    def call(self, params: PyTree, part: Part) -> contract.Loss:
        """Calls the loss function on a part of a batch."""
        carry, key = part.carry, part.key
        if self.compute_dtype is not None:
            params = jax.tree.map(self._narrow, params)
        rows = rows_of("carry", carry) if self.reset_rate else None
        if rows is not None:
            if key is None:
                raise ValueError(
                    "key: expected one for reset_rate, got None. Pass it to the step, "
                    "or key= to training.create."
                )
            key, reset_key = jax.random.split(key)
            start = start_of(self.start, params, carry, rows)
            carry = reset_rows(carry, reset_key, self.reset_rate, start)
        return contract.call(
            self.loss_fn, params, carry, part.batch, key, weighted=True
        )

    def _narrow(self, leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(self.compute_dtype)


class Part(NamedTuple):
    """Some rows, and the key of their noise."""

    carry: PyTree
    batch: PyTree
    key: Array | None


class Gradient(NamedTuple):
    """What one batch gives: sums over its parts, but for the gradient, a mean's."""

    grads: PyTree
    loss: Value
    carry: PyTree
    metrics: PyTree


def gradient(
    objective: Objective, params: PyTree, carry: PyTree, batch: PyTree, key: Any
) -> Gradient:
    """Returns the gradient of the mean loss over all that counts in a batch.

    Each term is divided by its weight over the whole batch, once: the weights are added
    up before anything is differentiated. Where they come from masks and lengths, as
    they do, what else that first pass would compute is dead code, and not run.
    """
    if objective.accumulate == 1:
        return _of_part(objective, params, Part(carry, batch, key), None)
    parts, rest = _split(objective.accumulate, carry, batch, key)
    weights = _over(lambda part: _weights(objective, params, part), parts, rest)[0]
    each = lambda part: _of_part(objective, params, part, weights)
    total, carries = _over(lambda part: _apart(each(part)), parts, rest)
    grads, loss, metrics = total
    grads = jax.tree.map(lambda leaf, p: leaf.astype(p.dtype), grads, params)
    return Gradient(grads, loss, _join(*carries), metrics)


def _of_part(
    objective: Objective, params: PyTree, part: Part, weights: Any
) -> Gradient:
    def mean(params):
        loss, (carry, metrics) = objective.call(params, part)
        return _value(loss, weights), (loss, carry, metrics)

    grads, (loss, carry, metrics) = jax.grad(mean, has_aux=True)(params)
    return Gradient(grads, loss, carry, metrics)


def _value(loss: Value, weights: Any) -> Array:
    """What is differentiated: totals by weights, which are constants."""
    if not isinstance(loss, tuple):
        return loss
    weights = [term.weight for term in loss] if weights is None else weights
    means = [
        Weighted(term.total, lax.stop_gradient(weight)).mean()
        for term, weight in zip(loss, weights, strict=True)
    ]
    return sum(means[1:], start=means[0])


def _weights(objective: Objective, params: PyTree, part: Part) -> tuple[Any, None]:
    loss, (_, metrics) = objective.call(params, part)
    if not isinstance(loss, tuple):
        raise TypeError(
            f"loss: expected a Weighted from loss_fn, since accumulate is "
            f"{objective.accumulate}, got a mean. The parts of a batch may differ in "
            "tokens: return Weighted(total, weight), as the losses here do with "
            "weighted=True."
        )
    for path, leaf in jax.tree.leaves_with_path(metrics, is_leaf=_is_weighted):
        if not _is_weighted(leaf):
            raise TypeError(
                f"metrics{jax.tree_util.keystr(path)}: expected a Weighted from "
                f"loss_fn, since accumulate is {objective.accumulate}, got "
                f"{type(leaf).__name__}, which does not say how its parts are joined."
            )
    return [term.weight for term in loss], None


def _is_weighted(value: Any) -> bool:
    return isinstance(value, Weighted)


def _apart(one: Gradient) -> tuple[Any, PyTree]:
    """What is summed over parts, gradients in float32 or wider; and what is joined."""
    grads = jax.tree.map(
        lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype)), one.grads
    )
    return (grads, one.loss, one.metrics), one.carry


def _over(run: Any, parts: Part | None, rest: Part | None) -> tuple[Any, list]:
    """Runs every part: sums of the first results, and the second ones as they are."""
    total, joined = None, [None, None]
    if parts is not None:
        first = jax.eval_shape(run, jax.tree.map(lambda leaf: leaf[0], parts))[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)

        def step(total, part):
            one, carry = run(part)
            return jax.tree.map(jnp.add, total, one), carry

        total, joined[0] = lax.scan(step, zeros, parts)
    if rest is not None:
        one, joined[1] = run(rest)
        total = one if total is None else jax.tree.map(jnp.add, total, one)
    return total, joined


def _split(
    number: int, carry: PyTree, batch: PyTree, key: Any
) -> tuple[Part | None, Part | None]:
    """Parts of as many rows, stacked, and a smaller one of those that are left.

    Part n has every ``number``-th row from row n on, so that where rows are spread over
    devices, each device has its share of every part.
    """
    rows = rows_of("batch", batch)
    if rows is None:
        raise ValueError("batch: expected rows to accumulate over, got no array.")
    of_carry = rows_of("carry", carry)
    if of_carry not in (None, rows):
        raise ValueError(f"carry: expected {rows} rows, as batch has, got {of_carry}.")
    size, left = divmod(rows, number)
    _check_cut("batch", batch, size, number)
    _check_cut("carry", carry, size, number)
    keys = None if key is None else jax.random.split(key, number + 1)

    def stack(leaf):
        leaf = leaf if not left else leaf[: size * number]
        return jnp.moveaxis(jnp.reshape(leaf, (size, number, *leaf.shape[1:])), 1, 0)

    whole, rest = None, None
    if size:
        noise = None if keys is None else keys[:number]
        whole = Part(jax.tree.map(stack, carry), jax.tree.map(stack, batch), noise)
    if left:
        noise = None if keys is None else keys[number]
        last = lambda leaf: leaf[size * number :]
        rest = Part(jax.tree.map(last, carry), jax.tree.map(last, batch), noise)
    return whole, rest


def _check_cut(name: str, tree: PyTree, size: int, number: int) -> None:
    """Checks that each part has as many rows on each device, where axes are explicit.

    JAX refuses to cut them otherwise, and names neither rows nor parts.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        devices = meshes.explicit_parts(leaf, 0)
        if size % devices:
            raise ValueError(
                f"accumulate: expected parts whose rows can be spread over the "
                f"{devices} devices that an explicit axis spreads the rows of "
                f"{name}{jax.tree_util.keystr(path)} over, got {leaf.shape[0]} rows in "
                f"{number} parts of {size}. An axis of type Auto takes any."
            )


def _join(whole: PyTree, rest: PyTree) -> PyTree:
    """The carry of all rows, in the order in which they came."""

    def flat(leaf):
        leaf = jnp.moveaxis(leaf, 0, 1)
        return jnp.reshape(leaf, (-1, *leaf.shape[2:]))

    if whole is None or rest is None:
        return jax.tree.map(flat, whole) if rest is None else rest
    return jax.tree.map(
        lambda one, other: jnp.concatenate([flat(one), other]), whole, rest
    )
