"""Stacks whose layers run in directions of their own: bonito's, say, alternate."""

import dataclasses
import itertools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

import lstm_jax as lj
from lstm_jax import linen, nnx, serving
from tests.common import (
    assert_close,
    fields,
    normal,
    random_controls,
    random_like,
    random_params,
    relative_error,
    value_and_pullback,
)
from tests.oracles import lstm as oracle

KEY = jax.random.key(0)
B, T, I, H = 4, 9, 3, 5
EACH = (False, True, False)
ALTERNATING = lj.LSTM(I, H, 3, reverse=EACH)
MODELS = {
    "alternating": ALTERNATING,
    "first_too": lj.LSTM(I, (4, 6), reverse=(True, False), proj_size=2),
    "all": lj.LSTM(I, H, 2, reverse=True, use_bias=False),
    "residual": dataclasses.replace(ALTERNATING, residual=True),
    "skip": dataclasses.replace(ALTERNATING, skip=True),
    "learned": lj.LSTM(I, H, 2, reverse=(True, False), learn_initial_state=True),
    "cells": lj.Stack(
        (lj.LSTMCell(I, 4, variant="CIFG"), lj.SLSTMCell(4, 4), lj.LSTMCell(4, 3)),
        reverse=(True, False, True),
    ),
}
EVERY_MODEL = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
XS = normal(1, (B, T, I))


def random_state(model, seed=4):
    return random_like(seed, model.zero_state((B,)))


def directions_of(model):
    each = isinstance(model.reverse, tuple)
    return model.reverse if each else (model.reverse,) * len(model.cells)


def flipped(values, lengths):
    """The valid part of each row from its end to its beginning."""
    values = np.array(values)
    for row, length in enumerate(lengths):
        values[row, :length] = values[row, :length][::-1]
    return jnp.asarray(values)


def flipped_reset(reset, lengths):
    """The boundary between t - 1 and t, seen from the end of each row."""
    made = np.zeros_like(reset)
    for row, length in enumerate(lengths):
        for t in range(1, length):
            made[row, length - t] = reset[row, t]
    return made


def by_flips(model, params, state, lengths, mask, reset):
    """Layers that run forward, and flips in between."""
    below, states, outputs = XS, [], []
    for index, (cell, backwards) in enumerate(
        zip(model.cells, directions_of(model), strict=True)
    ):
        inputs = jnp.concatenate([below, XS], -1) if index and model.skip else below
        given = {"mask": mask, "reset": reset}
        if backwards:
            inputs = flipped(inputs, lengths)
            given = {
                "mask": flipped(mask, lengths),
                "reset": flipped_reset(reset, lengths),
            }
        last, ys = lj.scan(
            cell,
            params[index].forward,
            inputs,
            state[index].forward,
            lengths=lengths,
            **given,
        )
        ys = flipped(ys, lengths) if backwards else ys
        ys = ys + below if index and model.residual else ys
        states.append(lj.Directions(last))
        outputs.append(ys)
        below = ys
    return tuple(states), jnp.concatenate(outputs, -1) if model.skip else below


@EVERY_MODEL
def test_layers_agree_with_flips_in_between(model):
    params, state = random_params(model, 2), random_state(model)
    if "cells" in dataclasses.asdict(model):
        one = state[1].forward
        one = one._replace(n=jnp.abs(one.n) + 0.1)
        state = (state[0], lj.Directions(one), state[2])
    given = random_controls(3, (B,), T, ("lengths", "mask", "reset"))
    expected = by_flips(model, params, state, **given)
    actual = model.apply(params, XS, state, **given)
    assert_close(actual, expected)
    assert relative_error(actual[1], expected[1]) < 1e-6
    swapped = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), (XS, given["mask"]))
    lengths, reset = given["lengths"], given["reset"].T
    again = model.apply(
        params,
        swapped[0],
        state,
        lengths=lengths,
        mask=swapped[1],
        reset=reset,
        time_major=True,
        checkpoint_every=4,
    )
    assert_close((again[0], jnp.swapaxes(again[1], 0, 1)), expected)


@pytest.mark.parametrize("length", [1, T])
def test_values_and_gradients_agree_with_the_float64_loop(length):
    """Which runs every layer in its own direction, and has derivatives by hand."""
    given = random_controls(5, (B,), length, ("lengths", "mask", "reset"))
    params, state = random_params(ALTERNATING, 6), random_state(ALTERNATING)
    xs = XS[:, :length]
    layers = [
        oracle.Layer(fields(layer.forward), reverse=backwards)
        for layer, backwards in zip(params, EACH, strict=True)
    ]
    ys, lasts = np.asarray(xs), []
    controls = given["lengths"], given["mask"], given["reset"]
    for layer, (one, _) in zip(layers, state, strict=True):
        zeros = np.zeros_like(one.h)
        ys, _, h, c = layer.forward(ys, one.h, one.c, *controls, zeros, zeros)
        lasts.append(lj.Directions(lj.LSTMState(h, c)))

    def run(params, xs, state):
        return ALTERNATING.apply(params, xs, state, **given)

    cotangents = random_like(7, jax.eval_shape(run, params, xs, state))
    actual, grads = value_and_pullback(run, (params, xs, state), cotangents)
    assert_close(actual, (tuple(lasts), ys))
    assert relative_error(actual[1], ys) < 1e-6
    d_last, d_ys = cotangents
    for n in reversed(range(3)):
        wide = [np.asarray(leaf, np.float64) for leaf in d_last[n].forward]
        expected = layers[n].backward(np.asarray(d_ys, np.float64), *wide)
        for name in ("kernel", "recurrent_kernel", "bias"):
            assert_close(getattr(grads[0][n].forward, name), expected[name], name=name)
        assert_close(grads[2][n].forward, lj.LSTMState(expected["h"], expected["c"]))
        d_ys = expected["xs"]
    assert_close(grads[1], d_ys)


def test_a_state_goes_on_to_the_chunk_before():
    """The state that comes back is the one after the first step, which ran last."""
    model = lj.LSTM(I, H, reverse=True)
    params, state = random_params(model, 1), random_state(model)
    expected = model.apply(params, XS, state)
    after, late = model.apply(params, XS[:, 5:], state)
    last, early = model.apply(params, XS[:, :5], after)
    assert_close((last, jnp.concatenate([early, late], 1)), expected)
    np.testing.assert_array_equal(model.last(expected[0]), expected[1][:, 0])


def test_last_is_what_was_put_out_last():
    model = MODELS["skip"]
    params = random_params(model, 1)
    state, ys = model.apply(params, XS)
    first, second, third = jnp.split(ys, 3, -1)
    expected = jnp.concatenate([first[:, -1], second[:, 0], third[:, -1]], -1)
    np.testing.assert_array_equal(model.last(state), expected)
    model = MODELS["residual"]
    state, _ = model.apply(params[:1] + random_params(model, 1)[1:], XS)
    with pytest.raises(ValueError, match="last: expected layers that end at the same"):
        model.last(state)


def test_noise_is_drawn_for_reversed_layers_too():
    noisy = dataclasses.replace(ALTERNATING, dropout=0.4, recurrent_dropout=0.3)
    params = random_params(noisy, 1)
    lengths = jnp.array([0, T, 4, 1])
    first = noisy.apply(params, XS, lengths=lengths, key=KEY)
    again = noisy.apply(params, XS, lengths=lengths, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    plain = noisy.apply(params, XS, lengths=lengths)
    assert_close(plain, ALTERNATING.apply(params, XS, lengths=lengths))
    assert not np.allclose(first[1], plain[1], atol=1e-3)
    forward = dataclasses.replace(noisy, reverse=False)
    # One layer's noise is that of its key, whichever way it runs.
    one = lj.LSTM(I, H, recurrent_dropout=0.3, reverse=True)
    params = random_params(one, 1)
    way = dataclasses.replace(one, reverse=False).apply(params, XS[:, ::-1], key=KEY)
    assert_close(one.apply(params, XS, key=KEY)[1], way[1][:, ::-1])
    assert forward != noisy


@EVERY_MODEL
def test_descriptions_are_values(model):
    assert pickle.loads(pickle.dumps(model)) == model
    assert lj.from_config(model.to_config()) == model
    assert eval(repr(model), vars(lj)) == model
    assert model.for_program().reverse == model.reverse
    assert model != dataclasses.replace(model, reverse=False)


def test_what_says_the_same_is_equal():
    for spelling in ([True, True], (np.True_, np.True_), True):
        model = lj.LSTM(I, H, 2, reverse=spelling)
        assert model == lj.LSTM(I, H, 2, reverse=True) and model.reverse is True
    assert lj.LSTM(I, H, 2, reverse=(False, False)) == lj.LSTM(I, H, 2)
    config = ALTERNATING.to_config()
    assert config["reverse"] == list(EACH)
    del config["reverse"]  # as versions before this option wrote it
    assert lj.from_config(config) == lj.LSTM(I, H, 3)


def test_modules_run_them():
    params = random_params(ALTERNATING, 1)
    given = random_controls(3, (B,), T, ("lengths", "reset"))
    expected = ALTERNATING.apply(params, XS, **given)
    module = linen.LSTM(I, H, 3, reverse=EACH)
    assert_close(module.apply(linen.variables_of(params), XS, **given), expected)
    for made in (
        nnx.LSTM(I, H, 3, reverse=EACH, rngs=flax_nnx.Rngs(0)),
        nnx.Stack(ALTERNATING, rngs=flax_nnx.Rngs(0)),
    ):
        made.load(params)
        assert_close(made(XS, **given), expected)


def test_a_file_holds_them(tmp_path):
    path, params = tmp_path / "model.zip", random_params(ALTERNATING, 1)
    path.write_bytes(lj.export(ALTERNATING, params))
    call = lj.exporting.load(path)
    for batch, length in ((4, 9), (1, 1), (2, 5)):
        xs = XS[:batch, :length]
        given = random_controls([batch], (batch,), length, ("lengths", "reset"))
        state, ys = ALTERNATING.apply(params, xs, **given)
        assert_close(call(xs, **given), (jax.tree.leaves(state), ys))


def test_transforms():
    params = random_params(ALTERNATING, 1)
    run = lambda params, xs: ALTERNATING.apply(params, xs)[1]
    expected = run(params, XS)
    assert_close(jax.vmap(run, (None, 0))(params, XS), expected)
    assert_close(jax.vmap(run, (None, 1), 1)(params, XS[:, None])[:, 0], expected)
    with jax.disable_jit():
        assert_close(run(params, XS), expected)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, XS))
        assert run(*wide).dtype == jnp.float64
        assert_close(run(*wide), expected)


REFUSALS = {
    "step": lambda model, params: model.step(params, None, XS[:, 0]),
    "stream": lambda model, params: lj.stream(model, params, [XS]),
    "step in a file": lambda model, params: lj.export(model, params, step=True),
    "model": lambda model, params: serving.Server(model, params),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("reverse", [True, (False, True)], ids=str)
def test_what_takes_steps_refuses_them(name, reverse):
    model = lj.LSTM(I, H, 2, reverse=reverse)
    words = (
        f"{name.split()[0]}: expected a model that runs forward, got "
        f"reverse={reverse}. A layer in reverse needs the whole sequence: use apply."
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        REFUSALS[name](model, random_params(model, 0))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"reverse": (True,)},
            ValueError,
            "expected one value or L = 2 of them, got 1",
        ),
        ({"reverse": ()}, ValueError, "expected one value or L = 2 of them, got 0"),
        ({"reverse": 1}, TypeError, "expected True or False, got 1 of type int"),
        ({"reverse": (True, "no")}, TypeError, "expected True or False, got 'no'"),
        ({"reverse": None}, TypeError, "expected True or False, got None"),
        (
            {"reverse": (True, False), "bidirectional": True},
            ValueError,
            "expected False with bidirectional=True, whose layers run both ways",
        ),
    ],
)
def test_bad_values_are_refused(given, error, words):
    cells = lj.LSTMCell(I, H), lj.LSTMCell(2 * H if "bidirectional" in given else H, H)
    makers = (lambda: lj.LSTM(I, H, 2, **given), lambda: lj.Stack(cells, **given))
    for make in makers:
        with pytest.raises(error, match=f"^reverse: {re.escape(words)}"):
            make()


def test_directions_differ_in_what_they_give():
    """No two of them, so that none of the tests above compares a thing with itself."""
    params = random_params(ALTERNATING, 1)
    given = [
        dataclasses.replace(ALTERNATING, reverse=each).apply(params, XS)[1]
        for each in itertools.product([False, True], repeat=3)
    ]
    for one, other in itertools.combinations(given, 2):
        assert not np.allclose(one, other, atol=1e-3)
