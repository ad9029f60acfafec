"""Batches of which each process has its rows, as arrays of all processes."""

from __future__ import annotations

import functools
import hashlib
import math
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.checks import border, options
from lstm_jax.distributed import together
from lstm_jax.types import PyTree

_PLAN = (
    "The functions of lstm_jax.data make one plan of all rows, of which each process "
    "takes its share: process=lstm_jax.distributed.share(sharding)."
)


def share(sharding: NamedSharding, *, axis: int = 0) -> tuple[int, int]:
    """Which share of a batch this process has, and of how many: asked of the sharding.

    It is what the functions of :mod:`lstm_jax.data` take as ``process=``. Processes
    that hold the same rows, as those that only a model axis tells apart, have the same.

    Args:
        sharding: of the batch.
        axis: the axis of rows.

    Raises:
        TypeError: if it is no ``NamedSharding``.
        ValueError: if it leaves a process out, or gives processes shares of rows that
            overlap.

    Example:
        >>> import jax
        >>> from jax.sharding import NamedSharding, PartitionSpec as P
        >>> from lstm_jax import distributed
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> distributed.share(NamedSharding(mesh, P("data")))
        (0, 1)
    """
    cuts = _cuts(_checked(sharding), axis + 1)
    shares = sorted({mine[axis] for mine in cuts.blocks.values()})
    if sum(map(len, shares)) != cuts.parts[axis] or len({*map(len, shares)}) != 1:
        raise ValueError(
            "sharding: expected processes that have as many rows each, the same or "
            f"others, got parts {[*shares]} of {cuts.parts[axis]}. Is the mesh made by "
            "jax.make_mesh?"
        )
    return shares.index(cuts.blocks[jax.process_index()][axis]), len(shares)


def global_batch(batch: PyTree, sharding: Any, *, check: bool = True) -> PyTree:
    """Makes of every process's rows one batch, whose arrays are cut over all devices.

    Each process brings the rows that the sharding asks of it, see :func:`share`, and
    all of every other axis; in one process that is the whole batch. All processes call
    it, in the same order. Before any array is made they compare what they bring, so
    that what does not fit together is an error with words and no collective that waits
    for ever or reads beyond an array.

    Args:
        batch: a pytree of arrays, as the batches of :mod:`lstm_jax.data` are; numbers
            are the same on all processes.
        sharding: a ``NamedSharding`` such as ``NamedSharding(mesh, P("data"))``, for
            every array; or a pytree of them, the batch's structure or the top of it.
        check: whether structure, shapes, dtypes and the content of replicas are
            compared, by one exchange of a few hundred bytes.

    Returns:
        The batch, of ``jax.Array``.

    Raises:
        TypeError: if a leaf is no array, or a sharding no ``NamedSharding``.
        ValueError: if rows do not divide over the devices; if processes bring different
            structures, shapes or dtypes, or other rows than those that hold the same;
            it says which processes, and what each brings.
        TimeoutError: if a process brings no batch; it says which.

    Warns:
        UserWarning: if all processes bring the same rows where each should have its
            own.

    Example:
        >>> import jax, numpy as np
        >>> from jax.sharding import NamedSharding, PartitionSpec as P
        >>> from lstm_jax import data, distributed
        >>> devices = jax.device_count()
        >>> mesh = jax.make_mesh((devices,), ("data",))
        >>> cut = NamedSharding(mesh, P("data"))
        >>> batches = data.shuffled_batches(
        ...     np.ones((8 * devices, 7, 3), np.float32),
        ...     4 * devices,
        ...     process=distributed.share(cut),
        ... )
        >>> batch = distributed.global_batch(next(iter(batches)), cut)
        >>> batch.shape == (4 * devices, 7, 3), batch.sharding == cut
        (True, True)
    """
    options.check_flag("check", check)
    try:
        leaves, structure = _read(batch, sharding), jax.tree.structure(batch)
        mine = {"structure": str(structure), "leaves": [leaf.told for leaf in leaves]}
    except (TypeError, ValueError) as error:
        if check and jax.process_count() > 1:
            together.judged("batch", {"error": str(error)}, _compare)
        raise
    if check and jax.process_count() > 1 and together.judged("batch", mine, _compare):
        warnings.warn(
            "batch: expected other rows from each process, got the same from all of "
            f"them. {_PLAN}",
            stacklevel=2,
        )
    return structure.unflatten([leaf.made() for leaf in leaves])


def ended(name: str, number: int) -> None:
    """Tells the other processes that there is no batch after so many.

    One that has another one would wait for it, and the mean of those before would be
    taken for the mean of all.

    Raises:
        ValueError: if another process has one.
    """
    if jax.process_count() > 1:
        together.judged("batch", {"ended": f"{name}: {number}"}, _compare)


def check_global(name: str, batch: PyTree) -> None:
    """Refuses what is of this process alone where there are several.

    Each would train by itself, and no one would be told.
    """
    if jax.process_count() == 1:
        return
    for path, leaf in jax.tree.leaves_with_path(batch):
        if np.ndim(leaf) and getattr(leaf, "is_fully_addressable", True):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: expected an array of all "
                f"{jax.process_count()} processes, got one of this process alone. "
                "lstm_jax.distributed.global_batch(batch, sharding) makes them."
            )


class _Cuts(NamedTuple):
    """How an array is cut.

    Attributes:
        parts: into how many parts along each axis.
        blocks: for each process, along each axis the numbers of its parts.
    """

    parts: tuple[int, ...]
    blocks: dict[int, tuple[tuple[int, ...], ...]]


class _Leaf(NamedTuple):
    """An array of this process, and the one that it is a part of."""

    name: str
    array: np.ndarray
    sharding: NamedSharding
    shape: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]

    @property
    def told(self) -> list[Any]:
        """What the others are told of it."""
        sha = hashlib.sha256(np.ascontiguousarray(self.array).tobytes()).hexdigest()
        array, where = self.array, str(self.blocks)
        return [self.name, str(array.dtype), [*array.shape], [*self.shape], where, sha]

    def made(self) -> jax.Array:
        """The array of all processes."""
        parts = _cuts(self.sharding, self.array.ndim).parts

        def local(index):
            return self.array[tuple(map(self._local, index, range(len(parts)), parts))]

        return jax.make_array_from_callback(self.shape, self.sharding, local)

    def _local(self, index: slice, axis: int, parts: int) -> slice:
        """Where the rows of a part are among those of this process."""
        size = self.shape[axis] // parts
        part = (index.start or 0) // size if size else 0
        start = self.blocks[axis].index(part) * size if size else 0
        return slice(start, start + size)


def _read(batch: PyTree, sharding: Any) -> list[_Leaf]:
    """The leaves of a batch, with the sharding of each."""
    tops = jax.tree.structure(sharding)
    parts = [("", batch)]
    if not isinstance(sharding, NamedSharding):
        tree = jax.tree.leaves_with_path(sharding)
        parts = [jax.tree_util.keystr(path) for path, _ in tree]
        parts = [*zip(parts, tops.flatten_up_to(batch), strict=True)]
    pairs = zip(parts, jax.tree.leaves(sharding), strict=True)
    return [
        _leaf(f"batch{top}{jax.tree_util.keystr(path)}", value, _checked(one))
        for (top, tree), one in pairs
        for path, value in jax.tree.leaves_with_path(tree)
    ]


def _leaf(name: str, value: Any, sharding: NamedSharding) -> _Leaf:
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        raise ValueError(
            f"{name}: expected the rows of this process, got an array of all processes."
        )
    array = border.own(name, value, allow_lists=np.ndim(value) == 0)
    spec = sharding.spec
    if any(part is not None for part in spec[array.ndim :]) and array.ndim:
        raise ValueError(
            f"{name}: expected as many axes as {spec} cuts, got shape {[*array.shape]}."
        )
    own = NamedSharding(sharding.mesh, P(*spec[: array.ndim]))
    cuts = _cuts(own, array.ndim)
    blocks = cuts.blocks[jax.process_index()]
    shape = []
    for axis, (size, parts) in enumerate(zip(array.shape, cuts.parts, strict=True)):
        here = len(blocks[axis])
        if size % here:
            raise ValueError(
                f"{name}: expected a size of axis {axis} that {here} divides, as many "
                f"parts of it as this process has by {spec}, got shape "
                f"{[*array.shape]}. The batch sizes of lstm_jax.data are over all "
                "processes; bucket_batches fills batches with rows of length 0."
            )
        shape.append(size // here * parts)
    return _Leaf(name, array, own, tuple(shape), blocks)


def _checked(sharding: Any) -> NamedSharding:
    if not isinstance(sharding, NamedSharding):
        raise TypeError(
            "sharding: expected a jax.sharding.NamedSharding, such as "
            f'NamedSharding(mesh, P("data")), got {type(sharding).__name__}.'
        )
    there = {device.process_index for device in sharding.device_set}
    missing = {*range(jax.process_count())} - there
    if missing:
        raise ValueError(
            "sharding: expected a mesh of the devices of all processes, got none of "
            f"process {', '.join(map(str, sorted(missing)))}. jax.make_mesh has all."
        )
    return sharding


@functools.lru_cache
def _cuts(sharding: NamedSharding, ndim: int) -> _Cuts:
    """How an array with so many axes is cut, whatever their sizes."""
    spec = [*sharding.spec, *[None] * ndim][: max(ndim, len(sharding.spec))]
    names = [(one,) if isinstance(one, str) else tuple(one or ()) for one in spec]
    sizes = sharding.mesh.shape
    parts = tuple(math.prod(sizes[name] for name in each) for each in names)
    indices = sharding.devices_indices_map(parts)
    places: dict[int, set[tuple[int, ...]]] = {}
    for device, index in indices.items():
        place = tuple(one.start or 0 for one in index)
        places.setdefault(device.process_index, set()).add(place)
    blocks = {}
    for process, mine in places.items():
        blocks[process] = tuple(
            tuple(sorted({*axis})) for axis in zip(*mine, strict=True)
        )
        if math.prod(map(len, blocks[process])) != len(mine):
            raise ValueError(
                f"sharding: expected devices of process {process} that have one block "
                f"of an array, got the parts {sorted(mine)}. Is the mesh made by "
                "jax.make_mesh?"
            )
    return _Cuts(parts, blocks)


def _compare(said: list[dict[str, Any]]) -> bool:
    """Compares what processes bring; whether all bring the same, unasked.

    Raises:
        ValueError: if it does not fit together.
    """
    for n, one in enumerate(said):
        if "error" in one:
            raise ValueError(f"process {n}: {one['error']}")
    ends = [one.get("ended") for one in said]
    if any(ends):
        if None in ends:
            short = next(n for n, end in enumerate(ends) if end)
            raise ValueError(
                f"{ends[short]} batches are all that process {short} has, and process "
                f"{ends.index(None)} has another one: expected as many on all. {_PLAN}"
            )
        return False
    for n, one in enumerate(said[1:], 1):
        if one["structure"] != said[0]["structure"]:
            raise ValueError(
                "batch: expected one structure on all processes, got "
                f"{said[0]['structure']} on process 0, {one['structure']} on process "
                f"{n}."
            )
    rows = zip(*(one["leaves"] for one in said), strict=True)
    alike = [_compare_leaf(leaves) for leaves in rows]
    cut = [same for same in alike if same is not None]
    return bool(cut) and all(cut)


def _compare_leaf(leaves: tuple[list[Any], ...]) -> bool | None:
    """Whether processes bring the same of one array; None where they are to."""
    (name, dtype, _, shape, *_), brought = leaves[0], {}
    for n, (_, kind, local, whole, where, digest) in enumerate(leaves):
        if (kind, whole) != (dtype, shape):
            raise ValueError(
                f"{name}: expected one dtype and shape on all processes, got {dtype} "
                f"{leaves[0][2]} on process 0, {kind} {local} on process {n}. {_PLAN}"
            )
        other, first = brought.setdefault(where, (n, digest))
        if digest != first:
            raise ValueError(
                f"{name}: expected the same rows on processes {other} and {n}, which "
                f"hold the same part of it, got different ones. {_PLAN}"
            )
    digests = {digest for _, digest in brought.values()}
    return None if len(brought) == 1 or 0 in shape else len(digests) == 1
