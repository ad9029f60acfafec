"""What tests/contract leaves: whole Hessians, shard_map, what is compiled and kept."""

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
    value_and_pullback,
)
from tests.programs import compilations

B, T = 4, 9


def case(cell, names):
    """A function of all float arguments, and those arguments."""
    controls = random_controls(3, (2,), T, names)

    def run(params, xs, state):
        return lj.scan(cell, params, xs, state, **controls)

    args = (
        random_params(cell, 0),
        normal(1, (2, T, cell.input_size)),
        random_state(cell, 2, (2,)),
    )
    return run, args


def loss(run, args):
    """A scalar that every output takes part in."""
    weights = random_like(8, jax.eval_shape(run, *args))

    def function(*args):
        products = jax.tree.map(jnp.vdot, weights, run(*args))
        return jnp.tanh(sum(jax.tree.leaves(products)))

    return function


@pytest.mark.parametrize(
    "names", [(), ("lengths", "mask", "reset")], ids=["none", "all"]
)
def test_hessian_agrees_both_ways(names):
    cell = lj.LSTMCell(2, 3, proj_size=2)
    with jax.enable_x64(True):
        run, args = case(cell, names)
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
