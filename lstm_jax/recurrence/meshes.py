"""Arrays over several devices: run by shard, typed, or by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.types import Array, PyTree


class _Rows(NamedTuple):
    """Where the batch axes of a function's arguments and results begin.

    Attributes:
        ins: for each argument; None for one without.
        outs: for each result; None for a sum over the rows.
        ndim: how many batch axes there are.
    """

    ins: Sequence[int | None]
    outs: Sequence[int | None]
    ndim: int

    def batch_of(self, shapes: Sequence[Any]) -> tuple:
        """The mesh axes of each batch axis: of the first argument cut along it."""
        batch: list[Any] = [None] * self.ndim
        for shape, axis in zip(shapes, self.ins, strict=True):
            if axis is not None:
                spec = (*shape.sharding.spec, *(None for _ in shape.shape))
                batch = [
                    one or other for one, other in zip(batch, spec[axis:], strict=False)
                ]
        return tuple(batch)

    def shardings(
        self, mesh: Any, batch: tuple, shapes: Sequence[Any], axes: Sequence[int | None]
    ) -> list[NamedSharding]:
        """What is cut along the batch and along nothing else."""
        result = []
        for shape, axis in zip(shapes, axes, strict=True):
            spec: list[Any] = [None] * len(shape.shape)
            if axis is not None:
                spec[axis : axis + self.ndim] = batch
            result.append(NamedSharding(mesh, P(*spec)))
        return result


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
    rows = _Rows(in_axes, out_axes, batch_ndim)

    def infer(mesh, arg_shapes, result_shapes):
        batch, results = rows.batch_of(arg_shapes), jax.tree.leaves(result_shapes)
        return rows.shardings(arg_shapes[0].sharding.mesh, batch, results, out_axes)

    def partition(mesh, arg_shapes, result_shapes):
        mesh, batch = arg_shapes[0].sharding.mesh, rows.batch_of(arg_shapes)
        ins = rows.shardings(mesh, batch, arg_shapes, in_axes)
        outs = infer(mesh, arg_shapes, result_shapes)
        return mesh, _summed(function, out_axes, batch), outs, tuple(ins)

    partitioned = custom_partitioning(lambda *args: list(function(*args)))
    partitioned.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        sharding_rule=_rule(rows, args, jax.eval_shape(function, *args)),
    )
    return list(partitioned(*args))


def _summed(function: Callable, out_axes: Sequence[int | None], batch: tuple) -> Any:
    """A function of one device's rows; what has no rows is summed over the devices."""
    parts = [part if isinstance(part, tuple) else (part,) for part in batch if part]
    names = tuple(name for part in parts for name in part)

    def local(*args):
        return [
            lax.psum(out, names) if axis is None and names else out
            for out, axis in zip(function(*args), out_axes, strict=True)
        ]

    return local


def _rule(rows: _Rows, args: Sequence[Any], results: Sequence[Any]) -> str:
    """The rule by which XLA spreads a sharding: along the batch, and along no other."""
    count = itertools.count()

    def factors(array, axis):
        inside = lambda n: axis is not None and axis <= n < axis + rows.ndim
        return " ".join(
            f"b{n - axis}" if inside(n) else f"x{next(count)}"
            for n in range(array.ndim)
        )

    ins = [factors(*pair) for pair in zip(args, rows.ins, strict=True)]
    outs = [factors(*pair) for pair in zip(results, rows.outs, strict=True)]
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
