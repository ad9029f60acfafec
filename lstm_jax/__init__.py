"""The LSTM library for JAX."""

import importlib as _importlib
import typing as _typing

from lstm_jax import activations as activations
from lstm_jax import convert as convert
from lstm_jax import initializers as initializers
from lstm_jax import sharding as sharding
from lstm_jax.cells.base import Cell as Cell
from lstm_jax.cells.convlstm import ConvLSTMCell as ConvLSTMCell
from lstm_jax.cells.dropout import embedding_dropout as embedding_dropout
from lstm_jax.cells.lstm_cell import LSTMCell as LSTMCell
from lstm_jax.cells.minlstm import MinLSTMCell as MinLSTMCell
from lstm_jax.cells.minlstm import MinLSTMParams as MinLSTMParams
from lstm_jax.cells.minlstm import MinLSTMState as MinLSTMState
from lstm_jax.cells.quantized import QuantizedLSTMCell as QuantizedLSTMCell
from lstm_jax.cells.quantized import QuantizedParams as QuantizedParams
from lstm_jax.cells.regularized import Regularized as Regularized
from lstm_jax.cells.slstm import SLSTMCell as SLSTMCell
from lstm_jax.cells.slstm import SLSTMState as SLSTMState
from lstm_jax.cells.variants import GateState as GateState
from lstm_jax.checks import names as _names
from lstm_jax.descriptions.config import from_config as from_config
from lstm_jax.exporting import export as export
from lstm_jax.layers import LSTM as LSTM
from lstm_jax.quantization import quantize as quantize
from lstm_jax.recurrence.choice import implementation as implementation
from lstm_jax.recurrence.choice import implementations as implementations
from lstm_jax.sequence import lstm as lstm
from lstm_jax.sequence import resolve_implementation as resolve_implementation
from lstm_jax.sequence import scan as scan
from lstm_jax.sequence import scan_states as scan_states
from lstm_jax.stack import Stack as Stack
from lstm_jax.streaming import stream as stream
from lstm_jax.time_parallel import ParallelReport as ParallelReport
from lstm_jax.time_parallel import parallel_scan as parallel_scan
from lstm_jax.types import Directions as Directions
from lstm_jax.types import LSTMParams as LSTMParams
from lstm_jax.types import LSTMState as LSTMState

__version__ = "0.1.0"

__all__ = (
    "LSTM",
    "Cell",
    "ConvLSTMCell",
    "Directions",
    "GateState",
    "LSTMCell",
    "LSTMParams",
    "LSTMState",
    "MinLSTMCell",
    "MinLSTMParams",
    "MinLSTMState",
    "ParallelReport",
    "QuantizedLSTMCell",
    "QuantizedParams",
    "Regularized",
    "SLSTMCell",
    "SLSTMState",
    "Stack",
    "activations",
    "convert",
    "embedding_dropout",
    "export",
    "from_config",
    "implementation",
    "implementations",
    "initializers",
    "lstm",
    "parallel_scan",
    "quantize",
    "resolve_implementation",
    "scan",
    "scan_states",
    "sharding",
    "stream",
)

# Loaded when they are first named, with what they need: Optax, Flax.
_LAZY = ("data", "decoding", "distributed", "linen", "nnx", "serving", "training")


def __getattr__(name: str) -> _typing.Any:
    if name in _LAZY:
        return _importlib.import_module(f"lstm_jax.{name}")
    raise _names.missing(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
