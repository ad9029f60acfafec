"""Truncated backpropagation through time, losses per valid token, weights on disk."""

from lstm_jax.training.losses import cross_entropy as cross_entropy
from lstm_jax.training.steps import TrainState as TrainState
from lstm_jax.training.steps import create as create
from lstm_jax.training.steps import make_train_step as make_train_step
from lstm_jax.training.truncated import (
    truncated_value_and_grad as truncated_value_and_grad,
)
from lstm_jax.training.weights import load_weights as load_weights
from lstm_jax.training.weights import save_weights as save_weights

__all__ = (
    "TrainState",
    "create",
    "cross_entropy",
    "load_weights",
    "make_train_step",
    "save_weights",
    "truncated_value_and_grad",
)
