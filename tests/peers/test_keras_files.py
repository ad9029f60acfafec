"""Files that Keras itself has written, against the running layers."""

import functools

import jax.numpy as jnp
import keras
import numpy as np
import pytest

from lstm_jax.convert.files.keras import load_keras
from tests.common import assert_close, normal

B, T, I = 2, 5, 3
WAYS = (".keras", ".h5", ".weights.h5")
LSTM = keras.layers.LSTM


def randomised(model):
    """The model with random weights, biases too."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    return model


def saved(model, path):
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def told(path, **options):
    """What a file of weights alone does not say."""
    return options if path.name.endswith(".weights.h5") else {}


@functools.cache
def everything():
    """One of each kind of layer, and an optimizer, whose arrays are saved too."""
    xs = keras.Input((T, I))
    inside = keras.Sequential(
        [
            keras.Input((T, I)),
            LSTM(4, return_sequences=True, name="first"),
            keras.layers.Dropout(0.3),
            LSTM(2, return_sequences=True, use_bias=False, name="second"),
        ],
        name="inside",
    )
    ys = inside(xs)
    half = LSTM(3, return_sequences=True, recurrent_activation="hard_sigmoid")
    bidirectional = keras.layers.Bidirectional(half, merge_mode="ave", name="both")
    ys = bidirectional(ys)
    bidirectional.forward_layer.trainable = False
    ys = keras.layers.GRU(4, return_sequences=True, name="gru")(ys)
    ys = keras.layers.TimeDistributed(keras.layers.Dense(3), name="dense")(ys)
    noisy = LSTM(4, return_sequences=True, dropout=0.2, recurrent_dropout=0.1)
    ys = noisy(ys)
    wrapped = keras.layers.RNN(keras.layers.LSTMCell(2), name="rnn")(ys)
    last = LSTM(3, activation="softsign", name="last", go_backwards=True)(ys)
    model = randomised(keras.Model(xs, [wrapped, last]))
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def layers_of(model):
    """Its LSTM layers by the names they have for us."""
    layers = {layer.name: layer for layer in model.layers}
    layers |= {f"inside/{one.name}": one for one in layers.pop("inside").layers}
    kinds = (LSTM, keras.layers.Bidirectional, keras.layers.RNN)
    return {
        name: layer
        for name, layer in layers.items()
        if isinstance(layer, kinds) and name != "gru"
    }


@functools.cache
def expected(name):
    """Inputs of a layer, and what it computes: all steps and its last state."""
    layer = layers_of(everything())[name]
    cell = layer.forward_layer.cell if name == "both" else layer.cell
    xs = normal(2, (B, T, cell.kernel.shape[0]))
    halves = [layer]
    if hasattr(layer, "forward_layer"):
        halves = [layer, layer.forward_layer, layer.backward_layer]
    for one in halves:
        one.return_sequences = one.return_state = True
    out = layer(xs)
    for one in halves:
        one.return_state = False
    return xs, [jnp.asarray(np.asarray(one)) for one in out]


@pytest.mark.parametrize("way", WAYS)
def test_every_layer_of_a_model_agrees(way, tmp_path):
    model = everything()
    path = saved(model, tmp_path / f"model{way}")
    layers = layers_of(model)
    assert len(layers) == 6
    for name, layer in layers.items():
        check(path, name, layer)
    with pytest.raises(ValueError, match="gru.*GRU"):
        load_keras(path, "gru", **told(path, activation="tanh"))
    if not path.name.endswith(".weights.h5"):
        assert set(load_keras(path, go_backwards=True)) == set(layers)


def check(path, name, layer):
    options = told(
        path,
        activation="softsign" if name == "last" else "tanh",
        recurrent_activation="sigmoid",
    )
    if name == "both":
        options |= told(path, merge_mode="ave")
        if options:
            options["recurrent_activation"] = keras_hard_sigmoid
    backwards = getattr(layer, "go_backwards", False)
    ours, params = load_keras(path, name, go_backwards=backwards, **options)
    xs, (ys, *states) = expected(name)
    state, mine = ours.apply(params, jnp.flip(xs, 1) if backwards else xs)
    assert_close(mine, ys, name=name)
    flat = [leaf for one in state[0] if one is not None for leaf in one]
    assert_close(flat, states, name=name)


def keras_hard_sigmoid(x):
    return jnp.clip(x / 6 + 0.5, 0, 1)


@pytest.mark.parametrize("way", WAYS)
def test_layers_that_feed_each_other_are_one_model(way, tmp_path):
    model = randomised(
        keras.Sequential(
            [
                keras.Input((T, I)),
                LSTM(4, return_sequences=True, name="a"),
                LSTM(2, return_sequences=True, name="b"),
            ]
        )
    )
    path = saved(model, tmp_path / f"model{way}")
    options = told(path, activation="tanh", recurrent_activation="sigmoid")
    ours, params = load_keras(path, "a", "b", **options)
    assert ours.hidden_size == (4, 2)
    xs = normal(1, (B, T, I))
    assert_close(ours.apply(params, xs)[1], jnp.asarray(np.asarray(model(xs))))


@pytest.mark.parametrize("way", [".keras", ".weights.h5"])
def test_bfloat16_comes_bit_for_bit(way, tmp_path):
    layer = LSTM(2, dtype="bfloat16", recurrent_initializer="glorot_uniform", name="a")
    model = keras.Sequential([keras.Input((T, I)), layer])
    model.set_weights([normal(n, w.shape) for n, w in enumerate(model.get_weights())])
    path = saved(model, tmp_path / f"model{way}")
    options = told(path, activation="tanh", recurrent_activation="sigmoid")
    _, params = load_keras(path, "a", **options)
    for one, other in zip(params[0].forward[:3], layer.get_weights(), strict=True):
        assert one.dtype == jnp.bfloat16
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_a_stateful_layer_and_a_wrapped_one(way, tmp_path):
    xs = keras.Input(batch_shape=(B, T, I))
    ys = LSTM(4, stateful=True, return_sequences=True, name="a")(xs)
    ys = keras.layers.Reshape((T, 2, 2))(ys)
    inner = LSTM(3, name="b", return_sequences=True)
    ys = keras.layers.TimeDistributed(inner, name="c")(ys)
    model = randomised(keras.Model(xs, ys))
    path = saved(model, tmp_path / f"model{way}")
    options = told(path, activation="tanh", recurrent_activation="sigmoid")
    found = load_keras(path, **options)
    assert set(found) == {"a", "c"}
    xs = normal(1, (B, T, 2, 2))
    model_c, params = found["c"]
    expected = model.get_layer("c")(xs)
    assert_close(model_c.apply(params, xs)[1], jnp.asarray(np.asarray(expected)))


@pytest.mark.parametrize("way", WAYS)
def test_cells_that_are_stacked_inside_are_refused_not_lost(way, tmp_path):
    cells = [keras.layers.LSTMCell(3), keras.layers.LSTMCell(2)]
    layers = [keras.Input((T, I)), keras.layers.RNN(cells, name="stack")]
    path = saved(keras.Sequential(layers), tmp_path / f"model{way}")
    options = told(path, activation="tanh", recurrent_activation="sigmoid")
    with pytest.raises(ValueError, match="looks like an LSTM's"):
        load_keras(path, **options)
    if not options:
        with pytest.raises(ValueError, match="'stack' is an RNN of StackedRNNCells"):
            load_keras(path, "stack")


def test_arrays_as_pickles_are_refused(tmp_path):
    from keras.src.saving import saving_lib

    model = keras.Sequential([keras.Input((T, I)), LSTM(2)])
    path = tmp_path / "model.keras"
    saving_lib.save_model(model, path, weights_format="npz")
    with pytest.raises(ValueError, match="an .npz, which holds pickles: .* never read"):
        load_keras(path)
