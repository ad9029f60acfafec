"""The calls to the kernel in 8 bits, which lays arrays out as :mod:`calls` says."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lstm_jax.recurrence.contract import Call, Inputs, Outputs, numbered
from lstm_jax.recurrence.cpu import library
from lstm_jax.recurrence.cpu.calls import or_empty, result, reverse_bits, rows
from lstm_jax.types import Array, LSTMState


def run(call: Call, leaves: Sequence[Array]) -> list[Array]:
    """The forward kernel; see :meth:`Implementation.run`."""
    inputs, shapes = call.inputs(leaves), call.shapes(leaves)
    operands, results = [], []
    for one, shape, numbers in zip(inputs, shapes, numbered(shapes), strict=True):
        operands += _operands(one)
        wanted = jax.tree.map(
            lambda leaf, number: leaf if number in call.emit else None, shape, numbers
        )
        hs, cs = wanted.ys if call.emit_states else (wanted.ys, None)
        results += [result(hs, jnp.float32, True), result(cs, jnp.float32, True)]
        results += [result(leaf, jnp.float32, False) for leaf in shape.last]
    kernel = jax.ffi.ffi_call(library.QUANTIZED, results)
    values = kernel(*operands, reverse=reverse_bits(call))
    outputs = []
    for n, shape in enumerate(shapes):
        hs, cs, h, c = values[4 * n : 4 * n + 4]
        ys = LSTMState(hs, cs) if call.emit_states else hs
        outputs.append(Outputs(LSTMState(h, c), ys, shape.saved))
    return [
        value.reshape(shape.shape)
        for value, shape in zip(
            call.emitted(shapes, outputs), call.emitted(shapes, shapes), strict=True
        )
    ]


def _operands(inputs: Inputs) -> list[Array]:
    """The kernel's arguments, in the order that ``ffi_quantized.cc`` lists."""
    params, (h, c) = inputs.params, inputs.state
    reset_h, reset_c = inputs.reset_state or (None, None)
    empty = or_empty
    return [
        rows(inputs.xs, True, 1),
        params.kernel,
        params.kernel_scale,
        params.recurrent_kernel,
        params.recurrent_scale,
        empty(params.bias, jnp.float32),
        empty(params.projection_kernel, jnp.int8),
        empty(params.projection_scale, jnp.float32),
        rows(h, False, 1),
        rows(c, False, 1),
        empty(rows(inputs.valid, True, 0), jnp.bool),
        empty(rows(inputs.reset, True, 0), jnp.bool),
        empty(rows(reset_h, False, 1), jnp.float32),
        empty(rows(reset_c, False, 1), jnp.float32),
    ]
