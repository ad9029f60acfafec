"""Everything that training changes, and where its carry begins anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

from lstm_jax.checks import arrays, border, options
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.training.steps import contract
from lstm_jax.types import Array, PyTree

Start = Callable[[PyTree, int], PyTree]


class Cursor(NamedTuple):
    """Where in the data training stands: what was trained on, not what was fetched.

    Attributes:
        epoch: whole passes over the data, int32.
        batch: batches of this pass that were trained on, int32.

    Example:
        >>> import optax
        >>> from lstm_jax import training
        >>> cursor = training.create({}, optax.sgd(0.1), ()).cursor
        >>> int(cursor.epoch), int(cursor.batch)
        (0, 0)
    """

    epoch: Array
    batch: Array


class TrainState(NamedTuple):
    """Everything that training changes; :func:`save_weights` writes it as it is.

    Attributes:
        params: the parameters.
        opt_state: Optax's state.
        carry: what one window hands on to the next, such as a stack's state.
        step: how many steps were taken, skipped ones included, int32.
        key: the random key that steps draw theirs from; None where each is given one.
        ema: the moving average of the parameters, float32 or wider; None for none.
        cursor: where in the data training stands; None where the caller knows.
        scale: a factor of every update, float32, which a plateau makes smaller; None
            for 1.
        skipped: how many steps were skipped since loss or gradient were not finite,
            int32; None where they are not counted.
        skipped_in_row: how many of them were the last ones, int32.

    Example:
        >>> import jax, optax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model, tx = lj.LSTM(3, 5), optax.sgd(1e-3)
        >>> carry = model.zero_state((2,))
        >>> state = training.create(model.init(jax.random.key(0)), tx, carry)
        >>> anew = state._replace(carry=model.zero_state((2,)))
        >>> int(anew.step)
        0
    """

    params: PyTree
    opt_state: PyTree
    carry: PyTree
    step: Array
    key: Array | None = None
    ema: PyTree = None
    cursor: Cursor | None = None
    scale: Array | None = None
    skipped: Array | None = None
    skipped_in_row: Array | None = None


def create(
    params: PyTree,
    tx: optax.GradientTransformation,
    carry: PyTree,
    *,
    key: Array | None = None,
    ema: bool = False,
) -> TrainState:
    """Returns the state before the first step.

    Arrays that share memory, as tied parameters or those that an optimizer keeps as
    they are, are copied apart: a step uses each buffer again for what comes out of it.

    Args:
        params: the parameters, any pytree of arrays.
        tx: an Optax gradient transformation.
        carry: what the first window starts from; ``()`` where nothing is carried.
        key: a random key, copied. Steps that are given none then draw theirs from it,
            each another one.
        ema: whether to keep a moving average of the parameters; how it moves is
            ``ema_decay`` of :func:`make_train_step`.

    Raises:
        TypeError: if a leaf is neither an array nor a number, ``key`` is no key, or
            ``tx`` is none.

    Example:
        >>> import jax, optax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model, tx = lj.LSTM(3, 5), optax.sgd(1e-3)
        >>> training.create(model.init(jax.random.key(0)), tx, ()).carry
        ()
    """
    options.check_flag("ema", ema)
    contract.check_tx(tx)
    # A key is wanted again after the step that this one's buffer is donated to.
    key = None if key is None else jnp.copy(arrays.check_key(key))
    zero = lambda: jnp.zeros((), jnp.int32)
    params = border.take_leaves("params", params)
    state = TrainState(
        params,
        tx.init(params),
        carry,
        zero(),
        key=key,
        ema=jax.tree.map(_wide, params) if ema else None,
        cursor=Cursor(zero(), zero()),
        skipped=zero(),
        skipped_in_row=zero(),
    )
    return apart(border.take_leaves("", state))


def _wide(leaf: Any) -> Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(accumulation_dtype(leaf.dtype))


def reset_rows(
    carry: PyTree, key: Array, rate: float, start: PyTree | None = None
) -> PyTree:
    """Starts some rows of a carry anew, each with the probability ``rate``.

    A carry that is handed on for ever leaves the start unlearned: it occurs once, in
    the first window, while every new stream and every sample begins there. One row in
    sixteen a window is enough, and costs nothing.

    Args:
        carry: any pytree of ``[B, ...]``, such as a stack's state.
        key: a random key, another one for each window.
        rate: from 0 to 1.
        start: what a row starts from, a pytree like ``carry``; zeros if None. A model
            with ``learn_initial_state`` starts from
            ``model.initial_state(params, (B,))``: leave that out and it learns another
            start than the one it has.

    Returns:
        The carry. Where this is called inside a loss, the gradient of a row that was
        reset reaches ``start``, and no longer the row before.

    Raises:
        ValueError: if ``rate`` is out of range, leaves have no or other rows, or
            ``start`` is of another structure or shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax import training
        >>> carry = jnp.ones((8, 3))
        >>> carry = training.reset_rows(carry, jax.random.key(0), 1 / 4)
        >>> carry.sum(axis=1).tolist()
        [3.0, 3.0, 3.0, 3.0, 3.0, 0.0, 3.0, 3.0]
    """
    options.check_probability("rate", rate)
    carry = border.take_leaves("carry", carry)
    rows = rows_of("carry", carry)
    if rows is None:
        return carry
    if start is None:
        start = jax.tree.map(_zeros_like, carry)
    start = _check_start(border.take_leaves("start", start), carry)
    anew = jax.random.bernoulli(arrays.check_key(key), float(rate), (rows,))

    def choose(old, new):
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return old
        where = anew.reshape(rows, *(1,) * (jnp.ndim(old) - 1))
        return jnp.where(where, new.astype(old.dtype), old)

    return jax.tree.map(choose, carry, start)


def _zeros_like(leaf: Array) -> Array:
    """Zeros; a random key has none, and stays."""
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if key else jnp.zeros_like(leaf)


def rows_of(name: str, tree: PyTree) -> int | None:
    """The B that all leaves of ``[B, ...]`` have; None where there is no leaf."""
    rows, first = None, ""
    for path, leaf in jax.tree.leaves_with_path(tree):
        where, shape = f"{name}{jax.tree_util.keystr(path)}", jnp.shape(leaf)
        if not shape:
            raise ValueError(f"{where}: expected rows [B, ...], got a number.")
        if rows is None:
            rows, first = shape[0], where
        if shape[0] != rows:
            raise ValueError(
                f"{where}: expected {rows} rows, as {first} has, got shape "
                f"{list(shape)}."
            )
    return rows


def _check_start(start: PyTree, carry: PyTree) -> PyTree:
    expected, got = jax.tree.structure(carry), jax.tree.structure(start)
    if got != expected:
        raise ValueError(
            f"start: expected the structure of carry, {expected}, got {got}."
        )
    leaves = jax.tree.leaves_with_path(carry)
    for (path, old), new in zip(leaves, jax.tree.leaves(start), strict=True):
        if jnp.shape(new) != jnp.shape(old):
            raise ValueError(
                f"start{jax.tree_util.keystr(path)}: expected "
                f"{list(jnp.shape(old))}, as in carry, got {list(jnp.shape(new))}."
            )
    return start


def start_of(
    start: Start | None, params: PyTree, carry: PyTree, rows: int | None = None
) -> PyTree:
    """The carry that streams start from; ``carry`` shows its shapes.

    Args:
        start: as for :func:`make_train_step`. By default floating leaves start as
            zeros; others, as a key that is carried on, stay as they are.
        params: what ``start`` is given.
        carry: shows the shapes.
        rows: how many streams; as many as in ``carry`` if None.
    """
    leaves = jax.tree.leaves(carry)
    if not leaves:
        return carry
    if start is not None:
        rows = len(leaves[0]) if rows is None else rows
        return _conform(start(params, rows), carry, rows)

    def zeros(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            if rows is not None and leaf.shape and len(leaf) != rows:
                raise ValueError(
                    f"start: expected {_START}, since carry"
                    f"{jax.tree_util.keystr(path)} is no floating array and has "
                    f"{len(leaf)} rows, a batch {rows}; got None."
                )
            return leaf
        whole = rows is None or not leaf.shape
        other = leaf.shape if whole else (rows, *leaf.shape[1:])
        return jnp.zeros_like(leaf, shape=other)

    return jax.tree.map_with_path(zeros, carry)


def _conform(started: PyTree, carry: PyTree, rows: int) -> PyTree:
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype), carry
    )
    started = _check_start(started, like)
    return jax.tree.map(lambda leaf, one: leaf.astype(one.dtype), started, like)


def check_start(start: Start | None, params: PyTree, carry: PyTree) -> None:
    """Checks that a learned start is not left out where a carry begins anew."""
    if start is not None:
        options.check_callable("start", start, _START)
        return
    learned = _learned_start(params) if jax.tree.leaves(carry) else None
    if learned is not None:
        raise ValueError(
            f"start: expected {_START}, since params{learned} is a learned start, got "
            "None, which is zeros."
        )


_START = "lambda params, rows: model.initial_state(params, (rows,))"


def _learned_start(params: PyTree) -> str | None:
    """The path of a learned start among the parameters."""
    for path, _ in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "initial_h" in name or "initial_c" in name:
            return name
    return None


def own(leaf: Any) -> Array:
    """A copy, with a dtype of its own: a Python number's gives way to others'."""
    array = jnp.asarray(leaf)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jnp.copy(array)
    return jnp.array(array, array.dtype, copy=True)


def apart(tree: PyTree) -> PyTree:
    """Copies what shares its memory with an earlier leaf."""
    seen = set()

    def own(leaf):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        where = {
            shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards
        }
        shared = bool(where & seen)
        seen.update(where)
        return jnp.copy(leaf) if shared else leaf

    return jax.tree.map(own, tree)
