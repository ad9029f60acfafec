"""What stands around an LSTM over devices: tables of words, noise, windows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from benchmarks.aot import exchanges
from lstm_jax import training
from tests.common import assert_close, normal, quick_jit, random_params

WORDS, SIZE, B, T = 12, 4, 8, 5
CELL = lj.LSTMCell(SIZE, 6)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def mesh_of(kind="auto", devices=4):
    return jax.make_mesh((devices,), ("data",), axis_types=(KINDS[kind],))


def put(mesh, tree, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def language():
    """A table, a cell's parameters, tokens of which some never occur, and weights."""
    tokens = np.random.default_rng(0).integers(0, WORDS - 4, (B, T))
    return normal(1, (WORDS, SIZE)), random_params(CELL, 2), tokens


def loss_fn(params, carry, tokens, key):
    table, own = params
    ys = lj.scan(CELL, own, table[tokens])[1]
    return training.squared_error(ys, 0 * ys, weighted=True), (carry, {})


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("spec", [P("data"), P(None, "data"), P()], ids=str)
def test_a_table_of_words_over_devices_has_the_gradient_of_its_rows(devices, spec):
    """Parts of batches are added up; words that never occur have none, exactly."""
    table, own, tokens = language()
    loss = lambda xs: jnp.mean(lj.scan(CELL, own, xs)[1] ** 2)
    d_xs = np.asarray(jax.grad(loss)(table[tokens]))
    expected = np.zeros(table.shape)
    np.add.at(expected, tokens, d_xs)
    before, rate = np.asarray(table), 100.0
    tx = optax.sgd(rate)
    step = training.make_train_step(loss_fn, tx, accumulate=2)
    mesh = mesh_of(devices=devices)
    # Each part of the batch has rows of every device.
    params = put(mesh, table, spec), put(mesh, own, P())
    state = training.create(params, tx, ())
    state, *_ = step(state, put(mesh, tokens, P("data")))
    moved = before - np.asarray(state.params[0])
    assert_close(moved / rate, expected)
    assert not moved[WORDS - 4 :].any()


RATES = {
    "held": dict(recurrent_dropout=0.4, input_dropout=0.3, output_dropout=0.3),
    "zoneout": dict(zoneout_h=0.3, zoneout_c=0.4),
    "weights": dict(drop_connect=0.3),
}


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("name", RATES)
def test_noise_is_the_same_on_one_device_two_and_four(name, impl):
    """Steps that the backward pass runs again have the masks that they had."""
    cell = lj.Regularized(CELL, **RATES[name])
    params, xs = random_params(cell, 0), normal(1, (B, T, SIZE))
    key = jax.random.key(3, impl=impl)

    def run(params, xs):
        again = lj.scan(cell, params, xs, key=key, checkpoint_every=2)[1]
        return again, lj.scan(cell, params, xs, key=key)[1]

    loss = lambda params, xs: sum((ys**2).sum() for ys in run(params, xs))
    both = quick_jit(lambda *args: (run(*args), jax.grad(loss)(*args)))
    expected = both(params, xs)
    assert_close(expected[0][0], expected[0][1])
    for devices in (2, 4):
        mesh = mesh_of(devices=devices)
        ours = both(put(mesh, params, P()), put(mesh, xs, P("data")))
        for actual, one in zip(ours[0], expected[0], strict=True):
            np.testing.assert_array_equal(np.asarray(actual) == 0, np.asarray(one) == 0)
        assert_close(ours, expected)


@pytest.mark.parametrize("folded", [False, True])
def test_by_hand_one_key_is_one_mask_for_every_device(folded):
    """As docs/scaling.md says, with what helps."""
    cell = lj.Regularized(CELL, output_dropout=0.5)
    params, key, mesh = random_params(cell, 0), jax.random.key(1), mesh_of()

    def run(params, xs):
        index = jax.lax.axis_index("data")
        mine = jax.random.fold_in(key, index) if folded else key
        return lj.scan(cell, params, xs, key=mine)[1]

    by_hand = jax.shard_map(
        run, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
    )
    ys = np.asarray(quick_jit(by_hand)(params, jnp.ones((B, T, SIZE))))
    parts = [part.tobytes() for part in np.split(ys == 0, 4)]
    assert len({*parts}) == (4 if folded else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_population_of_convolutions_gathers_no_rows(kind):
    """Its weights are mapped over, its rows are over devices; and the gradient."""
    cell = lj.ConvLSTMCell((4, 3, 2), 2, 3)
    some = [random_params(cell, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *some)
    xs = normal(1, (44, 3, 4, 3, 2))
    run = jax.vmap(lambda params, xs: lj.scan(cell, params, xs)[1], (0, None))
    loss = lambda params, xs: (run(params, xs) ** 2).sum()
    function = lambda params, xs: (run(params, xs), jax.grad(loss, (0, 1))(params, xs))
    expected = quick_jit(function)(stacked, xs)
    mesh = mesh_of(kind)
    args = put(mesh, stacked, P()), put(mesh, xs, P("data"))
    with jax.set_mesh(mesh):
        compiled = quick_jit(function).lower(*args).compile()
        assert_close(compiled(*args), expected)
    # One exchange for each of the population, which are run one after the other.
    met = exchanges.exchanged(compiled.as_text())
    total = sum(leaf.size for leaf in jax.tree.leaves(stacked))
    assert {key: one[:2] for key, one in met.items()} == {
        ("all-reduce", True): (len(some), total)
    }


@pytest.mark.parametrize("length", range(1, 10))
def test_windows_that_do_not_divide_are_what_they_are_without_jit(length):
    """The first window is the short one, at a start that would be negative."""
    xs, params = normal(1, (B, length, SIZE)), random_params(CELL, 0)

    def window(params, state, xs, key):
        state, ys = lj.scan(CELL, params, xs, state)
        return (ys**2).mean(), (state, {})

    grad = training.truncated_value_and_grad(window, window=4)
    run = lambda params, xs: grad(params, CELL.zero_state((B,)), xs)
    with jax.disable_jit():
        expected = run(params, xs)
    for devices in (2, 4):
        mesh = mesh_of(devices=devices)
        ours = jax.jit(run)(put(mesh, params, P()), put(mesh, xs, P("data")))
        assert_close(ours, expected)


LOSSES = {
    "squared_error": lambda ys, **options: training.squared_error(
        ys, 0 * ys, **options
    ),
    "cross_entropy": lambda ys, **options: training.cross_entropy(
        ys, jnp.zeros_like(ys[..., 0], int), **options
    ),
    "accuracy": lambda ys, **options: training.accuracy(
        ys, jnp.zeros_like(ys[..., 0], int), **options
    ),
    "linear": lambda ys, **options: training.linear_cross_entropy(
        ys, jnp.eye(SIZE), None, jnp.zeros_like(ys[..., 0], int), **options
    ),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_count_what_is_valid_over_all_devices(name, weighted):
    """A device with one valid token has the weight of one token."""
    xs = normal(1, (B, T, SIZE))
    mask = jnp.zeros((B, T), bool).at[0, 0].set(True).at[4:].set(True)
    one = functools.partial(LOSSES[name], weighted=weighted)
    local = lambda xs, mask: one(xs, mask=mask, axis_name="data")
    by_hand = jax.shard_map(
        local, mesh=mesh_of(), in_specs=(P("data"), P("data")), out_specs=P()
    )
    alone = lambda xs, mask: one(xs, mask=mask)
    assert_close(jax.jit(by_hand)(xs, mask), alone(xs, mask))
    if not weighted:
        grads = jax.grad(by_hand)(xs, mask), jax.grad(alone)(xs, mask)
        assert_close(*grads)
        without = jax.shard_map(
            lambda xs, mask: jax.lax.pmean(one(xs, mask=mask), "data"),
            mesh=mesh_of(),
            in_specs=(P("data"), P("data")),
            out_specs=P(),
        )
        assert abs(float(without(xs, mask) - alone(xs, mask))) > 1e-3
