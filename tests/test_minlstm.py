"""The minLSTM: three ways to run it that agree, whatever the gates, dtypes and lengths.

What public code gets wrong: steps that go on from another state than the whole does
(g of the state in one and not in the other), NaN in gradients of logarithms in half
precision, errors that grow with the number of steps.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.time_parallel import METHODS
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_controls,
    random_like,
    random_params,
    relative_error,
)

B, T, H = 3, 7, 4
CELLS = {
    "plain": lj.MinLSTMCell(2, H),
    "positive": lj.MinLSTMCell(2, H, positive=True, use_bias=False),
}
every_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
LONG = 16384


def identity(positive=False):
    """A cell whose pre-activations are its inputs, so that none of them is rounded."""
    cell = lj.MinLSTMCell(3 * H, H, positive=positive, use_bias=False)
    return cell, lj.MinLSTMParams(jnp.eye(3 * H))


def decays(pre):
    """f' and i' in float64, of pre-activations ``[..., 3H]``, and the candidate."""
    i, f, g = np.split(np.asarray(pre, np.float64), 3, -1)
    softplus = lambda x: np.logaddexp(x, 0)
    # softplus(-x) = softplus(x) - x, where both gates are nearly 0
    below = (i - f) + softplus(f) - softplus(i)
    odds = np.where((i < 0) & (f < 0), below, softplus(-f) - softplus(-i))
    return np.exp(-softplus(odds)), np.exp(-softplus(-odds)), g


def loop(pre, h, lengths=None, reset=None, reset_h=0.0):
    """All steps one after the other in float64: every h, and the last."""
    f, i, g = decays(pre)
    h, ys = np.array(h, np.float64), np.zeros(g.shape)
    for t in range(g.shape[1]):
        if reset is not None:
            valid = True if lengths is None else t < lengths
            h = np.where((reset[:, t] & valid)[:, None], reset_h, h)
        after = f[:, t] * h + i[:, t] * g[:, t]
        valid = np.full(len(h), True) if lengths is None else t < lengths
        h = np.where(valid[:, None], after, h)
        ys[:, t] = np.where(valid[:, None], h, 0)
    return h, ys


STATES = {"None": None, "zeros": 0.0, "positive": 2.5, "negative": -3.0}


@pytest.mark.parametrize("start", STATES.values(), ids=STATES)
@every_cell
def test_three_at_once_are_three_steps(cell, start):
    params, xs = random_params(cell, 1), normal(2, (B, 3, 2))
    state = None
    if start is not None:
        state = lj.MinLSTMState(jnp.full((B, H), start))
    last, ys = lj.scan(cell, params, xs, state)
    one, outputs = state if state is not None else cell.zero_state((B,)), []
    for t in range(3):
        one, y = cell(params, one, xs[:, t])
        outputs.append(y)
    at_once, parallel, report = lj.parallel_scan(cell, params, xs, state)
    assert report.converged and report.iterations == 1
    for other in (jnp.stack(outputs, 1), parallel):
        np.testing.assert_allclose(other, ys, rtol=0, atol=1e-6)
    for other in (one, at_once):
        np.testing.assert_allclose(other.h, last.h, rtol=0, atol=1e-6)
    pre = np.asarray(xs, np.float64) @ np.asarray(params.kernel, np.float64)
    pre = pre + (0 if params.bias is None else np.asarray(params.bias, np.float64))
    if cell.positive:
        i, f, g = np.split(pre, 3, -1)
        g = np.where(g >= 0, g + 0.5, 1 / (1 + np.exp(-g)))
        pre = np.concatenate([i, f, g], -1)
    _, expected = loop(pre, np.full((B, H), start or 0.0))
    assert relative_error(ys, expected) < 1e-6


def test_log_space_is_that_of_the_paper():
    """Appendix B: sums of logarithms, of which all is positive, in float64."""
    cell = CELLS["positive"]
    params, xs = random_params(cell, 1), normal(2, (B, T, 2))
    start = jnp.abs(normal(3, (B, H))) + 0.1
    i, f, g = np.split(np.asarray(xs, np.float64) @ np.asarray(params.kernel), 3, -1)
    softplus = lambda x: np.logaddexp(x, 0)
    difference = softplus(-f) - softplus(-i)
    log_g = np.where(g >= 0, np.log(np.maximum(g, 0) + 0.5), -softplus(-g))
    log_start = np.log(np.asarray(start, np.float64))[:, None]
    values = np.concatenate([log_start, -softplus(-difference) + log_g], 1)
    total = np.cumsum(-softplus(difference), 1)
    total = np.concatenate([np.zeros((B, 1, H)), total], 1)
    expected = np.exp(total + np.logaddexp.accumulate(values - total, axis=1))[:, 1:]
    for run in (lj.scan, lj.parallel_scan):
        ys = run(cell, params, xs, lj.MinLSTMState(start))[1]
        assert relative_error(ys, expected) < 1e-6
        assert (ys > 0).all()


BIASES = {  # of i, f and g
    "random": (0, 0, 0),
    "keeps": (-100, 100, 0),
    "replaces": (100, -100, 0),
    "both_closed": (-100, -100, 0),
    "both_open": (100, 100, 0),
}


def long_case(bias, dtype="float32", length=LONG):
    """Pre-activations that the dtype holds exactly, and a start."""
    added = np.repeat(np.asarray(BIASES[bias], np.float64), H)
    pre = np.asarray(normal(5, (2, length, 3 * H)).astype(jnp.bfloat16), np.float32)
    pre = jnp.asarray(pre + added.astype(np.float32), dtype)
    return pre, lj.MinLSTMState(normal(6, (2, H), scale=2.0))


@pytest.mark.parametrize("bias", BIASES)
def test_errors_do_not_grow_with_the_number_of_steps(bias):
    cell, params = identity()
    pre, state = long_case(bias)
    _, expected = loop(pre, state.h)
    for run in (lj.scan, lj.parallel_scan):
        ys = run(cell, params, pre, state)[1]
        error = np.abs(np.asarray(ys, np.float64) - expected) / np.abs(expected).max()
        assert error.max() < 1e-6
        if bias == "random":
            assert error[:, -1000:].max() < 3 * error[:, :1000].max()


def test_decays_next_to_one_are_exact_in_parallel():
    """exp(-6e-6) is 1 - 100 roundings: as a factor, 16,384 of them lose five digits."""
    cell, params = identity()
    pre = jnp.tile(jnp.repeat(jnp.array([-12.0, 0.0, 1.0]), H), (1, LONG, 1))
    state = lj.MinLSTMState(jnp.full((1, H), 2.0))
    _, expected = loop(pre, state.h)
    assert (
        relative_error(lj.parallel_scan(cell, params, pre, state)[1], expected) < 1e-6
    )
    assert relative_error(lj.scan(cell, params, pre, state)[1], expected) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bias", BIASES)
def test_half_precision_is_finite_and_rounded_once(bias, dtype):
    """The state is carried in float32: outputs are those of the loop, rounded."""
    cell, params = identity()
    pre, state = long_case(bias, dtype)
    lengths, reset = np.array([LONG, 9001]), np.zeros((2, LONG), bool)
    reset[0, [5, 4000, 4001]] = reset[1, [9000, 12000]] = True
    given = {"lengths": lengths, "reset": reset}
    last, expected = loop(pre.astype(jnp.float32), state.h, **given)

    def run(pre, state):
        after, ys, report = lj.parallel_scan(cell, params, pre, state, **given)
        return (after, ys), report

    def total(run):
        def loss(pre, state):
            after, ys = run(pre, state)
            return ys.astype(jnp.float32).sum() + after.h.sum()

        return quick_jit(jax.grad(loss, (0, 1)))

    (after, ys), report = run(pre, state)
    assert report.converged and ys.dtype == dtype and after.h.dtype == jnp.float32
    scan = lambda pre, state: lj.scan(cell, params, pre, state, **given)
    for state_after, outputs in ((after, ys), scan(pre, state)):
        rounding = float(jnp.finfo(dtype).eps)
        assert relative_error(outputs, expected) < rounding
        assert relative_error(state_after.h, last) < 2e-6
    grads = total(lambda *args: run(*args)[0])(pre, state)
    others = total(scan)(pre, state)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True):
        assert np.isfinite(np.asarray(one, np.float64)).all()
        assert relative_error(one, other) < 2 * rounding


@pytest.mark.parametrize("bias", ["random", "keeps", "replaces", "both_closed"])
def test_gradients_agree_with_float64(bias):
    cell, params = identity()
    pre, state = long_case(bias, length=1000)
    if bias == "keeps":  # so that there is something to lose
        pre = pre.at[..., : 2 * H].multiply(0.08)
    weights = normal(7, (2, 1000, H))

    def loss(run):
        def total(pre, start):
            cast = jax.tree.map(lambda leaf: leaf.astype(pre.dtype), params)
            return jnp.vdot(weights.astype(pre.dtype), run(cell, cast, pre, start)[1])

        return jax.grad(total, (0, 1))

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (pre, state))
        expected = loss(lj.scan)(*wide)
    for run in (lj.scan, lj.parallel_scan):
        actual = loss(run)(pre, state)
        for one, other in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert relative_error(one, other) < 2e-6


def test_a_gate_at_zero_has_its_derivative():
    """Where both pre-activations are 0, neither half of a case is left out."""
    cell, params = identity()
    pre = jnp.zeros((1, 1, 3 * H)).at[..., 2 * H :].set(1.0)
    state = lj.MinLSTMState(jnp.full((1, H), 3.0))
    for run in (lj.scan, lj.parallel_scan):
        grad = jax.grad(lambda pre, run=run: run(cell, params, pre, state)[1].sum())(
            pre
        )
        # h = 3 f' + i', f' = i' = 1/2, df'/df = f' i' (1 - sigmoid(0)) = 1/8
        np.testing.assert_allclose(grad[0, 0, : 2 * H], np.repeat([-0.25, 0.25], H))


@pytest.mark.parametrize("method", METHODS)
def test_it_is_one_scan_whatever_the_method(method):
    cell = CELLS["plain"]
    params, xs = random_params(cell, 1), normal(2, (B, T, 2))
    controls = random_controls(3, (B,), T, ("lengths", "mask", "reset"))
    state, ys, report = lj.parallel_scan(cell, params, xs, method=method, **controls)
    assert report.iterations == 1 and report.converged and report.residual < 1e-6
    assert_close((state, ys), lj.scan(cell, params, xs, **controls))
    run = lambda xs: lj.parallel_scan(cell, params, xs, method=method)[1]
    text = str(jax.make_jaxpr(run)(normal(2, (B, 64, 2))))
    assert "while" not in text and "scan[" not in text


def test_what_is_not_finite_is_reported():
    cell = CELLS["plain"]
    params, xs = random_params(cell, 1), normal(2, (B, T, 2))
    *_, report = lj.parallel_scan(cell, params, xs.at[1, 3].set(jnp.nan))
    assert not report.converged


def test_transforms_and_files(tmp_path):
    cell = lj.MinLSTMCell(2, H)
    model = lj.Stack(
        (cell, lj.MinLSTMCell(2 * H, 3, positive=True)), bidirectional=True
    )
    params, xs = random_params(model, 1), normal(2, (B, T, 2))
    expected = model.apply(params, xs)
    for copy in (pickle.loads(pickle.dumps(model)), lj.from_config(model.to_config())):
        assert copy == model
    one = params[0].forward
    run = lambda xs: lj.parallel_scan(cell, one, xs)[1]
    ys = run(xs)
    assert_close(jax.vmap(run, 1, 1)(xs[:, None])[:, 0], ys)
    with jax.disable_jit():
        assert_close(run(xs), ys)
        assert_close(model.apply(params, xs), expected)
    with jax.debug_nans(True):
        reset = jnp.zeros((B, T), bool).at[0, 2].set(True)
        jax.grad(lambda xs: lj.parallel_scan(cell, one, xs, reset=reset)[1].sum())(xs)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, xs))
        state, wide_ys = model.apply(*wide)
        assert wide_ys.dtype == jnp.float64 == state[0].forward.h.dtype
        assert_close(wide_ys, expected[1])
        both = lj.parallel_scan(cell, wide[0][0].forward, wide[1])[1]
        assert_close(both, lj.scan(cell, wide[0][0].forward, wide[1])[1], "float64")


def test_second_derivatives_agree():
    cell = lj.MinLSTMCell(1, 1)
    with jax.enable_x64(True):
        params = random_params(cell, 1, "float64")
        xs = normal(2, (4, 1), "float64")
        loss = lambda run: lambda xs: jnp.tanh(run(cell, params, xs)[1]).sum()
        expected = jax.hessian(loss(lj.scan))(xs)
        actual = jax.jacrev(jax.grad(loss(lj.parallel_scan)))(xs)
        assert_close(actual, expected, "float64")


def test_noise_that_has_nothing_to_act_on_is_refused():
    cell = CELLS["plain"]
    with pytest.raises(
        TypeError, match="recurrent_dropout: .* gates see h, got MinLSTM"
    ):
        lj.Regularized(cell, recurrent_dropout=0.5)
    with pytest.raises(TypeError, match="zoneout_c: .* field c, got MinLSTMCell"):
        lj.Regularized(cell, zoneout_c=0.5)
    dropped = lj.Regularized(cell, drop_connect=0.5)
    params, xs = random_params(cell, 1), normal(2, (B, T, 2))
    with pytest.raises(TypeError, match="drop_connect: .*got MinLSTMParams"):
        lj.scan(dropped, params, xs, key=jax.random.key(0))
    zoned = lj.Regularized(cell, zoneout_h=0.3, input_dropout=0.2)
    state, ys, report = lj.parallel_scan(zoned, params, xs)
    assert report.converged and report.iterations <= 3
    assert_close((state, ys), lj.scan(zoned, params, xs))
    inputs = lj.Regularized(cell, input_dropout=0.2)
    assert lj.parallel_scan(inputs, params, xs)[2].iterations == 1


def test_start_and_errors():
    cell = lj.MinLSTMCell(3, 5)
    params = cell.init(jax.random.key(0))
    i, f, g = np.split(np.asarray(params.bias), 3)
    assert (f == 1).all() and not i.any() and not g.any()
    assert lj.MinLSTMCell(3, 5, use_bias=False).init(jax.random.key(0)).bias is None
    assert cell.count_params() == 3 * 15 + 15
    xs = jnp.ones((2, 7, 3))
    wrong = lj.LSTMState(jnp.ones((2, 5)), jnp.ones((2, 5)))
    with pytest.raises(
        TypeError, match="state: expected a MinLSTMState, got LSTMState"
    ):
        lj.scan(cell, params, xs, wrong)
    with pytest.raises(ValueError, match=r"kernel: expected shape \[I, 3H\]"):
        lj.scan(cell, params._replace(kernel=jnp.ones((3, 20))), xs)
    with pytest.raises(TypeError, match="positive: expected True or False, got 1"):
        lj.MinLSTMCell(3, 5, positive=1)
    with pytest.raises(ValueError, match="hidden_size: expected at least 1, got 0"):
        lj.MinLSTMCell(3, 0)
    assert random_like(1, cell.zero_state((2,))).h.shape == (2, 5)
