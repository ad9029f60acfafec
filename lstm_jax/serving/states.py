"""A stream outside of a server: its state, and where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import border
from lstm_jax.serving.errors import BadRequest
from lstm_jax.serving.inputs import check_number
from lstm_jax.serving.streams import Result, Stream
from lstm_jax.types import PyTree

_DTYPES = {
    **{"BOOL": np.bool_, "BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32},
    **{"F64": np.float64, "U8": np.uint8, "I8": np.int8, "I16": np.int16},
    **{"U16": np.uint16, "I32": np.int32, "U32": np.uint32, "I64": np.int64},
    **{"U64": np.uint64},
}
# What is in the bytes beside the state.
_FIELDS = ("number", "weights", "digest", "last")


class StreamState(NamedTuple):
    """All that another server needs to go on with a stream.

    Attributes:
        number: of the next chunk.
        arrays: the state by the names of its leaves, such as ``[0].forward.h``; empty
            for a stream that has taken no step, which starts where the model starts.
        weights: the fingerprint of the parameters that made it; no others can go on.
        last: the answer to the last chunk, given again if that comes again.
        digest: of what was in that chunk.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import serving
        >>> state = serving.StreamState(3, {"h": np.ones(5, np.float32)}, weights="ab")
        >>> serving.StreamState.from_bytes(state.to_bytes()).number
        3
    """

    number: int
    arrays: dict[str, np.ndarray]
    weights: str
    last: Result | None = None
    digest: bytes = b""

    def to_bytes(self) -> bytes:
        """Returns the stream in the safetensors format.

        Raises:
            ImportError: if safetensors is not installed.
        """
        save = _library().numpy.save
        arrays = {f"state{name}": border.give(a) for name, a in self.arrays.items()}
        arrays["number"] = np.array(self.number, np.int64)
        arrays["weights"] = np.frombuffer(self.weights.encode(), np.uint8)
        arrays["digest"] = np.frombuffer(self.digest, np.uint8)
        if self.last is not None:
            arrays["last"] = border.give(self.last.ys)
        return save(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> StreamState:
        """Reads what :meth:`to_bytes` wrote.

        Whether it fits a server's model is looked at where it is restored.

        Raises:
            BadRequest: if it is something else.
            ImportError: if safetensors is not installed.
        """
        library = _library()
        try:
            stored = library.deserialize(bytes(data))
        except library.SafetensorError as error:
            raise BadRequest(f"data: no state of a stream: {error}.") from None
        arrays = {name: _read(name, kept) for name, kept in stored}
        number = arrays.get("number", np.zeros(0))
        if (number.dtype, number.shape) != (np.int64, ()) or number < 0:
            raise BadRequest(
                "data: expected the state of a stream, with the number of its next "
                f"chunk, got the names {sorted(arrays)[:9]}."
            )
        state, count, last = {}, int(number), arrays.get("last")
        for name, array in arrays.items():
            if name.startswith("state"):
                state[name.removeprefix("state")] = array
            elif name not in _FIELDS:
                raise BadRequest(f"data: expected no {name!r} in a stream's state.")
        # Bytes may say anything: what is no text never fits a fingerprint.
        text = lambda name: arrays.get(name, np.zeros(0, np.uint8)).tobytes()
        weights = text("weights").decode("ascii", "replace")
        answer = None if last is None else Result(count - 1, last)
        return cls(count, state, weights, answer, text("digest"))


def _library() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            'States as bytes need safetensors: pip install "lstm_jax[serving]"'
        ) from error
    return safetensors


def _read(name: str, stored: Any) -> np.ndarray:
    if stored["dtype"] not in _DTYPES:
        raise BadRequest(f"data: {name!r} has the dtype {stored['dtype']}.")
    array = np.frombuffer(stored["data"], _DTYPES[stored["dtype"]])
    return array.reshape(stored["shape"])


def fingerprint(params: PyTree) -> str:
    """What tells these parameters from others."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.asarray(leaf)
        found.update(
            f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode()
        )
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def describe(
    stream: Stream, names: list[str], weights: str
) -> Callable[..., StreamState]:
    """What makes a state of leaves that are read later, while the stream goes on."""
    fresh, number, last, sent = stream.fresh, stream.number, stream.last, stream.digest

    def make(leaves):
        arrays = {}
        if not fresh:
            arrays = {
                name: np.array(leaf) for name, leaf in zip(names, leaves, strict=True)
            }
        return StreamState(number, arrays, weights, last, sent)

    return make


def conform(
    state: StreamState, weights: str, names: list[str], shapes: list[Any]
) -> list[np.ndarray] | None:
    """The leaves of a state, checked against a server's; None for a fresh stream."""
    if not isinstance(state, StreamState):
        raise TypeError(
            f"state: expected a StreamState, got {type(state).__name__}. "
            "StreamState.from_bytes reads one."
        )
    check_number(state.number)
    if state.weights != weights:
        raise BadRequest(
            "state: expected one that these parameters made, whose fingerprint is "
            f"{weights}, got {state.weights!r}. A state says nothing to other weights."
        )
    if not state.arrays:
        if state.number:
            raise BadRequest(
                f"state: expected arrays at chunk {state.number}, got none."
            )
        return None
    if set(state.arrays) != set(names):
        raise BadRequest(
            f"state: expected the arrays {names}, got {sorted(state.arrays)}."
        )
    for name, shape in zip(names, shapes, strict=True):
        array = state.arrays[name]
        if (array.shape, array.dtype) != (shape.shape, shape.dtype):
            raise BadRequest(
                f"state{name}: expected {list(shape.shape)} of {shape.dtype}, got "
                f"{list(array.shape)} of {array.dtype}."
            )
    return [np.array(state.arrays[name]) for name in names]
