"""Softmax cross-entropy without all the logits, against the plain formula."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax.training import Weighted, cross_entropy, linear_cross_entropy
from tests.common import assert_close, quick_jit
from tests.readouts import (
    MOVING,
    SHAPE,
    H,
    V,
    by_hand,
    case,
    mean,
    ours,
    plain,
    valid_of,
)

CHUNKS = (None, 1, 4, 7, 20, 21, 100)


@pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("names", [(), ("mask",), ("lengths",), ("mask", "lengths")])
def test_agrees_with_a_loop_in_numpy(names, run):
    args = case()
    valid, options = valid_of(SHAPE, names)
    for weights in (args[3], jnp.ones(SHAPE)):
        given = (*args[:3], weights, args[4])
        both = jax.value_and_grad(functools.partial(ours, chunk_size=4), (0, 1, 2))
        assert_close(run(both)(*given, **options), by_hand(*given, valid))


@pytest.mark.parametrize("weighing", [True, False], ids=["weights", "ones"])
@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_every_size_of_a_chunk_is_the_same(chunk_size, weighing):
    args = case()
    valid, options = valid_of(SHAPE, ("mask", "lengths"))
    moving = MOVING if weighing else MOVING[:3]
    if not weighing:
        args = (*args[:3], None, args[4])
    run = functools.partial(ours, chunk_size=chunk_size, **options)
    expected = (*args[:3], jnp.ones(SHAPE), args[4])
    assert_close(
        jax.value_and_grad(run, moving)(*args),
        jax.value_and_grad(functools.partial(mean, valid=valid), moving)(
            *(args if weighing else expected)
        ),
    )


@pytest.mark.parametrize("classes", [1, 2, 300])
@pytest.mark.parametrize("shape", [(), (1,), (13,), (1, 1), (2, 3, 4), (5, 1)], ids=str)
def test_every_shape(shape, classes):
    args = case(shape, classes)
    for chunk_size in (None, 3):
        run = functools.partial(ours, chunk_size=chunk_size)
        actual = jax.value_and_grad(run, MOVING)(*args)
        expected = jax.value_and_grad(mean, MOVING)(*args)
        # With one class everything is 0.
        jax.tree.map(
            lambda a, e: np.testing.assert_allclose(a, e, atol=3e-6, rtol=1e-5),
            actual,
            expected,
        )


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("run", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_no_token_is_no_loss(shape, run):
    args = case(shape)
    value, grads = run(jax.value_and_grad(ours, MOVING))(*args)
    assert value == 0 and not any(g.any() for g in grads)
    args, none = case(), jnp.zeros(SHAPE, bool)
    value, grads = run(jax.value_and_grad(ours, MOVING))(*args, mask=none)
    assert value == 0 and not any(g.any() for g in grads)


def test_no_bias_is_a_bias_of_zeros():
    ys, kernel, bias, _, targets = case()
    without = lambda ys, kernel: linear_cross_entropy(ys, kernel, None, targets)
    zeros = lambda ys, kernel: cross_entropy(ys @ kernel, targets)
    assert_close(
        jax.value_and_grad(without, (0, 1))(ys, kernel),
        jax.value_and_grad(zeros, (0, 1))(ys, kernel),
    )


def test_parts_add_up_to_the_whole():
    ys, kernel, bias, weights, targets = case()
    valid, options = valid_of(SHAPE, ("mask",))

    def parts(*moving):
        ys, kernel, bias, weights = moving
        total = [
            linear_cross_entropy(
                ys[rows],
                kernel,
                bias,
                targets[rows],
                options["mask"][rows],
                weights=weights[rows],
                weighted=True,
            )
            for rows in (slice(0, 1), slice(1, 3))
        ]
        return jax.tree.map(lambda a, b: a + b, *total).mean()

    whole = functools.partial(mean, targets=targets, valid=valid)
    args = ys, kernel, bias, weights
    assert_close(
        jax.value_and_grad(parts, MOVING)(*args),
        jax.value_and_grad(whole, MOVING)(*args),
    )


def test_a_weight_is_a_count_or_a_sum():
    ys, kernel, bias, weights, targets = case()
    mask = valid_of(SHAPE, ("mask",))[0]
    given = dict(mask=mask, weighted=True)
    counted = linear_cross_entropy(ys, kernel, bias, targets, **given)
    assert isinstance(counted, Weighted) and counted.weight.dtype == jnp.int32
    assert counted.weight == mask.sum()
    run = lambda weights: ours(ys, kernel, bias, weights, targets, **given)
    right = lambda weights: plain(ys, kernel, bias, weights, targets, mask)
    assert_close(tuple(run(weights)), right(weights))
    assert_close(tuple(jax.jacrev(run)(weights)), jax.jacrev(right)(weights))


@pytest.mark.parametrize("jitted", [True, False])
def test_padding_may_hold_anything(jitted):
    ys, kernel, bias, weights, targets = case()
    valid, options = valid_of(SHAPE, ("mask", "lengths"))
    keep = jnp.asarray(valid)
    bad = (
        jnp.where(keep[..., None], ys, jnp.nan),
        kernel,
        bias.at[0].set(-jnp.inf),
        jnp.where(keep, weights, jnp.nan),
        jnp.where(keep, jnp.maximum(targets, 1), -100),
    )
    clean = (*[ys, kernel, bad[2], weights], jnp.where(keep, bad[4], 1))
    both = jax.value_and_grad(functools.partial(ours, chunk_size=4), MOVING)
    run = jax.jit(both) if jitted else both
    expected = jax.value_and_grad(functools.partial(mean, valid=valid), (0, 1, 3))
    value, grads = run(*bad, **options)
    right, (d_ys, d_kernel, d_weights) = expected(*clean)
    assert_close(value, right)
    assert_close((grads[0], grads[1], grads[3]), (d_ys, d_kernel, d_weights))
    assert not grads[0][~valid].any() and np.isfinite(grads[2]).all()


@pytest.mark.parametrize("target", [-100, -1, V, V + 3])
def test_targets_that_are_no_class(target):
    ys, kernel, bias, weights, targets = case()
    targets = targets.at[1, 2].set(target)
    words = f"targets: expected classes from 0 to V - 1 = {V - 1}, with V the last axis"
    with pytest.raises(ValueError, match=f"{words} of kernel, got {target}; 1 of 21"):
        linear_cross_entropy(ys, kernel, bias, targets)
    grad = jax.jit(jax.value_and_grad(functools.partial(ours, chunk_size=4), MOVING))
    value, grads = grad(ys, kernel, bias, weights, targets)
    assert np.isnan(value)
    wrong = np.isnan(grads[0])
    assert wrong[1, 2].all() and wrong.sum() == H
    # Its kernel's gradient, too, is that of a class which is none.
    assert np.isnan(grads[1]).all() and np.isnan(grads[3][1, 2])
    mask = targets == jnp.clip(targets, 0, V - 1)
    value, grads = grad(ys, kernel, bias, weights, targets, mask=mask)
    assert all(np.isfinite(one).all() for one in (value, *grads))


@pytest.mark.parametrize("mapped", [False, True], ids=["whole", "mapped"])
@pytest.mark.parametrize("weighing", ["none", "floats", "bools"])
def test_traced_targets_that_are_no_class_under_transforms(weighing, mapped):
    """A token that counts poisons, though its weight be 0."""
    ys, kernel, bias, weights, targets = case()
    targets, weights = targets.at[1, 2].set(-1), weights.at[1, 2].set(0)

    def loss(ys, kernel, bias, weights, targets):
        given = {
            "none": None,
            "floats": weights,
            "bools": (weights > 0).astype(ys.dtype),
        }[weighing]
        return ours(ys, kernel, bias, given, targets, chunk_size=4)

    each = lambda f: jax.vmap(f, (0, None, None, 0, 0)) if mapped else f
    args, poisoned = (ys, kernel, bias, weights, targets), [False, True, False]
    moving = MOVING if weighing == "floats" else MOVING[:3]
    value, grads = jax.jit(each(jax.value_and_grad(loss, moving)))(*args)
    for one in (value, jax.jit(each(loss))(*args)):
        assert np.isnan(one).tolist() == (poisoned if mapped else True)
    wrong = np.isnan(grads[0])
    assert wrong[1, 2].all() and wrong.sum() == H
    for grad in grads[1:3]:
        assert np.isnan(grad[1] if mapped else grad).all()
        assert not mapped or np.isfinite(grad[np.array([0, 2])]).all()
    assert all(np.isnan(grad[1, 2]) for grad in grads[3:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(dtype):
    with jax.enable_x64(dtype == "float64"):
        args = case((6, 9), 33, dtype)
        both = jax.value_and_grad(functools.partial(ours, chunk_size=10), MOVING)
        value, grads = quick_jit(both)(*args)
        wide = "float64" if dtype == "float64" else "float32"
        assert value.dtype == wide
        assert all(g.dtype == a.dtype for g, a in zip(grads, args, strict=False))
        exact = [a.astype(wide) for a in args[:4]]
        expected = jax.value_and_grad(mean, MOVING)(*exact, args[4])
        assert_close(value, expected[0], wide)
        assert_close(grads, expected[1], dtype)


def test_small_gradients_survive_float16():
    """The cotangent is a scale of losses: what it lifts must not be 0 before."""
    ys, kernel, bias, weights, targets = case(dtype="float16")
    scale, far = 2.0**-14, jnp.asarray(np.float16(2.0**-12))
    loss = lambda ys: ours(ys, kernel * far, bias, weights, targets)
    right = lambda ys: mean(
        *(a.astype(jnp.float32) for a in (ys, kernel * far, bias, weights)), targets
    )
    expected = jax.grad(right)(ys)
    np.testing.assert_allclose(
        jax.grad(lambda ys: loss(ys) / scale)(ys) * np.float16(scale),
        expected,
        atol=2e-3 * np.abs(expected).max(),
    )


def test_logits_of_all_tokens_are_nowhere():
    """Twice the tokens take some more numbers for each, and not V more."""
    classes = 4000
    _, kernel, bias, *_ = case(classes=classes)

    def held(tokens):
        ys, targets = jnp.ones((4, tokens // 4, H)), jnp.zeros((4, tokens // 4), int)
        both = jax.value_and_grad(linear_cross_entropy, (0, 1, 2))
        program = jax.jit(both).lower(ys, kernel, bias, targets).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = held(4000), held(8000)
    # ys's gradient, its copies and targets; logits would be 16 kB a token.
    assert many - few <= 4000 * 4 * 8 * (H + 4)
    assert few < 40 * 2**20


REFUSED = {
    "kernel": (
        dict(kernel=jnp.ones((V, H))),
        ValueError,
        "kernel: expected shape [H, V] with H = 5, the last axis of ys, got [11, 5]. "
        "It looks transposed: pass kernel.T.",
    ),
    "bias": (
        dict(bias=jnp.ones(H)),
        ValueError,
        "bias: expected shape [V] = [11], got [5].",
    ),
    "targets": (
        dict(targets=jnp.ones(3, int)),
        ValueError,
        "targets: expected shape [3, 7], the leading axes of ys, got [3].",
    ),
    "weights": (
        dict(weights=jnp.ones(3)),
        ValueError,
        "weights: expected shape of targets = [3, 7], got [3].",
    ),
    "negative": (
        dict(weights=-jnp.ones(SHAPE)),
        ValueError,
        "weights: expected numbers from 0 on, got -1.0.",
    ),
    "integers": (
        dict(weights=jnp.ones(SHAPE, int)),
        TypeError,
        "weights: expected a floating dtype, got int32.",
    ),
    "chunk_size": (
        dict(chunk_size=0),
        ValueError,
        "chunk_size: expected at least 1, got 0.",
    ),
    "weighted": (
        dict(weighted=1),
        TypeError,
        "weighted: expected True or False, got 1 of type int.",
    ),
    "mask": (
        dict(mask=jnp.ones(3, bool)),
        ValueError,
        "mask: expected bool [3, 7], as targets, got bool [3].",
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_does_not_fit(changes, error, words):
    ys, kernel, bias, _, targets = case()
    arguments = dict(ys=ys, kernel=kernel, bias=bias, targets=targets) | changes
    with pytest.raises(error, match=re.escape(words)):
        linear_cross_entropy(**arguments)
