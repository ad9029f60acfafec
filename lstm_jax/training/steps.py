"""One step of truncated backpropagation through time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import optax

from lstm_jax.checks import border
from lstm_jax.training import contract
from lstm_jax.training.contract import LossFn
from lstm_jax.types import Array, PyTree

TrainStep = Callable[["TrainState", Any, Any], tuple["TrainState", PyTree]]


class TrainState(NamedTuple):
    """Everything that training changes; :func:`save_weights` writes it as it is.

    Attributes:
        params: the parameters.
        opt_state: Optax's state.
        carry: what one window hands on to the next, such as a stack's state.
        step: how many steps were taken, int32.

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


def create(
    params: PyTree, tx: optax.GradientTransformation, carry: PyTree
) -> TrainState:
    """Returns the state before the first step.

    Arrays that share memory, as tied parameters or those that an optimizer keeps as
    they are, are copied apart: a step uses each buffer again for what comes out of it.

    Args:
        params: the parameters, any pytree of arrays.
        tx: an Optax gradient transformation.
        carry: what the first window starts from; ``()`` where nothing is carried.

    Raises:
        TypeError: if a leaf is neither an array nor a number.

    Example:
        >>> import jax, optax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model, tx = lj.LSTM(3, 5), optax.sgd(1e-3)
        >>> training.create(model.init(jax.random.key(0)), tx, ()).carry
        ()
    """
    state = TrainState(params, tx.init(params), carry, jnp.zeros((), jnp.int32))
    return _apart(border.take_leaves("", state))


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation) -> TrainStep:
    """Makes the jitted step from one window to the next.

    The carry enters as an argument of the step and is not differentiated, so the
    gradient ends at the window's first step while the state itself goes on: this is all
    that truncation is.

    Args:
        loss_fn: ``loss_fn(params, carry, batch, key) -> (loss, (carry, metrics))``, the
            loss a scalar, the carry of the same structure as the one that came. Where
            nothing is carried it is ``()``, where there are no metrics ``{}``.
        tx: an Optax gradient transformation.

    Returns:
        ``train_step(state, batch, key) -> (state, metrics)``; batch and key may be
        None. The buffers of the state that goes in are used again for the one that
        comes out (donated): keep no reference to it. Those of a NumPy batch are copied
        before the call is back, so that a loader may fill them again.

    Raises:
        TypeError: if ``loss_fn`` does not take four arguments or, at the first step,
            does not return two pairs.
        ValueError: at the first step, if the loss is no scalar or the carry that comes
            back has another structure.

    Example:
        >>> import jax, jax.numpy as jnp, optax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> model = lj.LSTM(3, 5)
        >>> def loss_fn(params, carry, batch, key):
        ...     carry, ys = model.apply(params, batch, carry, key=key)
        ...     loss = jnp.mean(ys**2)
        ...     return loss, (carry, {"loss": loss})
        >>> params, tx = model.init(jax.random.key(0)), optax.sgd(1e-3)
        >>> state = training.create(params, tx, model.zero_state((2,)))
        >>> train_step = training.make_train_step(loss_fn, tx)
        >>> state, metrics = train_step(state, jnp.ones((2, 7, 3)), jax.random.key(1))
        >>> int(state.step)
        1
    """
    contract.check_loss_fn(loss_fn)

    @functools.partial(jax.jit, donate_argnums=0)
    def jitted(state, batch, key):
        loss = functools.partial(contract.call, loss_fn)
        grad_fn = jax.grad(loss, has_aux=True)
        grads, (carry, metrics) = grad_fn(state.params, state.carry, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, carry, state.step + 1), metrics

    def train_step(state, batch, key):
        state, batch = (
            border.take_leaves(name, tree)
            for name, tree in (("state", state), ("batch", batch))
        )
        return jitted(state, batch, key)

    return train_step


def _apart(tree: PyTree) -> PyTree:
    """Copies what shares its memory with an earlier leaf."""
    seen = set()

    def own(leaf):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        where = {
            shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards
        }
        shared = bool(where & seen)
        seen.update(where)
        return jnp.copy(leaf) if shared else leaf

    return jax.tree.map(own, tree)
