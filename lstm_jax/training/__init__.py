"""Training: truncated backpropagation through time, losses, penalties, weights."""

from lstm_jax.training.losses import cross_entropy as cross_entropy
from lstm_jax.training.penalties import activation_penalty as activation_penalty
from lstm_jax.training.penalties import l1_penalty as l1_penalty
from lstm_jax.training.penalties import l2_penalty as l2_penalty
from lstm_jax.training.penalties import (
    temporal_activation_penalty as temporal_activation_penalty,
)
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
    "activation_penalty",
    "create",
    "cross_entropy",
    "l1_penalty",
    "l2_penalty",
    "load_weights",
    "make_train_step",
    "save_weights",
    "temporal_activation_penalty",
    "truncated_value_and_grad",
)
