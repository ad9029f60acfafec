"""Every JAX transform gives the same numbers, and a second call compiles nothing."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_controls,
    random_like,
    random_params,
    random_state,
    standard_cases,
    value_and_pullback,
)

CELLS = standard_cases()
B, T = 4, 9


def case(cell, batch_shape=(B,), names=("lengths", "mask", "reset"), **options):
    """A function of all float arguments, and those arguments."""
    controls = random_controls(3, batch_shape, T, names)

    def run(params, xs, state):
        return lj.scan(cell, params, xs, state, **controls, **options)

    args = (
        random_params(cell, 0),
        normal(1, (*batch_shape, T, cell.input_size)),
        random_state(cell, 2, batch_shape),
    )
    return run, args


def loss(run, args):
    """A scalar that every output takes part in."""
    weights = random_like(8, jax.eval_shape(run, *args))

    def function(*args):
        products = jax.tree.map(jnp.vdot, weights, run(*args))
        return jnp.tanh(sum(jax.tree.leaves(products)))

    return function


def by_hand(cell, params, xs, state):
    """The cell in a Python loop, differentiated by JAX without our rule."""
    ys = []
    for t in range(xs.shape[-2]):
        z = cell.project(params, xs[..., t, :])
        state, y = cell.update(params, state, z, cell.recur(params, state))
        ys.append(y)
    return state, jnp.stack(ys, -2)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_jit_and_remat_change_nothing(cell):
    run, args = case(cell)
    assert_close(jax.jit(run)(*args), run(*args))
    function = loss(run, args)
    expected = jax.grad(function, (0, 1, 2))(*args)
    assert_close(jax.jit(jax.grad(function, (0, 1, 2)))(*args), expected)
    assert_close(jax.grad(jax.checkpoint(function), (0, 1, 2))(*args), expected)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_jvp_agrees_with_vjp_and_with_the_plain_loop(cell):
    run, args = case(cell, names=())
    tangents = random_like(4, args)
    out, d_out = jax.jvp(run, args, tangents)
    assert_close(out, run(*args))
    plain = functools.partial(by_hand, cell)
    assert_close(d_out, jax.jvp(plain, args, tangents)[1])
    cotangents = random_like(5, out)
    grads = jax.vjp(run, *args)[1](cotangents)
    inner = lambda a, b: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b)))
    np.testing.assert_allclose(
        inner(cotangents, d_out), inner(grads, tangents), rtol=1e-4
    )


@pytest.mark.parametrize(
    "names", [(), ("lengths", "mask", "reset")], ids=["none", "all"]
)
def test_hessian_agrees_both_ways(names):
    cell = lj.LSTMCell(2, 3, proj_size=2)
    with jax.enable_x64(True):
        run, args = case(cell, (2,), names)
        args = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), args)
        flat, restore = jax.flatten_util.ravel_pytree(args)
        function = lambda flat: loss(run, args)(*restore(flat))
        step = 1e-5 * normal(9, flat.shape, "float64")

        @quick_jit
        def everything(flat):
            gradient = jax.grad(function)
            difference = gradient(flat + step) - gradient(flat - step)
            return jax.jacfwd(gradient)(flat), jax.jacrev(gradient)(flat), difference

        forward_over_reverse, reverse_over_reverse, difference = everything(flat)
        assert_close(reverse_over_reverse, forward_over_reverse, "float64")
        assert_close(forward_over_reverse, forward_over_reverse.T, "float64")
        np.testing.assert_allclose(
            forward_over_reverse @ step, difference / 2, rtol=1e-5, atol=1e-12
        )


def test_jacfwd_agrees_with_jacrev():
    run, args = case(lj.LSTMCell(2, 3), (2,))
    assert_close(jax.jacfwd(loss(run, args))(*args), jax.jacrev(loss(run, args))(*args))


AXES = {
    "inputs": (None, 0, None),
    "states": (None, None, 0),
    "weights": (0, None, None),
    "all": (0, 0, 0),
    "inner": (None, 1, None),
}


@pytest.mark.parametrize("jitted", [False, True], ids=["plain", "jitted"])
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_vmap_agrees_with_a_loop(axes, jitted, reverse):
    run, args = case(CELLS["projection"], reverse=reverse)
    if jitted:
        run = jax.jit(run)

    def spread(arg, axis):
        return jnp.stack([arg, arg * 0.5, -arg], axis)

    def one_by_one(*many):
        picked = (pick(many, axes, n) for n in range(3))
        return jax.tree.map(lambda *ys: jnp.stack(ys), *(run(*one) for one in picked))

    many = tuple(
        arg if axis is None else jax.tree.map(lambda leaf: spread(leaf, axis), arg)
        for arg, axis in zip(args, axes, strict=True)
    )
    cotangents = random_like(6, jax.eval_shape(one_by_one, *many))
    actual = value_and_pullback(jax.vmap(run, axes), many, cotangents)
    assert_close(actual, value_and_pullback(one_by_one, many, cotangents))


def pick(many, axes, n):
    return tuple(
        arg if axis is None else jax.tree.map(lambda leaf: jnp.take(leaf, n, axis), arg)
        for arg, axis in zip(many, axes, strict=True)
    )


def test_per_example_gradients_agree():
    cell = CELLS["standard"]
    run, (params, xs, _) = case(cell, names=())

    def one(params, xs):
        return jnp.sum(lj.lstm(params, xs)[1] ** 2)

    each = jax.vmap(jax.grad(one), (None, 0))(params, xs)
    together = jax.grad(lambda p: jnp.sum(lj.lstm(p, xs)[1] ** 2))(params)
    assert_close(jax.tree.map(lambda leaf: leaf.sum(0), each), together)


def test_scan_around_it_agrees():
    cell = CELLS["standard"]
    params, state = random_params(cell, 0), random_state(cell, 1, (B,))
    chunks = normal(2, (3, B, T, cell.input_size))

    def chunked(params, chunks, state):
        step = lambda state, xs: lj.scan(cell, params, xs, state)
        state, ys = jax.lax.scan(step, state, chunks)
        return state, jnp.concatenate(list(ys), axis=1)

    def whole(params, chunks, state):
        return lj.scan(cell, params, jnp.concatenate(list(chunks), axis=1), state)

    args = (params, chunks, state)
    assert_close(chunked(*args), whole(*args))
    expected = jax.grad(loss(whole, args), (0, 1, 2))(*args)
    assert_close(jax.grad(loss(chunked, args), (0, 1, 2))(*args), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_shard_map_over_two_devices_agrees(bidirectional):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    model = lj.LSTM(3, 5, num_layers=2, bidirectional=bidirectional)
    params = random_like(1, model.init(jax.random.key(0)))
    xs = normal(2, (B, T, 3))
    controls = random_controls(4, (B,), T, ("lengths", "reset"))

    def run(params, xs, lengths, reset):
        return model.apply(params, xs, lengths=lengths, reset=reset)[1]

    sharded = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=P("data"),
    )
    args = (params, xs, controls["lengths"], controls["reset"])
    assert len(jax.jit(sharded)(*args).sharding.device_set) == 2
    cotangents = normal(5, (B, T, model.output_size))
    with_controls = lambda run: lambda p, x: run(p, x, *args[2:])
    actual = value_and_pullback(with_controls(sharded), args[:2], cotangents)
    expected = value_and_pullback(with_controls(run), args[:2], cotangents)
    assert_close(actual, expected)


def test_sharded_inputs_agree():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    run, (params, xs, state) = case(CELLS["standard"])
    sharding = jax.sharding.NamedSharding(mesh, P("data"))
    args = params, jax.device_put(xs, sharding), jax.device_put(state, sharding)
    assert_close(jax.jit(run)(*args), run(params, xs, state))


def compilations(function):
    """How many programs XLA compiles while ``function`` runs."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(function())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


def test_second_call_compiles_nothing():
    model = lj.LSTM(3, 7, num_layers=2, dropout=0.5)
    params = model.init(jax.random.key(0))
    lengths = jnp.array([3, 0])

    def call(seed):
        xs = normal(seed, (2, 13, 3))
        state, ys = model.apply(params, xs, lengths=lengths, key=jax.random.key(seed))
        state, y = lj.LSTM(3, 7, num_layers=2, dropout=0.5).step(
            params, state, xs[:, 0]
        )
        grad = jax.grad(lambda p: lj.lstm(p, xs)[1].sum())(params[0].forward)
        return ys, y, grad

    assert compilations(lambda: call(0)) > 0
    assert compilations(lambda: call(1)) == 0


def test_unused_outputs_are_not_kept():
    cell = lj.LSTMCell(8, 64)
    params = cell.init(jax.random.key(0))
    xs = jnp.zeros((8, 4096, 8))
    last = jax.jit(lambda xs: lj.scan(cell, params, xs)[0].h)
    memory = last.lower(xs).compile().memory_analysis()
    outputs = 8 * 4096 * 64 * 4
    assert memory.temp_size_in_bytes < outputs / 2
