"""The calls to the kernels.

One call runs one direction of a layer, or both side by side: the operands and results
of one direction follow those of the other. The kernels know one batch axis; here there
may be any number. What they save for the backward pass is a :class:`Tape`: of each step
and row the values of the gates (in bfloat16 with 16 bits each) and of c after the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.cells.regularized import Noise
from lstm_jax.numerics import as_last_axes
from lstm_jax.recurrence.contract import (
    Call,
    Inputs,
    Outputs,
    Tape,
    hidden_of,
    numbered,
    saved_of,
)
from lstm_jax.recurrence.cpu import library
from lstm_jax.recurrence.cpu.step import (
    given,
    lstm_params,
    packed_shapes,
    step_of,
    unpacked_heads,
)
from lstm_jax.types import Array, LSTMParams, LSTMState, PyTree


def run(call: Call, leaves: Sequence[Array]) -> list[Array]:
    """The forward kernel; see :meth:`Implementation.run`."""
    inputs, shapes = call.inputs(leaves), call.shapes(leaves)
    attributes, operands, results = _attributes(call), [], []
    for one, shape, numbers in zip(inputs, shapes, numbered(shapes), strict=True):
        operands += _operands(call, one)
        wanted = jax.tree.map(
            lambda leaf, number: leaf if number in call.emit else None, shape, numbers
        )
        results += _forward_results(wanted, shape)
    kernel = jax.ffi.ffi_call(library.FORWARD, results)
    values = kernel(*operands, **attributes)
    size = len(values) // len(inputs)
    outputs = [
        _as_outputs(call, shape, values[n * size : (n + 1) * size])
        for n, shape in enumerate(shapes)
    ]
    return [
        value.reshape(shape.shape)
        for value, shape in zip(
            call.emitted(shapes, outputs), call.emitted(shapes, shapes), strict=True
        )
    ]


def pullback(call: Call, which: tuple[bool, ...], args: Sequence[Array]) -> list[Array]:
    """The backward kernel; see :meth:`Implementation.pullback`."""
    leaves = args[: call.leaves]
    end = len(args) - len(call.emit)
    shapes = call.shapes(leaves)
    saved = saved_of(shapes, args[call.leaves : end])
    cotangents = call.outputs(shapes, args[end:])
    inputs = call.inputs(leaves)
    wanted = call.inputs(
        [leaf if want else None for leaf, want in zip(leaves, which, strict=True)]
    )
    operands, results = [], []
    for n, one in enumerate(inputs):
        operands += _operands(call, one)
        operands += _backward_operands(call, one, *saved[n], cotangents[n])
        results += _backward_results(call, wanted[n], _xs(one).dtype)
    kernel = jax.ffi.ffi_call(library.BACKWARD, results)
    values = kernel(*operands, **_attributes(call))
    size = len(values) // len(inputs)
    grads = call.tree.flatten_up_to(
        tuple(
            _as_inputs(call, one, values[n * size : (n + 1) * size])
            for n, one in enumerate(inputs)
        )
    )
    return [
        grad.reshape(leaf.shape)
        for grad, leaf, want in zip(grads, leaves, which, strict=True)
        if want
    ]


def masks_wanted(call: Call, which: tuple[bool, ...]) -> bool:
    """Whether the gradient of a mask is wanted: there is no rule for it."""
    masks = [
        one.params[1:] for one in call.inputs(which) if isinstance(one.params, Noise)
    ]
    return any(jax.tree.leaves(masks))


def reverse_bits(call: Call) -> np.int64:
    """Bit n says whether direction n runs from the last step to the first."""
    return np.int64(sum(1 << n for n, yes in enumerate(call.reverse) if yes))


def _attributes(call: Call) -> dict[str, Any]:
    """What is static."""
    reverse = reverse_bits(call)
    step = step_of(call.cell)
    assert step is not None  # or the kernels would not have been chosen
    standard = getattr(call.cell, "standard", False) and isinstance(call.cell, LSTMCell)
    return {"reverse": reverse, "standard": standard} | step.attributes


def _xs(inputs: Inputs) -> Any:
    """The inputs, without what comes with them."""
    return inputs.xs[0] if isinstance(inputs.xs, tuple) else inputs.xs


def rows(array: Any, steps: bool, features: int) -> Any:
    """An array with its batch axes made one, behind the time axis if it has one."""
    if array is None:
        return None
    front, behind = array.shape[: int(steps)], array.shape[array.ndim - features :]
    batch = array.shape[int(steps) : array.ndim - features]
    return array.reshape(*front, math.prod(batch), *behind)


def or_empty(array: Array | None, dtype: Any) -> Array:
    """A kernel's argument; an empty array where there is nothing."""
    return jnp.zeros((0,), dtype) if array is None else array


def result(like: Any, dtype: Any, steps: bool) -> jax.ShapeDtypeStruct:
    """A kernel's result; empty where nobody wants it."""
    if like is None:
        return jax.ShapeDtypeStruct((0,), dtype)
    shape = like.shape
    start, stop = int(steps), len(shape) - 1
    batch = math.prod(shape[start:stop])
    return jax.ShapeDtypeStruct((*shape[:start], batch, shape[-1]), dtype)


def _shape_of(like: Any, dtype: Any) -> jax.ShapeDtypeStruct:
    """The same of weights."""
    return jax.ShapeDtypeStruct((0,) if like is None else like.shape, dtype)


def _operands(call: Call, inputs: Inputs) -> list[Array]:
    """The kernels' first arguments."""
    params, xs, extras = given(call.cell, inputs)
    (h, c), dtype = inputs.state, xs.dtype
    reset_h, reset_c = inputs.reset_state or (None, None)
    # States that are put out have no mask.
    output_mask = None if call.emit_states else extras.output_mask
    return [
        rows(xs, True, 1),
        params.kernel,
        or_empty(params.recurrent_kernel, dtype),
        or_empty(params.bias, dtype),
        or_empty(params.projection_kernel, dtype),
        rows(h, False, 1),
        rows(c, False, 1),
        or_empty(rows(inputs.valid, True, 0), jnp.bool),
        or_empty(rows(inputs.reset, True, 0), jnp.bool),
        or_empty(rows(reset_h, False, 1), dtype),
        or_empty(rows(reset_c, False, 1), jnp.float32),
        or_empty(extras.peephole, dtype),
        or_empty(rows(extras.recurrent_mask, False, 1), jnp.float32),
        or_empty(rows(output_mask, False, 1), jnp.float32),
        or_empty(rows(extras.keep_h, True, 1), jnp.bool),
        or_empty(rows(extras.keep_c, True, 1), jnp.bool),
        or_empty(extras.diagonal, dtype),
        or_empty(extras.norm_scale, dtype),
        or_empty(extras.norm_shift, dtype),
        or_empty(extras.cell_norm, dtype),
    ]


def _forward_results(wanted: Outputs, shape: Outputs) -> list[jax.ShapeDtypeStruct]:
    ys, cs = wanted.ys, None
    if isinstance(ys, LSTMState):
        ys, cs = ys
    dtype = shape.last.h.dtype
    gates, cells, entering = wanted.saved
    return [
        result(ys, dtype, True),
        result(cs, jnp.float32, True),
        result(shape.last.h, dtype, False),
        result(shape.last.c, jnp.float32, False),
        result(gates, shape.saved.gates.dtype, True),
        result(cells, jnp.uint32, True),
        result(entering, dtype, True),
    ]


def _as_outputs(call: Call, shape: Outputs, values: Sequence[Array]) -> Outputs:
    hs, cs, h, c, gates, cells, entering = values
    if shape.saved.entering is None:
        entering = None
    ys = LSTMState(hs, cs) if call.emit_states else hs
    return Outputs(LSTMState(h, c), ys, Tape(gates, cells, entering))


def _backward_operands(
    call: Call, inputs: Inputs, tape: Tape, hidden: Array | None, cotangents: Outputs
) -> list[Array]:
    dtype = _xs(inputs).dtype
    (h, c), d_last = inputs.state, cotangents.last
    d_hs = hidden_of(cotangents.ys)
    d_cs = cotangents.ys.c if call.emit_states else None
    d_h = jnp.zeros_like(h) if d_last.h is None else d_last.h
    d_c = jnp.zeros_like(c) if d_last.c is None else d_last.c
    return [
        or_empty(rows(hidden, True, 1), dtype),
        or_empty(rows(tape.entering, True, 1), dtype),
        rows(tape.gates, True, 1),
        rows(tape.cells, True, 1),
        or_empty(rows(d_hs, True, 1), dtype),
        or_empty(rows(d_cs, True, 1), jnp.float32),
        rows(d_h, False, 1),
        rows(d_c, False, 1),
    ]


def _backward_results(
    call: Call, wanted: Inputs, dtype: Any
) -> list[jax.ShapeDtypeStruct]:
    params, state = lstm_params(wanted.params), wanted.state
    reset_h, reset_c = wanted.reset_state or (None, None)
    recurrent, diagonal = packed_shapes(call.cell, params.recurrent_kernel)
    bias = params.bias
    if bias is None and params.norm_shift is not None:  # they have the same gradient
        bias = jax.ShapeDtypeStruct(params.norm_shift.shape[1:], dtype)
    weights = (params.kernel, recurrent, bias, params.projection_kernel)
    return [
        result(_xs(wanted), dtype, True),
        *(_shape_of(leaf, dtype) for leaf in weights),
        result(state.h, dtype, False),
        result(state.c, jnp.float32, False),
        result(reset_h, dtype, False),
        result(reset_c, jnp.float32, False),
        _shape_of(params.peephole, dtype),
        _shape_of(diagonal, dtype),
        _shape_of(params.norm_scale, dtype),
        _shape_of(params.cell_norm, dtype),
    ]


def _as_inputs(call: Call, inputs: Inputs, values: Sequence[Array]) -> Inputs:
    """Gradients in the structure of ``inputs``."""
    xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c = values[:9]
    weights = (kernel, recurrent, bias, projection, *values[9:])
    return Inputs(
        _params_gradient(call, inputs.params, weights),
        _xs_gradient(inputs, xs),
        LSTMState(h, c),
        inputs.valid,
        inputs.reset,
        None if inputs.reset_state is None else LSTMState(reset_h, reset_c),
    )


def _params_gradient(call: Call, given: Any, weights: Sequence[Array]) -> Any:
    kernel, recurrent, bias, projection, *more = weights
    peephole, diagonal, norm_scale, cell_norm = more
    params = lstm_params(given)
    grads = LSTMParams(
        kernel,
        unpacked_heads(call.cell, params.recurrent_kernel, (recurrent, diagonal)),
        None if params.bias is None else bias,
        None if params.projection_kernel is None else projection,
        peephole=None if params.peephole is None else peephole,
        norm_scale=None if params.norm_scale is None else norm_scale,
        norm_shift=None if params.norm_shift is None else jnp.stack([bias, bias]),
        cell_norm=None if params.cell_norm is None else cell_norm,
    )
    return given._replace(params=grads) if isinstance(given, Noise) else grads


def _xs_gradient(inputs: Inputs, grad: Array) -> PyTree:
    mask = inputs.params.input_mask if isinstance(inputs.params, Noise) else None
    if mask is not None and grad.size:  # it is empty where nobody wants it
        grad = grad.reshape(_xs(inputs).shape)
        grad = grad * as_last_axes(mask, grad)
    return (grad, inputs.xs[1]) if isinstance(inputs.xs, tuple) else grad
