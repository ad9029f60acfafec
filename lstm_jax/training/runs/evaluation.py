"""Figures and predictions over whole data sets."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border
from lstm_jax.distributed import batches as rows
from lstm_jax.distributed import together, watching
from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.training.runs import modules
from lstm_jax.training.runs.feed import Feed, is_iterator
from lstm_jax.training.runs.sums import Sums, named
from lstm_jax.training.steps import contract
from lstm_jax.training.steps.contract import LossFn
from lstm_jax.training.steps.state import Start, check_start, start_of
from lstm_jax.types import PyTree


def evaluate(
    loss_fn: LossFn,
    params: Any,
    batches: Any,
    *,
    carry: PyTree = (),
    start: Start | None = None,
    continues: bool | None = None,
) -> dict[str, float]:
    """Returns the mean loss and metrics over all that counts in a data set.

    Every token counts once, so that the figures do not depend on how the data are cut
    into batches. Where rows go on from batch to batch, as those of
    :func:`lstm_jax.data.stream_batches`, each row's first step starts from nothing: one
    row reads a text as one stream, eight rows as eight.

    Args:
        loss_fn: as for :func:`make_train_step`, with a :class:`Weighted` loss and
            metrics; means are taken where there is one batch. It is given no key.
        params: what ``loss_fn`` takes: a pytree, linen variables or an ``nnx.Module``.
        batches: batches that can be gone through again, or a function from the number
            of an epoch, here 0, to batches.
        carry: shows the shapes of a carry; its numbers are not used. ``()`` for none.
        start: as for :func:`make_train_step`; zeros if None.
        continues: whether rows go on from batch to batch; what the batches themselves
            say if None: those of :func:`lstm_jax.data.stream_batches` do. Where they do
            not, each batch starts from nothing.

    Returns:
        ``{"loss": ..., name: ...}``, the sums taken in float64.

    Raises:
        ValueError: if there is no batch, one has no rows, a figure is a mean and there
            are several batches, or ``start`` is missing where it is learned.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import training
        >>> def loss_fn(params, carry, batch, key):
        ...     xs, mask = batch
        ...     return training.squared_error(xs, 0 * xs, mask, weighted=True), ((), {})
        >>> ones, none = jnp.ones((2, 3)), jnp.zeros((2, 3), bool)
        >>> batches = [(ones, ~none), (5 * ones, none.at[0, 0].set(True))]
        >>> training.evaluate(loss_fn, {}, batches)["loss"]  # (6 + 25) / 7
        4.428571428571429
    """
    contract.check_loss_fn(loss_fn)
    model = modules.functional(params)
    carry = border.take_leaves("carry", carry)
    check_start(start, model.params, carry)
    evaluator = Evaluator(model.lift(loss_fn), batches, carry, start, continues)
    return evaluator(model.params) or {}


class Evaluator:
    """A loss function and a data set: parameters to figures, compiled once."""

    def __init__(
        self,
        loss_fn: LossFn,
        batches: Any,
        carry: PyTree,
        start: Start | None,
        continues: bool | None,
        name: str = "batches",
    ):
        """Keeps what it is given; see :func:`evaluate`."""
        self.batches, self.start, self.name = batches, start, name
        self.continues = continues
        self.carry = jax.tree.map(_shown, carry)
        self._run = jax.jit(functools.partial(_figures, loss_fn))

    def __call__(
        self, params: PyTree, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns the figures, or None where it was told to stop."""
        feed, sums, carry, number = (
            Feed(self.name, self.batches, continues=self.continues),
            Sums(),
            None,
            0,
        )
        while not feed.at_end:
            if stop():
                return None
            rows.check_global(self.name, feed.ahead)
            watching.going_on()
            batch = border.take_leaves(self.name, feed.ahead)
            if carry is None or not feed.continues:
                carry = self._start(params, batch)
            carry, (loss, metrics) = self._run(params, carry, batch)
            if number:
                self._check_weighted(loss, metrics)
            sums.add(*jax.device_get((loss, metrics)))
            feed.take()
            number += 1
            if number == 1 and not feed.at_end:
                self._check_weighted(loss, metrics)
        if not number:
            raise ValueError(f"{self.name}: expected batches, got none.")
        return sums.means()

    def names(self, params: PyTree) -> list[str]:
        """The names of the figures, without computing them."""
        batch = border.take_leaves(self.name, self.first())
        carry = self._start(params, batch)
        _, (loss, metrics) = jax.eval_shape(self._run, params, carry, batch)
        sums = Sums()
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape), (loss, metrics))
        sums.add(*zeros)
        return list(sums.means())

    def first(self) -> Any:
        """The first batch, of data that will be gone through again."""
        if is_iterator(self.batches):
            raise ValueError(
                f"{self.name}: expected what can be gone through again, such as a "
                "list or a function from the number of an epoch to batches, got an "
                "iterator."
            )
        feed = Feed(self.name, self.batches, continues=self.continues)
        if feed.at_end:
            raise ValueError(f"{self.name}: expected batches, got none.")
        return feed.ahead

    def _start(self, params: PyTree, batch: Any) -> PyTree:
        leaves = jax.tree.leaves(batch)
        rows = np.shape(leaves[0])[0] if leaves and np.ndim(leaves[0]) else None
        return start_of(self.start, params, self.carry, rows)

    def _check_weighted(self, loss: Any, metrics: PyTree) -> None:
        for name, figure in named(loss, metrics).items():
            if not isinstance(figure, Weighted):
                raise ValueError(
                    f"{name}: expected a Weighted from loss_fn, since {self.name} are "
                    "several batches, got a mean: the mean of means is not the mean "
                    "over all tokens. The losses and metrics here return one with "
                    "weighted=True."
                )


def _shown(leaf: Any) -> Any:
    """What has to be kept of a carry: numbers start as zeros, all else as it is."""
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return jnp.copy(leaf)


def _figures(loss_fn: LossFn, params: PyTree, carry: PyTree, batch: Any) -> Any:
    loss, (carry, metrics) = contract.call(
        loss_fn, params, carry, batch, None, weighted=True
    )
    return carry, (loss, metrics)


def predict(
    function: Callable[[Any, Any], PyTree],
    params: Any,
    batches: Iterable[Any],
    *,
    lengths: Callable[[Any], Any] | None = None,
    index: Callable[[Any], Any] | None = None,
) -> list[PyTree]:
    """Returns what a model says to each example of a data set, in the input's order.

    Args:
        function: ``function(params, batch) -> outputs``, a pytree of ``[B, ...]``; it
            is compiled once for each shape of a batch.
        params: what ``function`` takes: a pytree, linen variables or an ``nnx.Module``.
        batches: the batches. Where they have another order than the input, as those of
            :func:`lstm_jax.data.bucket_batches`, ``index`` is needed. Where there are
            several processes, all of them call it, and each has all examples.
        lengths: ``lengths(batch)``, ``[B]``: each output ``[B, T, ...]`` is cut to its
            own length. By default nothing is cut.
        index: ``index(batch)``, ``[B]``: the places of the examples in the input, where
            batches have another order; those below 0 are filling, and left out.

    Returns:
        A list with a pytree of NumPy arrays for each example.

    Raises:
        ValueError: if outputs have not as many rows as each other, a length or an index
            is missing, an index occurs twice, or batches are shuffled and have none.

    Example:
        >>> import jax.numpy as jnp
        >>> from lstm_jax import training
        >>> batches = [jnp.array([[1, 2], [3, 0]]), jnp.array([[5, 6]])]
        >>> count = lambda batch: (batch > 0).sum(axis=1)
        >>> double = lambda params, batch: 2 * batch
        >>> rows = training.predict(double, {}, batches, lengths=count)
        >>> [row.tolist() for row in rows]
        [[2, 4], [6], [10, 12]]
    """
    _check_order(batches, index)
    model = modules.functional(params)
    run = jax.jit(model.lift(function))
    placed: dict[int, PyTree] = {}
    number = 0
    for batch in batches:
        number += 1
        outputs = run(model.params, border.take_leaves("batch", batch))
        outputs = jax.device_get(jax.tree.map(together.whole, outputs))
        count = _rows_of(outputs)
        sizes = None if lengths is None else _per_row("lengths", lengths(batch), count)
        places = range(len(placed), len(placed) + count)
        if index is not None:
            places = _per_row("index", index(batch), count)
        for row, place in enumerate(places):
            if place < 0:
                continue
            if place in placed:
                raise ValueError(f"index: expected each place once, got {place} twice.")
            size = None if sizes is None else sizes[row]
            placed[place] = jax.tree.map(
                lambda leaf: _example(leaf, row, size), outputs
            )
    rows.ended("batches", number)
    return _in_order(placed)


def _check_order(batches: Any, index: Any) -> None:
    if index is None and not getattr(batches, "in_order", True):
        raise ValueError(
            "index: expected a function from a batch to its examples' places, since "
            "these batches have another order than the input, got None. "
            "bucket_batches(..., index=True) puts them last: index=lambda batch: "
            "batch[-1]. shuffled_batches(..., seed=None) keeps the order."
        )


def _example(leaf: np.ndarray, row: int, size: int | None) -> np.ndarray:
    example = np.array(leaf[row])
    if size is None or not example.ndim:
        return example
    if not 0 <= size <= len(example):
        raise ValueError(
            f"lengths: expected from 0 to {len(example)}, as outputs have steps, got "
            f"{size}."
        )
    return example[:size]


def _in_order(placed: dict[int, PyTree]) -> list[PyTree]:
    if missing := sorted(set(range(len(placed))) - set(placed)):
        raise ValueError(
            f"index: expected every place below {max(placed) + 1}, got none for "
            f"{missing[0]}."
        )
    return [placed[place] for place in range(len(placed))]


def _rows_of(outputs: PyTree) -> int:
    shapes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(outputs)}
    if len(shapes) != 1 or () in shapes:
        raise ValueError(
            "function: expected outputs [B, ...] with one B, got "
            f"{[list(np.shape(leaf)) for leaf in jax.tree.leaves(outputs)]}."
        )
    return shapes.pop()[0]


def _per_row(name: str, values: Any, rows: int) -> list[int]:
    values = np.asarray(together.whole(values))
    if values.shape != (rows,) or values.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: expected integers [{rows}], one for each row, got {values.dtype} "
            f"{list(values.shape)}."
        )
    return values.tolist()
