"""The LSTM library for JAX."""

from lstm_jax import convert as convert
from lstm_jax.cell import LSTMCell as LSTMCell
from lstm_jax.layers import LSTM as LSTM
from lstm_jax.loop import implementations as implementations
from lstm_jax.parallel import ParallelReport as ParallelReport
from lstm_jax.parallel import parallel_scan as parallel_scan
from lstm_jax.sequence import lstm as lstm
from lstm_jax.sequence import resolve_implementation as resolve_implementation
from lstm_jax.sequence import scan as scan
from lstm_jax.sequence import scan_states as scan_states
from lstm_jax.types import Directions as Directions
from lstm_jax.types import LSTMParams as LSTMParams
from lstm_jax.types import LSTMState as LSTMState

__version__ = "0.1.0"

__all__ = (
    "LSTM",
    "Directions",
    "LSTMCell",
    "LSTMParams",
    "LSTMState",
    "ParallelReport",
    "convert",
    "implementations",
    "lstm",
    "parallel_scan",
    "resolve_implementation",
    "scan",
    "scan_states",
)
