"""Converters without the other libraries: layouts, round trips, published numbers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import lstm_jax as lj
from tests.common import random_like

OPTIONS = {
    "plain": {},
    "stack": dict(num_layers=2, bidirectional=True),
    "projection": dict(num_layers=2, proj_size=2, use_bias=False),
}


def build(options):
    model = lj.LSTM(3, 5, **options)
    return model, random_like(1, model.init(jax.random.key(0)))


def equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_torch_round_trip(options):
    model, params = build(options)
    weights = lj.convert.to_torch(model, params)
    again, back = lj.convert.from_torch(weights)
    assert again == model
    equal(back, params)
    prefixed = {f"net.{name}": value for name, value in weights.items()}
    equal(lj.convert.from_torch(prefixed | {"x": 1}, prefix="net.")[1], params)
    state = random_like(2, model.zero_state((4,)))
    h, c = lj.convert.state_to_torch(model, state)
    assert h.shape[:2] == (model.num_layers * (1 + model.bidirectional), 4)
    equal(lj.convert.state_from_torch(model, h, c), state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_torch_weights_survive_a_file(options, dtype, tmp_path):
    model, params = build(options | {"param_dtype": jnp.dtype(dtype)})
    weights = lj.convert.to_torch(model, params)
    save_file(weights, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="np") as file:
        read = {name: file.get_tensor(name) for name in file.keys()}
    equal(read, weights)
    equal(lj.convert.from_torch(read)[1], params)
    check_own(weights.values())


@pytest.mark.parametrize("bidirectional", [False, True])
def test_keras_weights_are_their_own(bidirectional):
    model, params = build(dict(num_layers=2, bidirectional=bidirectional))
    layers = lj.convert.to_keras(model, params)
    check_own(array for weights in layers for array in weights)
    params = jax.tree.map(np.asarray, params)
    layers = lj.convert.to_keras(model, params)
    before = jax.tree.map(np.copy, params)
    for weights in layers:
        for array in weights:
            array += 1
    equal(params, before)


def check_own(arrays):
    for array in arrays:
        flags = array.flags
        assert flags.c_contiguous and flags.writeable and flags.owndata


def test_torch_biases_are_summed_and_gates_kept_in_order():
    model, params = build({})
    weights = lj.convert.to_torch(model, params)
    weights["bias_hh_l0"] = np.arange(20, dtype=np.float32)
    (layer,) = lj.convert.from_torch(weights)[1]
    np.testing.assert_array_equal(
        layer.forward.bias, params[0].forward.bias + np.arange(20, dtype=np.float32)
    )
    forget = weights["weight_ih_l0"][5:10]
    np.testing.assert_array_equal(layer.forward.kernel[:, 5:10], forget.T)


@pytest.mark.parametrize(
    "options", [{}, dict(num_layers=2, bidirectional=True)], ids=str
)
@pytest.mark.parametrize("use_bias", [True, False])
def test_keras_round_trip(options, use_bias):
    model, params = build(options | {"use_bias": use_bias})
    weights = lj.convert.to_keras(model, params)
    again, back = lj.convert.from_keras(*weights, bidirectional=model.bidirectional)
    assert again == model
    equal(back, params)
    state = random_like(2, model.zero_state((4,)))
    equal(lj.convert.state_from_keras(*lj.convert.state_to_keras(state)), state)


def test_keras_published_expectation():
    """Keras's own test of its LSTM (keras/src/layers/rnn/lstm_test.py)."""
    constant = lambda value: lambda key, shape, dtype: jnp.full(shape, value, dtype)

    def bias(key, shape, dtype):
        # With unit_forget_bias Keras takes 1 instead of the initializer's value.
        return jnp.full(shape, 0.03, dtype).at[3:6].set(0)

    model = lj.LSTM(
        4, 3, kernel_init=constant(0.01), recurrent_init=constant(0.02), bias_init=bias
    )
    params = model.init(jax.random.key(0))
    xs = jnp.arange(72, dtype=jnp.float32).reshape(3, 6, 4)
    state, _ = model.apply(params, xs)
    expected = np.array([[0.6288687], [0.86899155], [0.9460773]]) * np.ones((1, 3))
    np.testing.assert_allclose(state[-1].forward.h, expected, rtol=1e-6)


def torch_weights(**changes):
    model, params = build({})
    return {**lj.convert.to_torch(model, params), **changes}


CASES = {
    "nothing": (
        lambda: lj.convert.from_torch({}),
        "state_dict: weight_ih_l0 is missing. Names begin with nothing after the "
        "prefix",
    ),
    "wrong prefix": (
        lambda: lj.convert.from_torch({"rnn.weight_ih_l0": np.ones((20, 3))}),
        "state_dict: weight_ih_l0 is missing. Names begin with rnn after the prefix ''",
    ),
    "another module's weights": (
        lambda: lj.convert.from_torch(torch_weights(**{"fc.weight": np.ones(2)})),
        "state_dict: unknown names fc.weight. For an LSTM inside a larger module pass",
    ),
    "a bias is missing": (
        lambda: lj.convert.from_torch(
            {k: v for k, v in torch_weights().items() if k != "bias_hh_l0"}
        ),
        "state_dict: bias_hh_l0 is missing.",
    ),
    "a GRU": (
        lambda: lj.convert.from_torch(torch_weights(weight_ih_l0=np.ones((15, 3)))),
        "weight_ih_l0: expected shape [4H, I] with H = 5, got [15, 3]. These look like "
        "the weights of a GRU.",
    ),
    "a wrong bias": (
        lambda: lj.convert.from_torch(torch_weights(bias_ih_l0=np.ones(5))),
        "bias_ih_l0: expected shape [4H] = [20], got [5].",
    ),
    "per-layer sizes": (
        lambda: lj.convert.to_torch(lj.LSTM(3, (4, 5)), ()),
        "hidden_size: expected one size for all layers, as PyTorch has, got (4, 5).",
    ),
    "another merge": (
        lambda: lj.convert.to_torch(lj.LSTM(3, 4, bidirectional=True, merge="sum"), ()),
        "merge: expected 'concat', which is all that PyTorch has, got 'sum'.",
    ),
    "a state of other layers": (
        lambda: lj.convert.state_from_torch(
            lj.LSTM(3, 5, 2), np.ones((1, 4, 5)), np.ones((1, 4, 5))
        ),
        "h: expected shape [L*D, *batch, ...] with L*D = 2 * 1, got [1, 4, 5].",
    ),
    "Bidirectional without saying so": (
        lambda: lj.convert.from_keras([np.ones(1)] * 6),
        "layers[0]: expected 2 or 3 arrays (kernel, recurrent_kernel and, with "
        "use_bias, bias), got 6. Six arrays are those of a Bidirectional layer: pass",
    ),
    "no Keras layers": (
        lambda: lj.convert.from_keras(),
        "layers: expected the weights of at least one layer, got none.",
    ),
    "a Keras GRU": (
        lambda: lj.convert.from_keras(
            [np.ones((3, 15)), np.ones((5, 15)), np.ones(15)]
        ),
        "layers[0] kernel: expected shape [I, 4H] = (3, 20), got (3, 15). A GRU has 3H",
    ),
    "a Keras merge_mode": (
        lambda: lj.convert.from_keras([], merge_mode="mean"),
        "merge_mode: expected one of 'concat', 'sum', 'ave', 'mul', got 'mean'.",
    ),
    "a projection to Keras": (
        lambda: lj.convert.to_keras(lj.LSTM(3, 5, proj_size=2), ()),
        "proj_size: expected None, since Keras has no projection, got 2.",
    ),
    "a Keras state": (
        lambda: lj.convert.state_from_keras([np.ones(2)]),
        "states[0]: expected [h, c] or [h, c, h, c], got 1 arrays.",
    ),
}


@pytest.mark.parametrize(("call", "words"), CASES.values(), ids=CASES)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
