"""What processes agree on before they meet in a collective, which would wait for ever.

By JAX's coordination service: no device takes part, so that steps which are on their
way go on, and nothing depends on the shapes of arrays.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # no public name
from jax.experimental import multihost_utils

from lstm_jax.distributed import watching

# Steps of training that may be on their way in a process before it reads the first.
AHEAD = 2
_EVER = 2**31 - 1  # Milliseconds.
_GRACE = 2.0  # Seconds in which process 0 tells the others who did not come.
# Threads may agree on different things at once, so each kind of thing is counted.
_rounds: dict[str, Any] = collections.defaultdict(itertools.count)


def judged(kind: str, mine: Any, judge: Callable[[list[Any]], Any]) -> Any:
    """What process 0 makes of what every process says; the same on all of them.

    All processes call it, in the same order for one kind.

    Args:
        kind: of the thing, a word for errors.
        mine: what this process says, as JSON has it.
        judge: what becomes of all that was said, in the order of processes; called on
            process 0 alone.

    Raises:
        TimeoutError: if a process does not come; it says which.
        Exception: what ``judge`` raised, on every process.
    """
    count = jax.process_count()
    if count == 1:
        return judge([mine])
    number = next(_rounds[kind])
    where = f"lstm_jax/{kind}/{number}"
    client: Any = distributed.global_state.client
    what = f"{kind} {number + 1}"
    if jax.process_index():
        client.key_value_set(f"{where}/{jax.process_index()}", json.dumps(mine))
        text = _awaited(client, what, {0: f"{where}/answer"}, _GRACE)[0]
        answer = json.loads(text)
    else:
        try:
            keys = {n: f"{where}/{n}" for n in range(1, count)}
            said = _awaited(client, what, keys, 0.0)
            answer = {"value": judge([mine, *map(json.loads, said)])}
        except Exception as error:
            told = {"error": [type(error).__name__, str(error)]}
            client.key_value_set(f"{where}/answer", json.dumps(told))
            raise
        client.key_value_set(f"{where}/answer", json.dumps(answer))
        # Whoever has come to this round has read the answer of the last one.
        client.key_value_delete(f"lstm_jax/{kind}/{number - 1}/")
    if "error" in answer:
        raise _error(*answer["error"])
    return answer["value"]


def led(kind: str, function: Callable[[], Any]) -> Any:
    """What a function returns or raises on process 0, alone; the same on all."""
    return judged(kind, None, lambda _: function())


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def whole(leaf: Any) -> Any:
    """An array of which this process may have a part, whole: all processes call it."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return multihost_utils.process_allgather(leaf, tiled=True)


def put(array: np.ndarray, device: Any) -> jax.Array:
    """An array that all processes have, on a device or by a sharding, NaN and all."""
    if isinstance(device, jax.sharding.PartitionSpec):
        device = jax.sharding.NamedSharding(jax.sharding.get_mesh(), device)
    if getattr(device, "is_fully_addressable", True):
        return jax.device_put(array, device)
    return jax.make_array_from_callback(array.shape, device, lambda at: array[at])


def sent(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays of process 0, bit for bit; others say by theirs shapes and dtypes."""
    flat = [np.ascontiguousarray(one).reshape(-1).view(np.uint8) for one in arrays]
    received = multihost_utils.broadcast_one_to_all(flat)
    return [
        np.array(one).view(like.dtype).reshape(like.shape)
        for one, like in zip(received, arrays, strict=True)
    ]


class Stop:
    """A step at which all processes stop, once one of them is told to.

    They are a few steps apart at most, since each reads what every third step before
    the one that it takes has come to, for which all are needed.
    """

    def __init__(self) -> None:
        """One for each run; all processes make theirs in the same order."""
        self._key = f"lstm_jax/stop/{next(_rounds['stop'])}"
        self._at: tuple[int, int] | None = None

    def due(self, step: int, signal: int | None) -> int | None:
        """The signal that ends the run at this step; None where it goes on."""
        client: Any = distributed.global_state.client
        if self._at is None and signal is not None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # Another was first.
                client.key_value_set(self._key, json.dumps([step + 2 * AHEAD, signal]))
        if self._at is None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # There is none.
                self._at = json.loads(client.key_value_try_get(self._key))
        return self._at[1] if self._at is not None and step >= self._at[0] else None


def _awaited(client: Any, what: str, keys: dict[int, str], grace: float) -> list[str]:
    """What processes have said, in their order."""
    limit, said = watching.own.limit, {}
    until = None if limit is None else time.monotonic() + limit + grace
    for n, key in keys.items():
        left = _EVER if until is None else int(1000 * (until - time.monotonic()))
        try:
            said[n] = client.blocking_key_value_get(key, max(left, 1))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
    missing = [watching.name(n) for n in keys if n not in said]
    if missing:
        raise TimeoutError(
            f"{what}: {', '.join(missing[:20])} did not come to it within {limit:g} s. "
            "Has every process as many batches and steps? step_timeout of "
            "initialize_from_env is the limit."
        )
    return [said[n] for n in keys]


def _error(kind: str, text: str) -> Exception:
    """An error of process 0, as this process raises it."""
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        return known(text)
    return RuntimeError(f"process 0: {kind}: {text}")
