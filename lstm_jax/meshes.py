"""Arrays over several devices: run by shard, typed, or by hand."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax._src.lib import xla_client  # pyright: ignore  # no public name
from jax._src.sharding_impls import GSPMDSharding  # no public name
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.types import Array, PyTree

# Part of the key of every program that JAX keeps.
_units = jax.make_user_context(None)


class Units(NamedTuple):
    """Over which axes of a mesh a layer runs by hand.

    Attributes:
        mesh: the mesh.
        batch: for each batch axis the mesh axes that it is over, or None.
        axis: the mesh axis that hidden units are over.
    """

    mesh: Mesh | AbstractMesh
    batch: tuple
    axis: str

    @property
    def size(self) -> int:
        """How many parts the units have."""
        return self.mesh.shape[self.axis]


class Cut(NamedTuple):
    """Where an array's batch axes begin, and over what its last axis is.

    Attributes:
        batch: the first of its batch axes.
        last: the mesh axis that the last is over.
        between: how many axes are between those.
    """

    batch: int
    last: str
    between: int = 0


def names_in(spec: Iterable[Any]) -> list[str]:
    """The mesh axes in a spec, or in part of one."""
    parts = (part if isinstance(part, tuple) else (part,) for part in spec)
    return [name for part in parts for name in part if name is not None]


def running_over(units: Units | None) -> contextlib.AbstractContextManager:
    """Runs layers over these axes in what is traced within; None for not by hand."""
    # JAX tells a value that was not set from None.
    return _units(units or ())


def units_here() -> Units | None:
    """Over which axes layers run by hand here."""
    return _units.value or None


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

    def infer(_, arg_shapes, result_shapes):
        cut = _cut_of(arg_shapes, in_axes, batch_ndim)
        return cut.shardings(result_shapes, out_axes)

    def partition(_, arg_shapes, result_shapes):
        cut = _cut_of(arg_shapes, in_axes, batch_ndim)
        meeting = cut.blocks.reshape(-1, cut.blocks.shape[-1]).T.tolist()

        def local(*args):
            # An explicit mesh of the caller's would stand in what sums are made of.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                return [
                    lax.psum(out, "devices", axis_index_groups=meeting)
                    if axis is None and len(meeting[0]) > 1
                    else out
                    for out, axis in zip(function(*args), out_axes, strict=True)
                ]

        mesh = Mesh(np.array(cut.devices), ("devices",))
        ins = tuple(cut.shardings(arg_shapes, in_axes))
        return mesh, local, cut.shardings(result_shapes, out_axes), ins

    shapes = jax.eval_shape(function, *args)
    partitioned = custom_partitioning(lambda *args: list(function(*args)))
    partitioned.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        decode_shardings=False,
        sharding_rule=_rule(args, in_axes, shapes, out_axes, batch_ndim),
    )
    return list(partitioned(*args))


class _Cut(NamedTuple):
    """How a batch is cut, said without a mesh: a program may have several.

    Attributes:
        devices: all of them; only their number counts.
        blocks: their numbers, ``[*parts of the batch, those that hold the same rows]``.
    """

    devices: tuple
    blocks: np.ndarray

    def shardings(self, shapes: Any, axes: Sequence[int | None]) -> list[Any]:
        """Shardings of arrays whose batch axes begin at ``axes``; None: not cut."""
        return [
            GSPMDSharding(self.devices, self._sharding(len(shape.shape), axis))
            for shape, axis in zip(shapes, axes, strict=True)
        ]

    def _sharding(self, ndim: int, axis: int | None) -> Any:
        *parts, copies = self.blocks.shape
        sharding = xla_client.OpSharding()
        if axis is None or copies == self.blocks.size:
            sharding.type = xla_client.OpSharding.Type.REPLICATED
            return sharding
        dims = [1] * ndim
        dims[axis : axis + len(parts)] = parts
        sharding.type = xla_client.OpSharding.Type.OTHER
        sharding.tile_assignment_dimensions = [*dims, copies]
        sharding.tile_assignment_devices = self.blocks.reshape(-1).tolist()
        sharding.replicate_on_last_tile_dim = True
        return sharding


def _cut_of(shapes: Any, axes: Sequence[int | None], batch_ndim: int) -> _Cut:
    """How the arguments are cut, as the one cut most says; some may not know yet."""
    pairs = zip(shapes, axes, strict=True)
    known = [pair for pair in pairs if pair[0].sharding is not None]
    devices = tuple(known[0][0].sharding.device_set)
    whole = np.arange(len(devices)).reshape(*[1] * batch_ndim, -1)
    every = [_blocks(*pair, whole) for pair in known if pair[1] is not None]
    return _Cut(devices, min([whole, *every], key=lambda blocks: blocks.shape[-1]))


def _blocks(shape: Any, axis: Any, whole: np.ndarray) -> np.ndarray:
    """Of one argument, see :class:`_Cut`; ``whole`` where it is not cut."""
    hlo = shape.sharding._to_xla_hlo_sharding(len(shape.shape))
    if hlo.is_replicated():
        return whole
    parts = hlo.tile_assignment_dimensions()
    devices = np.reshape(hlo.tile_assignment_devices(), parts)
    # An axis that does not divide is not cut: what makes its parts equal are rows of
    # anything, which would be summed into gradients.
    batch = range(axis, axis + whole.ndim - 1)
    even = [n for n in batch if not shape.shape[n] % parts[n]]
    devices = np.moveaxis(devices, even, range(len(even)))
    return devices.reshape(*(parts[n] if n in even else 1 for n in batch), -1)


def gathered(array: Array) -> Array:
    """An array of which every device has all, where JAX lowers and no mesh is known."""
    # Which device it is counts for nothing.
    whole = GSPMDSharding.get_replicated(tuple(jax.devices()[:1]))
    return lax.with_sharding_constraint(array, whole)


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


def explicit_parts(array: Any, axis: int) -> int:
    """Into how many parts an explicit sharding cuts an axis; 1 where none does."""
    sharding = jax.typeof(array).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return 1
    names = sharding.spec[axis] or ()
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def started(
    start: Callable[[PyTree], PyTree], params: PyTree, xs: Array, batch: tuple[int, int]
) -> PyTree:
    """Calls what makes a state of parameters, so that it is sharded as ``xs`` is.

    See :func:`automatic`.
    """
    return automatic(lambda params: (start(params),), (params,), xs, batch, (0,))[0]


def alike(function: Callable[..., Array], args: tuple, like: Array) -> Any:
    """Calls a function whose result is sharded as ``like`` is, explicitly or not."""
    sharding = jax.typeof(like).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return function(*args)
    return jax.sharding.auto_axes(function, out_sharding=sharding)(*args)


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
            without, and a :class:`Cut` where its last axis is sharded too.

    Raises:
        ValueError: if ``xs`` is sharded over another axis than those of the batch.
    """
    sharding = jax.typeof(xs).sharding
    if AxisType.Explicit not in sharding.mesh.axis_types:
        _check_there(sharding.mesh)
        return function(*args)
    start, stop = batch[0], sum(batch)
    spec = (*sharding.spec, *(None for _ in range(xs.ndim - len(sharding.spec))))
    _check_batch(spec[start:stop])
    if any(part is not None for part in (*spec[:start], *spec[stop:])):
        raise ValueError(
            "xs: expected a sharding of batch axes alone, since steps follow each "
            f"other and products need all features, got {sharding.spec} for "
            f"{list(xs.shape)}. jax.sharding.reshard changes it."
        )

    def sharding_of(out):
        if out is None:
            return NamedSharding(sharding.mesh, P())
        cut = isinstance(out, Cut)
        parts = (*(None for _ in range(out.batch if cut else out)), *spec[start:stop])
        if cut:
            parts = (*parts, *(None for _ in range(out.between)), out.last)
        return NamedSharding(sharding.mesh, P(*parts))

    shardings = jax.tree.map(
        sharding_of, outs, is_leaf=lambda out: out is None or isinstance(out, Cut)
    )
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*args)


def _check_there(mesh: AbstractMesh) -> None:
    """Checks that inputs lie where a layout of explicit axes says: JAX moves none."""
    units = units_here()
    if units is None or mesh.shape:
        return
    if AxisType.Explicit in units.mesh.axis_types:
        raise ValueError(
            f"xs: expected an array over {P(*units.batch)} of the mesh of the layout "
            "in use, whose axes are explicit, got one that is on no mesh. "
            "jax.device_put(xs, NamedSharding(mesh, layout.inputs())) puts it there."
        )


def _check_batch(spec: tuple) -> None:
    """Checks that an explicit sharding is the one that layers run by."""
    units = units_here()
    if units is None:
        return
    said = (*units.batch, *(None for _ in spec[len(units.batch) :]))
    if [names_in((part,)) for part in spec] != [names_in((part,)) for part in said]:
        raise ValueError(
            f"xs: expected batch axes over {P(*said)}, as the layout in use says, got "
            f"{P(*spec)}."
        )
