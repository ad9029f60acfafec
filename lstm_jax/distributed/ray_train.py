"""Workers of Ray Train, which are told by calls what launchers say in variables."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from lstm_jax.distributed.launchers import Launch


def recognised() -> Launch | None:
    """Who this worker is; None in any other process.

    All workers have to call it: the first of them tells the others where it is.
    """
    train: Any = sys.modules.get("ray.train")
    if train is None:
        return None
    context, count = train.get_context(), 0
    # Ray's own word for a process, such as the one that starts the workers.
    with contextlib.suppress(RuntimeError):
        count = context.get_world_size()
    if not count:
        return None
    index = context.get_world_rank()
    launch = Launch("Ray Train", index, count, source="Ray Train's first worker")
    if count == 1:
        return launch
    host, port = _together(_address() if index == 0 else None)
    return launch._replace(hosts=(host,), port=port, job=f"Ray Train {host}:{port}")


def _address() -> tuple[str, int]:
    import ray  # pyright: ignore[reportMissingImports]

    with socket.socket() as one:
        one.bind(("", 0))
        return ray.util.get_node_ip_address(), one.getsockname()[1]


def _together(said: Any) -> Any:
    """What the first worker says."""
    from ray.train import collective  # pyright: ignore[reportMissingImports]

    return collective.broadcast_from_rank_zero(said)
