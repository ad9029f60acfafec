"""Accuracy, perplexity, bits, and spans that are found whole or not at all."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.training import (
    Weighted,
    accuracy,
    bits,
    cross_entropy,
    perplexity,
    span_f1,
)
from tests.common import normal

SHAPE, V = (3, 8), 5
LOGITS = np.asarray(normal(0, (*SHAPE, V)))
TARGETS = np.random.default_rng(0).integers(0, V, SHAPE)
MASK = np.random.default_rng(1).random(SHAPE) < 0.6
LENGTHS = np.array([8, 0, 5])


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("controls", [(), ("mask",), ("lengths",), ("mask", "lengths")])
def test_accuracy_agrees_with_numpy(controls, jitted):
    valid, options = np.ones(SHAPE, bool), {}
    if "mask" in controls:
        valid, options["mask"] = valid & MASK, MASK
    if "lengths" in controls:
        valid &= np.arange(SHAPE[1]) < LENGTHS[:, None]
        options["lengths"] = LENGTHS
    logits = np.where(valid[..., None], LOGITS, np.nan)
    targets = np.where(valid, TARGETS, -100)
    right = [
        int(max(range(V), key=lambda n: LOGITS[place][n]) == TARGETS[place])
        for place in map(tuple, np.argwhere(valid))
    ]
    run = jax.jit(accuracy, static_argnames="weighted") if jitted else accuracy
    np.testing.assert_allclose(run(logits, targets, **options), np.mean(right))
    total, weight = run(logits, targets, **options, weighted=True)
    assert (total, weight) == (sum(right), len(right)) and weight.dtype == jnp.int32


def test_accuracy_at_the_edges():
    assert accuracy(jnp.zeros((0, 3)), jnp.zeros(0, int)) == 0
    assert accuracy(jnp.zeros((2, 3)), jnp.array([0, 1])) == 0.5  # the first of equals
    nan = jnp.full((1, 3), jnp.nan)
    assert all(accuracy(nan, jnp.array([n])) == 0 for n in range(3))
    with pytest.raises(ValueError, match="targets: expected classes from 0 to V - 1"):
        accuracy(jnp.zeros((2, 3)), jnp.array([0, 3]))
    assert np.isnan(jax.jit(accuracy)(jnp.zeros((2, 3)), jnp.array([0, 3])))
    with pytest.raises(TypeError, match="weighted: expected True or False"):
        accuracy(jnp.zeros((2, 3)), jnp.array([0, 1]), weighted=1)


RUNS = {
    "jit": jax.jit,
    "vmap": jax.vmap,
    "jit of vmap": lambda f: jax.jit(jax.vmap(f)),
    "vmap of jit": lambda f: jax.vmap(jax.jit(f)),
    "map": lambda f: lambda *args: jax.lax.map(lambda one: f(*one), args),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("target", [-100, -1, 2, 7])
def test_traced_targets_that_are_no_class_poison_the_accuracy(target, run):
    """Whether another token is right, or this one would be, whatever its logits."""
    logits = jnp.array([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    targets = jnp.array([[1, target], [0, 0]])
    right = jnp.array([[1, 1], [0, 0]])
    for rows in (logits, -logits):
        value = run(accuracy)(rows, targets)
        assert np.isnan(value[0] if value.shape else value)
        if value.shape:  # Of each row its own.
            assert value[1] == 0.5
        total, weight = run(functools.partial(accuracy, weighted=True))(rows, targets)
        assert np.isnan(np.sum(total)) and np.sum(weight) == 4
        assert np.isfinite(run(accuracy)(rows, right)).all()
        assert np.isfinite(run(accuracy)(rows, targets, targets == right)).all()


def test_perplexity_and_bits():
    loss = cross_entropy(jnp.zeros((3, 8)), jnp.array([0, 1, 2]))
    np.testing.assert_allclose(perplexity(loss), 8, rtol=1e-6)
    np.testing.assert_allclose(bits(loss), 3, rtol=1e-6)
    losses = np.array([0.0, math.log(2), math.log(32)])
    for given in (losses, jnp.asarray(losses, jnp.float32), losses.tolist()):
        np.testing.assert_allclose(perplexity(given), [1, 2, 32], rtol=1e-6)
        np.testing.assert_allclose(bits(given), [0, 1, 5], atol=1e-6)
    assert jax.jit(perplexity)(jnp.float32(0)) == 1
    assert perplexity(0) == 1 and bits(0.0) == 0
    with pytest.raises(TypeError, match="loss: expected an array, got str"):
        perplexity("0")


def test_the_perplexity_of_parts_is_that_of_all_their_tokens():
    parts = Weighted(3 * math.log(2), 3), Weighted(math.log(32), np.int32(1))
    whole = Weighted(jnp.float32(3 * math.log(2) + math.log(32)), jnp.int32(4))
    np.testing.assert_allclose(perplexity(whole), 4, rtol=1e-6)
    np.testing.assert_allclose(bits(whole), 2, rtol=1e-6)
    means = np.mean([perplexity(part) for part in parts])
    np.testing.assert_allclose(means, 17, rtol=1e-6)  # which is not it
    assert perplexity(Weighted(0.0, 0)) == 1 and bits(Weighted(0.0, 0)) == 0


# Rows, and by hand what of them: (right, predicted, true), strictly and as CoNLL.
SPANS = {
    "the same": ("B-X I-X O B-Y", "B-X I-X O B-Y", (2, 2, 2), (2, 2, 2)),
    "begun by I": ("I-X I-X", "B-X I-X", (0, 0, 1), (1, 1, 1)),
    "both begun by I": ("I-X I-X", "I-X I-X", (0, 0, 0), (1, 1, 1)),
    "another type inside": ("B-X I-Y", "B-X I-Y", (1, 1, 1), (2, 2, 2)),
    "back again": ("B-X I-Y I-X", "B-X O O", (1, 1, 1), (1, 3, 1)),
    "longer": ("B-X I-X I-X", "B-X I-X O", (0, 1, 1), (0, 1, 1)),
    "another type": ("B-X I-X", "B-Y I-Y", (0, 1, 1), (0, 1, 1)),
    "two in a row": ("B-X B-X", "B-X I-X", (0, 2, 1), (0, 2, 1)),
    "after another": ("B-X I-X B-X I-X", "B-X I-X I-X I-X", (0, 2, 1), (0, 2, 1)),
    "to the end": ("O O B-X", "O O I-X", (0, 1, 0), (1, 1, 1)),
    "none found": ("O O O", "B-X O B-Y", (0, 0, 2), (0, 0, 2)),
    "none there": ("O O", "O O", (0, 0, 0), (0, 0, 0)),
    "hyphens": ("B-a-b I-a-b", "B-a-b I-a-b", (1, 1, 1), (1, 1, 1)),
    "one token": ("B-X", "B-X", (1, 1, 1), (1, 1, 1)),
    "no token": ("", "", (0, 0, 0), (0, 0, 0)),
}
ROWS = [(found.split(), true.split()) for found, true, *_ in SPANS.values()]
LABELS = sorted({label for pair in ROWS for row in pair for label in row})


def measures(right, predicted, true):
    """What each measure is, as a numerator and a denominator."""
    return {
        "f1": (2 * right, predicted + true),
        "precision": (right, predicted),
        "recall": (right, true),
    }


def check(found, true, counts, *args, **options):
    for measure, expected in measures(*counts).items():
        given = dict(options, measure=measure)
        pair = span_f1(found, true, *args, **given, weighted=True)
        assert isinstance(pair, Weighted) and tuple(pair) == expected
        value = span_f1(found, true, *args, **given)
        assert isinstance(value, float)
        assert value == (expected[0] / expected[1] if expected[1] else 0.0)
        np.testing.assert_allclose(pair.mean(), value, rtol=1e-6)


@pytest.mark.parametrize(
    ("found", "true", "strict", "conll"), SPANS.values(), ids=SPANS
)
def test_spans_by_hand(found, true, strict, conll):
    rows = [found.split()], [true.split()]
    check(*rows, strict)
    check(*rows, strict, scheme="IOB2")
    check(*rows, conll, scheme="conll")
    ids = [[[LABELS.index(label) for label in row] for row in side] for side in rows]
    check(*ids, conll, LABELS, scheme="conll")
    check(*map(np.asarray, ids), strict, LABELS)
    check(*map(jnp.asarray, ids), strict, LABELS)


@pytest.mark.parametrize("scheme, column", [("IOB2", 2), ("conll", 3)])
def test_rows_are_pooled_whatever_the_batch(scheme, column):
    counts = np.sum([row[column] for row in SPANS.values()], axis=0).tolist()
    found, true = zip(*ROWS, strict=True)
    check(list(found), list(true), counts, scheme=scheme)
    for size in (1, 4, 8):
        parts = [
            span_f1(
                found[n : n + size], true[n : n + size], scheme=scheme, weighted=True
            )
            for n in range(0, len(found), size)
        ]
        whole = jax.tree.map(lambda *leaves: sum(leaves), *parts)
        assert tuple(whole) == measures(*counts)["f1"]
        np.testing.assert_allclose(whole.mean(), span_f1(found, true, scheme=scheme))


@pytest.mark.parametrize("by", ["mask", "lengths", "rows", "both"])
def test_padding_does_not_count(by):
    length = max(len(true) for _, true in ROWS) + 2
    lengths = np.array([len(true) for _, true in ROWS])
    found, true = np.full((2, len(ROWS), length), -100)
    for n, pair in enumerate(ROWS):
        for side, row in zip((found, true), pair, strict=True):
            side[n, : len(row)] = [LABELS.index(label) for label in row]
    within = np.arange(length) < lengths[:, None]
    options = {
        "mask": dict(mask=within),
        "lengths": dict(lengths=lengths),
        "rows": dict(mask=within.tolist()),
        "both": dict(mask=jnp.asarray(within), lengths=jnp.asarray(lengths)),
    }[by]
    counts = np.sum([row[2] for row in SPANS.values()], axis=0).tolist()
    check(found, true, counts, LABELS, **options)
    assert span_f1([], []) == 0.0
    assert span_f1(np.zeros((2, 0), int), np.zeros((2, 0), int), LABELS) == 0.0


def test_what_is_masked_within_a_row_is_dropped():
    """The further pieces of a word lie between it and the next one."""
    true = [["B-X", "O", "I-X"]]
    mask = [[True, False, True]]
    check([["B-X", "B-Y", "I-X"]], true, (1, 1, 1), mask=mask)


REFUSED = {
    "scheme": (
        dict(scheme="IOBES"),
        ValueError,
        "scheme: expected one of 'IOB2', 'conll', got 'IOBES'.",
    ),
    "measure": (dict(measure="F1"), ValueError, "measure: expected one of 'f1'"),
    "weighted": (dict(weighted=1), TypeError, "weighted: expected True or False"),
    "label": (
        dict(predictions=[["B-X", "S-X"]]),
        ValueError,
        "labels: expected O, or B- or I- and a type, got 'S-X'.",
    ),
    "rows": (
        dict(predictions=[["O", "O"], ["O"]]),
        ValueError,
        "predictions: expected 1 rows, as targets, got 2.",
    ),
    "tokens": (
        dict(predictions=[["O"]]),
        ValueError,
        "predictions[0]: expected 2 tokens, as that row of targets, got 1.",
    ),
    "no labels": (
        dict(predictions=[[0, 1]]),
        TypeError,
        "labels: expected the label of each id, since predictions[0] has ids.",
    ),
    "ids": (
        dict(predictions=[[0, -100]], labels=["O", "B-X"]),
        ValueError,
        "predictions[0]: expected ids from 0 to 1, one of 2 labels, got -100. Where it "
        "marks padding, pass mask=targets != -100.",
    ),
    "one row": (
        dict(predictions=["O", "O"]),
        TypeError,
        "predictions[0]: expected a row of label ids or of labels, got str",
    ),
    "numbers": (
        dict(predictions=[[0.5, 1.0]]),
        TypeError,
        "predictions[0]: expected a row of label ids or of labels, got list (2,) of "
        "float64.",
    ),
    "mask": (dict(mask=[[1, 0]]), TypeError, "mask[0]: expected bool, got int64."),
    "lengths": (
        dict(lengths=[3]),
        ValueError,
        "lengths[0]: expected 0 to 2, the tokens of the row, got 3.",
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_does_not_fit(changes, error, words):
    arguments = dict(predictions=[["B-X", "O"]], targets=[["B-X", "O"]]) | changes
    with pytest.raises(error, match=re.escape(words)):
        span_f1(**arguments)
