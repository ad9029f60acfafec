"""Batches of examples, in another order every epoch, the same whoever asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lstm_jax.checks import options
from lstm_jax.data import nests, taking
from lstm_jax.data.buckets import choose_bounds
from lstm_jax.data.sequences import pad_sequences

Plan = Callable[[int], Sequence[Any]]


class Batches:
    """What epochs consist of: ``batches(epoch)`` goes through one, any number of times.

    :func:`lstm_jax.training.fit` takes it as it is, and goes on with it where a
    checkpoint left it: what it counts are batches that were trained on.

    Batches are new arrays, but what they are made of is not copied: leave it as it is
    while they are used.

    Attributes:
        padding: the share of all steps that is padding, rows that fill a batch among
            them; 0 where nothing is padded.
        dropped: how many examples are in no batch.
        lengths: the T that batches have, one program each; empty where nothing is
            padded.
        in_order: whether examples come in the order that they were given in.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import data
        >>> batches = data.shuffled_batches(np.arange(5), 2)
        >>> len(batches), sorted(np.concatenate([*batches(7)]).tolist())
        (3, [0, 1, 2, 3, 4])
    """

    def __init__(
        self,
        plan: Plan,
        take: Callable[[Any], Any],
        *,
        padding: float = 0.0,
        dropped: int = 0,
        lengths: tuple[int, ...] = (),
        in_order: bool = True,
    ):
        """Keeps a plan, epoch to places of examples, and what makes a batch of them."""
        self._plan, self._take = plan, take
        self.padding, self.dropped, self.lengths = padding, dropped, lengths
        self.in_order = in_order

    def __call__(self, epoch: int) -> Iterator[Any]:
        """Goes through an epoch."""
        return map(self._take, self._plan(epoch))

    def __iter__(self) -> Iterator[Any]:
        """Goes through the first epoch."""
        return self(0)

    def __len__(self) -> int:
        """Returns how many batches an epoch has, the first one if they differ."""
        return len(self._plan(0))


def shuffled_batches(
    examples: Any,
    batch_size: int,
    *,
    seed: int | None = 0,
    process: tuple[int, int] = (0, 1),
) -> Batches:
    """Cuts examples into batches, each in one batch of an epoch.

    The last batch of an epoch is smaller where sizes do not divide.

    Args:
        examples: an array ``[N, ...]``, or a tuple, dict or dataclass of them, nested
            or not. A list of N examples is ``np.stack(examples)``.
        batch_size: B, over all processes.
        seed: of the orders, another one each epoch; None for the order they have.
        process: which process this is, and of how many: each takes its share of the
            rows of every batch. Both are arguments, so that workers that know nothing
            of JAX can do it; all of them make one plan.

    Returns:
        Batches of the structure of ``examples``, new arrays.

    Raises:
        ValueError: if examples have other numbers of rows, or none; if the processes do
            not divide B, or the last batch.
        TypeError: if a number is not an integer, something is no array, or a list may
            be one of examples as well as one of arrays.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import data
        >>> xs, labels = np.arange(10).reshape(5, 2), np.arange(5)
        >>> batches = data.shuffled_batches((xs, labels), 2, seed=1)
        >>> [labels.tolist() for _, labels in batches(0)]
        [[4, 0], [1, 2], [3]]
        >>> [labels.tolist() for _, labels in batches(1)]
        [[1, 4], [0, 3], [2]]
    """
    options.check_positive("batch_size", batch_size)
    taking.check_seed(seed)
    examples = _taken(examples)
    rows = _rows(examples)
    mine = taking.process(process, batch_size, rows % batch_size)

    def plan(epoch):
        order = _order(seed, epoch, rows)
        cuts = [order[n : n + batch_size] for n in range(0, rows, batch_size)]
        return [taking.share(cut, mine) for cut in cuts]

    take = lambda places: nests.each(examples, lambda a: a[places])
    return Batches(plan, take, in_order=seed is None)


def bucket_batches(
    sequences: Sequence[Any],
    *others: Any,
    batch_size: int,
    buckets: int = 8,
    seed: int | None = 0,
    max_length: int | None = None,
    drop_longer: bool = False,
    index: bool = False,
    process: tuple[int, int] = (0, 1),
) -> Batches:
    """Puts sequences of like lengths together, each in one batch of an epoch.

    Lengths are divided into buckets so that as little as possible is padded; batches of
    one bucket have one length, so that a jitted step is compiled for a few. Examples
    are shuffled within a bucket, and its batches among those of the others. Where sizes
    do not divide, one of the shortest batches is filled with rows of length 0.

    Args:
        sequences: N arrays ``[T_n, ...]``.
        *others: what else belongs to each example: an array ``[N, ...]``, such as
            labels; or N arrays ``[T_n, ...]`` as long as the sequences, such as tags,
            which are padded like them.
        batch_size: B, over all processes.
        buckets: how many lengths at most.
        seed: of the orders, another one each epoch; None for buckets one after the
            other, and examples by length.
        max_length: of the longest bucket; that of the longest sequence if None.
        drop_longer: whether longer sequences are left out, and counted in
            ``batches.dropped``; by default they are an error. Not for evaluation.
        index: whether each batch has the examples' places too, ``[B]`` int32, -1 for
            rows that fill it: what :func:`lstm_jax.training.predict` asks for.
        process: as for :func:`shuffled_batches`.

    Returns:
        Batches ``(xs, lengths, *others)``, with the places last where asked for.

    Raises:
        ValueError: if sequences and others differ in number, sequences in features or
            dtype, a sequence is too long, or the processes do not divide B.
        TypeError: if a number is not an integer, or something is no array.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import data
        >>> sequences = [np.ones((n, 3), np.float32) for n in (5, 2, 9, 3, 8)]
        >>> labels = np.arange(5)
        >>> batches = data.bucket_batches(
        ...     sequences, labels, batch_size=2, buckets=2, seed=None
        ... )
        >>> for xs, lengths, labels in batches(0):
        ...     print(xs.shape, lengths, labels)
        (2, 5, 3) [2 3] [1 3]
        (2, 5, 3) [5 0] [0 0]
        (2, 9, 3) [8 9] [4 2]
        >>> batches.lengths
        (5, 9)
    """
    options.check_positive("batch_size", batch_size)
    options.check_positive("buckets", buckets)
    options.check_flag("drop_longer", drop_longer)
    options.check_flag("index", index)
    taking.check_seed(seed)
    mine = taking.process(process, batch_size)
    arrays = taking.sequences("sequences", sequences)
    sizes = np.array([len(array) for array in arrays], np.int64)
    columns = [_column(f"others[{n}]", other, sizes) for n, other in enumerate(others)]
    kept = _kept(sizes, max_length, drop_longer)
    bounds, filled = _divided(kept, sizes, buckets, batch_size)

    def plan(epoch):
        rng = None if seed is None else np.random.default_rng((seed, epoch))
        batches = []
        for bound, places in zip(bounds, filled, strict=True):
            order = _in_bucket(places, sizes, rng).reshape(-1, batch_size)
            batches += [(bound, taking.share(cut, mine)) for cut in order]
        if rng is not None:
            batches = [batches[n] for n in rng.permutation(len(batches))]
        return batches

    def take(batch):
        bound, places = batch
        there = [arrays[n] if n >= 0 else arrays[0][:0] for n in places]
        taken = [*pad_sequences(there, length=int(bound))]
        taken += [column(places, int(bound)) for column in columns]
        return (*taken, places.astype(np.int32)) if index else tuple(taken)

    steps = sum(len(f) * int(b) for f, b in zip(filled, bounds, strict=True))
    return Batches(
        plan,
        take,
        padding=1 - int(sizes[kept].sum()) / steps if steps else 0.0,
        dropped=len(sizes) - len(kept),
        lengths=tuple(int(bound) for bound in bounds),
        in_order=False,
    )


def _order(seed: int | None, epoch: int, rows: int) -> np.ndarray:
    if seed is None:
        return np.arange(rows)
    return np.random.default_rng((seed, epoch)).permutation(rows)


def _taken(examples: Any) -> Any:
    """Examples as NumPy reads them."""
    _check_lists(examples)
    return nests.each(examples, lambda leaf: taking.array("examples", leaf))


def _check_lists(examples: Any) -> None:
    """Refuses a list of arrays that are as examples are: all of one shape and dtype."""
    if isinstance(examples, list) and examples:
        kinds = {(np.shape(one), getattr(one, "dtype", None)) for one in examples}
        if len(kinds) == 1 and kinds.pop()[1] is not None:
            raise TypeError(
                f"examples: expected an array [N, ...] or a tuple of them, got a list "
                f"of {len(examples)} arrays of one shape. If each is an example, pass "
                "np.stack(examples); if each has all examples, tuple(examples)."
            )


def _rows(examples: Any) -> int:
    shapes: list[tuple[int, ...]] = []
    nests.each(examples, lambda leaf: shapes.append(np.shape(leaf)))
    rows = {shape[:1] for shape in shapes}
    if len(rows) != 1 or () in rows or (0,) in rows:
        raise ValueError(
            "examples: expected arrays [N, ...] with one N above 0, got shapes "
            f"{[list(shape) for shape in shapes]}."
        )
    return rows.pop()[0]


def _kept(sizes: np.ndarray, longest: int | None, drop: bool) -> np.ndarray:
    """The places of the sequences that are not too long."""
    if longest is None:
        return np.arange(len(sizes))
    options.check_positive("max_length", longest)
    over = np.flatnonzero(sizes > longest)
    if len(over) and not drop:
        raise ValueError(
            f"max_length: expected at least {sizes.max()}, the longest sequence, got "
            f"{longest}; {len(over)} are longer. drop_longer=True leaves them out."
        )
    if len(over) == len(sizes):
        raise ValueError(f"max_length: got {longest}, and every sequence is longer.")
    return np.flatnonzero(sizes <= longest)


def _divided(
    places: np.ndarray, sizes: np.ndarray, buckets: int, batch_size: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The lengths of buckets, and the places of each: whole batches of them.

    By length from batch to batch. What fills one, -1, is where batches are shortest.
    """
    places = places[np.argsort(sizes[places], kind="stable")]
    empty = np.full(-len(places) % batch_size, -1, places.dtype)
    batches = np.concatenate([empty, places]).reshape(-1, batch_size)
    longest = np.maximum(sizes[batches[:, -1]], 1)
    bounds = choose_bounds(longest, buckets)
    ends = np.searchsorted(longest, bounds, side="right")
    return bounds, [part.ravel() for part in np.split(batches, ends[:-1])]


def _in_bucket(places: np.ndarray, sizes: np.ndarray, rng: Any) -> np.ndarray:
    """A bucket's examples in the order of an epoch; what fills comes last."""
    own, filling = places[places >= 0], places[places < 0]
    if rng is None:
        own = own[np.argsort(sizes[own], kind="stable")]
    else:
        own = rng.permutation(own)
    return np.concatenate([own, filling])


def _column(name: str, values: Any, sizes: np.ndarray) -> Callable[..., np.ndarray]:
    """What takes of other things those of some examples; zeros for what fills."""
    whole = hasattr(values, "__array__")
    if whole:
        values = np.atleast_1d(taking.array(name, values))
    elif isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise TypeError(
            f"{name}: expected an array [N, ...] or N arrays [T, ...], got "
            f"{type(values).__name__}. list(...) keeps what a generator makes."
        )
    if len(values) != len(sizes):
        raise ValueError(
            f"{name}: expected {len(sizes)}, one for each sequence, got {len(values)}."
        )
    return _whole(values) if whole else _ragged(name, values, sizes)


def _whole(values: np.ndarray) -> Callable[..., np.ndarray]:
    """Of an array ``[N, ...]``."""
    return lambda places, _: np.where(
        (places >= 0).reshape(-1, *[1] * (values.ndim - 1)),
        values[np.maximum(places, 0)],
        np.zeros((), values.dtype),
    )


def _ragged(name: str, values: Any, sizes: np.ndarray) -> Callable[..., np.ndarray]:
    """Of arrays as long as the sequences."""
    for n, (value, size) in enumerate(zip(values, sizes, strict=True)):
        shape = np.shape(value)
        if shape[:1] != (size,):
            raise ValueError(
                f"{name}[{n}]: expected {size} steps, as the sequence has, got shape "
                f"{list(shape)}. One thing for each example is an array [N, ...]."
            )
    arrays = taking.sequences(name, values)

    def padded(places, bound):
        there = [arrays[n] if n >= 0 else arrays[0][:0] for n in places]
        return pad_sequences(there, length=bound)[0]

    return padded
