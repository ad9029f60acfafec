"""Several processes as one run: joined, with batches that belong together."""

from lstm_jax.checks import names as _names
from lstm_jax.distributed.batches import global_batch as global_batch
from lstm_jax.distributed.batches import share as share
from lstm_jax.distributed.joining import Joined as Joined
from lstm_jax.distributed.joining import initialize_from_env as initialize_from_env

__all__ = ("Joined", "global_batch", "initialize_from_env", "share")

_names.explain(__name__)
