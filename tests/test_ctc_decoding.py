"""Labels of frames, against every alignment there is."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import decoding, training


def collapsed(alignment, blank):
    return tuple(k for k, _ in itertools.groupby(alignment) if k != blank)


def enumerated(logits, blank):
    """The probability of all labels of frames ``[T, K]``, and the best alignment's."""
    logits = np.asarray(logits, np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels, best = collections.Counter(), (-1.0, ())
    for alignment in itertools.product(range(probs.shape[1]), repeat=len(probs)):
        p = np.prod([probs[t, k] for t, k in enumerate(alignment)])
        labels[collapsed(alignment, blank)] += p
        best = max(best, (p, alignment))
    return labels, best


def frames(seed, rows, steps, classes, scale=2.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(rows, steps, classes))).astype(np.float32)


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("steps, classes", [(1, 3), (5, 3), (4, 4)])
def test_a_full_beam_is_exact_and_a_row_is_as_alone(steps, classes, blank):
    logits = frames([steps, classes, blank], 4, steps, classes)
    lengths = np.array([steps, max(steps - 2, 0), 1, 0])
    # What stands beyond a row's frames is of no account.
    logits[np.arange(steps)[None] >= lengths[:, None]] = np.nan
    found = decoding.ctc_beam_search(
        logits, width=200, lengths=lengths, blank=blank, n_best=200
    )
    for row, length in enumerate(lengths):
        labels, _ = enumerated(logits[row, :length], blank)
        got = {
            tuple(found.tokens[row, n, : found.lengths[row, n]].tolist()): float(p)
            for n, p in enumerate(found.log_probs[row])
            if p > -np.inf
        }
        assert got.keys() == labels.keys()
        for one, p in labels.items():
            assert got[one] == pytest.approx(np.log(p), abs=1e-5)
        there = found.log_probs[row][: len(labels)]
        assert (np.diff(there) <= 0).all()
        assert (found.tokens[row, len(labels) :] == blank).all()
        alone = decoding.ctc_beam_search(
            logits[row : row + 1], width=200, lengths=[length], blank=blank
        )
        np.testing.assert_array_equal(alone.tokens[0, 0], found.tokens[row, 0])


def test_a_probability_is_what_the_loss_says():
    logits = frames(1, 3, 7, 5)
    lengths = jnp.array([7, 5, 6])
    found = decoding.ctc_beam_search(logits, width=400, lengths=lengths)
    for row in range(3):
        loss = training.ctc_loss(
            logits[row : row + 1],
            found.tokens[row : row + 1, 0],
            lengths=lengths[row : row + 1],
            label_lengths=found.lengths[row : row + 1, 0],
        )
        assert float(found.log_probs[row, 0]) == pytest.approx(-float(loss), abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_narrow_beam_has_different_labels_no_likelier_than_the_truth(width):
    logits = frames(5, 3, 5, 3, scale=1.0)
    found = decoding.ctc_beam_search(logits, width=width, n_best=width)
    for row in range(3):
        labels, _ = enumerated(logits[row], 0)
        got = [
            tuple(found.tokens[row, n, : found.lengths[row, n]].tolist())
            for n in range(width)
        ]
        assert len(set(got)) == width
        for one, p in zip(got, found.log_probs[row], strict=True):
            assert float(p) <= np.log(labels[one]) + 1e-5


@pytest.mark.parametrize("blank", [0, 3])
def test_greedy_is_the_likeliest_alignment(blank):
    logits = frames(7, 5, 5, 4)
    lengths = np.array([5, 4, 3, 1, 0])
    logits[np.arange(5)[None] >= lengths[:, None]] = np.nan
    found = decoding.ctc_greedy(logits, lengths=lengths, blank=blank)
    for row, length in enumerate(lengths):
        _, (p, alignment) = enumerated(logits[row, :length], blank)
        expected = collapsed(alignment, blank)
        assert found.tokens[row, : found.lengths[row]].tolist() == list(expected)
        assert (found.tokens[row, len(expected) :] == blank).all()
        assert float(found.log_probs[row]) == pytest.approx(np.log(p), abs=1e-5)


def test_decoding_runs_in_jit_in_half_precision_and_without_frames_or_rows():
    logits = jnp.asarray(frames(3, 2, 6, 4), jnp.bfloat16)
    search = lambda x: decoding.ctc_beam_search(x, width=5, n_best=2)
    for function in (search, decoding.ctc_greedy):
        for one, two in zip(function(logits), jax.jit(function)(logits), strict=True):
            np.testing.assert_array_equal(one, two)
        assert function(logits[:, :0]).lengths.sum() == 0
        assert function(logits[:0]).tokens.shape[0] == 0


def test_a_blank_may_be_a_number_of_jax():
    logits = frames(0, 2, 3, 4)
    search = lambda blank: decoding.ctc_beam_search(logits, width=2, blank=blank)
    greedy = lambda blank: decoding.ctc_greedy(logits, blank=blank)
    for function in (search, greedy):
        for one, two in zip(function(1), function(jnp.int32(1)), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: decoding.ctc_greedy(np.zeros((2, 3))), ValueError, "[B, T, K]"),
        (lambda: decoding.ctc_greedy(np.zeros((2, 3, 4), int)), TypeError, "floating"),
        (
            lambda: decoding.ctc_greedy(frames(0, 2, 3, 4), blank=4),
            ValueError,
            "blank: expected a class from 0 to 3, got 4.",
        ),
        (
            lambda: decoding.ctc_greedy(frames(0, 2, 3, 4), blank=True),
            TypeError,
            "blank: expected an integer, got True",
        ),
        (
            lambda: decoding.ctc_beam_search(frames(0, 2, 3, 4), width=2, blank=1.0),
            TypeError,
            "blank: expected an integer, got 1.0",
        ),
        (
            lambda: decoding.ctc_greedy(frames(0, 2, 3, 4), lengths=[3, 4]),
            ValueError,
            "lengths: expected values from 0 to T = 3",
        ),
        (
            lambda: decoding.ctc_beam_search(frames(0, 2, 3, 4), width=2, n_best=3),
            ValueError,
            "n_best: expected at most width, 2, got 3.",
        ),
        (
            lambda: decoding.ctc_beam_search(frames(0, 2, 3, 4), width=0),
            ValueError,
            "width: expected at least 1, got 0.",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert words in str(raised.value)
