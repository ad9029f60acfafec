"""What pyright must see of the modules' options; nothing here runs.

An error that is ignored below has to be there, since pyright refuses a comment that is
not needed (``reportUnnecessaryTypeIgnoreComment``).
"""

import jax.numpy as jnp
from flax import nnx as flax_nnx

from lstm_jax import linen, nnx


def accepted(rngs: flax_nnx.Rngs) -> None:
    nnx.LSTM(3, 5, rngs=rngs)
    nnx.LSTM(3, (5, 6), num_layers=2, bidirectional=True, dropout=0.5, rngs=rngs)
    nnx.LSTM(3, 5, variant=("CIFG", None), dtype=jnp.bfloat16, rngs=rngs)
    linen.LSTM(3, 5, 2, zoneout_c=(0.1, 0.2), gate_activation=jnp.tanh, name="lstm")
    linen.LSTM(3, 5, 3, reverse=(True, False, True))
    linen.LSTM(3, 5, proj_size=None, parent=None)


def refused(rngs: flax_nnx.Rngs) -> None:
    nnx.LSTM(3, 5, bidirektional=True, rngs=rngs)  # pyright: ignore[reportCallIssue]
    nnx.LSTM(3, 5, bidirectional="yes", rngs=rngs)  # pyright: ignore[reportArgumentType]
    nnx.LSTM(3, 5)  # pyright: ignore[reportCallIssue]
    nnx.LSTM(64, rngs=rngs)  # pyright: ignore[reportCallIssue]
    linen.LSTM(3, 5, bidirektional=True)  # pyright: ignore[reportCallIssue]
    linen.LSTM(3, 5, dropout="0.5")  # pyright: ignore[reportArgumentType]
    linen.LSTM(3, 5, 1, True)  # pyright: ignore[reportCallIssue]
    linen.LSTM(64)  # pyright: ignore[reportCallIssue]
