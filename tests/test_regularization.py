"""Noise in the recurrence: its statistics, its constancy, and what it computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import training
from lstm_jax.cells.regularized import Noise
from tests.common import assert_close, normal, random_params, random_state
from tests.oracles import cells as oracle

KEY = jax.random.key(0)
CELL = lj.LSTMCell(3, 4)
B, T = 3, 7
PARAMS, XS = random_params(CELL, 0), normal(1, (B, T, 3))
RATES = {
    "input_dropout": 0.3,
    "output_dropout": 0.3,
    "recurrent_dropout": 0.3,
    "drop_connect": 0.3,
    "zoneout_h": 0.3,
    "zoneout_c": 0.3,
}
EACH_RATE = pytest.mark.parametrize("name", RATES)


def draw(cell, key, batch=(B,), length=T):
    """The masks and the masked parameters that one call draws."""
    params = cell.init(jax.random.key(1))
    xs = jnp.ones((length, *batch, *cell.input_shape))
    return cell.perturb(key, params, xs)


@EACH_RATE
def test_without_a_key_dropout_is_off_and_zoneout_expected(name):
    cell = lj.Regularized(CELL, **{name: 0.3})
    ours = lj.scan(cell, PARAMS, XS)
    if name.startswith("zoneout"):
        assert not np.allclose(ours[1], lj.scan(CELL, PARAMS, XS)[1], atol=1e-3)
    else:
        jax.tree.map(np.testing.assert_array_equal, ours, lj.scan(CELL, PARAMS, XS))


@EACH_RATE
def test_a_key_turns_it_on_and_the_same_key_gives_the_same(name):
    cell = lj.Regularized(CELL, **{name: 0.3})
    run = lambda key: lj.scan(cell, PARAMS, XS, key=key)
    first, again, other = run(KEY), run(KEY), run(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for a, b in ((first, other), (first, lj.scan(cell, PARAMS, XS))):
        assert not np.allclose(a[1], b[1], atol=1e-3)
    jitted = jax.jit(lambda key: lj.scan(cell, PARAMS, XS, key=key))(KEY)
    assert_close(jitted, first)


def test_a_rate_of_zero_with_a_key_is_the_cell_itself():
    cell = lj.Regularized(CELL)
    ours = lj.scan(cell, PARAMS, XS, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, ours, lj.scan(CELL, PARAMS, XS))


def test_masks_have_their_rate_and_scale_and_differ_between_rows():
    rates = {name: rate for name, rate in RATES.items() if "zoneout" not in name}
    big = lj.LSTMCell(200, 200)
    _, noise, _ = draw(lj.Regularized(big, **rates), KEY, (50,), 2)
    for mask in (noise.input_mask, noise.recurrent_mask, noise.output_mask):
        assert mask.shape == (50, 200)
        mask = np.asarray(mask)
        assert set(np.unique(mask)) == {np.float32(0), np.float32(1) / np.float32(0.7)}
        assert abs((mask == 0).mean() - 0.3) < 0.02
        agreement = (mask[:-1] == 0) == (mask[1:] == 0)
        np.testing.assert_allclose(agreement.mean(), 0.3**2 + 0.7**2, atol=0.02)
    assert not np.array_equal(noise.input_mask, noise.recurrent_mask)
    dropped = np.asarray(noise.params.recurrent_kernel)
    kept = np.asarray(big.init(jax.random.key(1)).recurrent_kernel) / 0.7
    assert abs((dropped == 0).mean() - 0.3) < 0.01
    np.testing.assert_allclose(dropped[dropped != 0], kept[dropped != 0], rtol=1e-6)


def test_zoneout_draws_at_its_rate_anew_at_each_step():
    cell = lj.Regularized(lj.LSTMCell(3, 100), zoneout_h=0.2, zoneout_c=0.6)
    keep_h, keep_c = map(np.asarray, draw(cell, KEY, (20,), 50)[2][1])
    assert keep_h.shape == keep_c.shape == (50, 20, 100)
    for keep, rate in ((keep_h, 0.2), (keep_c, 0.6)):
        assert abs(keep.mean() - rate) < 0.005
        for a, b in ((keep[0], keep[1]), (keep[:, 0], keep[:, 1])):
            np.testing.assert_allclose(
                (a == b).mean(), rate**2 + (1 - rate) ** 2, atol=0.04
            )
    assert abs((keep_h == keep_c).mean() - (0.2 * 0.6 + 0.8 * 0.4)) < 0.01


def noisy_loop(cell, noise, keep, params, xs, state, reset):
    """Keras's and Krueger's equations in NumPy, given the masks."""
    ones = lambda mask: np.ones(()) if mask is None else np.asarray(mask, np.float64)
    ys = []
    state = {name: np.asarray(v, np.float64) for name, v in state._asdict().items()}
    start = {name: 0 * value for name, value in state.items()}
    for t in range(xs.shape[1]):
        h = np.where(reset[:, t, None], start["h"], state["h"])
        c = np.where(reset[:, t, None], start["c"], state["c"])
        x = np.asarray(xs[:, t], np.float64) * ones(noise.input_mask)
        seen = {"h": h * ones(noise.recurrent_mask), "c": c}
        new = {"h": 0 * h, "c": 0 * c}
        for row in range(len(h)):
            one = {name: value[row] for name, value in seen.items()}
            after, _ = oracle.lstm_step(params, one, x[row])
            for name in new:
                new[name][row] = after[name]
        h = np.where(keep[0][t], h, new["h"]) if cell.zoneout_h else new["h"]
        c = np.where(keep[1][t], c, new["c"]) if cell.zoneout_c else new["c"]
        state = {"h": h, "c": c}
        ys.append(h * ones(noise.output_mask))
    return state, np.stack(ys, 1)


@pytest.mark.parametrize("names", [*((name,) for name in RATES), tuple(RATES)], ids=str)
def test_noisy_steps_agree_with_the_equations(names):
    """One mask over all steps and across resets; the state is not dropped."""
    cell = lj.Regularized(CELL, **{name: RATES[name] for name in names})
    state = random_state(CELL, 2, (B,))
    reset = np.random.default_rng(0).random((B, T)) < 0.3
    running, noise, xs = cell.perturb(KEY, PARAMS, jnp.moveaxis(XS, 1, 0))
    inputs, keep = XS, (None, None)
    if running is CELL:
        # What is dropped of inputs and weights is dropped before the first step.
        inputs, noise = jnp.moveaxis(xs, 0, 1), Noise(noise, None, None, None)
    elif isinstance(xs, tuple):
        keep = xs[1]
    params = {
        name: np.asarray(value, np.float64)
        for name, value in noise.params._asdict().items()
        if value is not None
    }
    expected = noisy_loop(cell, noise, keep, params, inputs, state, reset)
    last, ys = lj.scan(cell, PARAMS, XS, state, reset=reset, key=KEY)
    assert_close((last._asdict(), ys), expected)
    every = lj.scan(cell, PARAMS, XS, state, reset=reset, key=KEY, checkpoint_every=3)
    assert_close(every, (last, ys))


def test_zoneout_expects_its_mean():
    """One step: the mean over many keys is the step without one."""
    cell = lj.Regularized(CELL, zoneout_h=0.4, zoneout_c=0.2)
    state = random_state(CELL, 2, (B,))
    keys = jax.random.split(KEY, 4000)
    many = jax.vmap(lambda key: lj.scan(cell, PARAMS, XS[:, :1], state, key=key)[0])
    means = jax.tree.map(lambda leaf: leaf.mean(0), many(keys))
    expected = lj.scan(cell, PARAMS, XS[:, :1], state)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=0.03), means, expected
    )


def test_gradients_flow_through_the_noise():
    """Against central differences of the same noise, in float64."""
    cell = lj.Regularized(CELL, **RATES)
    with jax.enable_x64(True):
        cotangent = normal(3, (B, T, 4), "float64")
        params, xs = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (PARAMS, XS))
        loss = lambda p, x: jnp.vdot(cotangent, lj.scan(cell, p, x, key=KEY)[1])
        grads = jax.grad(loss, (0, 1))(params, xs)
        _, noise, _ = cell.perturb(KEY, params, jnp.moveaxis(xs, 1, 0))
        dropped = np.asarray(noise.params.recurrent_kernel == 0)
        direction = jax.tree.map(lambda a: normal(5, a.shape, "float64"), (params, xs))
        at = lambda e: loss(
            *jax.tree.map(lambda a, d: a + e * d, (params, xs), direction)
        )
        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        inner = sum(
            jnp.vdot(a, b)
            for a, b in zip(
                jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True
            )
        )
    np.testing.assert_allclose(inner, slope, rtol=1e-7)
    assert dropped.any() and not np.asarray(grads[0].recurrent_kernel)[dropped].any()


def test_any_cell_with_a_state_of_names_can_be_regularized():
    cell = lj.Regularized(
        lj.ConvLSTMCell((4, 4, 2), 3, 3), input_dropout=0.5, recurrent_dropout=0.5
    )
    params, xs = cell.init(KEY), normal(1, (2, 3, 4, 4, 2))
    assert not np.allclose(
        lj.scan(cell, params, xs, key=KEY)[1], lj.scan(cell, params, xs)[1], atol=1e-4
    )


@EACH_RATE
@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rates_out_of_range_are_refused(name, rate):
    message = rf"{name}: expected a rate in \[0, 1\), got {rate}"
    with pytest.raises(ValueError, match=message):
        lj.Regularized(CELL, **{name: rate})
    with pytest.raises(ValueError, match=message):
        lj.LSTM(3, 4, num_layers=2, **{name: rate})


@dataclasses.dataclass(frozen=True)
class Plain:
    """A cell whose state has no names."""

    def zero_state(self, batch_shape=(), dtype=jnp.float32):
        return jnp.zeros(batch_shape, dtype)


def test_a_cell_without_what_a_rate_applies_to_is_refused():
    with pytest.raises(TypeError, match="zoneout_c: expected a cell whose state has a"):
        lj.Regularized(Plain(), zoneout_c=0.1)
    with pytest.raises(TypeError, match="key: expected a key such as"):
        lj.scan(lj.Regularized(CELL, zoneout_h=0.1), PARAMS, XS, key=3)


def test_embedding_dropout_drops_words():
    table = normal(0, (2000, 8)) + 5
    table = np.asarray(table)
    dropped = np.asarray(lj.embedding_dropout(KEY, 0.25, table))
    gone = (dropped == 0).all(1)
    assert ((dropped == 0).any(1) == gone).all()
    assert abs(gone.mean() - 0.25) < 0.03
    np.testing.assert_allclose(dropped[~gone], table[~gone] / 0.75, rtol=1e-6)
    np.testing.assert_array_equal(lj.embedding_dropout(None, 0.25, table), table)
    for key, rate in ((None, 0.25), (KEY, 0.0), (KEY, 0.25)):
        own = table.copy()
        taken = lj.embedding_dropout(key, rate, own)
        own[...] = 0
        assert isinstance(taken, jax.Array) and np.asarray(taken).any()
    with pytest.raises(ValueError, match=r"table: expected shape \[V, E\]"):
        lj.embedding_dropout(KEY, 0.25, table[0])
    with pytest.raises(ValueError, match=r"rate: expected a rate in \[0, 1\)"):
        lj.embedding_dropout(KEY, 1.0, table)


@pytest.mark.parametrize("time_major", [False, True])
def test_activation_penalties_agree_with_numpy(time_major):
    ys = np.array(normal(0, (B, T, 4)))
    lengths = np.array([T, 3, 0])
    mask = np.arange(T) < lengths[:, None]
    valid = [ys[n, : lengths[n]] for n in range(B)]
    squares = np.concatenate([(v**2).ravel() for v in valid])
    changes = np.concatenate([(np.diff(v, axis=0) ** 2).ravel() for v in valid])
    ys[~mask] = np.nan
    front = lambda a: np.moveaxis(a, 1, 0) if time_major else a
    np.testing.assert_allclose(
        training.activation_penalty(front(ys), front(mask)), squares.mean(), rtol=1e-5
    )
    tar = training.temporal_activation_penalty(
        front(ys), front(mask), time_major=time_major
    )
    np.testing.assert_allclose(tar, changes.mean(), rtol=1e-5)
    grads = jax.grad(
        lambda y: (
            training.temporal_activation_penalty(y, front(mask), time_major=time_major)
            + training.activation_penalty(y, front(mask))
        )
    )(jnp.asarray(front(ys)))
    assert np.isfinite(grads).all() and not front(grads)[~mask].any()


def test_penalties_without_a_mask_and_at_the_edges():
    ys = normal(0, (B, T, 4))
    np.testing.assert_allclose(
        training.activation_penalty(ys), np.mean(ys**2), rtol=1e-6
    )
    tar = training.temporal_activation_penalty
    expected = np.mean(np.diff(ys, axis=1) ** 2)
    np.testing.assert_allclose(tar(ys), expected, rtol=1e-6)
    assert tar(ys[:, :1]) == tar(ys[:, :0]) == 0
    assert training.activation_penalty(ys, np.zeros((B, T), bool)) == 0
    with pytest.raises(ValueError, match="mask: expected shape"):
        training.activation_penalty(ys, np.ones((T, B), bool))
    with pytest.raises(ValueError, match="ys: expected shape"):
        tar(ys[0, 0])


def test_parameter_penalties_agree_with_numpy():
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(PARAMS)]
    np.testing.assert_allclose(
        training.l1_penalty(PARAMS), sum(np.abs(a).sum() for a in leaves), rtol=1e-6
    )
    np.testing.assert_allclose(
        training.l2_penalty(PARAMS), sum((a**2).sum() for a in leaves), rtol=1e-6
    )
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    assert training.l2_penalty(half).dtype == jnp.float32
    grads = jax.grad(training.l2_penalty)(PARAMS)
    assert_close(grads, jax.tree.map(lambda a: 2 * a, PARAMS))
    with pytest.raises(ValueError, match="params: expected at least one array"):
        training.l1_penalty({})
