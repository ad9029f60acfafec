"""The recurrence on a CPU, as compiled kernels.

They run the LSTM with most of its options (:func:`step_of` says which), in float32 and
bfloat16 (which accumulates in float32), and forward the quantised one. ``csrc/`` holds
their source and says how they work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell
from lstm_jax.cells.quantized import QuantizedLSTMCell
from lstm_jax.meshes import per_shard
from lstm_jax.recurrence import units
from lstm_jax.recurrence.contract import (
    Call,
    Implementation,
    Target,
    input_axes,
    kept,
    output_axes,
)
from lstm_jax.recurrence.cpu import calls, library, quantized
from lstm_jax.recurrence.cpu.step import step_of
from lstm_jax.types import Array

_DTYPES = (jnp.float32, jnp.bfloat16)


class Kernels(Implementation):
    """The kernels of ``csrc/``."""

    name = "cpu"
    platforms = ("cpu",)
    native = True

    def unavailable(self) -> str | None:
        """Why these kernels cannot run on this machine; None if they can."""
        return library.missing()

    def why_not(self, cell: Cell, dtype: Any) -> str | None:
        """Why the kernels cannot run a cell in a compute dtype; None if they can."""
        if reason := self.unavailable():
            return reason
        if isinstance(cell, QuantizedLSTMCell):
            return _why_not_quantized(cell)
        if isinstance(units.lstm_of(cell), units.PartOfUnits):
            return (
                "runs whole calls, not steps that exchange h over a mesh axis: the "
                "layout in use has hidden units over one"
            )
        if step_of(cell) is None:
            return f"runs LSTMCell without some of its options, not {cell}"
        if jnp.dtype(dtype) not in _DTYPES:
            return f"computes in float32 and bfloat16 only, not {jnp.dtype(dtype)}"
        return None

    def refuses(self, target: Target) -> str | None:
        """Why these kernels cannot be lowered for a target; None if they can."""
        if target.exporting:
            return (
                "calls compiled code of this package, which an exported program can't: "
                "it may run where the package is not"
            )
        if target.partly_manual:
            return "can't run under shard_map over some axes of a mesh but not all"
        if target.partitioned:
            here = len(jax.devices(target.platform))
            if here < target.devices:
                return (
                    f"runs on the {here} devices of this process, not {target.devices}"
                )
        return None

    def run(self, call: Call, args: Sequence[Array], target: Target) -> list[Array]:
        """The forward pass, one call for all directions."""
        kernel = calls
        if isinstance(call.cell, QuantizedLSTMCell):
            kernel = quantized
        run = lambda *args: kernel.run(call, args)
        if not target.partitioned:
            return run(*args)
        axes = output_axes(call.shapes(args))
        outs = [axes[index] for index in call.emit]
        return per_shard(run, args, input_axes(call), outs, _batch_ndim(call, args))

    def pullback(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array] | None:
        """The backward pass, one call for all directions."""
        if calls.masks_wanted(call, which):
            return None
        run = lambda *args: calls.pullback(call, which, args)
        if not target.partitioned:
            return run(*args)
        shapes = call.shapes(args[: call.leaves])
        inputs, axes = input_axes(call), output_axes(shapes)
        emitted = [axes[index] for index in (*kept(shapes), *call.emit)]
        outs = [axis for axis, want in zip(inputs, which, strict=True) if want]
        ins = [*inputs, *emitted]
        return per_shard(run, args, ins, outs, _batch_ndim(call, args))


def _why_not_quantized(cell: QuantizedLSTMCell) -> str | None:
    for name in ("clip", "cell_clip"):
        if getattr(cell, name) is not None:
            return f"runs a QuantizedLSTMCell without {name} only, not {cell}"
    return None


def _batch_ndim(call: Call, args: Sequence[Array]) -> int:
    return jax.tree.leaves(call.inputs(args[: call.leaves])[0].xs)[0].ndim - 2
