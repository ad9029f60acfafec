"""What data are given: nothing is dropped, wrapped or read as something else."""

import collections
import dataclasses
import re

import flax.struct
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax import data, training
from tests.test_data_batches import DOCUMENTS


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 98.6, 1e6 + 0.1, -7.7, 0.0])
@pytest.mark.parametrize("steps", [1, 3, 7, 1000])
def test_a_feature_that_never_changes_is_not_divided_by_rounding(value, steps):
    """A sum of equal numbers rounds, so that their deviation comes out as 1e-14."""
    series = np.stack([np.full(steps, value), np.arange(steps)], 1)
    scaler = data.Scaler.fit(series)
    assert (scaler.mean[0], scaler.std[0]) == (value, 1)
    assert np.array_equal(scaler.mean[1:], series[:, 1:].mean(0))
    scaled = scaler.scale([[value + 0.1, 0.0]])
    assert scaled[0, 0] == pytest.approx(0.1, rel=1e-6)
    # The same number computed in two ways is one number.
    series[::2, 0] = np.nextafter(value, 1e9)
    assert data.Scaler.fit(series).std[0] == 1
    small = value + 1e-9 * np.random.default_rng(0).normal(size=(50, 1))
    if value < 1e6:
        assert data.Scaler.fit(small).std[0] == pytest.approx(small.std(), rel=1e-3)


@pytest.mark.parametrize("features, shape", [(3, (4, 1)), (1, (4, 3)), (3, (4,))])
def test_a_scaler_is_for_its_number_of_features(features, shape):
    scaler = data.Scaler.fit(np.random.default_rng(0).normal(size=(5, features)))
    words = rf"values: .* F = {features}, .* got {re.escape(str(list(shape)))}"
    for function in (scaler.scale, scaler.unscale):
        with pytest.raises(ValueError, match=words):
            function(np.ones(shape))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_scaled_values_have_their_floating_dtype(dtype):
    series = jnp.arange(6.0).reshape(3, 2)
    values = np.asarray(series).astype(jnp.dtype(dtype))
    scaler = data.Scaler.fit(values)
    scaled = scaler.scale(values)
    assert scaled.dtype == scaler.unscale(scaled).dtype == values.dtype
    np.testing.assert_allclose(scaler.unscale(scaled).astype(float), series, atol=0.05)
    assert scaler.scale(np.arange(2)).dtype == np.float64
    with pytest.raises(TypeError, match="values: expected a floating dtype"):
        scaler.scale(np.ones((2, 2), complex))


MASKED = np.ma.masked_equal(np.array([[1.0], [2.0], [-999.0]]), -999.0)
TOKENS = np.ma.masked_equal(np.array([1, 2, 9, 3]), 9)


@pytest.mark.parametrize(
    "call",
    [
        lambda: data.pad_sequences([MASKED]),
        lambda: data.Scaler.fit(MASKED),
        lambda: data.Scaler.fit([MASKED]),
        lambda: data.Scaler(np.zeros(1), np.ones(1)).scale(MASKED),
        lambda: data.sliding_windows(MASKED, 1, 1),
        lambda: data.shuffled_batches({"x": MASKED}, 3),
        lambda: data.bucket_batches([MASKED], batch_size=1),
        lambda: data.bucket_batches([np.ones(2)], TOKENS[:1], batch_size=1),
        lambda: data.bucket_batches([np.ones(4)], [TOKENS], batch_size=1),
        lambda: data.pack_documents([TOKENS], 1, 4),
        lambda: data.pack_documents(TOKENS[None], 1, 4),
        lambda: data.stream_batches(TOKENS, 1, 2),
    ],
)
def test_a_mask_is_not_lost(call):
    with pytest.raises(TypeError, match="MaskedArray, whose mask would be lost"):
        call()


@pytest.mark.parametrize(
    "document, end, error, words",
    [
        (np.array([1, 2**32 + 5]), None, ValueError, "got 4294967301"),
        (np.array([1, 2**31 + 5], np.uint32), None, ValueError, "got 2147483653"),
        ([1, -1], None, ValueError, r"documents\[0\]: expected tokens .* got -1"),
        ([1, 2], -1, ValueError, "end: expected from 0 to 2147483647, got -1"),
        ([1, 2], 2**31, ValueError, "end: expected from 0 to 2147483647"),
        ([1, 2], 1.7, TypeError, "end: expected an integer, got 1.7"),
        ([1, 2], True, TypeError, "end: expected an integer, got True"),
        ([1, 2], "x", TypeError, "end: expected an integer, got 'x'"),
    ],
)
def test_a_token_that_is_none_is_not_wrapped(document, end, error, words):
    with pytest.raises(error, match=words):
        data.pack_documents([document], 1, 4, end=end)


def test_arrays_of_other_libraries_are_taken_everywhere():
    torch = pytest.importorskip("torch")
    series = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    for one in (jnp.asarray(series), torch.from_numpy(series), series.tolist()):
        if not isinstance(one, list):
            np.testing.assert_array_equal(
                data.Scaler.fit(one).mean, data.Scaler.fit(series).mean
            )
            windows = data.sliding_windows(one, 3, 2)
            np.testing.assert_array_equal(
                windows[0], data.sliding_windows(series, 3, 2)[0]
            )
        assert data.pad_sequences([one, one])[0].shape == (2, 9, 2)
        batches = data.bucket_batches([one], jnp.arange(1), batch_size=1)
        assert next(batches(0))[2].tolist() == [0]
    assert next(data.pack_documents([range(5)], 1, 4)(0)).inputs.tolist() == [
        [0, 1, 2, 3]
    ]
    xs, lengths = data.pad_sequences([range(2), range(3)])
    assert xs.tolist() == [[0, 1, 0], [0, 1, 2]] and lengths.tolist() == [2, 3]


def test_an_empty_list_is_like_the_others():
    lists = [[1, 2], [], [4]]
    assert data.pad_sequences(lists)[0].dtype == np.asarray([1]).dtype
    features = [[], np.ones((2, 3), np.float32)]
    assert data.pad_sequences(features)[0].dtype == np.float32
    batches = data.bucket_batches(lists, batch_size=1, seed=None)
    assert {xs.dtype for xs, _ in batches(0)} == {np.asarray([1]).dtype}


FLOATS = [np.ones(n, np.float32) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (
            lambda: data.bucket_batches([*FLOATS, np.ones(9)], batch_size=2),
            ValueError,
            r"sequences\[4\]: .* float32, as sequences\[0\] has, got \[9\] and float64",
        ),
        (
            lambda: data.bucket_batches(
                [np.ones((2, 3)), np.ones((2, 4))], batch_size=1
            ),
            ValueError,
            r"sequences\[1\]: expected shape \[T, 3\]",
        ),
        (
            lambda: data.bucket_batches([np.float32(1)], batch_size=1),
            ValueError,
            r"sequences\[0\]: .* got \[\]",
        ),
        (
            lambda: data.bucket_batches(
                FLOATS[:2], [np.ones(1), np.ones(2, int)], batch_size=2
            ),
            ValueError,
            r"others\[0\]\[1\]: .* float64, as others\[0\]\[0\] has",
        ),
        (
            lambda: data.bucket_batches(FLOATS, (one for one in FLOATS), batch_size=2),
            TypeError,
            r"others\[0\]: .* got generator. list\(...\)",
        ),
        (
            lambda: data.bucket_batches(FLOATS, [0, 1, 0, 1], batch_size=2),
            ValueError,
            "One thing for each example is an array",
        ),
        (
            lambda: data.shuffled_batches([np.ones(4)] * 3, 2),
            TypeError,
            r"a list of 3 arrays of one shape. .* np.stack\(examples\)",
        ),
        (lambda: data.shuffled_batches({"x": object()}, 2), TypeError, "examples: exp"),
        (lambda: data.pad_sequences("abc"), TypeError, "sequences: .* got str"),
        (lambda: data.pad_sequences([["a"]]), TypeError, r"sequences\[0\]: expected"),
        (lambda: data.pad_sequences(FLOATS, length=4.5), TypeError, "length: expected"),
        (lambda: data.Scaler.fit(3), ValueError, r"shape \[T, F\].* got \[\]"),
        (
            lambda: data.sliding_windows(["a"], 1, 1),
            TypeError,
            r"series\[0\]: expected",
        ),
    ],
)
def test_what_does_not_fit_is_told_when_batches_are_made(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_list_of_unlike_arrays_is_a_structure():
    xs, labels = np.ones((5, 2), np.float32), np.arange(5)
    batch = next(data.shuffled_batches([xs, labels], 5, seed=None)(0))
    assert isinstance(batch, list) and batch[1].tolist() == [0, 1, 2, 3, 4]


KINDS = {
    "shuffled": lambda **options: data.shuffled_batches(np.arange(4), 2, **options),
    "buckets": lambda **options: data.bucket_batches(FLOATS, batch_size=2, **options),
    "packed": lambda **options: data.pack_documents(DOCUMENTS, 2, 3, **options),
    "stream": lambda **options: data.stream_batches(np.arange(9), 2, 3, **options),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "process, error, words",
    [
        ((0.5, 2), TypeError, r"process\[0\]: expected an integer, got 0.5"),
        ((0, 1, 2), TypeError, "process: expected two integers"),
        (1, TypeError, "process: expected two integers"),
        ((0, 0), ValueError, r"process\[1\]: expected at least 1"),
        ((2, 2), ValueError, "process: expected a number below 2"),
        ((0, 3), ValueError, "divides batch_size, 2, got 3"),
    ],
)
def test_a_process_that_is_none(kind, process, error, words):
    with pytest.raises(error, match=words):
        KINDS[kind](process=process)


@pytest.mark.parametrize("kind", ["shuffled", "buckets", "packed"])
@pytest.mark.parametrize("seed, error", [(0.5, TypeError), (-1, ValueError)])
def test_a_seed_that_is_none(kind, seed, error):
    with pytest.raises(error, match=f"seed: expected an integer from 0 on.*{seed}"):
        KINDS[kind](seed=seed)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("kind", ["packed", "stream"])
def test_rows_that_go_on_are_shared_by_processes(kind, count):
    """Their shares beside each other are the batches of one; none has fewer."""
    of = {
        "packed": lambda **options: data.pack_documents(DOCUMENTS, 4, 2, **options),
        "stream": lambda **options: data.stream_batches(
            np.arange(30), 4, 3, tail=True, **options
        ),
    }[kind]
    epoch = (lambda batches: batches(1)) if kind == "packed" else iter
    whole = [*epoch(of())]
    parts = [[*epoch(of(process=(n, count)))] for n in range(count)]
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        for field, pieces in zip(batch, zip(*shares, strict=True), strict=True):
            np.testing.assert_array_equal(field, np.concatenate(pieces))
    assert of(process=(0, count)).continues


def test_a_window_has_a_target():
    """The last token of a row is an input without one, alone in a window of its own."""
    batches = data.pack_documents([np.arange(5), [7], [8]], 1, 4, seed=None)
    assert [int(part.mask.sum()) for part in batches(0)] == [4]
    assert len(batches) == 1 and batches.padding == 0
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 9, n) for n in rng.integers(0, 4, 60)]
    batches = data.pack_documents(documents, 2, 2, seed=1)
    for epoch in range(3):
        parts = [*batches(epoch)]
        assert all(part.mask.any() for part in parts)
        targets = sum(int(part.mask.sum()) for part in parts)
        assert targets == sum(max(len(one) - 1, 0) for one in documents)


@flax.struct.dataclass
class Struct:
    x: object
    name: str = flax.struct.field(pytree_node=False, default="of it")


@dataclasses.dataclass(frozen=True)
class Plain:
    x: object


Named = collections.namedtuple("Named", "x")
WRAPPED = {
    "array": lambda x: x,
    "Flax": Struct,
    "dataclass": Plain,
    "named": Named,
    "ordered": lambda x: collections.OrderedDict(x=x),
    "default": lambda x: collections.defaultdict(list, x=x),
    "user": lambda x: collections.UserDict(x=x),
    "nested": lambda x: {"a": [(Struct(x), 3, "b", None)]},
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_what_is_made_ahead_is_a_copy_of_the_same_class(name, library):
    """A loader fills one buffer again and again."""
    wrap = WRAPPED[name]
    buffer = np.zeros(2, np.float32)
    filled = buffer
    if library == "torch":
        filled = pytest.importorskip("torch").from_numpy(buffer)

    def loader(epoch):
        for n in range(6):
            buffer[:] = n
            yield wrap(filled)

    def x_of(batch):
        while not hasattr(batch, "shape"):
            if hasattr(batch, "x"):
                batch = batch.x
            else:
                batch = [*batch.values()][0] if hasattr(batch, "values") else batch[0]
        return batch

    batches = [*data.prefetch(loader, 3)(0)]
    assert [x_of(batch).tolist() for batch in batches] == [[n, n] for n in range(6)]
    assert {type(batch) for batch in batches} == {type(wrap(filled))}
    assert type(x_of(batches[0])) is type(filled)


def test_a_run_on_a_structure_made_ahead_is_the_run_without():
    buffer = np.zeros(1, np.float32)

    def loader(epoch):
        for n in range(6):
            buffer[:] = n
            yield Struct(buffer)

    def loss_fn(params, carry, batch, key):
        return (0 * params).sum() + batch.x.sum(), (carry, {})

    losses = []
    for batches in (loader, data.prefetch(loader, 3)):
        result = training.fit(
            *(loss_fn, optax.sgd(0.1), jnp.ones(1), batches),
            **{"epochs": 1, "log_every": 1, "show": False},
        )
        losses.append([row["loss"] for row in result.history])
    assert losses[0] == losses[1] == [0, 1, 2, 3, 4, 5]


def test_what_cannot_be_copied_is_refused_in_words():
    class Batch:
        pass

    with pytest.raises(TypeError, match="batches: .* got Batch, whose memory"):
        next(data.prefetch([Batch()])(0))
    numbers = jnp.arange(3)
    assert next(data.prefetch([{"x": numbers}])(0))["x"] is numbers
