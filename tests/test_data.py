"""Streams, padding and vocabularies against pictures drawn by hand."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import lstm_jax
from lstm_jax import data


@pytest.mark.parametrize(
    ("count", "batch_size", "window"),
    [(10, 2, 2), (101, 3, 7), (64, 1, 63), (50, 7, 3)],
)
def test_stream_batches_lays_out_parallel_streams(count, batch_size, window):
    tokens = np.random.default_rng(0).permutation(count)
    batches = list(data.stream_batches(tokens, batch_size, window))
    row = count // batch_size
    assert len(batches) == (row - 1) // window
    for n, (inputs, targets) in enumerate(batches):
        assert inputs.shape == targets.shape == (batch_size, window)
        for b in range(batch_size):
            for t in range(window):
                place = b * row + n * window + t
                assert inputs[b, t] == tokens[place]
                assert targets[b, t] == tokens[place + 1]
    left_over = count - batch_size * len(batches) * window
    assert left_over < batch_size * (window + 1) + 1


def test_stream_batches_refuses_too_few_tokens():
    words = "tokens: expected at least batch_size * (window + 1) = 2 * 6 = 12, got 11."
    with pytest.raises(ValueError, match=re.escape(words)):
        data.stream_batches(np.arange(11), 2, 5)
    assert len(list(data.stream_batches(np.arange(12), 2, 5))) == 1


@pytest.mark.parametrize(
    "count, batch_size, window", [(211, 1, 64), (2, 1, 9), (50, 7, 3)]
)
def test_the_tail_of_a_stream_is_a_shorter_batch(count, batch_size, window):
    tokens = np.random.default_rng(0).permutation(count)
    batches = data.stream_batches(tokens, batch_size, window, tail=True)
    whole = tokens[: count // batch_size * batch_size].reshape(batch_size, -1)
    inputs, targets = (np.concatenate(part, 1) for part in zip(*batches, strict=True))
    assert len(list(batches)) == len(batches) == -(-(whole.shape[1] - 1) // window)
    np.testing.assert_array_equal(inputs, whole[:, :-1])
    np.testing.assert_array_equal(targets, whole[:, 1:])


@pytest.mark.parametrize("length", [None, 9])
def test_pad_sequences_keeps_everything(length):
    rng = np.random.default_rng(0)
    sequences = [rng.random((t, 3)).astype(np.float32) for t in (4, 0, 7, 1)]
    xs, lengths = data.pad_sequences(sequences, length=length)
    assert xs.shape == (4, length or 7, 3) and xs.dtype == np.float32
    assert lengths.tolist() == [4, 0, 7, 1]
    for row, sequence in zip(xs, sequences, strict=True):
        np.testing.assert_array_equal(row[: len(sequence)], sequence)
        assert not row[len(sequence) :].any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.pad_sequences([]), "sequences: expected at least one, got none."),
        (
            lambda: data.pad_sequences([np.ones((2, 3)), np.ones((2, 4))]),
            "sequences[1]: expected shape [T, 3] and dtype float64, as sequences[0] "
            "has, got [2, 4] and float64.",
        ),
        (
            lambda: data.pad_sequences([np.ones(5)], length=4),
            "length: expected at least 5, the longest sequence, got 4.",
        ),
        (
            lambda: data.Vocabulary("aba"),
            "symbols: expected every one once, got 'aba'.",
        ),
        (
            lambda: data.Vocabulary.of("ab").encode("abc"),
            "text: not in the vocabulary: 'c'.",
        ),
        (
            lambda: data.Vocabulary("ab").decode([0, -1]),
            "tokens: expected numbers from 0 to 1, got -1 to 0.",
        ),
        (
            lambda: data.Vocabulary("ab").decode(np.array([2, 0])),
            "tokens: expected numbers from 0 to 1, got 0 to 2.",
        ),
        (
            lambda: data.Vocabulary("ab").decode(np.zeros((2, 3), int)),
            "tokens: expected shape [T], got [2, 3]. Decode row by row.",
        ),
        (
            lambda: data.stream_batches(np.zeros((9, 2), int), 2, 2),
            "tokens: expected one stream of shape [N], got [9, 2].",
        ),
        (
            lambda: data.stream_batches(np.arange(9), 0, 2),
            "batch_size: expected at least 1, got 0.",
        ),
        (
            lambda: data.stream_batches(np.arange(9), 2, 0),
            "window: expected at least 1, got 0.",
        ),
        (
            lambda: data.stream_batches(np.arange(5), 3, 2, tail=True),
            "tokens: expected at least batch_size * 2 = 3 * 2 = 6, got 5.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_vocabulary_refuses_what_are_no_integers():
    with pytest.raises(TypeError, match="tokens: expected integers, got float64"):
        data.Vocabulary("ab").decode([0.0, 1.0])


def test_batches_share_memory_with_nothing():
    tokens = np.arange(20)
    inputs, targets = next(data.stream_batches(tokens, 2, 4))
    for array in (inputs, targets):
        assert array.flags.c_contiguous and array.flags.writeable
        array[...] = -1
    assert tokens.tolist() == list(range(20))
    assert next(data.stream_batches(tokens, 2, 4))[1].tolist()[0] == [1, 2, 3, 4]


NO_DEVICE = """
import numpy as np
from lstm_jax import data

xs, lengths = data.pad_sequences([np.ones((2, 3)), np.ones((5, 3))])
vocabulary = data.Vocabulary.of("hello")
tokens = vocabulary.encode("hello" * 9)
assert vocabulary.decode(tokens) == "hello" * 9
batches = list(data.stream_batches(tokens, 2, 3))
print(xs.shape, len(batches))
"""


def test_data_touch_no_device():
    """Where JAX has no platform it can start, so that any use of one is an error."""
    # The child finds this very package, installed or not.
    package = pathlib.Path(lstm_jax.__file__).parents[1]
    environment = os.environ | {"JAX_PLATFORMS": "none", "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", NO_DEVICE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "(2, 5, 3) 7\n", done.stderr
    use = [sys.executable, "-c", "import jax.numpy; jax.numpy.ones(2)"]
    assert subprocess.run(use, env=environment, capture_output=True).returncode


def test_vocabulary_round_trip():
    text = "Grüße, 世界!\n\tende"
    vocabulary = data.Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32 and len(vocabulary) == len(set(text))
    assert vocabulary.decode(tokens) == vocabulary.decode(tokens.tolist()) == text
    assert vocabulary.decode([]) == ""
    assert sorted(set(tokens.tolist())) == list(range(len(vocabulary)))
