"""Batches of examples: each once an epoch, the same for all, in few lengths."""

import collections
import subprocess
import sys

import jax
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import data, training

LENGTHS = np.random.default_rng(0).lognormal(3, 0.5, 1003).astype(int) + 1
SEQUENCES = [np.full((n, 2), k, np.float32) for k, n in enumerate(LENGTHS)]


def places(batches, epoch):
    """The examples of an epoch in their order, by batch."""
    return [batch[-1].tolist() for batch in batches(epoch)]


def counted(batches, epoch=0):
    flat = [n for batch in places(batches, epoch) for n in batch if n >= 0]
    assert len(flat) == len(set(flat))
    return flat


@pytest.mark.parametrize("batch_size", [1, 4, 37, 50])
def test_shuffled_examples_come_once_and_in_other_orders(batch_size):
    xs = {"x": np.arange(74).reshape(37, 2), "y": (np.arange(37), np.arange(37) / 2)}
    batches = data.shuffled_batches(xs, batch_size, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        whole = list(batches(epoch))
        assert len(whole) == len(batches) == -(-37 // batch_size)
        assert all(len(batch["x"]) == batch_size for batch in whole[:-1])
        order = np.concatenate([batch["y"][0] for batch in whole])
        np.testing.assert_array_equal(
            np.concatenate([batch["x"] for batch in whole]), xs["x"][order]
        )
        orders.append(order.tolist())
    assert sorted(orders[0]) == list(range(37))
    assert orders[0] == orders[2] != orders[1]
    plain = data.shuffled_batches(xs, batch_size, seed=None)
    order = np.concatenate([batch["y"][0] for batch in plain(5)])
    assert order.tolist() == list(range(37))


def test_a_batch_is_its_own_memory():
    xs = np.arange(6.0)
    batch = next(data.shuffled_batches(xs, 3, seed=None)(0))
    batch[:] = -1
    assert xs.tolist() == list(range(6))


@pytest.mark.parametrize("seed", [0, None])
def test_buckets_lose_and_sort_nothing(seed):
    batches = data.bucket_batches(
        SEQUENCES, batch_size=16, buckets=4, seed=seed, index=True
    )
    orders = [counted(batches, epoch) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(1003)) for order in orders)
    assert (orders[0] == orders[1]) == (seed is None)
    assert places(batches, 1) == places(batches, 1)
    seen = collections.Counter()
    for xs, lengths, index in batches(0):
        assert xs.shape[:2] == (16, xs.shape[1]) and xs.shape[1] in batches.lengths
        seen[xs.shape[1]] += 1
        for row, size, place in zip(xs, lengths, index, strict=True):
            assert size == (LENGTHS[place] if place >= 0 else 0)
            assert (row[:size] == place).all() and not row[size:].any()
    assert set(seen) == set(batches.lengths) and len(seen) == 4
    assert sum((index < 0).sum() for _, _, index in batches(0)) == -1003 % 16
    if seed is not None:
        widths = [batch[0].shape[1] for batch in batches(0)]
        changes = sum(a != b for a, b in zip(widths[:-1], widths[1:], strict=True))
        assert changes > len(widths) / 3  # Buckets interleave.


def test_few_programs_and_little_padding():
    lengths = np.random.default_rng(1).lognormal(4, 0.5, 10_000).astype(int) + 1
    batches = data.bucket_batches(
        [np.zeros(n, np.int8) for n in lengths], batch_size=32, buckets=8, index=True
    )
    assert len(batches.lengths) <= 8 and batches.lengths[-1] == lengths.max()
    steps = sum(xs.size for xs, _, _ in batches(0))
    assert batches.padding == pytest.approx(1 - lengths.sum() / steps)
    assert batches.padding < 0.15
    assert len(counted(batches)) == 10_000


def test_the_bounds_pad_least():
    from itertools import combinations

    sizes = np.array([1, 2, 2, 5, 6, 9, 9, 9, 12])
    unique = sorted(set(sizes.tolist()))
    for buckets in (1, 2, 3, 4, 6, 9):
        options = [
            (*inner, 12)
            for k in range(min(buckets, len(unique)))
            for inner in combinations(unique[:-1], k)
        ]
        cost = lambda bounds: sum(min(b for b in bounds if b >= s) for s in sizes)
        got = data.bucket_batches(
            [np.zeros(n) for n in sizes], batch_size=1, buckets=buckets
        ).lengths
        assert cost(got) == min(map(cost, options)) and len(got) <= buckets


def test_what_belongs_to_an_example_stays_with_it():
    tags = [np.full(n, k) for k, n in enumerate(LENGTHS[:50])]
    labels = np.arange(50) + 100
    batches = data.bucket_batches(SEQUENCES[:50], tags, labels, batch_size=8)
    for xs, lengths, tag, label in batches(0):
        np.testing.assert_array_equal(xs[..., 0].astype(int), tag)
        there = lengths > 0
        np.testing.assert_array_equal(tag[there, 0] + 100, label[there])
        assert not label[~there].any()


def test_longer_ones_are_an_error_or_counted():
    with pytest.raises(ValueError, match="max_length: .* longest .* are longer"):
        data.bucket_batches(SEQUENCES, batch_size=4, max_length=30)
    batches = data.bucket_batches(
        SEQUENCES, batch_size=4, max_length=30, drop_longer=True, index=True
    )
    assert batches.dropped == (LENGTHS > 30).sum() and batches.lengths[-1] <= 30
    assert sorted(counted(batches)) == np.flatnonzero(LENGTHS <= 30).tolist()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_one_plan(count):
    whole = list(data.bucket_batches(SEQUENCES, batch_size=8, index=True)(2))
    parts = [
        list(
            data.bucket_batches(
                SEQUENCES, batch_size=8, index=True, process=(n, count)
            )(2)
        )
        for n in range(count)
    ]
    for batch, shares in zip(whole, zip(*parts, strict=True), strict=True):
        for field, pieces in zip(batch, zip(*shares, strict=True), strict=True):
            np.testing.assert_array_equal(field, np.concatenate(pieces))


def test_predictions_come_back_in_the_input_s_order():
    batches = data.bucket_batches(SEQUENCES[:40], batch_size=8, index=True)
    rows = training.predict(
        lambda params, batch: batch[0],
        {},
        batches(0),
        lengths=lambda batch: batch[1],
        index=lambda batch: batch[2],
    )
    for row, sequence in zip(rows, SEQUENCES[:40], strict=True):
        np.testing.assert_array_equal(row, sequence)


DOCUMENTS = [[1, 2, 3], [4, 5], [6], [], [1, 3, 5, 2, 4], [2, 2, 6, 1]]


@pytest.mark.parametrize("end, targets", [(None, 10), (0, 15)])
@pytest.mark.parametrize("rows, window", [(1, 3), (2, 8), (5, 1)])
def test_documents_packed_are_documents_alone(rows, window, end, targets):
    """Loss and gradient of packed rows are those of each document by itself."""
    model = lj.LSTM(7, 5)
    params = model.init(jax.random.key(0))
    readout = jax.random.normal(jax.random.key(1), (5, 7))
    batches = data.pack_documents(DOCUMENTS, rows, window, seed=4, end=end)

    def packed_loss(params):
        carry, total, count = model.zero_state((rows,)), 0.0, 0
        for part in batches(0):
            xs = jax.nn.one_hot(part.inputs, 7)
            carry, ys = model.apply(params, xs, carry, reset=part.reset)
            loss = training.cross_entropy(
                ys @ readout, part.targets, part.mask, weighted=True
            )
            total, count = total + loss.total, count + loss.weight
        return training.Weighted(total, count).mean(), count

    def alone_loss(params):
        total, count = 0.0, 0
        for document in DOCUMENTS:
            tokens = np.array(document + ([] if end is None else [end]), np.int32)
            if len(tokens) > 1:
                xs = jax.nn.one_hot(tokens[None, :-1], 7)
                ys = model.apply(params, xs)[1]
                loss = training.cross_entropy(
                    ys @ readout, tokens[None, 1:], weighted=True
                )
                total, count = total + loss.total, count + loss.weight
        return training.Weighted(total, count).mean()

    (loss, count), slope = jax.value_and_grad(packed_loss, has_aux=True)(params)
    expected, wanted = jax.value_and_grad(alone_loss)(params)
    assert int(count) == targets
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_packed_epochs_differ_and_rows_are_even():
    rng = np.random.default_rng(0)
    documents = [np.arange(n) for n in rng.integers(1, 40, 300)]
    batches = data.pack_documents(documents, 8, 32)
    first, again, other = (np.stack([b.inputs for b in batches(n)]) for n in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert first.shape != other.shape or (first != other).any()
    assert batches.padding < 0.1
    assert sum(b.reset.sum() for b in batches(0)) == 300


def test_windows_and_their_scale():
    rng = np.random.default_rng(0)
    series = [rng.normal(size=(n, 3)).astype(np.float32) for n in (20, 4, 9)]
    inputs, targets = data.sliding_windows(series, 5, 2, stride=3)
    expected = [(0, s) for s in range(0, 14, 3)] + [(2, 0)]
    assert inputs.shape == (6, 5, 3) and targets.shape == (6, 2, 3)
    for row, (which, start) in enumerate(expected):
        np.testing.assert_array_equal(inputs[row], series[which][start : start + 5])
        after = series[which][start + 5 : start + 7]
        np.testing.assert_array_equal(targets[row], after)
    scaler = data.Scaler.fit(series)
    whole = np.concatenate(series).astype(np.float64)
    np.testing.assert_allclose(scaler.mean, whole.mean(0))
    scaled = scaler.scale(series[0])
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, (series[0] - whole.mean(0)) / whole.std(0), 1e-5)
    np.testing.assert_allclose(scaler.unscale(scaled), series[0], atol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: data.shuffled_batches((np.ones(3), np.ones(4)), 2), "one N above 0"),
        (lambda: data.shuffled_batches(np.ones((0, 2)), 2), "one N above 0"),
        (lambda: data.shuffled_batches(np.ones(5), 0), "batch_size: expected at least"),
        (lambda: data.shuffled_batches(np.ones(5), 4, process=(0, 3)), "divides batch"),
        (
            lambda: data.shuffled_batches(np.ones(5), 4, process=(0, 2)),
            "the last batch",
        ),
        (lambda: data.shuffled_batches(np.ones(5), 4, process=(2, 2)), "below 2"),
        (lambda: data.bucket_batches([], batch_size=2), "expected at least one"),
        (
            lambda: data.bucket_batches(SEQUENCES[:2], np.ones(3), batch_size=2),
            r"others\[0\]: expected 2",
        ),
        (
            lambda: data.bucket_batches(SEQUENCES[:1], [np.ones(1000)], batch_size=2),
            r"others\[0\]\[0\]: expected .* steps",
        ),
        (lambda: data.pack_documents([[1]], 2, 3), "at least one with two tokens"),
        (lambda: data.pack_documents([[[1]]], 2, 3), r"documents\[0\]: expected shape"),
        (lambda: data.sliding_windows(np.ones((4, 2)), 3, 2), "length . horizon = 5"),
        (lambda: data.sliding_windows(np.ones(9), 3, 2), r"series\[:, None\]"),
        (lambda: data.Scaler.fit(np.full((3, 1), np.nan)), "finite numbers"),
    ],
)
def test_what_does_not_fit_is_told(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_worker_without_jax_can_make_batches():
    """Only what the package itself imports is loaded; no device is asked for."""
    program = (
        "import numpy as np\nfrom lstm_jax import data\nimport jax\n"
        "batches = data.bucket_batches([np.ones(3), np.ones(2)], batch_size=2)\n"
        "list(batches(0)), data.pack_documents([[1, 2]], 1, 2)\n"
        "from jax._src import xla_bridge\nassert not xla_bridge._backends\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
