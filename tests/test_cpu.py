"""The CPU kernels: against the reference, and what only they promise."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.recurrence.cpu import library
from tests.common import (
    assert_close,
    normal,
    random_controls,
    random_like,
    random_params,
    random_state,
    value_and_pullback,
)

WHY = lj.implementations()["cpu"]
pytestmark = pytest.mark.skipif(WHY != "available", reason=f"CPU kernels: {WHY}")

ALL = ("lengths", "mask", "reset")


def program(cell, implementation, names=(), *, shape, seed=0, states=False, **options):
    """Values and gradients of everything as one function of nothing."""
    B, T, dtype = shape[0], shape[1], options.pop("dtype", "float32")
    params = random_params(cell, seed, dtype)
    # Of a usual size: with large weights an LSTM is chaotic, and rounding grows.
    size = np.asarray(min(1, 3 / cell.hidden_size**0.5), dtype)
    params = jax.tree.map(lambda leaf: leaf * size, params)
    xs = normal([seed, 1], (B, T, cell.input_size), dtype)
    state = random_state(cell, seed, (B,), dtype)
    reset_state = random_state(cell, seed + 1, (B,), dtype)
    controls = random_controls(seed, (B,), T, names)
    scan = lj.scan_states if states else lj.scan

    def run(params, xs, state, reset_state):
        return scan(
            cell,
            params,
            xs,
            state,
            **controls,
            reset_state=reset_state if "reset" in names else None,
            implementation=implementation,
            **options,
        )

    args = (params, xs, state, reset_state)
    cotangents = random_like(seed, jax.eval_shape(run, *args))
    return lambda: value_and_pullback(run, args, cotangents)


# (B, T, I, H, P): ends of panels, tiles and blocks, one thread and two, rows shared
# and units shared.
SHAPES = [
    (1, 1, 1, 1, None),
    (2, 3, 1, 7, None),
    (1, 150, 17, 129, None),
    (5, 40, 33, 100, None),
    (7, 9, 16, 65, None),
    (32, 6, 50, 48, None),
    (45, 11, 3, 40, None),
    (20, 5, 30, 200, None),  # an odd number of blocks on two threads: one cut by rows
    (9, 47, 110, 130, None),  # weight gradients in several parts, over several blocks
    (3, 5, 9, 12, 11),
    (30, 8, 40, 50, 19),
    (70, 25, 20, 60, None),  # rows shared, several blocks of steps
    (130, 4, 6, 300, None),  # rows shared, one step at a time, by blocks of units
]
NAMES = [(), ALL, ("mask",), ("reset",), ("lengths",)]


@pytest.mark.parametrize("index", range(2 * len(SHAPES)))
def test_agrees_with_the_reference(index):
    B, T, I, H, P = SHAPES[index // 2]
    cell = lj.LSTMCell(I, H, proj_size=P, use_bias=index % 3 != 0)
    options = dict(
        names=NAMES[index % len(NAMES)] if index % 2 else (),
        shape=(B, T),
        seed=index,
        reverse=index % 4 > 1,
        states=index % 5 == 0,
    )
    actual = program(cell, "cpu", **options)()
    assert_close(actual, program(cell, "xla", **options)())


@pytest.mark.parametrize("names", [(), ALL], ids=["none", "all"])
@pytest.mark.parametrize(
    "sizes",
    [
        (3, 9, 20, 24),
        (30, 20, 20, 24),
        (9, 47, 110, 130),
        (70, 25, 20, 60),
        (130, 4, 6, 300),
    ],
)
def test_agrees_in_bfloat16(sizes, names):
    B, T, I, H = sizes
    cell = lj.LSTMCell(I, H)
    options = dict(names=names, shape=(B, T), dtype="bfloat16")
    actual = program(cell, "cpu", **options)()
    assert_close(actual, program(cell, "xla", **options)(), "bfloat16")
    (state, ys), _ = actual
    assert ys.dtype == state.h.dtype == jnp.bfloat16
    assert state.c.dtype == jnp.float32


@pytest.mark.parametrize("B, T, H", [(1, 300, 130), (10, 50, 100), (50, 10, 70)])
def test_results_are_the_same_for_any_thread_count(B, T, H, monkeypatch):
    run = program(lj.LSTMCell(30, H), "cpu", ALL, shape=(B, T))
    results = []
    for threads in ("1", "2", "3", "2"):
        monkeypatch.setenv("LSTM_JAX_NUM_THREADS", threads)
        results.append(jax.tree.leaves(run()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def evaluate(name, x):
    x = np.ascontiguousarray(x, np.float32)
    y = np.empty_like(x)
    pointer = lambda a: a.ctypes.data_as(ctypes.c_void_p)
    getattr(library.load(), name)(pointer(x), pointer(y), ctypes.c_int64(x.size))
    return y


GATES = {
    "lstm_jax_sigmoid": (lambda x: 1 / (1 + np.exp(-x)), (0.0, 1.0)),
    "lstm_jax_tanh": (np.tanh, (-1.0, 1.0)),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_are_accurate(name):
    function, limits = GATES[name]
    near = np.geomspace(1e-37, 1, 200_000)
    x = np.concatenate([np.linspace(-100, 100, 1_000_001), near, -near])
    x = x.astype(np.float32)
    expected = function(x.astype(np.float64))
    normal_range = np.abs(expected) >= np.finfo(np.float32).tiny
    y = evaluate(name, x).astype(np.float64)
    error = np.abs(y - expected)
    relative = error[normal_range] / np.abs(expected[normal_range])
    assert relative.max() <= 3e-7
    assert error[~normal_range].max(initial=0) <= np.finfo(np.float32).tiny
    np.testing.assert_array_equal(evaluate(name, [-np.inf, np.inf]), limits)
    assert np.isnan(evaluate(name, [np.nan])).all()
    denormals = np.float32([1e-40, -1e-40, 0.0])
    np.testing.assert_allclose(evaluate(name, denormals), function(denormals))


def test_nan_reaches_its_own_row_from_its_own_step_on():
    cell = lj.LSTMCell(3, 20)
    params = random_params(cell, 0)
    xs = normal(1, (4, 6, 3)).at[2, 3].set(jnp.nan)
    for mask in (None, jnp.ones((4, 6), bool).at[2, 3].set(False)):
        _, ys = lj.scan(cell, params, xs, mask=mask, implementation="cpu")
        touched = np.isnan(ys).any(-1)
        expected = np.zeros((4, 6), bool)
        expected[2, 3:] = mask is None
        np.testing.assert_array_equal(touched, expected)


def test_calls_at_once_finish_and_agree():
    cell = lj.LSTMCell(32, 128)
    params, xs = random_params(cell, 0), normal(1, (8, 16, 50, 32))

    @jax.jit
    def many(xs):
        # Independent of each other: XLA may run them side by side.
        return [lj.scan(cell, params, x, implementation="cpu")[1] for x in xs]

    results = [many(xs) for _ in range(5)]
    for ys in results:
        for a, b in zip(ys, results[0], strict=True):
            np.testing.assert_array_equal(a, b)


DIRECTIONS = {
    "small": (lj.LSTM(9, 20, bidirectional=True), 3, 30),
    "large": (lj.LSTM(100, 350, bidirectional=True), 2, 4),
    "large, many rows": (lj.LSTM(100, 350, bidirectional=True), 17, 3),
    "projected": (lj.LSTM(5, 33, bidirectional=True, proj_size=10), 16, 40),
}


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_directions_side_by_side_agree_with_one_after_the_other(
    name, threads, monkeypatch
):
    monkeypatch.setenv("LSTM_JAX_NUM_THREADS", threads)
    model, B, T = DIRECTIONS[name]
    (layer,) = model.init(jax.random.key(0))
    xs = normal(1, (B, T, model.cells[0].input_size))
    controls = random_controls(2, (B,), T, ALL)

    def together(layer, xs):
        state, ys = model.apply((layer,), xs, **controls)
        return state[0], ys

    def apart(layer, xs):
        results = [
            lj.scan(
                model.cells[0],
                one,
                xs,
                reverse=n == 1,
                implementation="cpu",
                **controls,
            )
            for n, one in enumerate(layer)
        ]
        states, ys = zip(*results, strict=True)
        return lj.types.Directions(*states), jnp.concatenate(ys, -1)

    cotangents = random_like(3, jax.eval_shape(together, layer, xs))
    actual, expected = (
        value_and_pullback(run, (layer, xs), cotangents) for run in (together, apart)
    )
    # The gradient of xs is a sum of two: its order may differ.
    assert_close(actual, expected)
    jax.tree.map(np.testing.assert_array_equal, actual[0], expected[0])


def test_directions_are_one_call():
    model = lj.LSTM(3, 5, bidirectional=True)
    params, xs = model.init(jax.random.key(0)), normal(1, (2, 7, 3))
    grad = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(p, xs)[1])))
    text = grad.lower(params).as_text()
    assert text.count("custom_call @lstm_jax_forward") == 1
    assert text.count("custom_call @lstm_jax_backward") == 1


def test_vmap_uses_the_kernel_once_where_it_can():
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), normal(1, (4, 2, 7, 3))
    run = lambda xs: jnp.sum(lj.scan(cell, params, xs, implementation="cpu")[1] ** 2)
    text = jax.jit(jax.grad(lambda xs: jax.vmap(run)(xs).sum())).lower(xs).as_text()
    assert text.count("custom_call @lstm_jax_forward") == 1
    assert text.count("custom_call @lstm_jax_backward") == 1
    assert "while" not in text


def test_gradients_that_nobody_wants_are_not_computed():
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), normal(1, (2, 7, 3))
    run = lambda p: lj.scan(cell, p, xs, implementation="cpu")[0].h.sum()
    text = jax.jit(jax.grad(run)).lower(params).as_text()
    backward = next(line for line in text.splitlines() if "@lstm_jax_backward" in line)
    results = backward.rsplit("->", 1)[1]
    # No gradient of xs; those of both kernels and of the bias.
    assert "tensor<7x2x3xf32>" not in results
    assert "tensor<3x20xf32>" in results


def test_is_chosen_where_it_can_run():
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), jnp.ones((2, 7, 3))
    assert lj.resolve_implementation(cell, params, xs) == "cpu"
    half = xs.astype(jnp.float16)
    assert lj.resolve_implementation(cell, params, half) == "xla"
    with pytest.raises(NotImplementedError, match="not float16"):
        lj.scan(cell, params, half, implementation="cpu")
    assert lj.resolve_implementation(cell, params, xs, implementation="xla") == "xla"


def test_each_layer_of_a_stack_chooses_for_itself():
    cells = lj.LSTMCell(3, 4), lj.SLSTMCell(4, 4), lj.LSTMCell(4, 5, variant="FGR")
    model = lj.Stack(cells)
    params, xs = model.init(jax.random.key(0)), jnp.ones((2, 7, 3))
    text = jax.jit(model.apply).lower(params, xs).as_text()
    assert text.count("custom_call @lstm_jax_forward") == 1
    assert "while" in text
    with pytest.raises(NotImplementedError, match="not SLSTMCell"):
        model.apply(params, xs, implementation="cpu")


def test_noise_leaves_the_kernels_to_run_where_they_know_the_cell():
    xs, plain = jnp.ones((2, 7, 3)), lj.LSTMCell(3, 4)

    def calls(key, inside=plain, **rates):
        cell = lj.Regularized(inside, **rates)
        params = cell.init(jax.random.key(0))
        run = jax.jit(lambda xs: lj.scan(cell, params, xs, key=key)[1])
        return run.lower(xs).as_text().count("@lstm_jax_forward")

    key = jax.random.key(1)
    assert calls(None, recurrent_dropout=0.5, output_dropout=0.5) == 1
    assert calls(None, zoneout_h=0.5) == 1
    assert calls(key, input_dropout=0.5, drop_connect=0.5) == 1
    assert calls(key, recurrent_dropout=0.5) == 1
    other = lj.LSTMCell(3, 4, variant="FGR")
    assert calls(key, other, recurrent_dropout=0.5) == 0
    cell = lj.Regularized(other, recurrent_dropout=0.5)
    params = cell.init(jax.random.key(0))
    with pytest.raises(NotImplementedError, match="variant=.FGR."):
        lj.scan(cell, params, xs, key=key, implementation="cpu")
