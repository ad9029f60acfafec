"""Weights and states from and to other libraries, which need not be installed."""

from lstm_jax.convert.keras import from_keras as from_keras
from lstm_jax.convert.keras import state_from_keras as state_from_keras
from lstm_jax.convert.keras import state_to_keras as state_to_keras
from lstm_jax.convert.keras import to_keras as to_keras
from lstm_jax.convert.torch import from_torch as from_torch
from lstm_jax.convert.torch import state_from_torch as state_from_torch
from lstm_jax.convert.torch import state_to_torch as state_to_torch
from lstm_jax.convert.torch import to_torch as to_torch

__all__ = (
    "from_keras",
    "from_torch",
    "state_from_keras",
    "state_from_torch",
    "state_to_keras",
    "state_to_torch",
    "to_keras",
    "to_torch",
)
