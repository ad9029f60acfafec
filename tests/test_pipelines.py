"""A run on any kind of batches goes on where it was stopped; they are made ahead."""

import threading
import time

import grain
import numpy as np
import pytest

from lstm_jax import data
from tests.pipelines import PIPELINES, grain_dataset, run, shuffled
from tests.test_resume import leaves_equal, stopping_at


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_stopped_after_any_batch_sees_the_same_examples(name, tmp_path):
    options = {"save_every": 1, "epochs": 2}
    whole = run(name, **options)
    last = int(whole.state.step)
    middle = last // 2
    assert last >= 2 * 9
    for first, second in [(1, 2), (middle - 1, middle), (middle, middle + 1)]:
        out = tmp_path / str(first)
        for at, resume in ((first, False), (second, True)):
            with pytest.raises(InterruptedError):
                run(name, out, resume=resume, hooks=[stopping_at(at)], **options)
        leaves_equal(run(name, out, resume=True, **options).state, whole.state)


@pytest.mark.parametrize("ahead", [1, 3, 50])
def test_what_is_made_ahead_is_the_same(ahead):
    source = shuffled()
    batches = data.prefetch(source, ahead)
    for epoch in (0, 3, 0):
        pairs = zip(batches(epoch), source(epoch), strict=True)
        for one, other in pairs:
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    assert not batches.continues


def test_batches_that_go_on_say_so_when_made_ahead():
    stream = data.stream_batches(np.arange(20), 2, 3)
    assert data.prefetch(stream).continues
    assert data.prefetch(lambda epoch: stream)(0).continues
    assert len([*data.prefetch(stream)(0)]) == len(stream)


def test_a_loader_may_use_its_memory_again():
    def loader(epoch):
        buffer = np.zeros(2)
        for n in range(20):
            buffer[:] = n
            yield {"x": (buffer,)}

    batches = data.prefetch(loader, ahead=4)
    assert [batch["x"][0].tolist() for batch in batches(0)] == [
        [n, n] for n in range(20)
    ]


def test_batches_are_made_while_others_are_used():
    made = []

    def loader(epoch):
        for n in range(6):
            made.append(n)
            yield n

    batches = data.prefetch(loader, ahead=2)(0)
    assert next(batches) == 0
    deadline = time.monotonic() + 30
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1, 2]  # Two are ready, and no more are made.


def test_an_error_comes_where_its_batch_would_have():
    def loader(epoch):
        yield 1
        yield 2
        raise OSError("the disk is gone")

    batches = data.prefetch(loader, ahead=5)(0)
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_no_thread_is_left_when_an_epoch_is_left():
    batches = data.prefetch(lambda epoch: iter(range(10**9)))(0)
    assert next(batches) == 0
    del batches
    deadline = time.monotonic() + 30
    ours = lambda: [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    while ours() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not ours()


def test_epochs_of_grain_are_those_of_its_repetition():
    dataset = grain_dataset()
    batches = data.from_grain(dataset)
    repeated = list(dataset.repeat(3).to_iter_dataset())
    ours = [batch for epoch in range(3) for batch in batches(epoch)]
    assert len(ours) == len(repeated) == 30
    for one, other in zip(ours, repeated, strict=True):
        np.testing.assert_array_equal(one, other)
    plain = grain.MapDataset.source(np.arange(37)).seed(1).shuffle().batch(4)
    epochs = [np.concatenate(list(data.from_grain(plain)(n))).tolist() for n in (0, 1)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(37))


def test_what_grain_filters_is_left_out():
    kept = grain.MapDataset.source(np.arange(10)).filter(lambda n: n % 3 == 0)
    assert [int(n) for n in data.from_grain(kept)(2)] == [0, 3, 6, 9]


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: data.prefetch(iter([1])), TypeError, "can be gone through again"),
        (lambda: data.prefetch(3), TypeError, "got int"),
        (lambda: data.prefetch([1], 0), ValueError, "ahead: expected at least 1"),
        (lambda: data.from_grain([1]), TypeError, "expected a grain.MapDataset"),
        (
            lambda: data.from_grain(grain.MapDataset.source([1]).repeat()),
            ValueError,
            "no repeat",
        ),
    ],
)
def test_what_does_not_fit_is_told(call, error, words):
    with pytest.raises(error, match=words):
        call()
