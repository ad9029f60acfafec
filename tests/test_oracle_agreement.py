"""Random sizes, blocks of checkpoints and whole stacks against the float64 loop."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lstm_jax as lj
from tests.common import (
    assert_close,
    fields,
    normal,
    random_controls,
    random_like,
    random_params,
    random_state,
    standard_cases,
    value_and_pullback,
)
from tests.oracles import lstm as oracle

IMPLEMENTATIONS = [
    name for name, why in lj.implementations().items() if why == "available"
]
# The CPU kernels compute in float32 and bfloat16.
FLOAT64_IMPLEMENTATIONS = [name for name in IMPLEMENTATIONS if name != "cpu"]
CELLS = standard_cases()
CONTROLS = {
    "none": (),
    "lengths": ("lengths",),
    "mask": ("mask",),
    "reset": ("reset",),
    "all": ("lengths", "mask", "reset"),
}


def precision(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def run_both(cell, B, T, names, *, reverse, dtype, seed=0, **options):
    """Values and gradients of everything, by the library and by the loop."""
    params = random_params(cell, seed, dtype)
    xs = normal([seed, 1], (B, T, cell.input_size), dtype)
    state = random_state(cell, seed, (B,), dtype)
    reset_state = random_state(cell, seed + 1, (B,), dtype)
    controls = random_controls(seed, (B,), T, names)
    with_reset = "reset" in names

    def run(params, xs, state, reset_state):
        return lj.scan(
            cell,
            params,
            xs,
            state,
            **controls,
            reset_state=reset_state if with_reset else None,
            reverse=reverse,
            **options,
        )

    args = (params, xs, state, reset_state)
    cotangents = random_like(seed, jax.eval_shape(run, *args))
    out, grads = value_and_pullback(run, args, cotangents)

    layer = oracle.Layer(fields(params), reverse=reverse)
    ys, _, h, c = layer.forward(
        xs,
        *state,
        controls.get("lengths"),
        controls.get("mask"),
        controls.get("reset"),
        *reset_state,
    )
    (d_h, d_c), d_ys = cotangents
    g = layer.backward(*(np.asarray(d, np.float64) for d in (d_ys, d_h, d_c)))
    expected_grads = (
        lj.LSTMParams(**{name: g[name] for name in fields(params)}),
        g["xs"],
        lj.LSTMState(g["h"], g["c"]),
        lj.LSTMState(g["reset_h"], g["reset_c"]),
    )
    return (out, grads), ((lj.LSTMState(h, c), ys), expected_grads)


@pytest.mark.parametrize("every", [1, 3, 4, 12, 50])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_scan_checkpointed_agrees(every, reverse):
    actual, expected = run_both(
        CELLS["projection"],
        2,
        12,
        CONTROLS["all"],
        reverse=reverse,
        dtype="float32",
        checkpoint_every=every,
    )
    assert_close(actual, expected)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    length=st.integers(1, 24),
    projected=st.booleans(),
    use_bias=st.booleans(),
    reverse=st.booleans(),
    names=st.sampled_from(list(CONTROLS.values())),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_scan_agrees_on_random_cases(
    sizes, length, projected, use_bias, reverse, names, seed, dtype
):
    B, I, H = sizes
    proj_size = H - 1 if projected and H > 1 else None
    cell = lj.LSTMCell(I, H, proj_size=proj_size, use_bias=use_bias)
    with precision(dtype):
        actual, expected = run_both(
            cell, B, length, names, reverse=reverse, dtype=dtype, seed=seed
        )
        assert_close(actual, expected, dtype)


STACKS = {
    "two_layers": dict(num_layers=2),
    "sizes": dict(hidden_size=(4, 3, 2)),
    "bidirectional": dict(bidirectional=True, num_layers=2),
    "sum": dict(bidirectional=True, merge="sum", num_layers=2),
    "mean": dict(bidirectional=True, merge="mean", num_layers=2),
    "mul": dict(bidirectional=True, merge="mul"),
    "projection": dict(bidirectional=True, proj_size=2, num_layers=2),
    "no_bias": dict(use_bias=False),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_stack_agrees(options, dtype):
    with precision(dtype):
        model = lj.LSTM(3, **({"hidden_size": 5} | options))
        B, T, seed = 3, 7, 4
        params = random_like(
            1, jax.tree.map(lambda p: p.astype(dtype), model.init(jax.random.key(0)))
        )
        params = jax.tree.map(lambda p: p * np.asarray(0.5, dtype), params)
        state = random_like(2, model.zero_state((B,), dtype))
        xs = normal(3, (B, T, 3), dtype)
        controls = random_controls(seed, (B,), T, CONTROLS["all"])

        def run(params, xs, state):
            return model.apply(params, xs, state, **controls)

        args = (params, xs, state)
        d_last, d_ys = random_like(6, jax.eval_shape(run, *args))
        (last, ys), (d_params, d_xs, d_state) = value_and_pullback(
            run, args, (d_last, d_ys)
        )

        def nested(tree, convert):
            return [
                [convert(one) for one in layer if one is not None] for layer in tree
            ]

        def as_float64(state):
            return tuple(np.asarray(leaf, np.float64) for leaf in state)

        stack = oracle.Stack(nested(params, fields), model.merge)
        expected_ys, expected_last = stack.forward(
            xs,
            nested(state, as_float64),
            controls["lengths"],
            controls["mask"],
            controls["reset"],
        )
        expected_d_xs, grads = stack.backward(
            np.asarray(d_ys, np.float64), nested(d_last, as_float64)
        )
        assert_close(ys, expected_ys, dtype, "ys")
        assert_close(nested(last, tuple), expected_last, dtype, "state")
        assert_close(d_xs, expected_d_xs, dtype, "d_xs")
        assert_close(
            nested(d_params, fields),
            [
                [{k: g[k] for k in fields(params[0].forward)} for g in both]
                for both in grads
            ],
            dtype,
            "d_params",
        )
        assert_close(
            nested(d_state, tuple),
            [[(g["h"], g["c"]) for g in both] for both in grads],
            dtype,
            "d_state",
        )


def test_published_equations_by_hand():
    """One step of one unit, on paper: every gate has its own weight."""
    params = lj.LSTMParams(
        kernel=jnp.array([[0.1, 0.2, 0.3, 0.4]]),
        recurrent_kernel=jnp.array([[0.5, 0.6, 0.7, 0.8]]),
        bias=jnp.array([0.01, 0.02, 0.03, 0.04]),
    )
    state = lj.LSTMState(h=jnp.array([0.25]), c=jnp.array([-0.5]))
    (h, c), _ = lj.LSTMCell(1, 1)(params, state, jnp.array([2.0]))
    i, f = oracle.sigmoid(0.2 + 0.125 + 0.01), oracle.sigmoid(0.4 + 0.15 + 0.02)
    g, o = np.tanh(0.6 + 0.175 + 0.03), oracle.sigmoid(0.8 + 0.2 + 0.04)
    np.testing.assert_allclose(c, [f * -0.5 + i * g], rtol=1e-6)
    np.testing.assert_allclose(h, o * np.tanh([f * -0.5 + i * g]), rtol=1e-6)
