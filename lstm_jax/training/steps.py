"""One step of truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lstm_jax.types import Array, PyTree

LossFn = Callable[[PyTree, PyTree, Any, Array], tuple[Array, tuple[PyTree, PyTree]]]
TrainStep = Callable[["TrainState", Any, Array], tuple["TrainState", PyTree]]


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
        params: the parameters.
        opt_state: Optax's state.
        carry: what one window hands on to the next, such as a stack's state.
        step: how many steps were taken, int32.
    """

    params: PyTree
    opt_state: PyTree
    carry: PyTree
    step: Array


def create(
    params: PyTree, tx: optax.GradientTransformation, carry: PyTree
) -> TrainState:
    """Returns the state before the first step."""
    return TrainState(params, tx.init(params), carry, jnp.zeros((), jnp.int32))


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation) -> TrainStep:
    """Makes the jitted step from one window to the next.

    The carry enters as an argument of the step and is not differentiated, so the
    gradient ends at the window's first step while the state itself goes on: this is all
    that truncation is.

    Args:
        loss_fn: ``loss_fn(params, carry, batch, key) -> (loss, (carry, metrics))``, the
            loss a scalar, the carry of the same structure as the one that came.
        tx: an Optax gradient transformation.

    Returns:
        ``train_step(state, batch, key) -> (state, metrics)``. The buffers of the state
        that goes in are used again for the one that comes out (donated): keep no
        reference to it.

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

    def train_step(state, batch, key):
        grad_fn = jax.grad(loss_fn, has_aux=True)
        grads, (carry, metrics) = grad_fn(state.params, state.carry, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state, carry, state.step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)
