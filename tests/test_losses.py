"""Losses against what they say in NumPy; padding, dtypes and errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.training import (
    Weighted,
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    huber_error,
    squared_error,
)
from tests.common import normal
from tests.loss_cases import ELEMENTWISE, SHAPE, V, _binary

LOGITS = np.asarray(normal(0, (*SHAPE, V), scale=3.0))


TARGETS = np.random.default_rng(0).integers(0, V, SHAPE).astype(np.int32)


MASK = np.random.default_rng(1).random(SHAPE) < 0.6


LENGTHS = np.array([4, 0, 2], np.int32)


def by_hand(logits, targets, valid):
    """A loop in float64 over the tokens that count."""
    losses = []
    for place in np.argwhere(valid):
        row = logits[tuple(place)].astype(np.float64)
        losses.append(np.log(np.exp(row).sum()) - row[targets[tuple(place)]])
    return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("controls", [(), ("mask",), ("lengths",), ("mask", "lengths")])
def test_agrees_with_numpy(controls, convert, jitted):
    within = np.arange(SHAPE[1]) < LENGTHS[:, None]
    valid = np.ones(SHAPE, bool)
    options = {}
    if "mask" in controls:
        valid, options["mask"] = valid & MASK, convert(MASK)
    if "lengths" in controls:
        valid, options["lengths"] = valid & within, convert(LENGTHS)
    run = jax.jit(cross_entropy) if jitted else cross_entropy
    actual = run(convert(LOGITS), convert(TARGETS), **options)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, by_hand(LOGITS, TARGETS, valid), rtol=1e-5)


def test_padding_may_hold_anything():
    mask = jnp.array([True, False])

    def loss(bad):
        logits = jnp.array([[0.0, 1.0], [0.0, 0.0]]).at[1].set(bad)
        grad = jax.value_and_grad(cross_entropy)
        return [
            run(logits, jnp.array([1, target]), mask)
            for run in (grad, jax.jit(grad))
            for target in (-100, 99)
        ]

    for value, grad in loss(jnp.nan):
        np.testing.assert_allclose(value, np.log1p(np.exp(-1)), rtol=1e-6)
        assert np.isfinite(grad).all() and not grad[1].any()


@pytest.mark.parametrize("shape", [(2,), (0,), (2, 0)], ids=str)
def test_no_valid_token_is_no_loss(shape):
    mask = None if 0 in shape else jnp.zeros(shape, bool)
    targets = jnp.full(shape, -100)
    value, grad = jax.value_and_grad(cross_entropy)(
        jnp.ones((*shape, 3)), targets, mask
    )
    assert value == 0 and not grad.any()


@pytest.mark.parametrize("target", [-100, -1, V, V + 3])
def test_targets_that_are_no_class_are_refused(target):
    targets = TARGETS.copy()
    targets[1, 2] = target
    words = f"targets: expected classes from 0 to V - 1 = {V - 1}, with V the last axis"
    for given in (targets, jnp.asarray(targets), targets.astype(np.int8)):
        with pytest.raises(ValueError, match=f"{words}.*got {target}; 1 of 12") as info:
            cross_entropy(LOGITS, given)
        with pytest.raises(ValueError, match=words):
            jax.grad(cross_entropy)(jnp.asarray(LOGITS), given)
        assert (f"pass mask=targets != {target}." in str(info.value)) == (target < 0)
    valid = targets != target
    actual = cross_entropy(LOGITS, targets, valid)
    np.testing.assert_allclose(actual, by_hand(LOGITS, targets, valid), rtol=1e-5)


@pytest.mark.parametrize("kind", ["int32", "int8", "uint8", "uint32"])
@pytest.mark.parametrize("target", [-100, -1, V])
def test_traced_targets_that_are_no_class_poison_the_loss(target, kind):
    targets = TARGETS.copy()
    targets[1, 2] = target
    targets = jnp.asarray(targets.astype(kind))
    grad = jax.jit(jax.value_and_grad(cross_entropy))
    value, gradient = grad(jnp.asarray(LOGITS), targets)
    assert np.isnan(value)
    wrong = np.isnan(gradient)
    assert wrong[1, 2].all() and wrong.sum() == V
    valid = np.ones(SHAPE, bool)
    valid[1, 2] = False
    value, gradient = grad(jnp.asarray(LOGITS), targets, jnp.asarray(valid))
    np.testing.assert_allclose(value, by_hand(LOGITS, TARGETS, valid), rtol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("classes", [1, 2, V])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mapped", [False, True], ids=["whole", "mapped"])
def test_only_where_a_target_is_no_class_is_there_a_nan(mapped, weighted, classes):
    logits = jnp.asarray(LOGITS[..., :classes])
    targets = jnp.asarray(TARGETS % classes).at[1, 2].set(-1)

    def loss(logits, targets):
        result = cross_entropy(logits, targets, weighted=weighted)
        return result.total if weighted else result

    def tangent(logits, targets):
        of = lambda logits: loss(logits, targets)
        return jax.jvp(of, (logits,), (jnp.ones_like(logits),))

    each = jax.vmap if mapped else lambda f: f
    poisoned = [False, True, False] if mapped else True
    both = each(jax.value_and_grad(loss))
    for run in (jax.jit(both), both) if mapped else (jax.jit(both),):
        value, grad = run(logits, targets)
        assert np.isnan(value).tolist() == poisoned
        wrong = np.isnan(grad)
        assert wrong[1, 2].all() and wrong.sum() == classes
    for part in jax.jit(each(tangent))(logits, targets):
        assert np.isnan(part).tolist() == poisoned


@pytest.mark.parametrize("run", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_debug_nans_finds_none_where_targets_are_right(run):
    with jax.debug_nans(True):
        grad = run(jax.grad(cross_entropy))
        assert np.isfinite(grad(jnp.asarray(LOGITS), jnp.asarray(TARGETS))).all()


def test_small_integers_reach_all_classes():
    classes = 300
    logits, targets = normal(0, (5, classes)), np.array([0, 9, 44, 99, 127])
    expected = by_hand(np.asarray(logits), targets, np.ones(5, bool))
    for kind in ("int8", "uint8"):
        actual = cross_entropy(logits, targets.astype(kind))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    lengths = np.array([200], np.uint8)
    whole = cross_entropy(
        jnp.zeros((1, 300, 4)), jnp.zeros((1, 300), int), lengths=lengths
    )
    np.testing.assert_allclose(whole, np.log(4), rtol=1e-6)


def test_half_precision_is_taken_in_float32():
    logits = normal(0, (50, 7), "bfloat16", scale=3.0)
    targets = jnp.arange(50) % 7
    loss = cross_entropy(logits, targets)
    assert loss.dtype == jnp.float32
    exact = cross_entropy(logits.astype(jnp.float32), targets)
    np.testing.assert_array_equal(loss, exact)


ONES = jnp.ones((2, 3))


REFUSED = {
    "shape": (
        dict(targets=jnp.ones(3, int)),
        ValueError,
        "targets: expected shape [2], the leading axes of logits, got [3]",
    ),
    "mask": (
        dict(mask=jnp.ones(2)),
        ValueError,
        "mask: expected bool [2], as targets, got float32 [2].",
    ),
    "floats": (
        dict(targets=jnp.ones(2)),
        TypeError,
        "targets: expected an integer dtype, got float32.",
    ),
    "a list": (
        dict(targets=[1, 2]),
        TypeError,
        "targets: expected an array, got list. Convert it with jnp.asarray.",
    ),
    "logits": (
        dict(logits=jnp.ones((2, 3), int)),
        TypeError,
        "logits: expected a floating dtype, got int32.",
    ),
    "lengths": (
        dict(logits=jnp.ones((2, 4, 3)), targets=jnp.ones((2, 4), int), lengths=[4, 5]),
        ValueError,
        "lengths: expected values from 0 to T = 4, the steps of each row that are "
        "valid, got 4 to 5.",
    ),
    "ignore_index": (
        dict(ignore_index=-100),
        TypeError,
        "ignore_index: cross_entropy takes no such argument. A mask says what counts: "
        "mask=targets != -100.",
    ),
    "weighted": (
        dict(weighted="yes"),
        TypeError,
        "weighted: expected True or False, got 'yes' of type str.",
    ),
    "no time": (
        dict(logits=jnp.ones(3), targets=jnp.ones((), int), lengths=1),
        ValueError,
        "lengths: expected targets [*batch, T], got none with T.",
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_does_not_fit(changes, error, words):
    arguments = dict(logits=ONES, targets=jnp.ones(2, int)) | changes
    with pytest.raises(error, match=re.escape(words)):
        cross_entropy(**arguments)


@pytest.mark.parametrize(
    "run",
    [cross_entropy, jax.jit(cross_entropy, static_argnames="weighted")],
    ids=["eager", "jit"],
)
def test_a_sum_and_how_many_there_are(run):
    parts = [
        run(LOGITS[rows], TARGETS[rows], MASK[rows], weighted=True)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert all(isinstance(part, Weighted) for part in parts)
    whole = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert whole.weight.dtype == jnp.int32 and whole.weight == MASK.sum()
    assert whole.total.dtype == jnp.float32
    expected = by_hand(LOGITS, TARGETS, MASK)
    np.testing.assert_allclose(whole.mean(), expected, rtol=1e-5)
    none = run(LOGITS, TARGETS, np.zeros_like(MASK), weighted=True)
    assert none.total == 0 and none.weight == 0 and none.mean() == 0


EACH = pytest.mark.parametrize(
    ("loss", "of_one", "options"), ELEMENTWISE.values(), ids=ELEMENTWISE
)


def element_case(shape, names, seed=0):
    """Predictions, targets, which count, and how that is said."""
    rng = np.random.default_rng(seed)
    given = rng.standard_normal(shape) * 2, rng.random(shape)
    predictions, targets = (one.astype(np.float32) for one in given)
    valid, options = np.ones(shape, bool), {}
    if "elements" in names:
        options["mask"] = rng.random(shape) < 0.6
        valid &= options["mask"]
    if "steps" in names:
        options["mask"] = rng.random(shape[:2]) < 0.6
        valid &= options["mask"].reshape(*shape[:2], *(1 for _ in shape[2:]))
    if "lengths" in names:
        options["lengths"] = rng.integers(0, shape[1] + 1, shape[:1])
        within = np.arange(shape[1]) < options["lengths"][:, None]
        valid &= within.reshape(*shape[:2], *(1 for _ in shape[2:]))
    return predictions, targets, valid, options


def mean_by_hand(of_one, predictions, targets, valid):
    """A loop in float64 over the elements that count."""
    losses = [
        of_one(float(predictions[place]), float(targets[place]))
        for place in map(tuple, np.argwhere(valid))
    ]
    return np.mean(losses) if losses else 0.0


@EACH
@pytest.mark.parametrize("shape", [(3, 7), (2, 5, 4), (1, 1, 3), (2, 3, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "names", [(), ("elements",), ("steps",), ("lengths",), ("steps", "lengths")]
)
def test_errors_agree_with_numpy(names, shape, loss, of_one, options):
    predictions, targets, valid, controls = element_case(shape, names)
    expected = mean_by_hand(of_one, predictions, targets, valid)
    run = lambda *given, **controls: loss(*given, **controls, **options)
    for one in (run, jax.jit(run)):
        actual = one(predictions, targets, **controls)
        assert actual.dtype == jnp.float32 and not actual.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    parts = loss(predictions, targets, **controls, **options, weighted=True)
    assert parts.weight.dtype == jnp.int32 and parts.weight == valid.sum()
    np.testing.assert_allclose(parts.total, expected * valid.sum(), rtol=1e-5)


@EACH
def test_errors_of_padding_may_hold_anything(loss, of_one, options):
    shape = (3, 6, 2)
    predictions, targets, valid, controls = element_case(shape, ("steps", "lengths"))
    bad = [np.where(valid, one, np.nan) for one in (predictions, targets)]
    run = lambda predictions, targets: loss(predictions, targets, **controls, **options)
    both = jax.value_and_grad(run, (0, 1))
    for one in (both, jax.jit(both)):
        value, grads = one(*map(jnp.asarray, bad))
        right, expected = both(jnp.asarray(predictions), jnp.asarray(targets))
        assert value == right or np.isclose(value, right, rtol=1e-6)
        for grad, same in zip(grads, expected, strict=True):
            np.testing.assert_allclose(grad, same, rtol=1e-6)
            assert np.isfinite(grad).all() and not grad[~valid].any()
    with jax.debug_nans(True):
        assert np.isfinite(jax.grad(run)(jnp.asarray(predictions), targets)).all()


@EACH
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3, 2), (2, 3)], ids=str)
def test_errors_of_nothing_are_0(shape, loss, of_one, options):
    mask = jnp.zeros(shape[:1], bool)
    value, grad = jax.value_and_grad(loss)(
        jnp.ones(shape), jnp.zeros(shape), mask, **options
    )
    assert value == 0 and not grad.any()


@EACH
def test_lengths_say_how_many_batch_axes_there_are(loss, of_one, options):
    predictions, targets, _, _ = element_case((2, 3, 4), ())
    for lengths, axes in (([1, 3], 1), ([[0, 1, 4], [4, 2, 3]], 2), (2, 0)):
        lengths = np.asarray(lengths)
        steps = np.arange(predictions.shape[axes]) < lengths[..., None]
        valid = np.broadcast_to(
            steps.reshape(*steps.shape, *[1] * (3 - steps.ndim)), targets.shape
        )
        actual = loss(predictions, targets, lengths=lengths, **options)
        expected = mean_by_hand(of_one, predictions, targets, valid)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_errors_in_half_precision_are_taken_in_float32():
    predictions, targets = normal(0, (40,), "bfloat16"), normal(1, (40,), "float32")
    for loss, *_ in ELEMENTWISE.values():
        value, grad = jax.value_and_grad(loss)(predictions, targets)
        assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
        assert value == loss(predictions.astype(jnp.float32), targets)


def test_yes_and_no_are_bools_or_numbers():
    logits = normal(0, (9,), scale=3.0)
    for kind in (bool, np.int8, np.int32, np.float32):
        targets = (np.arange(9) % 2).astype(kind)
        actual = binary_cross_entropy(logits, targets)
        expected = mean_by_hand(_binary, np.asarray(logits), targets, targets > -1)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    padded = jnp.array([1, -100, 0])
    value = binary_cross_entropy(jnp.zeros(3), padded, padded != -100)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert np.isfinite(binary_cross_entropy(jnp.array([1e4, -1e4]), jnp.zeros(2)))


REFUSED_ERRORS = {
    "broadcast": (
        dict(predictions=jnp.ones((2, 1))),
        ValueError,
        "targets: expected shape [2, 1], as predictions, got [2]. Nothing is broad",
    ),
    "integers": (
        dict(targets=jnp.ones(2, int)),
        TypeError,
        "targets: expected a floating dtype, got int32.",
    ),
    "mask": (
        dict(mask=jnp.ones(3, bool)),
        ValueError,
        "mask: expected [2], the shape of targets, or leading axes of it, got [3].",
    ),
    "mask of numbers": (
        dict(mask=jnp.ones(2)),
        TypeError,
        "mask: expected a bool dtype, got float32.",
    ),
    "lengths": (
        dict(lengths=[1, 2]),
        ValueError,
        "lengths: expected [*batch] for targets [*batch, T, ...], got [2] for [2].",
    ),
    "too long": (
        dict(lengths=3),
        ValueError,
        "lengths: expected values from 0 to T = 2",
    ),
    "weighted": (dict(weighted=1), TypeError, "weighted: expected True or False"),
    "delta": (dict(delta=0.0), ValueError, "delta: expected a limit above 0, got 0.0."),
    "delta of a word": (dict(delta="1"), TypeError, "delta: expected a number"),
}


@pytest.mark.parametrize(
    ("changes", "error", "words"), REFUSED_ERRORS.values(), ids=REFUSED_ERRORS
)
def test_errors_refuse_what_does_not_fit(changes, error, words):
    arguments = dict(predictions=jnp.ones(2), targets=jnp.ones(2)) | changes
    losses = (squared_error, absolute_error, huber_error)
    for loss in losses if "delta" not in changes else losses[2:]:
        with pytest.raises(error, match=re.escape(words)):
            loss(**arguments)
