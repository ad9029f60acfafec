"""Converters without the other libraries: layouts, round trips, published numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import lstm_jax as lj
from tests.common import assert_close, random_like

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
    weights["bias_ih_l0"] = np.float16(weights["bias_ih_l0"])  # the wider counts
    wide = np.float32(weights["bias_ih_l0"]) + weights["bias_hh_l0"]
    (layer,) = lj.convert.from_torch(weights)[1]
    np.testing.assert_array_equal(layer.forward.bias, wide, strict=True)
    forget = weights["weight_ih_l0"][5:10]
    np.testing.assert_array_equal(layer.forward.kernel[:, 5:10], forget.T)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_normalised_weights_in_half_precision_need_no_promotion(dtype):
    """JAX promotes nothing by itself in these tests, as for users who ask for that."""
    weights = lj.convert.to_torch(*build({}))
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    v = weights.pop("weight_hh_l0")
    g = np.linalg.norm(np.float32(v), axis=1, keepdims=True).astype(dtype)
    forms = {"weight_hh_l0_v": v, "weight_hh_l0_g": g}
    (layer,) = lj.convert.from_torch(weights | forms)[1]
    assert layer.forward.recurrent_kernel.dtype == dtype
    assert_close(layer.forward.recurrent_kernel, jnp.asarray(v).T, np.dtype(dtype).name)


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


def torch_cell(**options):
    """The weights of one layer under the names of an nn.LSTMCell."""
    model, params = build(options)
    weights = lj.convert.to_torch(model, params)
    return {name.removesuffix("_l0"): value for name, value in weights.items()}, params


@pytest.mark.parametrize("prefix", ["", "decoder.", "decoder.module."])
@pytest.mark.parametrize("use_bias", [True, False])
def test_torch_cell_is_one_layer(use_bias, prefix):
    weights, params = torch_cell(use_bias=use_bias)
    given = {prefix + name: value for name, value in weights.items()}
    model, back = (
        lj.convert.from_torch(given | {"other": 1}, prefix="decoder.")
        if (prefix)
        else lj.convert.from_torch(given)
    )
    assert model == lj.LSTM(3, 5, use_bias=use_bias)
    equal(back, params)


@pytest.mark.parametrize("stale", [False, True], ids=["alone", "beside"])
@pytest.mark.parametrize("raw_at", ["rnns.0.", "rnns.0.module."])
@pytest.mark.parametrize("prefix", ["rnns.0.", "rnns.0.module."])
def test_torch_weight_drop_keeps_the_raw_weight(prefix, raw_at, stale):
    model, params = build(dict(num_layers=2, bidirectional=True))
    weights = lj.convert.to_torch(model, params)
    given = {"encoder.weight": np.ones(2)}
    for name, value in weights.items():
        if "weight_hh" in name:
            given[f"{raw_at}{name}_raw"] = value
            value = np.zeros_like(value)
            if not stale:
                continue
        given["rnns.0.module." + name] = value
    again, back = lj.convert.from_torch(given, prefix=prefix)
    assert again == model
    equal(back, params)


def test_stacks_of_one_layer_each_are_joined_by_hand():
    """As AWD-LSTM keeps them: layers of their own sizes."""
    sizes = (6, 6, 4)
    model = lj.LSTM(4, sizes)
    params = random_like(1, model.init(jax.random.key(0)))
    parts = []
    for cell, layer in zip(model.cells, params, strict=True):
        one = lj.LSTM(cell.input_size, cell.hidden_size)
        parts += lj.convert.from_torch(lj.convert.to_torch(one, (layer,)))[1]
    equal(tuple(parts), params)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_cudnn_lstm_of_keras(bidirectional):
    model, params = build(dict(num_layers=2, bidirectional=bidirectional))
    # Eighths, so that halves add up exactly.
    params = jax.tree.map(lambda leaf: jnp.round(leaf * 8) / 8, params)
    layers = lj.convert.to_keras(model, params)
    given = [
        [
            array
            for n in range(0, len(weights), 3)
            for array in as_cudnn(*weights[n : n + 3])
        ]
        for weights in layers
    ]
    again, back = lj.convert.from_keras(*given, bidirectional=bidirectional)
    assert again == model
    equal(back, params)


def as_cudnn(kernel, recurrent, bias):
    """Element by element, as the layout is described."""
    (inputs, columns), hidden = kernel.shape, recurrent.shape[0]
    kernel_there, recurrent_there = np.empty_like(kernel), np.empty_like(recurrent)
    for gate in range(0, columns, hidden):
        columnwise = [kernel[i, gate + h] for h in range(hidden) for i in range(inputs)]
        for n, value in enumerate(columnwise):
            kernel_there[n // hidden, gate + n % hidden] = value
        for a in range(hidden):
            for b in range(hidden):
                recurrent_there[b, gate + a] = recurrent[a, gate + b]
    return kernel_there, recurrent_there, np.concatenate([bias * 0.25, bias * 0.75])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(dtype == "float64"):
        model, params = build(dict(param_dtype=jnp.dtype(dtype)))
        assert params[0].forward.kernel.dtype == dtype
        for again, back in (
            lj.convert.from_torch(lj.convert.to_torch(model, params)),
            lj.convert.from_keras(*lj.convert.to_keras(model, params)),
        ):
            equal(back, params)
            assert back[0].forward.kernel.dtype == dtype
            assert again == model and jnp.dtype(again.param_dtype) == dtype


def test_training_noise_is_left_behind():
    noisy = lj.LSTM(3, 5, 2, recurrent_dropout=0.3, dropout=0.2, input_dropout=0.1)
    model, params = build(dict(num_layers=2))
    equal(lj.convert.to_torch(noisy, params), lj.convert.to_torch(model, params))
    equal(lj.convert.to_keras(noisy, params), lj.convert.to_keras(model, params))


def test_stacks_of_cells_are_exported():
    stack = lj.Stack((lj.LSTMCell(3, 5), lj.LSTMCell(5, 5)))
    model, params = build(dict(num_layers=2))
    equal(lj.convert.to_torch(stack, params), lj.convert.to_torch(model, params))
    h, c = lj.convert.state_to_torch(stack, stack.zero_state((4,)))
    equal(lj.convert.state_from_torch(stack, h, c), stack.zero_state((4,)))


def test_states_that_leave_are_numpys_own():
    model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
    state = random_like(2, model.zero_state((4,)))
    before = jax.tree.map(np.array, state)
    arrays = [*lj.convert.state_to_torch(model, state)]
    arrays += sum(lj.convert.state_to_keras(state), [])
    for array in arrays:
        assert type(array) is np.ndarray
        assert array.flags.writeable and array.flags.owndata
        array[...] = 0
    equal(state, before)
    traced = jax.jit(lambda state: lj.convert.state_to_torch(model, state))(state)
    equal(traced, lj.convert.state_to_torch(model, state))


def test_arrays_are_taken_before_they_can_be_overwritten():
    model, params = build({})
    expected = jax.tree.map(np.array, params)
    for taken, given in (
        (lj.convert.from_torch, lj.convert.to_torch(model, params)),
        (lj.convert.from_keras, lj.convert.to_keras(model, params)[0]),
    ):
        _, back = taken(given)
        for array in jax.tree.leaves(given):
            array[...] = np.nan
        equal(back, expected)
