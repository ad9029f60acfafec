"""A function of rows that every device runs on its own rows, whatever cut them.

XLA cuts a loop over parts of a batch badly: it gathers rows that lie elsewhere, or sums
over the devices in every step. Here the loop is inside what each device runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
from jax import core
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from lstm_jax.meshes import per_shard
from lstm_jax.types import Array, config

# A function of rows; equal ones are the same program.
Function = Callable[..., list[Array]]

_by_shard = Primitive("lstm_jax_by_shard")
_by_shard.multiple_results = True


def by_shard(
    function: Function,
    args: tuple[Array, ...],
    in_rows: tuple[bool, ...],
    out_rows: tuple[bool, ...],
    axes: int,
) -> list[Array]:
    """Calls a function of rows, on each device with its own.

    There is no derivative of it. Under ``jax.vmap``, in exported programs, and where
    ``jax.shard_map`` has taken some axes of a mesh but not all, XLA cuts the function
    by itself.

    Args:
        function: hashable; takes and returns arrays, of any number of rows, and keeps
            no two rows apart that it sums over.
        args: its arguments.
        in_rows: for each argument whether its first ``axes`` axes are those of rows.
        out_rows: the same for each result; what has none is a sum over the rows.
        axes: how many axes the rows have.
    """
    manual = jax.sharding.get_abstract_mesh().manual_axes
    # Where there is nothing to be cut, JAX sees what the function does.
    if manual or not axes or jax.device_count() == 1 or config.jax_disable_jit:
        return function(*args)
    return _by_shard.bind(
        *args, function=function, in_rows=in_rows, out_rows=out_rows, axes=axes
    )


@_by_shard.def_impl
@functools.partial(jax.jit, static_argnames=("function", "in_rows", "out_rows", "axes"))
def _run(*args, **params):
    return _by_shard.bind(*args, **params)


@_by_shard.def_abstract_eval
def _shapes(*avals, function, **_):
    return [
        core.ShapedArray(out.shape, out.dtype)
        for out in jax.eval_shape(function, *_bare(avals))
    ]


def _batched(args, dims, *, function, **_):
    outs = jax.vmap(function, dims)(*args)
    return outs, [0] * len(outs)


batching.primitive_batchers[_by_shard] = _batched


def _bare(avals: Any) -> list[Any]:
    return [core.ShapedArray(aval.shape, aval.dtype) for aval in avals]


def _lower(context, *args, function, in_rows, out_rows, axes):
    module, devices = context.module_context, 1
    if isinstance(module.axis_context, mlir.ShardingContext):
        devices = module.axis_context.num_devices
    here = []
    if devices > 1 and not module.lowering_parameters.for_export:
        here = jax.devices(module.platforms[0])
    if 1 < devices <= len(here):
        # Only their number counts: see meshes.
        axis_context = mlir.ShardingContext(devices, tuple(here[:devices]))
        module = module.replace(axis_context=axis_context)
        places = lambda rows: [0 if has else None for has in rows]
        ins, outs = places(in_rows), places(out_rows)
        run = lambda *args: per_shard(function, args, ins, outs, axes)
    else:
        run = function
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        context = context.replace(
            avals_in=_bare(context.avals_in), module_context=module
        )
        return mlir.lower_fun(run)(context, *args)


mlir.register_lowering(_by_shard, _lower)
