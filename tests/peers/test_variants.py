"""Variants against straightforward programs in torch, and ConvLSTM against Keras."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lstm_jax as lj
from tests.common import assert_close, normal, random_params, random_state

B, T, I, H = 3, 6, 4, 5


def layer_norm_lstm(p, xs, h, c):
    """Layer normalisation in torch: Ba et al. with shifts, Haste without."""
    gates = p["kernel"].shape[1:]
    shifts = p.get("norm_shift", (None, None))
    ys = []
    for x in xs.unbind(1):
        z = F.layer_norm(x @ p["kernel"], gates, p["norm_scale"][0], shifts[0])
        r = h @ p["recurrent_kernel"]
        r = F.layer_norm(r, gates, p["norm_scale"][1], shifts[1])
        i, f, g, o = (z + r + p["bias"]).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        shown = F.layer_norm(c, c.shape[-1:], *p["cell_norm"])
        h = o.sigmoid() * shown.tanh()
        ys.append(h)
    return h, c, torch.stack(ys, 1)


@pytest.mark.parametrize("layer_norm", ["haste", "ba"])
def test_layer_norm_agrees_with_torch(layer_norm):
    cell = lj.LSTMCell(I, H, layer_norm=layer_norm)
    params, state = random_params(cell, 0), random_state(cell, 1, (B,))
    xs, cotangent = normal(2, (B, T, I)), normal(3, (B, T, H))
    leaves = {n: v for n, v in params._asdict().items() if v is not None}
    tensor = lambda a: torch.tensor(np.asarray(a), requires_grad=True)
    theirs = {name: tensor(value) for name, value in leaves.items()}
    inputs = [tensor(a) for a in (xs, *state)]
    h, c, ys = layer_norm_lstm(theirs, *inputs)
    ys.backward(torch.tensor(np.asarray(cotangent)))

    run = lambda params, xs, state: lj.scan(cell, params, xs, state)
    (last, ours), pull = jax.vjp(run, params, xs, state)
    zeros = jax.tree.map(jnp.zeros_like, last)
    grads, d_xs, d_state = pull((zeros, cotangent))
    numpy = lambda t: t.detach().numpy()
    assert_close((ours, *last), (numpy(ys), numpy(h), numpy(c)))
    ours = {name: getattr(grads, name) for name in leaves}
    assert_close(ours, {name: t.grad.numpy() for name, t in theirs.items()})
    assert_close((d_xs, *d_state), tuple(t.grad.numpy() for t in inputs))


CONVOLUTIONS = {
    "same": dict(kernel_size=3),
    "valid": dict(kernel_size=(3, 2), padding="valid"),
    "strides": dict(kernel_size=3, strides=(2, 1)),
    "dilation": dict(kernel_size=2, dilation=2, padding="valid"),
    "no_bias": dict(kernel_size=(1, 3), use_bias=False),
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv_lstm_2d_agrees_with_keras(options):
    """Without a mask: Keras 3.15 on JAX can't broadcast one over an image."""
    image, filters = (6, 5, 2), 3
    cell = lj.ConvLSTMCell(image, filters, **options)
    theirs = {"dilation_rate" if k == "dilation" else k: v for k, v in options.items()}
    layer = keras.layers.ConvLSTM2D(
        filters,
        return_sequences=True,
        return_state=True,
        **({"padding": "same"} | theirs),
    )
    layer.build((None, None, *image))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(0, 0.5, w.shape) for w in layer.get_weights()])
    weights = [w.value for w in layer.trainable_variables]
    rest = [w.value for w in layer.non_trainable_variables]
    params, xs = lj.LSTMParams(*weights), normal(1, (B, T, *image))

    def keras_run(weights, xs):
        (ys, h, c), _ = layer.stateless_call(weights, rest, xs)
        return lj.LSTMState(h, c), ys

    expected, pull = jax.vjp(keras_run, weights, xs)
    ours, our_pull = jax.vjp(lambda p, x: lj.scan(cell, p, x), params, xs)
    assert_close(ours, expected)
    cotangents = jax.tree.map(lambda a: normal(4, a.shape), expected)
    grads, d_xs = our_pull(cotangents)
    expected_grads, expected_d_xs = pull(cotangents)
    assert_close(d_xs, expected_d_xs)
    assert_close([g for g in grads if g is not None], list(expected_grads))


@pytest.mark.parametrize("axes", [1, 3])
def test_conv_lstm_agrees_with_keras_in_other_dimensions(axes):
    image = (5, 4, 3)[:axes]
    layer = (keras.layers.ConvLSTM1D if axes == 1 else keras.layers.ConvLSTM3D)(
        2, 2, padding="same", return_sequences=True
    )
    layer.build((None, None, *image, 2))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(0, 0.5, w.shape) for w in layer.get_weights()])
    cell = lj.ConvLSTMCell((*image, 2), 2, 2)
    xs = normal(1, (2, 4, *image, 2))
    params = lj.LSTMParams(*map(jnp.asarray, layer.get_weights()))
    assert_close(lj.scan(cell, params, xs)[1], layer(xs))


@pytest.mark.parametrize(
    "names, functions",
    [
        (("relu", "hard_sigmoid"), (jax.nn.relu, jax.nn.hard_sigmoid)),
        (("softsign", "sigmoid"), (jax.nn.soft_sign, jax.nn.sigmoid)),
    ],
    # The same in every process: the text of a function has its address.
    ids=["relu", "softsign"],
)
def test_activations_agree_with_keras(names, functions):
    activation, gate = names
    layer = keras.layers.LSTM(
        H, activation=activation, recurrent_activation=gate, return_sequences=True
    )
    layer.build((None, None, I))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(0, 0.3, w.shape) for w in layer.get_weights()])
    cell = lj.LSTMCell(
        I,
        H,
        candidate_activation=functions[0],
        output_activation=functions[0],
        gate_activation=functions[1],
    )
    xs = normal(1, (B, T, I))
    params = lj.LSTMParams(*map(jnp.asarray, layer.get_weights()))
    assert_close(lj.scan(cell, params, xs)[1], layer(xs))


def test_dropout_agrees_with_keras_given_its_masks():
    """Keras's own dropout and recurrent dropout, which has a mask for each gate."""
    layer = keras.layers.LSTM(
        H, dropout=0.4, recurrent_dropout=0.3, return_sequences=True, seed=0
    )
    layer.build((None, None, I))
    xs = normal(1, (B, T, I))
    cell = lj.Regularized(lj.LSTMCell(I, H), input_dropout=0.4, recurrent_dropout=0.3)
    params = lj.LSTMParams(*map(jnp.asarray, layer.get_weights()))
    _, noise, _ = cell.perturb(jax.random.key(0), params, jnp.moveaxis(xs, 1, 0))
    layer.cell._dropout_mask = [noise.input_mask] * 4
    layer.cell._recurrent_dropout_mask = [noise.recurrent_mask] * 4
    state, ys = jnp.zeros((B, H)), []
    states = [state, state]
    for t in range(T):
        y, states = layer.cell(xs[:, t], states, training=True)
        ys.append(y)
    ours = lj.scan(cell, params, xs, key=jax.random.key(0))[1]
    assert_close(ours, jnp.stack(ys, 1))
