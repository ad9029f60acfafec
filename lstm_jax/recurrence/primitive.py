"""A forward and a backward pass become a function with every transform of JAX.

Three primitives, on the leaves of the :class:`Inputs` of one direction or of two:

* ``run``: the forward pass.
* ``tangent``: its tangents, linear in the tangents of the inputs. Reverse mode
  transposes it, into
* ``pullback``: the backward pass.

Which implementation runs is decided where JAX lowers them, for the platform that it
lowers them for. What an implementation has no rule for (forward mode of a kernel,
derivatives of second order) the reference supplies.

vmap adds its axis to the batch where it can: not where weights are mapped over, or
their gradients wanted one by one. There it becomes a *level* ``(in_axes, out_axes)``
around the call: ``out_axes`` is 0, or says for each result where the axis goes, None
for a sum over it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src import checkify  # no public name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.interpreters import partial_eval as pe
from jax.interpreters import xla as interpreter

from lstm_jax.recurrence import lowering, plain
from lstm_jax.recurrence.contract import (
    Call,
    Inputs,
    Outputs,
    input_axes,
    kept,
    numbered,
    output_axes,
)
from lstm_jax.recurrence.levels import mapped, mapped_shapes, unmapped


def run(inputs: tuple[Inputs, ...], call: Call) -> tuple[Outputs, ...]:
    """Runs a layer; ``saved`` is None in what comes back."""
    leaves = jax.tree.leaves(inputs)
    shapes = call.shapes(leaves)
    emit = jax.tree.leaves([one[:2] for one in numbered(shapes)])
    call = dataclasses.replace(call, emit=tuple(emit))
    return call.outputs(shapes, _family(call).run.bind(*leaves, call=call, levels=()))


class _Family(NamedTuple):
    """The three primitives, once for calls that may run compiled code and once not."""

    run: Primitive
    tangent: Primitive
    pullback: Primitive


def _family(call: Call) -> _Family:
    return _NATIVE if any(one.native for one in call.candidates) else _PLAIN


# Shapes. Every input varies over the same axes of shard_map, and so do the outputs.


def _like(aval: Any, shapes: Sequence[Any]) -> list[Any]:
    def one(shape):
        spec = jax.sharding.PartitionSpec(*(None for _ in shape.shape))
        return aval.update(
            shape=shape.shape,
            dtype=shape.dtype,
            weak_type=False,
            sharding=aval.sharding.update(spec=spec),
        )

    return [one(shape) for shape in shapes]


def _emitted_avals(*args, call, levels, which=None):
    def shapes(args):
        all_shapes = call.shapes(args[: call.leaves])
        return call.emitted(all_shapes, all_shapes)

    return _like(args[0], mapped_shapes(levels, shapes, args))


def _gradient_avals(*args, call, which, levels):
    shapes = lambda args: _chosen(args[: call.leaves], which)
    return _like(args[0], mapped_shapes(levels, shapes, args))


# Derivatives.


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, ad.Zero) or tangent.dtype == jax.dtypes.float0


def _run_jvp(primals, tangents, *, call, levels):
    call.cell.check_differentiable()
    shapes = call.shapes(unmapped(levels, primals))
    keep = kept(shapes)
    wider = tuple(sorted({*call.emit, *keep}))
    more = dataclasses.replace(call, emit=wider)
    known = dict(
        zip(
            wider,
            _family(call).run.bind(*primals, call=more, levels=levels),
            strict=True,
        )
    )
    which = tuple(not _is_zero(tangent) for tangent in tangents)
    d_call = dataclasses.replace(call, emit=_differentiable(call, shapes))
    d_outs = {}
    if any(which) and d_call.emit:
        d_levels = tuple(
            ((*axes, *(0 for _ in keep), *_chosen(axes, which)), 0)
            for axes, _ in levels
        )
        d_values = _family(call).tangent.bind(
            *primals,
            *(known[index] for index in keep),
            *_chosen(tangents, which),
            call=d_call,
            which=which,
            levels=d_levels,
        )
        d_outs = dict(zip(d_call.emit, d_values, strict=True))
    outs = [known[index] for index in call.emit]
    # What was saved is a function of the inputs too, but whoever reads it does so
    # together with the inputs, and differentiates by those.
    return outs, [
        d_outs.get(index, ad.Zero(jax.typeof(out).to_tangent_aval()))
        for index, out in zip(call.emit, outs, strict=True)
    ]


def _differentiable(call: Call, shapes: tuple[Outputs, ...]) -> tuple[int, ...]:
    """Those of ``call.emit`` that have tangents: neither integers nor what is saved."""
    leaves = jax.tree.leaves(shapes)
    outputs = jax.tree.leaves([one[:2] for one in numbered(shapes)])
    return tuple(
        index
        for index in call.emit
        if index in outputs and jnp.issubdtype(leaves[index].dtype, jnp.inexact)
    )


def _tangent_transpose(cotangents, *args, call, which, levels):
    end = len(args) - sum(which)
    given = [not isinstance(cotangent, ad.Zero) for cotangent in cotangents]
    if not any(given):
        return [None] * len(args)
    emit = tuple(_chosen(call.emit, given))
    p_levels = tuple(
        ((*axes[:end], *(0 for _ in emit)), tuple(axes[end:])) for axes, _ in levels
    )
    grads = _family(call).pullback.bind(
        *args[:end],
        *_chosen(cotangents, given),
        call=dataclasses.replace(call, emit=emit),
        which=which,
        levels=p_levels,
    )
    return [None] * end + [
        grad if ad.is_undefined_primal(tangent) else None
        for grad, tangent in zip(grads, args[end:], strict=True)
    ]


def _jvp_of(reference: Callable, primals, tangents, *, levels, **params):
    """The derivative of the reference, by those arguments that have a tangent."""
    moving = [n for n, tangent in enumerate(tangents) if not _is_zero(tangent)]
    function = mapped(levels, functools.partial(reference, **params))

    def of_moving(*some):
        args = list(primals)
        for n, value in zip(moving, some, strict=True):
            args[n] = value
        return function(*args)

    values = tuple(primals[n] for n in moving)
    return jax.jvp(of_moving, values, tuple(tangents[n] for n in moving))


# vmap.


def _axes_of_run(call, shapes):
    axes = output_axes(shapes)
    return input_axes(call), [axes[index] for index in call.emit]


def _axes_of_tangent(call, shapes, which):
    inputs, emitted = _axes_of_run(call, shapes)
    axes = output_axes(shapes)
    saved = [axes[index] for index in kept(shapes)]
    return [*inputs, *saved, *_chosen(inputs, which)], emitted


def _axes_of_pullback(call, shapes, which):
    inputs, emitted = _axes_of_run(call, shapes)
    axes = output_axes(shapes)
    saved = [axes[index] for index in kept(shapes)]
    return [*inputs, *saved, *emitted], _chosen(inputs, which)


def _batch(
    primitive: Primitive, axes_of: Callable, args, dims, *, call, levels, **more
):
    folds = not levels
    if folds:
        rows = [_without(arg, dim) for arg, dim in zip(args, dims, strict=True)]
        shapes = call.shapes(rows[: call.leaves])
        in_axes, out_axes = axes_of(call, shapes, **more)
        is_mapped = [dim is not None for dim in dims]
        folds = None not in out_axes and None not in _chosen(in_axes, is_mapped)
    if not folds:
        levels = ((tuple(dims), 0), *levels)
        outputs = primitive.bind(*args, call=call, levels=levels, **more)
        return outputs, [0] * len(outputs)
    size = next(
        arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None
    )
    folded = [
        arg if axis is None else _at(arg, dim, axis, size)
        for arg, dim, axis in zip(args, dims, in_axes, strict=True)
    ]
    return primitive.bind(*folded, call=call, levels=(), **more), out_axes


def _without(arg: Any, dim: int | None) -> jax.ShapeDtypeStruct:
    shape = list(arg.shape)
    if dim is not None:
        del shape[dim]
    return jax.ShapeDtypeStruct(tuple(shape), arg.dtype)


def _at(arg: Any, dim: Any, axis: int, size: int) -> Any:
    """An argument with the mapped axis as its first batch axis."""
    if dim is not None:
        return jnp.moveaxis(arg, dim, axis)
    shape = (*arg.shape[:axis], size, *arg.shape[axis:])
    return jnp.broadcast_to(jnp.expand_dims(arg, axis), shape)


# What nobody reads is not computed.


def _dce(narrow: Callable, used, *rest):
    # JAX 0.12 has put an argument in between, about mutable inputs.
    equation = rest[-1]
    if not any(used):
        return [False] * len(equation.invars), None
    params = narrow(used, **equation.params)
    outvars = _chosen(equation.outvars, used)
    equation = equation.replace(outvars=outvars, params=params)
    return [True] * len(equation.invars), equation


def _narrow_emitted(used, *, call, **params):
    emit = tuple(_chosen(call.emit, used))
    return {"call": dataclasses.replace(call, emit=emit), **params}


def _narrow_gradients(used, *, which, levels, **params):
    remaining = iter(used)
    which = tuple(want and next(remaining) for want in which)
    levels = tuple(
        (axes, out if out == 0 else tuple(_chosen(out, used))) for axes, out in levels
    )
    return {"which": which, "levels": levels, **params}


def _chosen(values: Sequence[Any], which: Sequence[bool]) -> list[Any]:
    return [value for value, want in zip(values, which, strict=True) if want]


def _primitive(name, kind, avals, axes_of, narrow) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(functools.partial(interpreter.apply_primitive, primitive))
    primitive.def_abstract_eval(avals)
    lowering.register(primitive, kind)
    batching.primitive_batchers[primitive] = functools.partial(
        _batch, primitive, axes_of
    )
    pe.dce_rules[primitive] = functools.partial(_dce, narrow)
    # What is not a number is found by whoever looks for it after each operation.
    checkify.error_checks[primitive] = functools.partial(
        checkify.nan_error_check, primitive
    )
    return primitive


def _make_family(prefix: str) -> _Family:
    name = f"lstm{prefix}"
    family = _Family(
        _primitive(name, "run", _emitted_avals, _axes_of_run, _narrow_emitted),
        _primitive(
            f"{name}_tangent",
            "tangent",
            _emitted_avals,
            _axes_of_tangent,
            _narrow_emitted,
        ),
        _primitive(
            f"{name}_pullback",
            "pullback",
            _gradient_avals,
            _axes_of_pullback,
            _narrow_gradients,
        ),
    )
    jvps, transposes = ad.primitive_jvps, ad.primitive_transposes
    jvps[family.run] = _run_jvp
    jvps[family.tangent] = functools.partial(_jvp_of, plain.tangent)
    jvps[family.pullback] = functools.partial(_jvp_of, plain.pullback)
    transposes[family.tangent] = _tangent_transpose
    return family


_PLAIN = _make_family("")
_NATIVE = _make_family("_native")
