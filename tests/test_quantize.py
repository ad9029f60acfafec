"""`quantize`: what it takes and refuses, how close it is, and where its models go."""

import copy
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstm_jax as lj
from lstm_jax import training
from lstm_jax.cells.int8 import DEEPEST
from tests.common import normal, random_params

PLAIN = lj.LSTM(3, 7, 2, proj_size=4, dropout=0.5, input_dropout=0.1)
MODEL, PARAMS = lj.quantize(PLAIN, random_params(PLAIN, 0))
XS = normal(1, (2, 9, 3))


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_what_comes_back():
    assert MODEL == lj.Stack(
        (
            lj.QuantizedLSTMCell(3, 7, proj_size=4),
            lj.QuantizedLSTMCell(4, 7, proj_size=4),
        )
    )
    assert isinstance(PARAMS[1].forward, lj.QuantizedParams)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    wide = lj.LSTM(256, 256)
    params = wide.init(jax.random.key(0))
    assert size(lj.quantize(wide, params)[1]) < 0.27 * size(params)
    cell, params = lj.quantize(
        lj.LSTMCell(3, 5), lj.LSTMCell(3, 5).init(jax.random.key(0))
    )
    assert cell == lj.QuantizedLSTMCell(3, 5)
    same(cell.init(jax.random.key(0)), params)
    again, made = (
        jax.jit(lambda p: lj.quantize(PLAIN, p)[1])(random_params(PLAIN, 0)),
        PARAMS,
    )
    same(again, made)


REFUSED = {
    "peephole": {"peephole": True},
    "variant": {"variant": "CIFG"},
    "layer_norm": {"layer_norm": "haste"},
    "gate_activation": {"gate_activation": jax.nn.hard_sigmoid},
    "candidate_activation": {"candidate_activation": jax.nn.relu},
    "output_activation": {"output_activation": jax.nn.relu},
    "num_heads": {"num_heads": 2},
    "zoneout_h": {"zoneout_h": 0.1},
    "zoneout_c": {"zoneout_c": 0.1},
    "dtype": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_is_refused_by_name(option):
    model = lj.LSTM(4, (4, 4), **REFUSED[option])
    with pytest.raises(ValueError, match=f"^{option}: expected .* in layer 0"):
        lj.quantize(model, model.init(jax.random.key(0)))


def test_other_models_are_refused():
    slstm = lj.LSTM(4, 4, variant="sLSTM")
    with pytest.raises(TypeError, match="expected layers of LSTMCell, .*got SLSTMCell"):
        lj.quantize(slstm, slstm.init(jax.random.key(0)))
    conv = lj.ConvLSTMCell((4, 2), 2, 2)
    with pytest.raises(TypeError, match="got ConvLSTMCell"):
        lj.quantize(conv, conv.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="quantised already in layer 0"):
        lj.quantize(MODEL, PARAMS)
    with pytest.raises(TypeError, match="model: expected a stack .*got tuple"):
        lj.quantize(random_params(PLAIN, 0), PLAIN)
    with pytest.raises(ValueError, match=f"input_size: expected at most {DEEPEST}"):
        lj.QuantizedLSTMCell(DEEPEST + 1, 1)


def test_other_parameters_are_refused():
    good = random_params(PLAIN, 0)
    kernel = good[1].forward.kernel
    for bad in (np.nan, np.inf):
        one = good[1].forward._replace(kernel=kernel.at[1, 2].set(bad))
        with pytest.raises(
            ValueError, match=r"params\[1\].forward.kernel: expected finite"
        ):
            lj.quantize(PLAIN, (good[0], lj.Directions(one)))
    with jax.enable_x64(True):
        wide = random_params(PLAIN, 0, "float64")
        with pytest.raises(TypeError, match=r"params\[0\].forward.kernel: .*float64"):
            lj.quantize(PLAIN, wide)
    with pytest.raises(TypeError, match="expected an LSTMParams"):
        lj.quantize(lj.LSTMCell(3, 5), PARAMS)
    half = random_params(PLAIN, 0, "bfloat16")
    as_float = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    same(lj.quantize(PLAIN, half)[1], lj.quantize(PLAIN, as_float)[1])
    floats = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    with pytest.raises(TypeError, match="forward.kernel: expected int8, got float32"):
        MODEL.apply(floats, XS)
    with pytest.raises(ValueError, match=r"kernel_scale: expected shape \[4H\]"):
        one = PARAMS[0].forward._replace(kernel_scale=jnp.ones(3))
        MODEL.apply((lj.Directions(one), PARAMS[1]), XS)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_are_the_same_model(way):
    whole = MODEL.apply(PARAMS, XS)[1]
    model, params = way((MODEL, PARAMS))
    assert model == MODEL and hash(model) == hash(MODEL)
    same(params, PARAMS)
    same(model.apply(params, XS)[1], whole)
    assert lj.from_config(json.loads(json.dumps(MODEL.to_config()))) == MODEL


def test_files_of_weights(tmp_path):
    like = jax.eval_shape(MODEL.init, jax.random.key(0))
    training.save_weights(tmp_path / "weights.safetensors", PARAMS)
    same(training.load_weights(tmp_path / "weights.safetensors", like), PARAMS)
    with training.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, PARAMS)
        restored = checkpoints.restore(like).state
    same(restored, PARAMS)
    assert restored[0].forward.kernel.dtype == jnp.int8
    same(MODEL.apply(restored, XS)[1], MODEL.apply(PARAMS, XS)[1])


@pytest.mark.parametrize("step", [False, True])
def test_an_exported_program_gives_the_same_bits(step, tmp_path):
    path = tmp_path / "model.zip"
    path.write_bytes(lj.export(MODEL, PARAMS, step=step))
    call = lj.exporting.load(path)
    if step:
        state = ys = None
        for x in jnp.moveaxis(XS, 1, 0):
            state, ys = call(x, state)
        same(ys, MODEL.apply(PARAMS, XS)[1][:, -1])
    else:
        lengths = np.array([9, 4], np.int32)
        ys = call(XS, lengths=lengths)[1]
        same(ys, MODEL.apply(PARAMS, XS, lengths=lengths)[1])
    model, params = lj.exporting.read_model(path)[:2]
    assert model == MODEL
    same(params, PARAMS)


def test_flax_modules_hold_it():
    from lstm_jax import linen

    module = linen.LSTM(3, 7, 2)
    variables = module.init(jax.random.key(0), XS)
    made, params = lj.quantize(lj.LSTM(3, 7, 2), linen.params_of(variables))
    ys = linen.Stack(made).apply(linen.variables_of(params), XS)[1]
    same(ys, made.apply(params, XS)[1])


def relative(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def trained_characters():
    """A small character model, trained until it knows its text well."""
    words = "the cat sat on the mat and the dog ran after the cat while it slept. "
    ids = np.array([ord(c) - 32 for c in words * 30]) % 64
    model, tx = lj.LSTM(64, 48, 2), optax.adam(2e-2)
    key = jax.random.key(0)
    readout = jax.random.normal(key, (48, 64)) * 0.1
    params = (model.init(key), readout)

    def logits(params, xs):
        return model.apply(params[0], xs)[1] @ params[1]

    @jax.jit
    def step(params, moments, start):
        window = jax.lax.dynamic_slice(jnp.asarray(ids), (start,), (129,))
        window = window.reshape(-1)
        xs, targets = jax.nn.one_hot(window[:-1], 64), window[1:]

        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(
                logits(params, xs), targets
            ).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = tx.update(grads, moments)
        return optax.apply_updates(params, updates), moments, value

    moments, rng, loss = tx.init(params), np.random.default_rng(0), None
    for _ in range(400):
        start = rng.integers(0, len(ids) - 129)
        params, moments, loss = step(params, moments, jnp.int32(start))
    return model, params, float(loss), jax.nn.one_hot(jnp.asarray(ids[:400]), 64)


def test_a_trained_model_is_under_one_percent_off():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, (params, readout), loss, xs = trained_characters()
    assert loss < 0.3
    small, small_params = lj.quantize(model, params)
    ys, ours = model.apply(params, xs)[1], small.apply(small_params, xs)[1]
    assert relative(ours, ys) < 0.01
    agree = (ours @ readout).argmax(-1) == (ys @ readout).argmax(-1)
    assert np.asarray(agree).mean() > 0.99
