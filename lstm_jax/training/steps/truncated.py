"""Truncated backpropagation through time over a whole sequence, in one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.checks import border, options
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.steps import contract
from lstm_jax.training.steps.contract import Loss, LossFn
from lstm_jax.types import Array, PyTree

ValueAndGrad = Callable[..., tuple[tuple[Array, tuple[PyTree, PyTree]], PyTree]]


def truncated_value_and_grad(
    loss_fn: LossFn,
    *,
    window: int,
    depth: int | None = None,
    time_axis: int = 1,
    fold_key: bool = False,
) -> ValueAndGrad:
    """Makes the function that takes a loss and its truncated gradient over a sequence.

    The steps of the sequence are cut into windows, the last of them shorter where
    ``window`` does not divide T. The carry goes on from each to the next and is not
    differentiated; the loss of a window is, back through the last ``depth`` steps that
    end where the window ends. For ``window=4`` and T = 10, with ``x`` a step that the
    loss of its own window is differentiated through::

        step       0 1 2 3|4 5 6 7|8 9
        depth 4    x x x x|x x x x|x x    as many: the default
        depth 2    - - x x|- - x x|x x    fewer
        depth 8    x x x x|x x x x|x x    more: the loss of 4 to 7 through 0 to 7,
                                          that of 8 and 9 through 4 to 9

    *Fewer*: what comes before a window's last ``depth`` steps is a piece of its own,
    run without a gradient; its loss counts in the value alone. *More*, a multiple of
    ``window``: the ``depth - window`` steps before each window, or as many as there
    are, are run again from the carry that was kept there, to be differentiated through.
    Their own losses are not counted again, but the work is done ``depth / window``
    times.

    Only ``depth`` steps are ever kept for a backward pass, so memory does not grow with
    T but for the batch, and one program runs every window.

    Args:
        loss_fn: as for :func:`make_train_step`: ``loss_fn(params, carry, piece, key) ->
            (loss, (carry, metrics))``, the loss a scalar, the carry of the same
            structure, shapes and dtypes as the one that came.
        window: steps from one loss to the next.
        depth: steps that a loss is differentiated through; ``window`` if None.
        time_axis: the axis of every leaf of the batch that is time.
        fold_key: whether each piece gets a key of its own, ``fold_in(key, t)`` with t
            its first step: fresh noise everywhere, and the same one where steps are run
            again. By default all get the same key, so that a dropout mask which is held
            over time is one mask for the whole sequence; noise drawn for each step then
            repeats from window to window.

    Returns:
        ``value_and_grad(params, carry, batch, key=None) -> ((loss, (carry, metrics)),
        grads)``, as of ``jax.value_and_grad(loss_fn, has_aux=True)``. The loss is the
        *sum* over the pieces, as are the gradients: where ``loss_fn`` returns the mean
        over its piece, both grow with the number of windows, and have to be divided by
        it, or ``loss_fn`` by the steps of the whole sequence. The carry is the one
        after the last step; the metrics are stacked, in order of time, on a new first
        axis, one row for each piece: for each window, or where ``depth`` is smaller,
        for each of its one or two parts. Like ``jax.value_and_grad`` it is not jitted:
        wrap it, or the step around it, in ``jax.jit``.

    Raises:
        ValueError: if a size is not positive, or ``depth`` is greater than ``window``
            and no multiple of it. ``value_and_grad`` does, if a leaf of the batch has
            not as many steps as the others (lengths have no time axis: make them a
            mask), the carry changes, or the metrics of a shorter piece have another
            shape.
        TypeError: if a size is not an integer, or ``loss_fn`` takes or returns
            something else.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model = lj.LSTM(3, 5)
        >>> def loss_fn(params, carry, xs, key):
        ...     carry, ys = model.apply(params, xs, carry, key=key)
        ...     return jnp.sum(ys**2), (carry, {"steps": xs.shape[1]})
        >>> params, carry = model.init(jax.random.key(0)), model.zero_state((2,))
        >>> value_and_grad = training.truncated_value_and_grad(loss_fn, window=4)
        >>> xs = jnp.ones((2, 10, 3))
        >>> (loss, (carry, metrics)), grads = jax.jit(value_and_grad)(params, carry, xs)
        >>> metrics["steps"].tolist(), grads[0].forward.kernel.shape
        ([4, 4, 2], (3, 20))

    References:
        Williams and Peng 1990, doi:10.1162/neco.1990.2.4.490, whose BPTT(h; h') has
        ``depth`` h and ``window`` h'.
    """
    contract.check_loss_fn(loss_fn)
    options.check_positive("window", window)
    depth = window if depth is None else depth
    options.check_positive("depth", depth)
    if depth > window and depth % window:
        raise ValueError(
            f"depth: expected at most window = {window}, or a multiple of it, got "
            f"{depth}. Carries are kept at the windows' starts only."
        )
    if isinstance(time_axis, bool) or not isinstance(time_axis, int) or time_axis < 0:
        raise ValueError(
            f"time_axis: expected an axis counted from the front, got {time_axis!r}. "
            "The leaves of a batch need not have as many axes as each other."
        )

    def value_and_grad(params, carry, batch, key=None):
        params, carry, batch = (
            border.take_leaves(name, tree)
            for name, tree in (("params", params), ("carry", carry), ("batch", batch))
        )
        length = _check_batch(batch, time_axis)
        sequence = _Sequence(
            loss_fn, batch, key, length, window, depth, time_axis, fold_key
        )
        return _over_windows(sequence, params, carry)

    return value_and_grad


class _Sequence(NamedTuple):
    """A sequence, and how it is cut."""

    loss_fn: LossFn
    batch: PyTree
    key: Array | None
    length: int
    window: int
    depth: int
    time_axis: int
    fold_key: bool

    @property
    def behind(self) -> int:
        """How many windows are run again before each, at most all there are."""
        windows = -(-self.length // self.window)
        return min(max(self.depth // self.window, 1), windows) - 1

    def loss(self, params: PyTree, carry: PyTree, start: Any, size: int) -> Loss:
        """What ``loss_fn`` returns for the ``size`` steps from ``start`` on."""
        piece = jax.tree.map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size, self.time_axis),
            self.batch,
        )
        key = self._key_of(start)
        return contract.call(self.loss_fn, params, carry, piece, key, exact=True)

    def _key_of(self, start: Any) -> Any:
        if self.key is None or not self.fold_key:
            return self.key
        return jax.random.fold_in(self.key, start)


def _over_windows(
    sequence: _Sequence, params: PyTree, carry: PyTree
) -> tuple[tuple[Array, tuple[PyTree, PyTree]], PyTree]:
    """A scan over the whole windows, and one step more for what is left."""

    def step(state, number, size):
        saved, total = state
        rows, carry, grads = _window(sequence, params, saved, number, size)
        saved = jax.tree.map(
            lambda old, new: jnp.concatenate([old[1:], new[None]]), saved, carry
        )
        total = jax.tree.map(lambda s, g: s + g.astype(s.dtype), total, grads)
        return (saved, total), rows

    # First the carry at the start of the steps that are run again, last that at the
    # start of the next window.
    kept = sequence.behind + 1
    saved = jax.tree.map(lambda leaf: jnp.stack([leaf]).repeat(kept, axis=0), carry)
    # Hundreds of gradients must not be summed in half precision.
    zeros = lambda leaf: jnp.zeros_like(leaf, accumulation_dtype(leaf.dtype))
    state, rows = (saved, jax.tree.map(zeros, params)), []
    whole, rest = divmod(sequence.length, sequence.window)
    if whole:
        each = lambda state, number: step(state, number, sequence.window)
        state, stacked = lax.scan(each, state, jnp.arange(whole))
        rows.append(jax.tree.map(jnp.concatenate, stacked))
    if rest:
        state, last = step(state, whole, rest)
        rows.append(last)
    (saved, total), (losses, metrics) = state, _join(rows)
    carry = jax.tree.map(lambda leaf: leaf[-1], saved)
    grads = jax.tree.map(lambda s, leaf: s.astype(leaf.dtype), total, params)
    return (jnp.sum(losses), (carry, metrics)), grads


def _window(
    sequence: _Sequence, params: PyTree, saved: PyTree, number: Any, size: int
) -> tuple[tuple[Array, PyTree], PyTree, PyTree]:
    """One window: losses and metrics, a row a piece; its carry; its gradient."""
    start, head = number * sequence.window, max(size - sequence.depth, 0)
    oldest, carry = (jax.tree.map(lambda leaf: leaf[row], saved) for row in (0, -1))
    rows = []
    if head:
        loss, (carry, metrics) = sequence.loss(params, carry, start, head)
        rows.append(_row(loss, metrics))

    def differentiated(params):
        before = carry
        if sequence.behind:
            before = _run_again(sequence, params, oldest, number)
        return sequence.loss(params, before, start + head, size - head)

    value_and_grad = jax.value_and_grad(differentiated, has_aux=True)
    (loss, (after, metrics)), grads = value_and_grad(params)
    rows.append(_row(loss, metrics))
    return _join(rows), after, grads


def _run_again(
    sequence: _Sequence, params: PyTree, carry: PyTree, number: Any
) -> PyTree:
    """Runs the windows before a window and returns the carry at its start.

    Windows with a number below 0 lie before the sequence and are passed over.
    """

    def step(carry, number):
        start = jnp.maximum(number, 0) * sequence.window
        run = lambda carry: sequence.loss(params, carry, start, sequence.window)[1][0]
        return lax.cond(number >= 0, run, lambda carry: carry, carry), None

    numbers = number - sequence.behind + jnp.arange(sequence.behind)
    return lax.scan(step, carry, numbers)[0]


def _row(loss: Array, metrics: PyTree) -> tuple[Array, PyTree]:
    return jax.tree.map(lambda leaf: jnp.stack([leaf]), (loss, metrics))


def _join(rows: list[tuple[Array, PyTree]]) -> tuple[Array, PyTree]:
    """Joins losses and metrics, whose rows must be alike."""
    first, *others = (jax.tree.map(lambda leaf: leaf.shape[1:], row) for row in rows)
    if any(other != first for other in others):
        raise ValueError(
            f"metrics: expected the same shapes from every piece, {first[1]}, got "
            f"{others[-1][1]} from a shorter one. Return what has no time axis, such "
            "as sums, or pad the sequence with masked steps to whole windows."
        )
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


def _check_batch(batch: PyTree, time_axis: int) -> int:
    """Checks that every leaf has time on its axis, and returns T."""
    leaves, _ = jax.tree.flatten_with_path(batch)
    if not leaves:
        raise ValueError("batch: expected arrays with a time axis, got none.")
    named = [(f"batch{jax.tree_util.keystr(k)}", np.shape(leaf)) for k, leaf in leaves]
    for name, shape in named:
        if len(shape) <= time_axis:
            raise ValueError(
                f"{name}: expected time on axis {time_axis}, got shape {list(shape)}. "
                "Lengths become a mask: jnp.arange(T) < lengths[:, None]."
            )
    (first, shape), *others = named
    length = shape[time_axis]
    if not length:
        raise ValueError(f"{first}: expected at least one step, got T = 0.")
    for name, shape in others:
        if shape[time_axis] != length:
            raise ValueError(
                f"{name}: expected T = {length} steps on axis {time_axis}, as {first} "
                f"has, got shape {list(shape)}."
            )
    return length
