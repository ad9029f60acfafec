"""The stack: nesting, steps, dropout, initial values, and the cell's own defaults."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import (
    assert_close,
    normal,
    random_controls,
    random_like,
    random_params,
)

OPTIONS = {
    "one": {},
    "layers": dict(num_layers=3),
    "sizes": dict(hidden_size=(4, 6, 2)),
    "projection": dict(num_layers=2, proj_size=3),
    "no_bias": dict(num_layers=2, use_bias=False),
    "half": dict(num_layers=2, dtype=jnp.bfloat16),
}


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


def build(options):
    model = lj.LSTM(3, **({"hidden_size": 5} | options))
    return model, random_like(1, model.init(jax.random.key(0)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("batch_shape", [(), (2,)], ids=str)
def test_step_agrees_with_apply(options, batch_shape):
    model, params = build(options)
    xs = normal(2, (*batch_shape, 7, 3))
    expected_state, expected = model.apply(params, xs)
    state, ys = model.zero_state(batch_shape), []
    for t in range(7):
        state, y = model.step(params, state, xs[..., t, :])
        ys.append(y)
    dtype = "float32" if model.dtype is None else "bfloat16"
    assert_close(jnp.stack(ys, -2), expected, dtype)
    assert_close(state, expected_state, dtype)
    assert dtypes(state) == dtypes(expected_state)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_nesting_is_the_same_whatever_the_options(options, bidirectional):
    model, params = build(options | {"bidirectional": bidirectional})
    state, ys = model.apply(params, normal(2, (2, 7, 3)))
    assert ys.shape == (2, 7, model.output_size)
    for tree, kind in ((params, lj.LSTMParams), (state, lj.LSTMState)):
        assert isinstance(tree, tuple) and len(tree) == model.num_layers
        for layer in tree:
            assert isinstance(layer, lj.Directions) and isinstance(layer.forward, kind)
            assert isinstance(layer.backward, kind if bidirectional else type(None))
    zeros = model.zero_state((2,))
    assert jax.tree.map(jnp.shape, zeros) == jax.tree.map(jnp.shape, state)
    assert dtypes(zeros) == dtypes(state)
    last = state[-1].forward.h
    np.testing.assert_array_equal(last, ys[:, -1, : last.shape[-1]])


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "mul"])
def test_bidirectional_layer_merges_two_scans(merge):
    model, params = build(dict(bidirectional=True, merge=merge))
    xs = normal(2, (2, 7, 3))
    controls = random_controls(3, (2,), 7, ("lengths", "mask", "reset"))
    _, ys = model.apply(params, xs, **controls)
    _, a = lj.lstm(params[0].forward, xs, **controls)
    _, b = lj.lstm(params[0].backward, xs, **controls, reverse=True)
    expected = {
        "concat": jnp.concatenate([a, b], -1),
        "sum": a + b,
        "mean": (a + b) / 2,
        "mul": a * b,
    }
    assert_close(ys, expected[merge])


@pytest.mark.parametrize("every", [1, 4])
def test_options_of_apply_change_nothing_but_layout_and_memory(every):
    model, params = build(dict(bidirectional=True, num_layers=2))
    xs = normal(2, (2, 7, 3))
    controls = random_controls(3, (2,), 7, ("lengths", "mask", "reset"))
    state, ys = model.apply(params, xs, **controls)
    front = lambda leaf: jnp.moveaxis(leaf, 1, 0)
    again, time_major_ys = model.apply(
        params,
        front(xs),
        lengths=controls["lengths"],
        mask=front(controls["mask"]),
        reset=front(controls["reset"]),
        time_major=True,
        checkpoint_every=every,
        implementation="xla",
    )
    assert_close((again, front(time_major_ys)), (state, ys))


def test_dropout_is_between_layers_and_needs_a_key():
    model, params = build(dict(num_layers=2, dropout=0.4))
    plain = dataclasses.replace(model, dropout=0.0)
    xs = normal(2, (2, 7, 3))
    expected = plain.apply(params, xs)
    assert_close(model.apply(params, xs), expected)
    assert_close(plain.apply(params, xs, key=jax.random.key(0)), expected)
    state, ys = model.apply(params, xs, key=jax.random.key(0))
    assert_close(state[0], expected[0][0])
    assert not np.allclose(ys, expected[1], atol=1e-3)
    assert (ys != 0).all(), "no dropout after the last layer"
    again = model.apply(params, xs, key=jax.random.key(0))[1]
    np.testing.assert_array_equal(again, ys)
    other = model.apply(params, xs, key=jax.random.key(1))[1]
    assert not np.allclose(other, ys, atol=1e-3)


def test_dropout_of_one_layer_says_that_it_does_nothing():
    with pytest.warns(UserWarning, match="dropout: it is between layers, and there is"):
        model = lj.LSTM(3, 5, dropout=0.5)
    assert not model.noisy
    assert lj.LSTM(3, 5, output_dropout=0.5).noisy


def test_what_programs_write_by_hand_has_names():
    model = lj.LSTM(3, 5, 2, bidirectional=True, learn_initial_state=True)
    params = random_params(model, 1)
    xs, lengths = normal(2, (3, 7, 3)), jnp.array([7, 4, 1])
    start = model.initial_state(params, (3,))
    state, ys = model.apply(params, xs, start, lengths=lengths)
    assert_close(model.apply(params, xs, lengths=lengths), (state, ys))
    last = jnp.stack(
        [
            jnp.concatenate([ys[row, length - 1, :5], ys[row, 0, 5:]])
            for row, length in enumerate(lengths.tolist())
        ]
    )
    assert_close(model.last(state), last)
    bridged = model.bridge(state)
    assert_close(bridged[1].forward.h, last)
    assert bridged[0].backward is None and bridged[0].forward.c.shape == (3, 10)
    mean = model.bridge(state, "mean")[0].forward.c
    assert_close(mean, (state[0].forward.c + state[0].backward.c) / 2)
    with pytest.raises(ValueError, match="bridge: expected a bidirectional model"):
        lj.LSTM(3, 5).bridge(state)
    with pytest.raises(AttributeError, match="model.last"):
        _ = state[-1].h


@pytest.mark.parametrize("options", [dict(residual=True), dict(skip=True), {}])
def test_the_last_output_is_what_the_last_step_put_out(options):
    model = lj.LSTM(5, 5, 3, **options)
    params, xs = random_params(model, 1), normal(2, (2, 7, 5))
    state, ys = model.apply(params, xs)
    assert_close(model.last(state), ys[:, -1])


def test_a_step_that_resets_starts_from_what_was_learned():
    model = lj.LSTM(3, 5, 2, learn_initial_state=True)
    params, xs = random_params(model, 1), normal(2, (2, 4, 3))
    reset = np.random.default_rng(0).random((2, 4)) < 0.5
    reset[0, 1] = reset[1, 2] = True
    state, ys = model.initial_state(params, (2,)), []
    for t in range(4):
        state, y = model.step(params, state, xs[:, t], reset=reset[:, t])
        ys.append(y)
    expected = model.apply(params, xs, reset=reset)
    assert_close((state, jnp.stack(ys, 1)), expected)
    zeros = model.step(params, None, xs[:, 0])
    assert_close(model.step(params, state, xs[:, 0], reset=np.ones(2, bool)), zeros)
    with pytest.raises(ValueError, match="reset: expected shape"):
        model.step(params, state, xs[:, 0], reset=np.ones(3, bool))


def test_dropout_drops_at_its_rate_and_scales():
    """A second layer that only passes its input's sum shows what was dropped."""
    rate = 0.3
    model = lj.LSTM(1, (400, 400), dropout=rate)
    params = model.init(jax.random.key(0))
    xs = jnp.ones((50, 1, 1))
    first = lj.lstm(params[0].forward, xs)[1]

    def second(dropped):
        return lj.lstm(params[1].forward, dropped)[1]

    out = model.apply(params, xs, key=jax.random.key(3))[1]
    key = jax.random.fold_in(jax.random.key(3), 1)
    kept = jax.random.bernoulli(key, 1 - rate, (1, 50, 400)).transpose(1, 0, 2)
    assert_close(out, second(jnp.where(kept, first / (1 - rate), 0)))
    assert abs(float(kept.mean()) - (1 - rate)) < 0.01


def test_dropout_is_fresh_at_every_step_and_layer():
    model = lj.LSTM(2, 64, num_layers=3, dropout=0.5)
    params = model.init(jax.random.key(0))
    xs = jnp.ones((1, 40, 2))
    runs = [model.apply(params, xs, key=jax.random.key(seed))[1] for seed in range(2)]
    assert not np.allclose(runs[0], runs[1])
    grads = jax.grad(lambda x: model.apply(params, x, key=jax.random.key(0))[1].sum())(
        xs
    )
    assert np.isfinite(grads).all() and grads.any()


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_initial_values_are_keras_defaults(param_dtype):
    cell = lj.LSTMCell(30, 50, param_dtype=param_dtype)
    params = cell.init(jax.random.key(0))
    assert all(leaf.dtype == param_dtype for leaf in jax.tree.leaves(params))
    kernel = np.asarray(params.kernel, np.float32)
    limit = np.sqrt(6 / (30 + 200))
    assert 0.95 * limit < np.abs(kernel).max() <= limit * 1.01
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.05)
    recurrent = np.asarray(params.recurrent_kernel, np.float32)
    error = 1e-5 if param_dtype == "float32" else 2e-2
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(50), atol=error)
    bias = np.asarray(params.bias, np.float32).reshape(4, 50)
    np.testing.assert_array_equal(bias, np.array([[0], [1], [0], [0]]) * np.ones(50))


def test_initializers_can_be_replaced():
    constant = lambda value: lambda key, shape, dtype: jnp.full(shape, value, dtype)
    model = lj.LSTM(
        3,
        5,
        proj_size=2,
        kernel_init=constant(0.1),
        recurrent_init=constant(0.2),
        bias_init=constant(0.3),
        forget_bias=2.0,
    )
    (layer,) = model.init(jax.random.key(0))
    kernel, recurrent, bias, projection = layer.forward[:4]
    for leaf, value in ((kernel, 0.1), (recurrent, 0.2), (projection, 0.1)):
        np.testing.assert_array_equal(leaf, np.float32(value))
    expected = np.repeat(np.float32([0.3, 2.3, 0.3, 0.3]), 5)
    np.testing.assert_allclose(bias, expected, rtol=1e-6)


def test_every_layer_and_direction_starts_differently():
    params = lj.LSTM(4, 4, 2, bidirectional=True, merge="sum").init(jax.random.key(0))
    kernels = [one.kernel for layer in params for one in layer]
    for n, a in enumerate(kernels):
        for b in kernels[:n]:
            assert not np.allclose(a, b, atol=1e-2)


def test_descriptions_are_equal_by_value_and_hashable():
    assert lj.LSTM(3, 4) == lj.LSTM(3, 4)
    assert hash(lj.LSTM(3, [4, 5])) == hash(lj.LSTM(3, (4, 5), 2))
    assert lj.LSTM(3, 4) != lj.LSTM(3, 4, clip=0.1)
    assert lj.LSTM(3, (4, 5)).num_layers == 2
