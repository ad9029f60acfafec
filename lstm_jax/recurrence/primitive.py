"""The kernels as primitives of JAX, with a rule for every transform.

Three of them, on the leaves of the :class:`lstm_jax.recurrence.cpu.calls.Inputs` of
one direction or of two:

* ``run_p``: the forward pass.
* ``tangent_p``: its tangents, linear in the tangents of the inputs. Reverse mode
  transposes it, into
* ``pullback_p``: the backward pass.

On a CPU ``run_p`` and ``pullback_p`` are the kernels. What has no kernel, which is
forward mode, second derivatives and other devices, is the reference.

vmap adds its axis to the batch where it can: not where weights are mapped over, or
their gradients wanted one by one. There the kernel runs once for each element.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from lstm_jax.recurrence.cpu import calls as native
from lstm_jax.recurrence.cpu.calls import DIFFERENTIABLE, Call, Inputs, Outputs

# Where an output has its batch axis.
_OUTPUT_AXES = Outputs(ys=1, cs=1, h=0, c=0, gates=1, cells=1, entering=1)


def _primitive(name: str, kernel: Callable | None, reference: Callable) -> Primitive:
    """A primitive that is ``kernel`` on a CPU, and elsewhere ``reference``."""
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.partial(jax.jit, static_argnames=("call", "which"))
    def apply(*args, **params):
        return primitive.bind(*args, **params)

    def implementation(*args, call, which=None):
        options = {} if which is None else {"which": which}
        return apply(*args, call=call, **options)

    primitive.def_impl(implementation)
    lower = functools.partial(mlir.lower_fun, multiple_results=True)
    mlir.register_lowering(primitive, lower(reference))
    if kernel is not None:
        mlir.register_lowering(primitive, lower(kernel), platform="cpu")
    return primitive


run_p = _primitive("lstm", native.run, native.reference_run)
tangent_p = _primitive("lstm_tangent", None, native.reference_tangent)
pullback_p = _primitive("lstm_pullback", native.pullback, native.reference_pullback)


def run(inputs: tuple[Inputs, ...], call: Call) -> list[Outputs]:
    """Runs the kernel; fields that ``call.emit`` does not name are None."""
    return call.outputs(run_p.bind(*jax.tree.leaves(inputs), call=call))


# Shapes. Every input varies over the same axes of shard_map, and so do the outputs.


def _output_avals(call: Call, leaves: Any) -> list[Any]:
    inputs = call.inputs(leaves)
    like: Any = inputs[0].state.h
    shapes = call.emitted(map(native.output_shapes, inputs))
    return [like.update(shape=shape.shape, dtype=shape.dtype) for shape in shapes]


@run_p.def_abstract_eval
def _run_avals(*leaves, call):
    return _output_avals(call, leaves)


@tangent_p.def_abstract_eval
def _tangent_avals(*args, call, which):
    return _output_avals(call, args[: call.leaves])


@pullback_p.def_abstract_eval
def _pullback_avals(*args, call, which):
    return [leaf for leaf, want in zip(args, which, strict=False) if want]


# Derivatives.


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero) or tangent.dtype == jax.dtypes.float0


def _run_jvp(primals, tangents, *, call):
    inputs = call.inputs(primals)
    hidden = ["entering" if native.has_controls(one) else "ys" for one in inputs]
    wanted = tuple(
        tuple(
            name
            for name in Outputs._fields
            if name in {*names, "gates", "cells", entered}
        )
        for names, entered in zip(call.emit, hidden, strict=True)
    )
    outputs = run(inputs, dataclasses.replace(call, emit=wanted))
    saved = [
        array
        for one, entered in zip(outputs, hidden, strict=True)
        for array in (one.gates, one.cells, getattr(one, entered))
    ]
    moving = tuple(
        tuple(name for name in names if name in DIFFERENTIABLE) for names in call.emit
    )
    d_call = dataclasses.replace(call, emit=moving)
    d_outputs = tangent_p.bind(
        *primals,
        *saved,
        *(tangent for tangent in tangents if not _is_zero(tangent)),
        call=d_call,
        which=tuple(not _is_zero(tangent) for tangent in tangents),
    )
    outs = call.emitted(outputs)
    # What was saved is a function of the inputs too, but whoever reads it does so
    # together with the inputs, and differentiates by those.
    d_outs = [
        ad.Zero(jax.typeof(out).to_tangent_aval()) if d_out is None else d_out
        for out, d_out in zip(
            outs, call.emitted(d_call.outputs(d_outputs)), strict=True
        )
    ]
    return outs, d_outs


def _tangent_transpose(cotangents, *args, call, which):
    primals, saved, tangents = native.split(args, call.leaves, call.saved)
    given = [not isinstance(cotangent, ad.Zero) for cotangent in cotangents]
    nothing = [None] * (call.leaves + call.saved)
    if not any(given):
        return nothing + [None] * len(tangents)
    grads = pullback_p.bind(
        *primals,
        *saved,
        *_chosen(cotangents, given),
        call=_emitting(call, given),
        which=which,
    )
    return nothing + [
        grad if ad.is_undefined_primal(tangent) else None
        for grad, tangent in zip(grads, tangents, strict=True)
    ]


def _emitting(call: Call, which: Sequence[bool]) -> Call:
    """The call that emits some of what ``call`` does."""
    flags = call.outputs(which)
    emit = tuple(
        tuple(name for name in names if getattr(one, name))
        for names, one in zip(call.emit, flags, strict=True)
    )
    return dataclasses.replace(call, emit=emit)


def _reference_jvp(reference: Callable, primals, tangents, **params):
    """The derivative of the reference, by those arguments that have a tangent."""
    moving = [n for n, tangent in enumerate(tangents) if not _is_zero(tangent)]

    def function(*some):
        args = list(primals)
        for n, value in zip(moving, some, strict=True):
            args[n] = value
        return reference(*args, **params)

    return jax.jvp(
        function,
        tuple(primals[n] for n in moving),
        tuple(tangents[n] for n in moving),
    )


ad.primitive_jvps[run_p] = _run_jvp
ad.primitive_jvps[tangent_p] = functools.partial(
    _reference_jvp, native.reference_tangent
)
ad.primitive_jvps[pullback_p] = functools.partial(
    _reference_jvp, native.reference_pullback
)
ad.primitive_transposes[tangent_p] = _tangent_transpose


# vmap.


def _leaf_axes(call: Call) -> list[int | None]:
    """Where each input has its batch axis; None for weights."""
    numbers = call.inputs(range(call.leaves))
    weights = set(jax.tree.leaves([one.params for one in numbers]))
    steps = {n for one in numbers for n in (one.xs, one.valid, one.reset)}
    return [
        None if n in weights else 1 if n in steps else 0 for n in range(call.leaves)
    ]


def _chosen(values: Sequence[Any], which: Sequence[bool]) -> list[Any]:
    return [value for value, want in zip(values, which, strict=True) if want]


def _emit_axes(call: Call) -> list[int]:
    return call.emitted([_OUTPUT_AXES] * len(call.emit))


def _saved_axes(call: Call) -> list[int]:
    axes = _OUTPUT_AXES
    return [axes.gates, axes.cells, axes.ys] * len(call.emit)


def _run_axes(call):
    return _leaf_axes(call), _emit_axes(call)


def _tangent_axes(call, which):
    leaves = _leaf_axes(call)
    return [*leaves, *_saved_axes(call), *_chosen(leaves, which)], _emit_axes(call)


def _pullback_axes(call, which):
    leaves = _leaf_axes(call)
    return [*leaves, *_saved_axes(call), *_emit_axes(call)], _chosen(leaves, which)


def _batch(primitive: Primitive, axes: Callable, args, dims, **params):
    size = next(
        arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None
    )
    in_axes, out_axes = axes(**params)
    mapped = [dim is not None for dim in dims]
    if None in out_axes or None in _chosen(in_axes, mapped):
        return _one_by_one(primitive, args, dims, **params)
    folded = [
        arg if axis is None else _fold(arg, dim, axis, size)
        for arg, dim, axis in zip(args, dims, in_axes, strict=True)
    ]
    outputs = primitive.bind(*folded, **params)
    unfolded = [
        out.reshape(*out.shape[:axis], size, -1, *out.shape[axis + 1 :])
        for out, axis in zip(outputs, out_axes, strict=True)
    ]
    return unfolded, out_axes


def _fold(arg: Any, dim: Any, axis: int, size: int) -> Any:
    """Makes the mapped axis part of the batch axis ``axis``."""
    if dim is None:
        shape = (*arg.shape[:axis], size, *arg.shape[axis:])
        arg = jnp.broadcast_to(jnp.expand_dims(arg, axis), shape)
    else:
        arg = jnp.moveaxis(arg, dim, axis)
    return arg.reshape(*arg.shape[:axis], -1, *arg.shape[axis + 2 :])


def _one_by_one(primitive: Primitive, args, dims, **params):
    """One call for each element of the mapped axis."""
    mapped = [dim is not None for dim in dims]
    moved = [
        jnp.moveaxis(arg, dim, 0) if is_mapped else arg
        for arg, dim, is_mapped in zip(args, dims, mapped, strict=True)
    ]

    def one(some):
        some = iter(some)
        merged = (
            next(some) if is_mapped else arg
            for arg, is_mapped in zip(args, mapped, strict=True)
        )
        return primitive.bind(*merged, **params)

    outputs = jax.lax.map(one, _chosen(moved, mapped))
    return outputs, [0] * len(outputs)


for _p, _axes in (
    (run_p, _run_axes),
    (tangent_p, _tangent_axes),
    (pullback_p, _pullback_axes),
):
    batching.primitive_batchers[_p] = functools.partial(_batch, _p, _axes)


# What nobody reads is not computed.


def _run_dce(used, *rest):
    # JAX 0.12 has put an argument in between, about mutable inputs.
    equation = rest[-1]
    if not any(used):
        return [False] * len(equation.invars), None
    call = _emitting(equation.params["call"], used)
    outvars = _chosen(equation.outvars, used)
    equation = equation.replace(outvars=outvars, params={"call": call})
    return [True] * len(equation.invars), equation


pe.dce_rules[run_p] = _run_dce
