"""Stacks: cells of several kinds, what connects layers, and noise in each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import assert_close, normal, random_controls, random_like

KEY = jax.random.key(0)
B, T = 3, 6
XS = normal(1, (B, T, 3))
CONTROLS = random_controls(2, (B,), T, ("lengths", "mask", "reset"))
MIXED = (
    lj.LSTMCell(3, 4, variant="CIFG", peephole=True),
    lj.SLSTMCell(4, 4, num_heads=2, learn_initial_state=True),
    lj.Regularized(lj.LSTMCell(4, 4, layer_norm="haste"), zoneout_h=0.3),
)
MODELS = {
    "mixed": lj.Stack(MIXED),
    "mixed_connected": lj.Stack(MIXED, residual=True),
    "variants": lj.LSTM(3, 4, 2, variant=("FGR", "sLSTM"), num_heads=2),
    "skip": lj.LSTM(3, (4, 5), bidirectional=True, skip=True),
    "residual": lj.LSTM(3, 4, 3, residual=True, bidirectional=True, merge="sum"),
    "both": lj.LSTM(3, 4, 2, residual=True, skip=True, learn_initial_state=True),
}
EVERY_MODEL = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def build(model):
    return random_like(3, model.init(KEY))


def by_layers(model, params, xs):
    """The stack as scans one after the other, with every connection written out."""
    outputs, below, states = [], xs, []
    for index, cell in enumerate(model.cells):
        inputs = below
        if index and model.skip:
            inputs = jnp.concatenate([below, xs], -1)
        after, ys = [], []
        for direction, one in enumerate(params[index]):
            if one is not None:
                last, out = lj.scan(
                    cell, one, inputs, reverse=direction == 1, **CONTROLS
                )
                after.append(last)
                ys.append(out)
        if len(ys) == 2:
            a, b = ys
            ys = [a + b if model.merge == "sum" else jnp.concatenate(ys, -1)]
        ys = ys[0] + below if index and model.residual else ys[0]
        states.append(lj.Directions(*after))
        outputs.append(ys)
        below = ys
    return tuple(states), jnp.concatenate(outputs, -1) if model.skip else below


@EVERY_MODEL
def test_stack_agrees_with_scans_layer_by_layer(model):
    params = build(model)
    state, ys = model.apply(params, XS, **CONTROLS)
    assert_close((state, ys), by_layers(model, params, XS))
    assert ys.shape[-1] == model.output_size
    zeros = model.zero_state((B,))
    assert jax.tree.map(jnp.shape, zeros) == jax.tree.map(jnp.shape, state)


@pytest.mark.parametrize("name", ["mixed_connected", "variants", "both"])
def test_steps_agree_with_apply(name):
    model = MODELS[name]
    params = build(model)
    expected_state, expected = model.apply(params, XS)
    state, ys = None, []
    for t in range(T):
        state, y = model.step(params, state, XS[:, t])
        ys.append(y)
    assert_close((state, jnp.stack(ys, 1)), (expected_state, expected))


def test_images_run_through_a_stack_of_two_directions():
    cells = lj.ConvLSTMCell((4, 3, 2), 3, 3), lj.ConvLSTMCell((4, 3, 6), 2, 3)
    model = lj.Stack(cells, bidirectional=True, dropout=0.5)
    params, xs = build(model), normal(0, (B, T, 4, 3, 2))
    state, ys = model.apply(params, xs, **CONTROLS)
    assert ys.shape == (B, T, 4, 3, 4)
    noisy = model.apply(params, xs, **CONTROLS, key=KEY)[1]
    assert not np.allclose(noisy, ys, atol=1e-3)


def test_learned_start_is_a_leaf_that_learns_and_is_honoured():
    model = lj.LSTM(3, 4, 2, bidirectional=True, learn_initial_state=True)
    params = model.init(KEY)
    for layer in params:
        for one in layer:
            assert not one.initial_h.any() and one.initial_c.shape == (4,)
    params = build(model)
    lengths = jnp.array([0, T, 2])
    reset = jnp.zeros((B, T), bool).at[1, 3].set(True)
    state, _ = model.apply(params, XS, lengths=lengths, reset=reset)
    for layer, one in zip(state, params, strict=True):
        np.testing.assert_array_equal(layer.forward.h[0], one.forward.initial_h)
        np.testing.assert_array_equal(layer.backward.c[0], one.backward.initial_c)
    grads = jax.grad(lambda p: model.apply(p, XS, reset=reset)[1].sum())(params)
    assert all(one.initial_c.any() for layer in grads for one in layer)
    forward = lj.LSTM(3, 4, learn_initial_state=True)
    one = build(forward)
    _, ys = forward.apply(one, XS, reset=reset)
    assert_close(ys[1, 3:], forward.apply(one, XS[1, 3:])[1])


def test_every_layer_can_have_its_own_rates():
    model = lj.LSTM(
        3,
        4,
        3,
        input_dropout=(0.6, 0.3, 0.0),
        output_dropout=0.4,
        drop_connect=0.5,
    )
    rates = [(c.input_dropout, c.output_dropout, c.drop_connect) for c in model.cells]
    assert rates == [(0.6, 0.0, 0.5), (0.3, 0.0, 0.5), (0.0, 0.4, 0.5)]
    assert type(lj.LSTM(3, 4).cells[0]) is lj.LSTMCell
    assert not lj.LSTM(3, 4, 2).noisy and model.noisy


@pytest.mark.parametrize("bidirectional", [False, True])
def test_noise_of_a_stack_needs_a_key_and_differs_by_layer_and_direction(bidirectional):
    merge = "sum" if bidirectional else "concat"
    options = dict(num_layers=2, bidirectional=bidirectional, merge=merge)
    plain = lj.LSTM(4, 4, **options)
    noisy = dataclasses.replace(plain, recurrent_dropout=0.5, zoneout_c=0.0)
    params, xs = build(plain), normal(1, (B, T, 4))
    assert_close(noisy.apply(params, xs), plain.apply(params, xs))
    first = noisy.apply(params, xs, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, first, noisy.apply(params, xs, key=KEY))
    assert not np.allclose(first[1], plain.apply(params, xs)[1], atol=1e-3)
    same = jax.tree.map(lambda leaf: leaf, params[0].forward)
    twice = tuple(lj.Directions(same, same if bidirectional else None) for _ in params)
    state, _ = noisy.apply(twice, jnp.ones((B, 2, 4)), key=KEY)
    if bidirectional:
        assert not np.allclose(state[0].forward.h, state[0].backward.h, atol=1e-4)


def test_bad_stacks_are_refused_in_words():
    with pytest.raises(
        ValueError, match="proj_size: expected the default with variant"
    ):
        lj.LSTM(3, 4, variant="sLSTM", proj_size=2)
    with pytest.raises(ValueError, match="peephole: expected the default with variant"):
        lj.LSTM(3, 4, 2, variant=("CIFG", "sLSTM"), peephole=True)
    with pytest.raises(
        ValueError, match="num_heads: expected a divisor of hidden_size"
    ):
        lj.LSTM(3, 4, variant="sLSTM", num_heads=3)
    with pytest.raises(
        ValueError, match="variant: expected one value or L = 2 of them"
    ):
        lj.LSTM(3, 4, 2, variant=("CIFG",))
    with pytest.raises(ValueError, match="variant: expected one of None, 'NIG'"):
        lj.LSTM(3, 4, variant="LSTM2")
    with pytest.raises(
        ValueError, match="residual: expected layers with outputs of one"
    ):
        lj.LSTM(3, (4, 5), residual=True)
    with pytest.raises(ValueError, match=r"cells\[1\]: expected an input size of 8"):
        lj.Stack((lj.LSTMCell(3, 4), lj.LSTMCell(4, 4)), bidirectional=True)
    with pytest.raises(
        ValueError, match="cells: expected a tuple with a cell for each"
    ):
        lj.Stack(())
    with pytest.raises(ValueError, match="variant: expected None, since PyTorch has"):
        lj.convert.to_torch(MODELS["variants"], build(MODELS["variants"]))
    with pytest.raises(
        ValueError, match="learn_initial_state: expected False, since Ker"
    ):
        model = lj.LSTM(3, 4, learn_initial_state=True)
        lj.convert.to_keras(model, build(model))


@pytest.mark.parametrize("name", ["mixed", "both", "variants"])
def test_flax_modules_run_any_stack(name):
    from flax import nnx

    from lstm_jax import linen
    from lstm_jax import nnx as lj_nnx

    model = MODELS[name]
    params = build(model)
    expected = model.apply(params, XS, **CONTROLS)
    variables = linen.variables_of(params)
    assert_close(linen.Stack(model).apply(variables, XS, **CONTROLS), expected)
    fresh = linen.Stack(model).init(KEY, XS)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
    module = lj_nnx.Stack(model, rngs=nnx.Rngs(0))
    module.load(params)
    assert_close(module(XS, **CONTROLS, deterministic=True), expected)
    if model.noisy:
        assert not np.allclose(module(XS, **CONTROLS)[1], expected[1], atol=1e-4)


def test_flax_modules_take_the_same_options():
    from flax import nnx

    from lstm_jax import linen
    from lstm_jax import nnx as lj_nnx

    options = dict(
        num_layers=2, variant=["CIFG", "sLSTM"], num_heads=2, zoneout_h=0.3, skip=True
    )
    model = lj.LSTM(3, 4, **options)
    assert lj_nnx.LSTM(3, 4, rngs=nnx.Rngs(0), **options).model == model
    assert linen.LSTM(3, 4, **options).model == model
    module = linen.LSTM(3, 4, **options)
    variables = linen.variables_of(build(model))
    rngs = {"dropout": KEY}
    noisy = module.apply(variables, XS, deterministic=False, rngs=rngs)[1]
    assert not np.allclose(noisy, module.apply(variables, XS)[1], atol=1e-4)
