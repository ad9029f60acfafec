"""Arrays over several devices: run by shard, typed, or by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.types import Array, PyTree


def per_shard(
    function: Callable[..., list[Array]],
    args: Sequence[Array],
    in_axes: Sequence[int | None],
    out_axes: Sequence[int | None],
    batch_ndim: int,
) -> list[Array]:
    """Calls a function that XLA cuts along the batch: each device runs its own rows.

    Args:
        function: takes and returns arrays, of any batch.
        args: its arguments.
        in_axes: for each argument where its batch axes begin; None for one without.
        out_axes: the same for each result; None for a sum over the rows, which is
            summed over the devices too.
        batch_ndim: how many batch axes there are.
    """

    def cut(sharding: Any, axis: int | None, ndim: int, batch: tuple) -> NamedSharding:
        spec = [None] * ndim
        if axis is not None:
            spec[axis : axis + batch_ndim] = batch
        return NamedSharding(sharding.mesh, P(*spec))

    def batch_of(shapes: Sequence[Any]) -> tuple:
        """The mesh axes of each batch axis: of the first argument cut along it."""
        batch: list[Any] = [None] * batch_ndim
        for shape, axis in zip(shapes, in_axes, strict=True):
            if axis is None:
                continue
            spec = (*shape.sharding.spec, *(None for _ in shape.shape))
            for n in range(batch_ndim):
                batch[n] = batch[n] or spec[axis + n]
        return tuple(batch)

    def partition(mesh, arg_shapes, result_shapes):
        batch = batch_of(arg_shapes)
        names = [
            name
            for part in batch
            if part is not None
            for name in (part if isinstance(part, tuple) else (part,))
        ]

        def local(*args):
            results = function(*args)
            return [
                lax.psum(out, tuple(names)) if axis is None and names else out
                for out, axis in zip(results, out_axes, strict=True)
            ]

        sharding = arg_shapes[0].sharding
        shardings = lambda shapes, axes: tuple(
            cut(sharding, axis, len(shape.shape), batch)
            for shape, axis in zip(shapes, axes, strict=True)
        )
        outs = shardings(jax.tree.leaves(result_shapes), out_axes)
        return sharding.mesh, local, list(outs), shardings(arg_shapes, in_axes)

    def infer(mesh, arg_shapes, result_shapes):
        batch = batch_of(arg_shapes)
        return [
            cut(arg_shapes[0].sharding, axis, len(shape.shape), batch)
            for shape, axis in zip(
                jax.tree.leaves(result_shapes), out_axes, strict=True
            )
        ]

    shapes = jax.eval_shape(function, *args)
    partitioned = custom_partitioning(lambda *args: list(function(*args)))
    partitioned.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        sharding_rule=_rule(args, in_axes, shapes, out_axes, batch_ndim),
    )
    return list(partitioned(*args))


def _rule(args, in_axes, results, out_axes, batch_ndim: int) -> str:
    """The rule by which XLA spreads a sharding: along the batch, and along no other."""
    count = 0

    def factors(array, axis):
        nonlocal count
        names = []
        for n in range(array.ndim):
            if axis is not None and axis <= n < axis + batch_ndim:
                names.append(f"b{n - axis}")
            else:
                names.append(f"x{count}")
                count += 1
        return " ".join(names)

    ins = [factors(*pair) for pair in zip(args, in_axes, strict=True)]
    outs = [factors(*pair) for pair in zip(results, out_axes, strict=True)]
    return f"{', '.join(ins)} -> {', '.join(outs)}"


def vary_alike(tree: PyTree) -> PyTree:
    """Lets every leaf vary over the axes of ``shard_map`` that any of them varies over.

    A loop's carry and a kernel's operands must be of one kind; the transpose of this
    sums the gradients of what did not vary.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return tree
    varying = lambda leaf: jax.typeof(leaf).manual_axis_type.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(tree)))

    def vary(leaf):
        missing = tuple(sorted(axes - varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)


def automatic(
    function: Callable, args: tuple, xs: Array, batch: tuple[int, int], outs: tuple
) -> Any:
    """Calls a function whose batch may have an explicit sharding.

    Inside, XLA spreads the sharding by itself; what comes back has it again.

    Args:
        function: the function.
        args: its arguments.
        xs: the one that says how the batch is sharded.
        batch: where the batch axes of ``xs`` begin, and how many there are.
        outs: for each part of the result where its batch axes begin; None for a part
            without.

    Raises:
        ValueError: if ``xs`` is sharded over another axis than those of the batch.
    """
    sharding = jax.typeof(xs).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(*args)
    start, stop = batch[0], sum(batch)
    spec = (*sharding.spec, *(None for _ in range(xs.ndim - len(sharding.spec))))
    if any(part is not None for part in (*spec[:start], *spec[stop:])):
        raise ValueError(
            "xs: expected a sharding of batch axes alone, since steps follow each "
            f"other and products need all features, got {sharding.spec} for "
            f"{list(xs.shape)}. jax.sharding.reshard changes it."
        )
    specs = [
        P() if axis is None else P(*(None for _ in range(axis)), *spec[start:stop])
        for axis in outs
    ]
    shardings = tuple(NamedSharding(sharding.mesh, one) for one in specs)
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*args)
