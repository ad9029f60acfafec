"""Several processes as one run: joined, with batches that belong together."""

from lstm_jax.checks import names as _names
from lstm_jax.distributed.joining import Joined as Joined
from lstm_jax.distributed.joining import initialize_from_env as initialize_from_env

__all__ = ("Joined", "initialize_from_env")

_names.explain(__name__)
