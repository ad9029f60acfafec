"""Streams in chunks agree with one call on the whole sequence."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from tests.common import (
    GRUCell,
    assert_close,
    normal,
    random_controls,
    random_like,
    random_params,
)
from tests.test_transforms import compilations

T = 16
CELL = lj.LSTMCell(3, 5)
PARAMS = random_params(CELL, 0)
STACK = lj.LSTM(3, 5, num_layers=2)
STACK_PARAMS = random_like(1, STACK.init(jax.random.key(0)))
XS = np.asarray(normal(2, (2, T, 3)))


def cut(tree, axis, seed):
    """A pytree of sequences, cut at random places, some twice."""
    rng = np.random.default_rng(seed)
    length = jax.tree.leaves(tree)[0].shape[axis]
    cuts = [0, *np.sort(rng.integers(0, length + 1, 6)).tolist(), length]
    for start, stop in itertools.pairwise(cuts):
        yield jax.tree.map(
            lambda leaf: np.take(leaf, np.arange(start, stop), axis), tree
        )


def joined(results, axis):
    """The last state, and all outputs as one, by NumPy, which compiles nothing."""
    states, ys = zip(*results, strict=True)
    return states[-1], jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *ys)


def scan(*args, **options):
    return lj.scan(CELL, *args, **options)


MODELS = {"cell": (CELL, PARAMS, scan), "stack": (STACK, STACK_PARAMS, STACK.apply)}
CONTROLS = random_controls(1, (2,), T, ("mask", "reset"))


@functools.cache
def whole(name):
    """A state, and one call on the whole sequence from it."""
    model, params, call = MODELS[name]
    state = random_like(3, model.zero_state((2,)))
    return state, call(params, XS, state, **CONTROLS)


@pytest.mark.parametrize(
    ("name", "batched", "time_major"),
    [
        ("cell", True, False),
        ("cell", True, True),
        ("cell", False, False),
        ("cell", False, True),
        ("stack", True, False),
        ("stack", False, True),
    ],
)
def test_agrees_with_the_whole(name, batched, time_major):
    axis = 0 if time_major else int(batched)
    pick = lambda leaf: leaf if batched else leaf[0]
    state, (last, ys) = jax.tree.map(pick, whole(name))
    front = lambda leaf: np.moveaxis(pick(leaf), int(batched), axis)
    sequence = jax.tree.map(front, {"xs": XS, **CONTROLS})
    for seed in range(4):
        results = lj.stream(
            *MODELS[name][:2],
            cut(sequence, axis, seed),
            state,
            chunk_size=3,
            time_major=time_major,
        )
        actual, outputs = joined(results, axis)
        assert_close((actual, np.moveaxis(outputs, axis, int(batched))), (last, ys))


@pytest.mark.parametrize("chunk_size", [3, 24, None])
def test_any_chunk_size_agrees(chunk_size):
    results = list(lj.stream(CELL, PARAMS, cut(XS, 1, 4), chunk_size=chunk_size))
    assert_close(joined(results, 1), lj.scan(CELL, PARAMS, XS))
    size = chunk_size or next(len(c[0]) for c in cut(XS, 1, 4) if c.size)
    lengths = [ys.shape[1] for _, ys in results]
    assert lengths == [size] * (T // size) + [T % size] * (T % size > 0)


def test_resets_alone_agree():
    chunk = {"xs": XS, "reset": CONTROLS["reset"]}
    results = lj.stream(CELL, PARAMS, cut(chunk, 1, 0), chunk_size=3)
    assert_close(joined(results, 1), scan(PARAMS, **chunk))


def test_any_cell_of_the_protocol_runs():
    cell = GRUCell(4)
    params, xs = cell.init(jax.random.key(0)), np.asarray(normal(1, (2, T, 4)))
    results = lj.stream(cell, params, cut(xs, 1, 0), chunk_size=3)
    assert_close(joined(results, 1), lj.scan(cell, params, xs))


def test_half_precision_agrees():
    xs = normal(0, (2, T, 3), "bfloat16")
    results = lj.stream(CELL, PARAMS, [xs[:, :9], xs[:, 9:]], chunk_size=3)
    state, ys = joined(results, 1)
    assert ys.dtype == jnp.bfloat16
    assert_close((state, ys), lj.scan(CELL, PARAMS, xs), "bfloat16")


def test_one_program_runs_every_chunk():
    model = lj.LSTM(3, 6)
    params = model.init(jax.random.key(0))

    def programs(steps, seed):
        chunks = cut(XS[:, :steps], 1, seed)
        return compilations(
            lambda: list(lj.stream(model, params, chunks, chunk_size=4))
        )

    assert programs(4, 0) > 0
    assert programs(16, 1) == 0
    # A partial chunk at the end compiles how its outputs are cut, and nothing more.
    assert programs(15, 2) == 1
    assert programs(11, 3) == 0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_over_two_devices(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    sharding = NamedSharding(mesh, P("data"))
    _, expected = STACK.apply(STACK_PARAMS, XS, **CONTROLS)
    chunks = cut({"xs": XS, **CONTROLS}, 1, 4)
    results = list(
        lj.stream(STACK, STACK_PARAMS, chunks, chunk_size=5, sharding=sharding)
    )
    for leaf in jax.tree.leaves(results):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert_close(joined(results, 1)[1], expected)


@pytest.mark.parametrize(
    ("spec", "rows", "words"),
    [
        (P(None, "data"), 2, "batch axes alone"),
        (P(None, None, "data"), 2, "batch axes alone"),
        (P("data"), 1, "evenly divide"),
    ],
)
def test_refuses_a_sharding_that_does_not_fit(spec, rows, words):
    sharding = NamedSharding(jax.make_mesh((2,), ("data",)), spec)
    results = lj.stream(STACK, STACK_PARAMS, [XS[:rows]], sharding=sharding)
    with pytest.raises(ValueError, match=f"^sharding: .*{words}"):
        next(results)


def test_refuses_a_spec_without_a_mesh():
    with pytest.raises(TypeError, match=r"sharding: .*NamedSharding\(mesh, spec\)"):
        lj.stream(STACK, STACK_PARAMS, [XS], sharding=P("data"))  # pyright: ignore


def test_reads_no_further_than_it_runs():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield XS[:, :1]

    results = lj.stream(CELL, PARAMS, endless(), chunk_size=3)
    assert read == 0
    for count in range(1, 4):
        next(results)
        assert read == 3 * count


def test_the_memory_of_a_chunk_may_be_used_again():
    memory = np.empty((2, 5, 3), np.float32)

    def reader():
        for start in range(0, T, 5):
            part = XS[:, start : start + 5]
            memory[:, : part.shape[1]] = part
            yield memory[:, : part.shape[1]]
            memory.fill(np.nan)

    results = lj.stream(CELL, PARAMS, reader(), chunk_size=3)
    assert_close(joined(results, 1), lj.scan(CELL, PARAMS, XS))


def test_a_chunk_longer_than_memory_is_sliced():
    class File:
        shape, dtype, largest = (2, 10**12, 3), np.dtype(np.float32), 0

        def __getitem__(self, index):
            part = np.broadcast_to(XS[:, :1], (2, 5, 3))[
                :, : index[1].stop - index[1].start
            ]
            self.largest = max(self.largest, part.shape[1])
            return part

    file = File()
    results = lj.stream(CELL, PARAMS, [XS[:, :2], file], chunk_size=3)
    assert all(ys.shape == (2, 3, 5) for _, ys in itertools.islice(results, 4))
    assert file.largest == 3


@pytest.mark.parametrize("chunks", [[], [XS[:, :0]], [XS[:, :0]] * 3], ids=len)
@pytest.mark.parametrize("chunk_size", [4, None])
def test_no_steps_give_nothing(chunks, chunk_size):
    assert list(lj.stream(CELL, PARAMS, chunks, chunk_size=chunk_size)) == []


def test_refuses_two_directions():
    model = lj.LSTM(3, 5, bidirectional=True)
    words = "stream: expected a one-directional model, got bidirectional=True."
    with pytest.raises(ValueError, match=re.escape(words)):
        lj.stream(model, model.init(jax.random.key(0)), [XS])


@pytest.mark.parametrize(
    ("chunks", "got"),
    [
        (XS, "one array of shape [2, 16, 3]"),
        (jnp.asarray(XS), "one array of shape [2, 16, 3]"),
        ({"xs": XS}, "a dict of one chunk"),
    ],
    ids=["numpy", "jax", "dict"],
)
def test_refuses_one_chunk_where_chunks_belong(chunks, got):
    words = f"chunks: expected an iterable of chunks, got {got}, whose parts would be"
    with pytest.raises(TypeError, match=re.escape(words)):
        lj.stream(CELL, PARAMS, chunks)


@pytest.mark.parametrize("dtype", [">f4", "f8", ">f8"])
def test_numpy_arrays_of_any_kind_agree(dtype):
    state = jax.tree.map(np.asarray, CELL.zero_state((2,)))
    params = jax.tree.map(np.asarray, PARAMS)
    results = lj.stream(CELL, params, cut(XS.astype(dtype), 1, 0), state, chunk_size=3)
    assert_close(joined(results, 1), lj.scan(CELL, PARAMS, XS))


def test_parameters_may_be_overwritten_meanwhile():
    params = jax.tree.map(np.array, PARAMS)
    results = lj.stream(CELL, params, cut(XS, 1, 0), chunk_size=3)
    for leaf in jax.tree.leaves(params):
        leaf[...] = np.nan
    assert_close(joined(results, 1), lj.scan(CELL, PARAMS, XS))


def with_reset(xs, reset):
    return {"xs": xs, "reset": reset}


RESET = np.zeros((2, T), bool)
ERRORS = {
    "batch": (
        [XS, XS[:, :0], XS[:1]],
        ValueError,
        "chunks[2]: expected xs float32 [2, t, 3], as chunks[0] has, got xs float32 "
        "[1, t, 3].",
    ),
    "axes": ([XS, XS[0]], ValueError, "chunks[1]: expected xs float32 [2, t, 3]"),
    "features": (
        [XS, XS[..., :2]],
        ValueError,
        "chunks[1]: xs: expected shape [*batch, T, I] = [2, 16, 3], got [2, 16, 2].",
    ),
    "first": (
        [XS[..., :2]],
        ValueError,
        "chunks[0]: xs: expected shape [*batch, T, I]",
    ),
    "dtype": (
        [XS, XS.astype(np.float16)],
        ValueError,
        "chunks[1]: expected xs float32 [2, t, 3], as chunks[0] has, got xs float16",
    ),
    "tokens": ([XS.astype(int)], TypeError, "chunks[0]: xs: expected a floating dtype"),
    "tuple": ([(XS, RESET)], TypeError, "chunks[0]: xs: expected an array, got tuple."),
    "reset_shape": (
        [with_reset(XS, RESET), with_reset(XS, RESET[:, :3])],
        ValueError,
        "chunks[1]: reset: expected shape [B, T] = [2, 16], got [2, 3].",
    ),
    "reset_is_new": (
        [XS, with_reset(XS, RESET)],
        ValueError,
        "chunks[1]: expected xs float32 [2, t, 3], as chunks[0] has, got reset bool "
        "[2, t], xs float32 [2, t, 3].",
    ),
    "keys": (
        [{"xs": XS, "lengths": np.ones(2, int)}],
        ValueError,
        "chunks[0]: expected 'xs' and maybe 'mask' and 'reset', got the keys "
        "['lengths', 'xs'].",
    ),
}


@pytest.mark.parametrize(("chunks", "error", "words"), ERRORS.values(), ids=ERRORS)
def test_refuses_chunks_that_do_not_fit(chunks, error, words):
    with pytest.raises(error, match=re.escape(words)):
        list(lj.stream(STACK, STACK_PARAMS, chunks, chunk_size=30))


def test_refuses_options_at_once():
    with pytest.raises(ValueError, match="chunk_size: expected at least 1, got 0"):
        lj.stream(CELL, PARAMS, [XS], chunk_size=0)
    with pytest.raises(TypeError, match="chunk_size: expected an integer, got 2.5"):
        lj.stream(CELL, PARAMS, [XS], chunk_size=2.5)


def test_refuses_a_state_that_does_not_fit():
    with pytest.raises(ValueError, match="state.h: expected shape"):
        next(lj.stream(CELL, PARAMS, [XS], CELL.zero_state((7,))))
