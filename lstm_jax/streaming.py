"""Sequences longer than memory, a chunk at a time from an iterator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lstm_jax import sequence
from lstm_jax.cells.base import as_cell
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border, options
from lstm_jax.types import PyTree

_NAMES = ("xs", "mask", "reset")


def stream(
    model: Any,
    params: PyTree,
    chunks: Iterable[Any],
    state: PyTree = None,
    *,
    chunk_size: int | None = None,
    time_major: bool = False,
    implementation: str | None = None,
    sharding: NamedSharding | None = None,
) -> Iterator[tuple[PyTree, PyTree]]:
    """Runs a model over a sequence that comes in chunks, with the state handed on.

    The chunks may have any lengths, 0 among them. They are cut anew into chunks of one
    size, the last of them padded, so that one program runs them all::

        chunks        0 1 2|3|4 5 6 7 8 9          chunk_size = 4
        run           0 1 2 3|4 5 6 7|8 9 - -
        ys            0 1 2 3|4 5 6 7|8 9

    All outputs, joined, are those of one call on the whole sequence, and the last state
    is the one of that call.

    Each time the next results are asked for, as many of ``chunks`` are read as one run
    needs, and none ahead. Results come back before they are computed, as from every JAX
    function, so that the next chunk can be read meanwhile. At most three runs' inputs
    are held in memory, besides the one of ``chunks`` that is being read.

    Args:
        model: a one-directional stack such as :class:`LSTM`, run by its ``apply``, or
            any cell, run by :func:`scan`.
        params: its parameters.
        chunks: an iterable of arrays ``[*batch, t, I]``, or ``[t, *batch, I]`` if
            ``time_major``, such as a generator that reads files or a socket. One array
            is no iterable of chunks: ``[array]`` is. A chunk is
            sliced and copied run by run, so that it may itself be longer than memory
            (a memory-mapped file), and its memory may be used again for the next. With
            controls, a chunk is a dict of ``"xs"`` and ``"mask"``, ``"reset"`` or both,
            each as :func:`scan` takes it; a reset of a chunk's first step separates it
            from the chunk before.
        state: what the first chunk starts from; as the model takes it.
        chunk_size: steps in one run; the length of the first chunk that has steps if
            None.
        time_major: whether the first axis is time.
        implementation: see :func:`scan`.
        sharding: of ``xs``, over batch axes alone; each run's inputs and controls are
            placed so, and its outputs come back so. None leaves them on one device.
            Where several processes take part, each is given the whole chunks.

    Yields:
        ``(state, ys)`` of each run: the state after it and its outputs, ``chunk_size``
        steps of them but for the last run. Nothing where there is no step: the state is
        then the one passed in.

    Raises:
        ValueError: at once, if a layer needs the whole sequence (bidirectional, or in
            reverse) or an option is wrong; when it is read, if a chunk's shape, dtype
            or controls are not those of the first, or not what the model takes, or if
            ``sharding`` cuts another axis than those of the batch, or into parts that
            are not equal.
        TypeError: if a type or a dtype is wrong, such as one array for ``chunks``.

    Example:
        >>> import jax, numpy as np, lstm_jax as lj
        >>> model = lj.LSTM(3, 5)
        >>> params = model.init(jax.random.key(0))
        >>> chunks = (np.ones((2, t, 3), np.float32) for t in (3, 1, 6))
        >>> for state, ys in lj.stream(model, params, chunks, chunk_size=4):
        ...     print(ys.shape)
        (2, 4, 5)
        (2, 4, 5)
        (2, 2, 5)
    """
    options.check_forward("stream", model)
    _check_chunks(chunks)
    options.check_flag("time_major", time_major)
    if chunk_size is not None:
        options.check_positive("chunk_size", chunk_size)
    if not isinstance(sharding, NamedSharding | None):
        raise TypeError(
            "sharding: expected a jax.sharding.NamedSharding, got "
            f"{type(sharding).__name__}. A PartitionSpec needs its mesh: "
            "NamedSharding(mesh, spec)."
        )
    is_stack = hasattr(model, "cells")
    run = functools.partial(
        model.apply if is_stack else functools.partial(sequence.scan, model),
        border.take_leaves("params", params),
        time_major=time_major,
        implementation=implementation,
    )
    cell = as_cell(model.cells[0] if is_stack else model)
    read = _read(cell, chunks, time_major)
    state = border.take_leaves("state", state)
    return _results(run, _recut(read, chunk_size), state, sharding)


def _check_chunks(chunks: Any) -> None:
    """Refuses one array, or one dict of arrays: rows are no chunks."""
    if isinstance(chunks, Mapping):
        got = "a dict of one chunk"
    elif hasattr(chunks, "shape"):
        got = f"one array of shape {list(chunks.shape)}"
    else:
        return
    raise TypeError(
        f"chunks: expected an iterable of chunks, got {got}, whose parts would be read "
        "as those of one sequence. Pass [chunk], or cut it along time: "
        "(xs[:, t : t + 256] for t in range(0, xs.shape[1], 256))."
    )


class _Chunk(NamedTuple):
    """Inputs and controls of some steps.

    Attributes:
        arrays: by name; anything that has a shape and a dtype and can be sliced.
        batch_shape: the batch axes.
        axis: which axis is time.
        length: how many steps there are; a buffer may have room for more.
    """

    arrays: dict[str, Any]
    batch_shape: tuple[int, ...]
    axis: int
    length: int


def _results(
    run: Callable[..., tuple[PyTree, PyTree]],
    pieces: Iterator[_Chunk],
    state: PyTree,
    sharding: NamedSharding | None,
) -> Iterator[tuple[PyTree, PyTree]]:
    """Runs one piece after the other."""
    before = None
    for piece in pieces:
        # Reading may be faster than computing, and a run that waits keeps its inputs:
        # no more than two wait.
        jax.block_until_ready(before)
        before = state
        # Lengths of NumPy, since their values are looked at. They are there for whole
        # pieces too, so that the last one needs no program of its own.
        lengths = np.full(piece.batch_shape, piece.length, np.int32)
        # No one else writes to the buffers, so that JAX may read them as they are.
        if sharding is None:
            arrays = {name: jnp.asarray(array) for name, array in piece.arrays.items()}
        else:
            arrays = _placed(piece, sharding)
        state, ys = run(state=state, lengths=lengths, **arrays)
        if piece.length < piece.arrays["xs"].shape[piece.axis]:
            steps = _steps(piece.axis, 0, piece.length)
            ys = jax.tree.map(lambda y: y[steps], ys)
        yield state, ys


def _placed(piece: _Chunk, sharding: NamedSharding) -> dict[str, jax.Array]:
    """A run's inputs over several devices, and its controls as its inputs are."""
    shape = piece.arrays["xs"].shape
    spec = (*sharding.spec, *(None for _ in shape[len(sharding.spec) :]))
    cut = [axis for axis, names in enumerate(spec) if names is not None]
    if len(spec) > len(shape) or {piece.axis, len(shape) - 1} & set(cut):
        raise ValueError(
            "sharding: expected one of batch axes alone, since steps follow each other "
            f"and products need all features, got {sharding.spec} for xs of shape "
            f"{list(shape)}, whose axis {piece.axis} is time."
        )
    try:
        of_controls = NamedSharding(sharding.mesh, PartitionSpec(*spec[:-1]))
        return {
            name: jax.device_put(array, sharding if name == "xs" else of_controls)
            for name, array in piece.arrays.items()
        }
    except ValueError as error:
        raise ValueError(f"sharding: {error} Rows that are masked fill up.") from None


def _recut(chunks: Iterator[_Chunk], size: int | None) -> Iterator[_Chunk]:
    """Copies the chunks' steps into new buffers of ``size`` steps each.

    Copies, since JAX may read an array after its call has come back, and the reader may
    use its memory again as soon as it is asked for more.
    """
    buffer, filled = None, 0
    for chunk in chunks:
        size = size or chunk.length
        start = 0
        while start < chunk.length:
            if buffer is None:
                buffer = _empty(chunk, size)
            count = min(size - filled, chunk.length - start)
            for name, array in chunk.arrays.items():
                target = _steps(chunk.axis, filled, filled + count)
                buffer.arrays[name][target] = array[
                    _steps(chunk.axis, start, start + count)
                ]
            start, filled = start + count, filled + count
            if filled == size:
                yield buffer
                buffer, filled = None, 0
    if buffer is not None:
        yield buffer._replace(length=filled)


def _empty(chunk: _Chunk, size: int) -> _Chunk:
    """A buffer for ``size`` steps like those of a chunk."""

    def zeros(array):
        shape = list(array.shape)
        shape[chunk.axis] = size
        return np.zeros(shape, array.dtype.newbyteorder("="))

    arrays = {name: zeros(array) for name, array in chunk.arrays.items()}
    return chunk._replace(arrays=arrays, length=size)


def _steps(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, stop),)


def _read(cell: Any, chunks: Iterable[Any], time_major: bool) -> Iterator[_Chunk]:
    """Checks each chunk by itself and against the first."""
    first = None
    for index, chunk in enumerate(chunks):
        try:
            chunk = _checked(cell, chunk, time_major)
        except (TypeError, ValueError) as error:
            raise type(error)(f"chunks[{index}]: {error}") from None
        first = first or chunk
        expected, got = _describe(first), _describe(chunk)
        if got != expected:
            raise ValueError(
                f"chunks[{index}]: expected {expected}, as chunks[0] has, got {got}. "
                "Only t, the number of steps, may change."
            )
        yield chunk


def _checked(cell: Any, chunk: Any, time_major: bool) -> _Chunk:
    arrays = dict(chunk) if isinstance(chunk, Mapping) else {"xs": chunk}
    if "xs" not in arrays or not set(arrays) <= set(_NAMES):
        raise ValueError(
            "expected 'xs' and maybe 'mask' and 'reset', got the keys "
            f"{sorted(map(str, arrays))}. Lengths become a mask."
        )
    arrays = {
        name: _sliceable(name, array)
        for name, array in arrays.items()
        if array is not None
    }
    controls = {name: array for name, array in arrays.items() if name != "xs"}
    batch_shape, length = shapes.sequence_shape(cell, arrays["xs"], time_major)
    for name, value in controls.items():
        shapes.check_steps(name, value, batch_shape, length, time_major)
    axis = 0 if time_major else len(batch_shape)
    return _Chunk(arrays, batch_shape, axis, length)


def _sliceable(name: str, array: Any) -> Any:
    """What NumPy's slices work on, unread where it is a file's."""
    if isinstance(array, jax.Array):
        # A slice of a JAX array is a program of its own, one for every start.
        return np.asarray(array)
    if isinstance(getattr(array, "dtype", None), np.dtype):
        return array
    return border.read(name, array)


def _describe(chunk: _Chunk) -> str:
    """What has to be the same from chunk to chunk."""
    described = []
    for name in sorted(chunk.arrays):
        array = chunk.arrays[name]
        shape: list[Any] = list(array.shape)
        shape[chunk.axis] = "t"
        described.append(f"{name} {array.dtype} [{', '.join(map(str, shape))}]")
    return ", ".join(described)
