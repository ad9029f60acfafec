"""The recurrence on a TPU, as Pallas kernels, of the standard LSTM.

``LSTM_JAX_INTERPRET=1`` has them interpreted on a CPU, which is slow and for tests.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import config as _config  # no public name

from lstm_jax.cells.base import Cell
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.recurrence.contract import Call, Implementation, Target
from lstm_jax.recurrence.pallas_tpu import sizes
from lstm_jax.types import Array, config

VARIABLE = "LSTM_JAX_INTERPRET"
_DTYPES = (jnp.float32, jnp.bfloat16)
_PRECISIONS = (None, "default", "bfloat16", "fastest", "highest", "float32")


def interpreting() -> bool:
    """Whether kernels are interpreted on a CPU."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


class TPUKernels(Implementation):
    """The kernels of this folder."""

    name = "pallas_tpu"
    native = True
    by_default = False

    @property
    def platforms(self) -> tuple[str, ...]:
        """Those that it can be lowered for."""
        return ("tpu", "cpu") if interpreting() else ("tpu",)

    def unavailable(self) -> str | None:
        """Why these kernels cannot run here; None if they can."""
        if interpreting() or jax.default_backend() == "tpu":
            return None
        return f"runs on a TPU; {VARIABLE}=1 has it interpreted on a CPU, for tests"

    def why_not(self, cell: Cell, dtype: Any) -> str | None:
        """Why the kernels cannot run a cell in a compute dtype; None if they can."""
        if not (isinstance(cell, LSTMCell) and cell.standard):
            return f"runs the standard LSTMCell, not {cell}"
        if jnp.dtype(dtype) not in _DTYPES:
            return f"computes in float32 and bfloat16 only, not {jnp.dtype(dtype)}"
        weights = sizes.resident_bytes(cell, dtype)
        if weights > sizes.MOST_WEIGHTS:
            return (
                f"keeps the recurrent weights in a core's {sizes.LIMIT >> 20} MiB of "
                f"memory, of which {sizes.MOST_WEIGHTS >> 20} are for them, not "
                f"{weights / 2**20:.1f} MiB: {cell}"
            )
        return None

    def refuses(self, target: Target) -> str | None:
        """Why these kernels cannot be lowered for a target; None if they can."""
        if target.partitioned or target.partly_manual:
            return (
                f"runs on one device: XLA can't cut it over {target.devices}. Under "
                "jax.shard_map over all axes of a mesh each device runs its rows"
            )
        precision = config.jax_default_matmul_precision
        if precision not in _PRECISIONS:
            return (
                f"has no products in the precision {precision!r} that "
                f"jax.default_matmul_precision asks for: "
                f"{', '.join(map(repr, _PRECISIONS))} are what a TPU's kernels know"
            )
        if target.exporting and target.platform != "tpu":
            return "is interpreted by this package, which an exported program can't ask"
        return None

    def run(self, call: Call, args: Sequence[Array], target: Target) -> list[Array]:
        """The forward pass, one direction after the other."""
        from lstm_jax.recurrence.pallas_tpu import calls

        return _run(functools.partial(calls.run, call), args, target)

    def pullback(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array] | None:
        """The backward pass, one direction after the other."""
        from lstm_jax.recurrence.pallas_tpu import calls

        return _run(functools.partial(calls.pullback, call, which), args, target)


def _run(function: Callable, args: Sequence[Array], target: Target) -> list[Array]:
    """Calls what runs kernels, or has them interpreted."""
    # Types say here what each device holds, and nothing of who else has the same.
    with _config._check_vma(False):
        return _run_untyped(function, args, target)


def _run_untyped(
    function: Callable, args: Sequence[Array], target: Target
) -> list[Array]:
    if target.platform == "tpu":
        return function(args, False)
    interpreted = lambda *args: function(args, True)
    alone = functools.partial(_alone, jax.jit(interpreted))
    return list(jax.pure_callback(alone, jax.eval_shape(interpreted, *args), *args))


def _alone(function: Callable, *args: Any) -> Any:
    """The interpreter runs one kernel at a time, which XLA would not know of.

    Whoever looks for NaN looks at what comes out: memory that was not written is full
    of them.
    """
    with _INTERPRETER, jax.debug_nans(False), jax.debug_infs(False):
        return jax.tree.map(np.asarray, function(*args))


_INTERPRETER = threading.Lock()
