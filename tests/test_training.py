"""Truncated backpropagation, losses and weights on disk."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstm_jax as lj
from lstm_jax import training
from tests.common import assert_close, normal, random_like

MODEL = lj.LSTM(3, 5)
PARAMS = random_like(1, MODEL.init(jax.random.key(0)))
WINDOWS = normal(2, (4, 2, 6, 3))


def loss_fn(params, carry, batch, key):
    carry, ys = MODEL.apply(params, batch, carry, key=key)
    return jnp.mean(ys**2), (carry, {"ys": ys})


def by_hand(params, carry, xs):
    """One window in a Python loop, the carry outside the gradient."""

    def loss(params):
        state, ys = carry, []
        for t in range(xs.shape[1]):
            state, y = MODEL.step(params, state, xs[:, t])
            ys.append(y)
        return jnp.mean(jnp.stack(ys) ** 2), state

    return jax.grad(loss, has_aux=True)(params)


def test_train_step_agrees_with_a_loop_by_hand():
    tx = optax.sgd(0.3, momentum=0.9)
    copies = jax.tree.map(jnp.copy, PARAMS)
    state = training.create(copies, tx, MODEL.zero_state((2,)))
    train_step = training.make_train_step(loss_fn, tx)
    params, carry = PARAMS, MODEL.zero_state((2,))
    opt_state = tx.init(params)
    for window in WINDOWS:
        state, _ = train_step(state, window, jax.random.key(0))
        grads, carry = by_hand(params, carry, window)
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        assert_close((state.params, state.carry), (params, carry))
    assert int(state.step) == len(WINDOWS)


def test_train_step_hands_the_carry_on():
    tx = optax.set_to_zero()
    copies = jax.tree.map(jnp.copy, PARAMS)
    state = training.create(copies, tx, MODEL.zero_state((2,)))
    train_step = training.make_train_step(loss_fn, tx)
    ys = []
    for window in WINDOWS:
        state, metrics = train_step(state, window, jax.random.key(0))
        ys.append(metrics["ys"])
    whole = MODEL.apply(PARAMS, jnp.concatenate(list(WINDOWS), axis=1))
    assert_close((state.carry, jnp.concatenate(ys, axis=1)), whole)


def test_cross_entropy_agrees_with_numpy():
    logits = np.asarray(normal(0, (3, 4, 7), scale=3.0))
    targets = np.random.default_rng(0).integers(0, 7, (3, 4))
    mask = np.random.default_rng(1).random((3, 4)) < 0.6
    shifted = np.exp(logits.astype(np.float64))
    chosen = np.take_along_axis(shifted, targets[..., None], -1)[..., 0]
    losses = -np.log(chosen / shifted.sum(-1))
    args = jnp.asarray(logits), jnp.asarray(targets)
    np.testing.assert_allclose(training.cross_entropy(*args), losses.mean(), rtol=1e-5)
    masked = training.cross_entropy(*args, jnp.asarray(mask))
    np.testing.assert_allclose(masked, losses[mask].mean(), rtol=1e-5)


def test_cross_entropy_ignores_padding():
    mask = jnp.array([True, False])
    targets = jnp.array([1, 99])

    def loss(bad):
        logits = jnp.array([[0.0, 1.0], [0.0, 0.0]]).at[1].set(bad)
        return jax.value_and_grad(training.cross_entropy)(logits, targets, mask)

    value, grad = loss(jnp.nan)
    np.testing.assert_allclose(value, np.log1p(np.exp(-1)), rtol=1e-6)
    assert np.isfinite(grad).all() and not grad[1].any()
    empty = training.cross_entropy(jnp.ones((2, 3)), targets, jnp.zeros(2, bool))
    assert empty == 0


def test_cross_entropy_is_taken_in_float32():
    logits = normal(0, (50, 7), "bfloat16", scale=3.0)
    targets = jnp.arange(50) % 7
    loss = training.cross_entropy(logits, targets)
    assert loss.dtype == jnp.float32
    exact = training.cross_entropy(logits.astype(jnp.float32), targets)
    np.testing.assert_array_equal(loss, exact)


def test_weights_round_trip(tmp_path):
    params = {"lstm": PARAMS, "scale": jnp.ones((), jnp.bfloat16)}
    path = tmp_path / "weights.safetensors"
    training.save_weights(path, params)
    like = jax.eval_shape(lambda: params)
    back = training.load_weights(path, like)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    "leaf",
    [
        np.arange(6.0, dtype=np.float32).reshape(2, 3).T,
        np.arange(8, dtype=">i4")[::2],
        np.broadcast_to(np.float32(3), (2, 4)),
        np.asarray(jnp.arange(6, dtype=jnp.bfloat16)).reshape(2, 3).T,
    ],
    ids=["transposed", "slice", "broadcast", "bfloat16"],
)
def test_weights_are_written_whatever_their_layout(leaf, tmp_path):
    path = tmp_path / "weights.safetensors"
    like = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype.newbyteorder("="))
    training.save_weights(path, [leaf])
    np.testing.assert_array_equal(training.load_weights(path, [like])[0], leaf)


def shape_error():
    training.cross_entropy(jnp.ones((2, 3)), jnp.ones((3,), jnp.int32))


def mask_error():
    training.cross_entropy(jnp.ones((2, 3)), jnp.ones(2, jnp.int32), jnp.ones(2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            shape_error,
            "targets: expected shape [2], the leading axes of logits, got [3]",
        ),
        (mask_error, "mask: expected bool [2], as targets, got float32 [2]."),
    ],
)
def test_cross_entropy_refuses_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_cross_entropy_refuses_targets_that_are_no_integers():
    with pytest.raises(TypeError, match="targets: expected an integer dtype, got fl"):
        training.cross_entropy(jnp.ones((2, 3)), jnp.ones(2))


def test_load_weights_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        training.load_weights(path, PARAMS)
    path.write_text("no weights")
    with pytest.raises(ValueError, match="no safetensors file"):
        training.load_weights(path, PARAMS)
    training.save_weights(path, PARAMS)
    with pytest.raises(
        ValueError, match=r"missing \['x'\]|missing .*'x'.*unknown .*bias"
    ):
        training.load_weights(path, {"x": jnp.ones(2)})
    other = lj.LSTM(3, 6).init(jax.random.key(0))
    words = r"kernel: expected float32 \[3, 24\], got float32 \[3, 20\]"
    with pytest.raises(ValueError, match=words):
        training.load_weights(path, other)
