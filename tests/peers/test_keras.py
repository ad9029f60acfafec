"""Parity with Keras's LSTM and Bidirectional from the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import assert_close, normal, random_controls

B, T, I, H = 4, 7, 3, 5
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", "mul": "mul"}


def build(layer, size=I):
    """A built layer with random weights, biases too."""
    layer.build((None, None, size))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(0, 0.5, w.shape) for w in layer.get_weights()])
    return layer


def call(layer, xs, *, weights=None, **options):
    """The layer as a function of its weights."""
    variables = [w.value for w in layer.trainable_variables]
    rest = [w.value for w in layer.non_trainable_variables]
    out, _ = layer.stateless_call(
        variables if weights is None else weights, rest, xs, **options
    )
    return out


def values_and_gradients(layer, run, xs, cotangents, **options):
    weights = [w.value for w in layer.trainable_variables]

    def function(weights, xs):
        return call(layer, xs, weights=weights, **options)

    out, pull = jax.vjp(function, weights, xs)
    return out, pull(cotangents(out))


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("with_state", [True, False], ids=["state", "zeros"])
def test_lstm_agrees(use_bias, with_state):
    layer = build(
        keras.layers.LSTM(
            H, return_sequences=True, return_state=True, use_bias=use_bias
        )
    )
    xs, h, c = normal(1, (B, T, I)), normal(2, (B, H)), normal(3, (B, H))
    options = {"initial_state": [h, c]} if with_state else {}
    cotangents = [normal(4, (B, T, H)), normal(5, (B, H)), normal(6, (B, H))]
    weights = [w.value for w in layer.trainable_variables]
    function = lambda weights, xs: call(layer, xs, weights=weights, **options)
    (ys, *last), pull = jax.vjp(function, weights, xs)
    d_weights, d_xs = pull(type(function(weights, xs))(cotangents))

    model, params = lj.convert.from_keras(layer.get_weights())
    state = lj.convert.state_from_keras([h, c]) if with_state else None
    (our_last, our_ys), our_pull = jax.vjp(
        lambda params, xs: model.apply(params, xs, state), params, xs
    )
    assert_close(our_ys, ys)
    assert_close(lj.convert.state_to_keras(our_last), [last])
    d_state = lj.convert.state_from_keras(cotangents[1:])
    our_d_params, our_d_xs = our_pull((d_state, cotangents[0]))
    assert_close(lj.convert.to_keras(model, our_d_params), [d_weights])
    assert_close(our_d_xs, d_xs)


@pytest.mark.parametrize("controls", [(), ("lengths",), ("mask",)], ids=str)
@pytest.mark.parametrize("merge", MERGES)
def test_bidirectional_agrees(merge, controls):
    layer = build(
        keras.layers.Bidirectional(
            keras.layers.LSTM(H, return_sequences=True, zero_output_for_mask=True),
            merge_mode=merge,
        )
    )
    xs = normal(1, (B, T, I))
    options = random_controls(2, (B,), T, controls)
    mask = options.get("mask")
    if "lengths" in options:
        mask = np.arange(T) < options["lengths"][:, None]
    weights = [w.value for w in layer.trainable_variables]
    function = lambda weights, xs: call(
        layer, xs, weights=weights, mask=None if mask is None else jnp.asarray(mask)
    )
    ys, pull = jax.vjp(function, weights, xs)
    cotangent = normal(3, ys.shape)
    d_weights, d_xs = pull(cotangent)

    model, params = lj.convert.from_keras(
        layer.get_weights(), bidirectional=True, merge_mode=merge
    )
    assert model.merge == MERGES[merge]
    our_ys, our_pull = jax.vjp(
        lambda params, xs: model.apply(params, xs, **options)[1], params, xs
    )
    assert_close(our_ys, ys)
    our_d_params, our_d_xs = our_pull(cotangent)
    assert_close(lj.convert.to_keras(model, our_d_params), [d_weights])
    assert_close(our_d_xs, d_xs)


def test_masked_lstm_agrees():
    layer = build(
        keras.layers.LSTM(
            H, return_sequences=True, return_state=True, zero_output_for_mask=True
        )
    )
    xs = normal(1, (B, T, I))
    mask = random_controls(2, (B,), T, ("mask",))["mask"]
    ys, *last = call(layer, xs, mask=jnp.asarray(mask))
    model, params = lj.convert.from_keras(layer.get_weights())
    our_last, our_ys = model.apply(params, xs, mask=mask)
    assert_close(our_ys, ys)
    assert_close(lj.convert.state_to_keras(our_last), [last])


def test_go_backwards_is_reverse_in_processing_order():
    layer = build(keras.layers.LSTM(H, return_sequences=True, go_backwards=True))
    xs = normal(1, (B, T, I))
    _, (params,) = lj.convert.from_keras(layer.get_weights())
    _, ys = lj.lstm(params.forward, xs, reverse=True)
    assert_close(jnp.flip(ys, 1), call(layer, xs))


@pytest.mark.parametrize("each", [(True, False, True), (False, True, True), True])
def test_stacks_that_go_backwards_alternate(each):
    given = each if isinstance(each, tuple) else (each,) * 3
    layers = [
        build(keras.layers.LSTM(H, return_sequences=True, go_backwards=one), size)
        for one, size in zip(given, (I, H, H), strict=True)
    ]
    xs = ys = normal(1, (B, T, I))
    for layer in layers:
        ys = call(layer, ys)
    weights = [layer.get_weights() for layer in layers]
    model, params = lj.convert.from_keras(*weights, go_backwards=each)
    ours = model.apply(params, xs)[1]
    assert_close(jnp.flip(ours, 1) if model.reverse[-1] else ours, ys)
    for mine, theirs in zip(lj.convert.to_keras(model, params), weights, strict=True):
        assert_close(mine, [jnp.asarray(one) for one in theirs])


def test_directions_that_do_not_fit_are_refused():
    weights = build(keras.layers.LSTM(H)).get_weights()
    with pytest.raises(ValueError, match="go_backwards: expected one value or 1 of"):
        lj.convert.from_keras(weights, go_backwards=(True, False))
    with pytest.raises(TypeError, match="go_backwards: expected True or False, got 1"):
        lj.convert.from_keras(weights, go_backwards=1)


HARD = {
    "since Keras 3": ("hard_sigmoid", jax.nn.hard_sigmoid, 2 / 3),
    "before": (
        lambda x: keras.ops.clip(0.2 * x + 0.5, 0.0, 1.0),
        lambda x: jnp.clip(0.2 * x + 0.5, 0.0, 1.0),
        0.7,
    ),
}


@pytest.mark.parametrize(("theirs", "ours", "at_one"), HARD.values(), ids=HARD)
def test_hard_sigmoids_are_options_of_the_model(theirs, ours, at_one):
    np.testing.assert_allclose(ours(1.0), at_one, rtol=1e-6)
    layer = build(
        keras.layers.LSTM(H, return_sequences=True, recurrent_activation=theirs)
    )
    xs = normal(1, (B, T, I))
    expected = call(layer, xs)
    plain, params = lj.convert.from_keras(layer.get_weights())
    model = dataclasses.replace(plain, gate_activation=ours)
    assert_close(model.apply(params, xs)[1], expected)
    _, others = plain.apply(params, xs)
    assert np.abs(others - expected).max() > 1e-2


def test_a_layer_and_a_gru_are_refused():
    layer = build(keras.layers.LSTM(H))
    with pytest.raises(TypeError, match=r"got LSTM\. Pass layer\.get_weights\(\)"):
        lj.convert.from_keras(layer)
    with pytest.raises(ValueError, match="look like the weights of a GRU"):
        lj.convert.from_keras(build(keras.layers.GRU(H)).get_weights())


def test_variables_are_taken_as_their_arrays():
    layer = build(keras.layers.LSTM(H))
    expected = lj.convert.from_keras(layer.get_weights())[1]
    _, params = lj.convert.from_keras(layer.weights)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_stack_agrees_and_weights_round_trip():
    first = build(
        keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))
    )
    second = build(keras.layers.Bidirectional(keras.layers.LSTM(H)), 8)
    xs = normal(1, (B, T, I))
    model, params = lj.convert.from_keras(
        first.get_weights(), second.get_weights(), bidirectional=True
    )
    state, _ = model.apply(params, xs)
    last = jnp.concatenate([one.h for one in state[-1]], -1)
    assert_close(last, call(second, call(first, xs)))
    for layer, weights in zip(
        (first, second), lj.convert.to_keras(model, params), strict=True
    ):
        layer.set_weights([w * 0 for w in weights])
        layer.set_weights(weights)
    assert_close(last, call(second, call(first, xs)))


def test_initial_values_have_keras_statistics():
    layer = keras.layers.LSTM(40)
    layer.build((None, None, 30))
    theirs = [np.asarray(w) for w in layer.get_weights()]
    model = lj.LSTM(30, 40)
    (ours,) = lj.convert.to_keras(model, model.init(jax.random.key(0)))
    np.testing.assert_array_equal(ours[2], theirs[2])
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(a.std(), b.std(), rtol=0.05)
        np.testing.assert_allclose(
            np.abs(a @ a.T).max(), np.abs(b @ b.T).max(), rtol=0.2
        )
