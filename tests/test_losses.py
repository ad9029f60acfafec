"""Cross-entropy against what it says in NumPy; padding, dtypes and errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.training import (
    Weighted,
    cross_entropy,
)
from tests.common import normal
from tests.loss_cases import SHAPE, V

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
