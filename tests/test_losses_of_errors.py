"""Squared, absolute and other errors against NumPy, and what is not valid."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.training import (
    absolute_error,
    binary_cross_entropy,
    huber_error,
    squared_error,
)
from tests.common import normal
from tests.loss_cases import ELEMENTWISE, _binary

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
