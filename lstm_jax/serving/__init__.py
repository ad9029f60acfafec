"""Serving: many concurrent streams over one compiled step."""

import importlib as _importlib
import typing as _typing

from lstm_jax.serving.errors import BadRequest as BadRequest
from lstm_jax.serving.errors import Gone as Gone
from lstm_jax.serving.errors import OutOfOrder as OutOfOrder
from lstm_jax.serving.errors import Overloaded as Overloaded
from lstm_jax.serving.errors import ServingError as ServingError
from lstm_jax.serving.errors import StepFailed as StepFailed
from lstm_jax.serving.errors import Unavailable as Unavailable
from lstm_jax.serving.errors import UnknownStream as UnknownStream
from lstm_jax.serving.limits import Limits as Limits
from lstm_jax.serving.metrics import Metrics as Metrics
from lstm_jax.serving.server import Server as Server
from lstm_jax.serving.states import StreamState as StreamState
from lstm_jax.serving.streams import Result as Result

__all__ = (
    "BadRequest",
    "Gone",
    "Limits",
    "Metrics",
    "OutOfOrder",
    "Overloaded",
    "Result",
    "Server",
    "ServingError",
    "StepFailed",
    "StreamState",
    "Unavailable",
    "UnknownStream",
)


def __getattr__(name: str) -> _typing.Any:
    if name == "web":  # With aiohttp, which nothing else needs.
        return _importlib.import_module("lstm_jax.serving.web")
    raise AttributeError(f"module 'lstm_jax.serving' has no attribute {name!r}")
