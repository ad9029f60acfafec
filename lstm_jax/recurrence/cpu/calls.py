"""The calls to the kernels, and the reference in their place, on flat arguments.

Everything here is time-major with one batch axis: ``xs`` is ``[T, B, I]``. One call
runs one direction of a layer, or both side by side, so what it is given and what it
returns come in tuples of one or two.

The kernels save, for the backward pass, of each step and row the values of i, f, g and
o, and c after the step: ``gates`` is ``[T, B, 4 Hp]`` and ``cells`` ``[T, B, Hp]``,
where Hp is H rounded up to a multiple of 16. Both hold bits: those of float32 in
uint32, and in bfloat16 gates of 16 bits in uint16. Where there are controls, they save
the h that entered each step too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.recurrence import xla
from lstm_jax.recurrence.cpu import library
from lstm_jax.types import Array, LSTMParams, LSTMState

_GATE_BITS = {jnp.dtype(jnp.float32): jnp.uint32, jnp.dtype(jnp.bfloat16): jnp.uint16}
# Units whose gates are saved together.
_GROUP = 16

# The outputs that have tangents.
DIFFERENTIABLE = ("ys", "cs", "h", "c")


class Inputs(NamedTuple):
    """What one direction is given; None where there is nothing."""

    params: LSTMParams
    xs: Any
    state: LSTMState
    valid: Any = None
    reset: Any = None
    reset_state: LSTMState | None = None


class Outputs(NamedTuple):
    """What one direction can return; most calls want some of it only."""

    ys: Any = None
    cs: Any = None
    h: Any = None
    c: Any = None
    gates: Any = None
    cells: Any = None
    entering: Any = None


@dataclasses.dataclass(frozen=True)
class Call:
    """What is static about a call.

    Attributes:
        cell: for the reference.
        reverse: for each direction, whether it runs from the last step to the first.
        tree: structure of the tuple of :class:`Inputs`.
        emit: for each direction the fields of :class:`Outputs`, in order, that are
            wanted or, going back, that have a cotangent.
    """

    cell: LSTMCell
    reverse: tuple[bool, ...]
    tree: Any
    emit: tuple[tuple[str, ...], ...]

    def inputs(self, leaves: Any) -> tuple[Inputs, ...]:
        """The inputs from their leaves."""
        return self.tree.unflatten(leaves)

    def outputs(self, values: Any) -> list[Outputs]:
        """Values of what is emitted, by name."""
        values = iter(values)
        return [
            Outputs(**{name: next(values) for name in names}) for names in self.emit
        ]

    def emitted(self, outputs: Any) -> list[Any]:
        """The inverse of :meth:`outputs`."""
        return [
            getattr(one, name)
            for one, names in zip(outputs, self.emit, strict=True)
            for name in names
        ]

    @property
    def leaves(self) -> int:
        """How many inputs there are."""
        return self.tree.num_leaves

    @property
    def saved(self) -> int:
        """How many arrays are saved for the backward pass."""
        return 3 * len(self.reverse)

    @property
    def reverse_bits(self) -> np.int64:
        """``reverse`` as the kernels take it."""
        return np.int64(sum(1 << n for n, yes in enumerate(self.reverse) if yes))


def output_shapes(inputs: Inputs) -> Outputs:
    """Shapes and dtypes of all that the forward kernel can return."""
    (T, B, _), P = inputs.xs.shape, inputs.state.h.shape[-1]
    H, dtype = inputs.state.c.shape[-1], inputs.xs.dtype
    padded = -(-H // _GROUP) * _GROUP
    float32 = jnp.float32
    return Outputs(
        ys=jax.ShapeDtypeStruct((T, B, P), dtype),
        cs=jax.ShapeDtypeStruct((T, B, H), float32),
        h=jax.ShapeDtypeStruct((B, P), dtype),
        c=jax.ShapeDtypeStruct((B, H), float32),
        gates=jax.ShapeDtypeStruct((T, B, 4 * padded), _GATE_BITS[dtype]),
        cells=jax.ShapeDtypeStruct((T, B, padded), jnp.uint32),
        entering=jax.ShapeDtypeStruct((T, B, P), dtype),
    )


def has_controls(inputs: Inputs) -> bool:
    """Whether the h that enters a step may be another than the output before."""
    return inputs.valid is not None or inputs.reset is not None


def split(args: Any, *counts: int) -> list[Any]:
    """Cuts a list into parts of the given lengths, and the rest."""
    parts, start = [], 0
    for count in counts:
        parts.append(args[start : start + count])
        start += count
    return [*parts, args[start:]]


def _operands(inputs: Inputs) -> list[Array]:
    """The kernels' first arguments; an empty array where there is nothing."""
    params, (h, c) = inputs.params, inputs.state
    reset_h, reset_c = inputs.reset_state or (None, None)
    dtype = inputs.xs.dtype
    return [
        inputs.xs,
        params.kernel,
        params.recurrent_kernel,
        _or_empty(params.bias, dtype),
        _or_empty(params.projection_kernel, dtype),
        h,
        c,
        _or_empty(inputs.valid, jnp.bool),
        _or_empty(inputs.reset, jnp.bool),
        _or_empty(reset_h, dtype),
        _or_empty(reset_c, jnp.float32),
    ]


def _or_empty(array: Array | None, dtype: Any) -> Array:
    return jnp.zeros((0,), dtype) if array is None else array


def _empty(dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((0,), dtype)


def run(*leaves: Array, call: Call) -> list[Array]:
    """The forward kernel."""
    shapes, operands = [], []
    for inputs, names in zip(call.inputs(leaves), call.emit, strict=True):
        operands += _operands(inputs)
        shapes += [
            shape if name in ("h", "c", *names) else _empty(shape.dtype)
            for name, shape in output_shapes(inputs)._asdict().items()
        ]
    kernel = jax.ffi.ffi_call(library.FORWARD, shapes)
    results = kernel(*operands, reverse=call.reverse_bits)
    size = len(Outputs._fields)
    return call.emitted(
        Outputs(*results[n : n + size]) for n in range(0, len(results), size)
    )


def pullback(*args: Array, call: Call, which: tuple[bool, ...]) -> list[Array]:
    """The backward kernel: the gradients of the inputs that ``which`` says.

    The arguments are the inputs; for each direction the gates, the cells and the h that
    entered the steps (or without controls ys); and the cotangents of ``call.emit``.
    """
    leaves, saved, given = split(args, call.leaves, call.saved)
    wanted = call.inputs(
        leaf if want else None for leaf, want in zip(leaves, which, strict=True)
    )
    inputs, cotangents = call.inputs(leaves), call.outputs(given)
    operands, shapes = [], []
    for n, one in enumerate(inputs):
        operands += _operands(one)
        operands += _backward_operands(one, saved[3 * n : 3 * n + 3], cotangents[n])
        shapes += _backward_shapes(wanted[n], one.xs.dtype)
    kernel = jax.ffi.ffi_call(library.BACKWARD, shapes)
    results = kernel(*operands, reverse=call.reverse_bits)
    size = len(results) // len(inputs)
    grads = tuple(
        _as_inputs(one, *results[n * size : (n + 1) * size])
        for n, one in enumerate(inputs)
    )
    return [
        leaf for leaf, want in zip(jax.tree.leaves(grads), which, strict=True) if want
    ]


def _backward_operands(inputs: Inputs, saved: Any, cotangents: Outputs) -> list[Array]:
    gates, cells, hidden = saved
    controlled, dtype = has_controls(inputs), inputs.xs.dtype
    empty = _or_empty(None, dtype)
    (h, c), d_h, d_c = inputs.state, cotangents.h, cotangents.c
    return [
        empty if controlled else hidden,
        hidden if controlled else empty,
        gates,
        cells,
        _or_empty(cotangents.ys, dtype),
        _or_empty(cotangents.cs, jnp.float32),
        jnp.zeros_like(h) if d_h is None else d_h,
        jnp.zeros_like(c) if d_c is None else d_c,
    ]


def _backward_shapes(wanted: Inputs, dtype: Any) -> list[jax.ShapeDtypeStruct]:
    """The results of the backward kernel, empty where nobody wants them."""
    reset_h, reset_c = wanted.reset_state or (None, None)
    results = [
        (wanted.xs, dtype),
        (wanted.params.kernel, dtype),
        (wanted.params.recurrent_kernel, dtype),
        (wanted.params.bias, dtype),
        (wanted.params.projection_kernel, dtype),
        (wanted.state.h, dtype),
        (wanted.state.c, jnp.float32),
        (reset_h, dtype),
        (reset_c, jnp.float32),
    ]
    return [
        _empty(dtype) if leaf is None else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for leaf, dtype in results
    ]


def _as_inputs(
    inputs, xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c
) -> Inputs:
    """Gradients in the structure of ``inputs``."""
    params = inputs.params
    return Inputs(
        LSTMParams(
            kernel,
            recurrent,
            None if params.bias is None else bias,
            None if params.projection_kernel is None else projection,
        ),
        xs,
        LSTMState(h, c),
        inputs.valid,
        inputs.reset,
        None if inputs.reset_state is None else LSTMState(reset_h, reset_c),
    )


def reference_run(*leaves: Array, call: Call) -> list[Array]:
    """What :func:`run` returns, by the reference; nothing needs what it saves."""
    return call.emitted(
        _reference_one(call.cell, inputs, reverse)
        for inputs, reverse in zip(call.inputs(leaves), call.reverse, strict=True)
    )


def _reference_one(cell: LSTMCell, inputs: Inputs, reverse: bool) -> Outputs:
    xs, valid = inputs.xs, inputs.valid
    if valid is not None:
        xs = xla.where_rows(valid, xs, jnp.zeros_like(xs))
    widen = lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype))
    xs, state, reset_state = jax.tree.map(widen, (xs, inputs.state, inputs.reset_state))
    (h, c), states = xla.run(
        cell,
        inputs.params,
        xs,
        state,
        xla.Controls(valid, inputs.reset, reset_state),
        reverse=reverse,
        emit_states=True,
    )
    outputs = Outputs(states.h, states.c, h, c)
    return Outputs(
        *(
            jnp.zeros(shape.shape, shape.dtype)
            if out is None
            else out.astype(shape.dtype)
            for shape, out in zip(output_shapes(inputs), outputs, strict=True)
        )
    )


def reference_tangent(*args: Array, call: Call, which: tuple[bool, ...]) -> list[Array]:
    """The tangents of ``call.emit`` for those of the inputs that ``which`` says.

    The arguments are the inputs, what was saved (not needed here), and the tangents.
    """
    leaves, _, tangents = split(args, call.leaves, call.saved)
    function, primals = _function_of(leaves, call, which)
    return jax.jvp(function, primals, tuple(tangents))[1]


def reference_pullback(
    *args: Array, call: Call, which: tuple[bool, ...]
) -> list[Array]:
    """What :func:`pullback` returns, by the reference."""
    leaves, _, cotangents = split(args, call.leaves, call.saved)
    function, primals = _function_of(leaves, call, which)
    return list(jax.vjp(function, *primals)[1](list(cotangents)))


def _function_of(leaves: Any, call: Call, which: tuple[bool, ...]) -> tuple[Any, tuple]:
    """The reference as a function of some of its inputs, and those."""

    def function(*some):
        some = iter(some)
        merged = (
            next(some) if w else leaf for leaf, w in zip(leaves, which, strict=True)
        )
        return reference_run(*merged, call=call)

    return function, tuple(leaf for leaf, w in zip(leaves, which, strict=True) if w)
