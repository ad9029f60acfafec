"""One step of training: parts, skipped steps, clipping, averages, resets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstm_jax as lj
from lstm_jax import training
from tests.common import normal, random_like
from tests.programs import compilations

MODEL = lj.LSTM(3, 5, num_layers=2)
PARAMS = random_like(1, MODEL.init(jax.random.key(0)))
LENGTHS = np.array([6, 0, 3, 1, 6, 2, 5, 4, 6, 1], np.int32)
XS, YS = normal(2, (10, 6, 3)), normal(3, (10, 6, 5))


def penalized(params, carry, batch, key):
    """A token loss, TAR by its own count, and L2 once."""
    xs, targets, lengths = batch
    mask = jnp.arange(xs.shape[1])[None] < lengths[:, None]
    carry, ys = MODEL.apply(params, xs, carry, lengths=lengths, key=key)
    token = training.squared_error(ys, targets, mask, weighted=True)
    pairs = mask[:, 1:] & mask[:, :-1]
    moves = jnp.where(pairs[..., None], jnp.diff(ys, axis=1), 0.0) ** 2
    tar = training.Weighted(moves.sum(), pairs.sum() * ys.shape[-1])
    l2 = training.Weighted(1e-3 * training.l2_penalty(params), 1)
    return (token, tar, l2), (carry, {"token": token})


def batch_of(rows=slice(None)):
    return XS[rows], YS[rows], jnp.asarray(LENGTHS[rows])


def one_big_batch(params, carry, batch):
    """Loss and gradient written out, with no parts."""

    def mean(params):
        terms, (after, _) = penalized(params, carry, batch, None)
        return sum(t.total / float(max(int(t.weight), 1)) for t in terms), after

    (loss, after), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return loss, after, grads


def gradient_step(**options):
    """A step that leaves the gradient in the optimizer's state."""
    tx = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )
    return tx, training.make_train_step(penalized, tx, **options)


def copies(tree):
    return jax.tree.map(jnp.copy, tree)


def leaves_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7, 10, 13])
def test_parts_of_a_ragged_batch_are_one_big_batch(parts):
    carry = random_like(4, MODEL.zero_state((10,)))
    loss, after, grads = one_big_batch(PARAMS, carry, batch_of())
    tx, step = gradient_step(accumulate=parts)
    state = training.create(copies(PARAMS), tx, copies(carry))
    state, metrics = step(state, batch_of())
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, state.opt_state, grads))
    assert difference <= 1e-6 * optax.tree.norm(grads)
    assert int(metrics["token"].weight) == LENGTHS.sum() * 5
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        state.carry,
        after,
    )


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 13])
def test_parts_on_explicit_axes_agree_or_are_refused(devices, parts):
    """Each part needs as many rows on every device; 13 parts of 12 rows are one."""
    explicit = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=explicit)
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    xs = normal(7, (12, 3))

    def loss_fn(params, carry, batch, key):
        outputs, mask = params[None] * batch["x"], batch["x"][:, 0] > 0
        ones = jnp.ones_like(outputs)
        return training.squared_error(outputs, ones, mask, weighted=True), (carry, {})

    tx = optax.sgd(1.0)
    step = training.make_train_step(loss_fn, tx, accumulate=parts)
    state = training.create(jnp.ones(3), tx, ())
    batch = {"x": jax.device_put(xs, rows)}
    if parts > 1 and 12 // parts % devices:
        words = (
            rf"accumulate: .* the {devices} devices .* batch\['x'\] over, got 12 rows "
            rf"in {parts} parts of {12 // parts}\."
        )
        with pytest.raises(ValueError, match=words):
            step(state, batch)
        return
    state, _ = step(state, batch)
    there = np.asarray(xs)[np.asarray(xs)[:, 0] > 0]
    expected = 1 - 2 * (there * (there - 1)).sum(0) / there.size
    np.testing.assert_allclose(state.params, expected, rtol=1e-5)


@jax.numpy_dtype_promotion("standard")  # Optax's Adam is not strict.
@pytest.mark.parametrize("array, copied", [(jnp.asarray, 0), (np.asarray, 3)])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_step_is_two_programs_and_the_next_compiles_none(parts, array, copied):
    """Whatever it does beside; and one to copy each of NumPy's arrays."""
    tx = optax.adam(1e-3)
    options = {"clip_norm": 1.0, "ema_decay": 0.9, "reset_rate": 0.5}
    step = training.make_train_step(penalized, tx, accumulate=parts, **options)
    key, carry = jax.random.key(0), MODEL.zero_state((10,))
    state = training.create(copies(PARAMS), tx, carry, key=key, ema=True)
    batch = jax.tree.map(array, batch_of())
    jax.clear_caches()
    after = []
    assert compilations(lambda: after.append(step(state, batch)[0])) == 2 + copied
    assert compilations(lambda: after.append(step(after[0], batch)[0])) == 0
    assert int(after[1].step) == 2


def test_a_part_without_a_valid_token_weighs_nothing():
    tx, step = gradient_step(accumulate=2)
    xs, targets, lengths = batch_of()
    lengths = lengths.at[1::2].set(0)  # the second part: every other row
    state = training.create(copies(PARAMS), tx, MODEL.zero_state((10,)))
    state, _ = step(state, (xs, targets, lengths))
    grads = one_big_batch(PARAMS, MODEL.zero_state((10,)), (xs, targets, lengths))[2]
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, state.opt_state, grads))
    assert difference <= 1e-6 * optax.tree.norm(grads)


def test_no_valid_token_at_all_is_no_division_by_zero():
    tx, step = gradient_step(accumulate=3)
    xs, targets, lengths = batch_of()
    state = training.create(copies(PARAMS), tx, MODEL.zero_state((10,)))
    state, _ = step(state, (xs, targets, 0 * lengths))
    expected = jax.tree.map(lambda leaf: 2e-3 * leaf, PARAMS)  # of L2 alone
    for one, other in zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert int(state.skipped) == 0


def test_a_pass_for_the_weights_runs_no_model():
    tx = optax.sgd(1.0)
    step = training.make_train_step(penalized, tx, accumulate=2)
    calls = []

    def counting(params, carry, batch, key):
        jax.debug.callback(lambda: calls.append(1))
        return penalized(params, carry, batch, key)

    state = training.create(copies(PARAMS), tx, MODEL.zero_state((10,)))
    step(state, batch_of())
    # What XLA compiled: the products of two parts, not of four.
    text = {
        parts: jax.jit(training.make_train_step(penalized, tx, accumulate=parts))
        .lower(training.create(copies(PARAMS), tx, MODEL.zero_state((10,))), batch_of())
        .compile()
        .as_text()
        for parts in (1, 2)
    }
    count = {parts: words.count("custom-call") for parts, words in text.items()}
    assert count[2] <= count[1], count


def test_each_part_draws_its_own_noise():
    def noise(params, carry, batch, key):
        drawn = jax.random.uniform(key, batch.shape)
        total = jnp.sum(params * 0) + jnp.sum(drawn)
        return training.Weighted(total, batch.size), (drawn, {})

    tx = optax.sgd(1.0)
    step = training.make_train_step(noise, tx, accumulate=4)
    state = training.create(jnp.ones(()), tx, jnp.zeros((10, 2)), key=jax.random.key(0))
    first, _ = step(state, jnp.ones((10, 2)))
    assert len(np.unique(first.carry)) == 20
    before = np.asarray(first.carry)
    second, _ = step(first, jnp.ones((10, 2)))
    assert not np.isin(before, second.carry).any()


def test_means_are_refused_where_parts_are_accumulated():
    tx = optax.sgd(1.0)
    mean = lambda params, carry, batch, key: (
        jnp.sum(params) * jnp.sum(batch),
        (carry, {}),
    )
    step = training.make_train_step(mean, tx, accumulate=2)
    with pytest.raises(TypeError, match="loss: expected a Weighted .*weighted=True"):
        step(training.create(jnp.ones(3), tx, ()), jnp.ones((4, 3)))

    def metric(params, carry, batch, key):
        return training.Weighted(jnp.sum(params), 1), (carry, {"mean": jnp.ones(())})

    step = training.make_train_step(metric, tx, accumulate=2)
    with pytest.raises(TypeError, match=r"metrics\['mean'\]: expected a Weighted"):
        step(training.create(jnp.ones(3), tx, ()), jnp.ones((4, 3)))


@jax.numpy_dtype_promotion("standard")  # Optax's Adam is not strict.
@pytest.mark.parametrize("where", ["loss", "gradient", "second part"])
def test_a_skipped_step_changes_nothing_but_the_carry_and_the_counts(where):
    def loss_fn(params, carry, batch, key):
        scale, bad = params["w"], batch[:, 0]
        value = jnp.sum(scale[None] * batch[:, 1:])
        if where == "loss":  # finite gradients beside it
            value += jax.lax.stop_gradient(jnp.sum(bad))
        else:
            value += jnp.sum(jnp.sqrt(scale[0] * bad))
        return training.Weighted(value, batch.shape[0]), (carry + 1, {})

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    step = training.make_train_step(
        loss_fn, tx, accumulate=4, ema_decay=0.9, clip_norm=1.0
    )
    good = jnp.ones((8, 4)).at[:, 0].set(4.0)
    bad = good.at[5, 0].set(jnp.nan if where != "gradient" else 0.0)
    if where == "gradient":  # of the square root at 0: infinite, the loss is finite
        bad = good.at[:, 0].set(0.0)
    params = {"w": jnp.arange(1.0, 4.0) * (0 if where == "gradient" else 1)}
    state = training.create(params, tx, jnp.ones((8, 2)), ema=True)
    state, _ = step(state, good if where != "gradient" else bad)
    before = jax.device_get((state.params, state.opt_state, state.ema))
    skipped = int(state.skipped)
    state, _ = step(state, bad)
    leaves_equal(jax.device_get((state.params, state.opt_state, state.ema)), before)
    assert int(state.skipped) == skipped + 1
    assert not np.any(state.carry)
    assert int(state.step) == int(state.cursor.batch) == 2


def test_skipped_steps_in_a_row_are_counted_until_one_is_taken():
    loss_fn = lambda params, carry, batch, key: (params * batch, (carry, {}))
    tx = optax.sgd(0.1)
    step = training.make_train_step(loss_fn, tx)
    state = training.create(jnp.ones(()), tx, ())
    rows = []
    for value in (1.0, np.nan, np.inf, 1.0, np.nan):
        state, _ = step(state, jnp.float32(value))
        rows.append((int(state.skipped), int(state.skipped_in_row)))
    assert rows == [(0, 0), (1, 1), (2, 2), (2, 0), (3, 1)]
    np.testing.assert_allclose(state.params, 0.8, rtol=1e-6)


def test_huge_gradients_are_clipped_though_their_squares_overflow():
    loss_fn = lambda params, carry, batch, key: (jnp.sum(params * batch), (carry, {}))
    tx = optax.sgd(1.0)
    step = training.make_train_step(loss_fn, tx, clip_norm=2.0)
    grads = np.array([3e20, -4e20, 0.0], np.float32)
    state, _ = step(training.create(jnp.zeros(3), tx, ()), grads)
    np.testing.assert_allclose(state.params, [-1.2, 1.6, 0.0], rtol=1e-6)
    state, _ = step(state._replace(params=jnp.zeros(3)), grads * 1e-20 / 10)
    np.testing.assert_allclose(state.params, -grads * 1e-20 / 10, rtol=1e-6)  # below 2
    state, _ = step(state._replace(params=jnp.zeros(3)), 0 * grads)
    assert int(state.skipped) == 0 and not np.any(state.params)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 5e-3)])
def test_the_average_moves_in_float32_and_counts_updates(dtype, rtol):
    loss_fn = lambda params, carry, batch, key: (jnp.sum(params * batch), (carry, {}))
    tx = optax.sgd(1e-2)
    step = training.make_train_step(loss_fn, tx, ema_decay=0.999)
    state = training.create(jnp.ones(3, dtype), tx, (), ema=True)
    assert state.ema.dtype == jnp.float32
    expected, updates = np.ones(3), 0
    for n in range(100):
        state, _ = step(state, jnp.full(3, np.nan if n % 7 == 3 else 1.0, dtype))
        if n % 7 != 3:
            decay = min(0.999, (1 + updates) / (10 + updates))
            expected += (1 - decay) * (np.asarray(state.params, float) - expected)
            updates += 1
    np.testing.assert_allclose(state.ema, expected, rtol=rtol)
    with pytest.raises(ValueError, match="ema_decay: expected one where the state"):
        training.make_train_step(loss_fn, tx)(state, jnp.ones(3))


def test_compute_in_bfloat16_keeps_float32_masters():
    seen = []

    def loss_fn(params, carry, batch, key):
        seen.append((params["w"].dtype, params["n"].dtype))
        return jnp.sum(params["w"] * batch), (carry, {})

    tx = optax.sgd(1e-4)
    mask = {"w": True, "n": False}
    tx = optax.masked(tx, mask)
    step = training.make_train_step(loss_fn, tx, compute_dtype=jnp.bfloat16)
    state = training.create({"w": jnp.ones(3), "n": jnp.ones(3)}, tx, ())
    for _ in range(10):
        state, _ = step(state, jnp.ones(3, jnp.bfloat16))
    assert seen[0] == (jnp.bfloat16, jnp.bfloat16)
    assert state.params["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.params["w"], 1 - 1e-3, rtol=1e-6)  # bf16: 1


def test_a_state_with_a_key_draws_one_for_each_step():
    def loss_fn(params, carry, batch, key):
        return params * 0.0, (carry, {"drawn": jax.random.uniform(key)})

    tx = optax.sgd(1.0)
    step = training.make_train_step(loss_fn, tx)

    def draws(seed, given=None):
        key = None if seed is None else jax.random.key(seed)
        state, drawn = training.create(jnp.ones(()), tx, (), key=key), []
        for _ in range(3):
            state, metrics = step(state, None, given)
            drawn.append(float(metrics["drawn"]))
        return drawn

    assert len({*draws(0), *draws(1)}) == 6 and draws(0) == draws(0)
    assert len(set(draws(0, jax.random.key(3)))) == 1  # the key that is given


def test_rows_are_reset_at_their_rate_and_to_the_learned_start():
    model = lj.LSTM(3, 5, learn_initial_state=True)
    params = random_like(5, model.init(jax.random.key(0)))
    rows = 4000
    start = model.initial_state(params, (rows,))
    carry = jax.tree.map(lambda leaf: leaf + 1, start)
    after = training.reset_rows(carry, jax.random.key(0), 1 / 16, start)
    anew = np.asarray(jax.tree.leaves(after)[0] == jax.tree.leaves(start)[0])
    assert (anew.all(1) == anew.any(1)).all()
    assert abs(anew.all(1).mean() - 1 / 16) < 4 * (1 / 16 / rows) ** 0.5
    for leaf, old, new in zip(
        *map(jax.tree.leaves, (after, carry, start)), strict=True
    ):
        np.testing.assert_array_equal(leaf, np.where(anew[:, :1], new, old))
    leaves_equal(training.reset_rows(carry, jax.random.key(0), 0.0), carry)
    assert not any(
        np.any(leaf)
        for leaf in jax.tree.leaves(training.reset_rows(carry, jax.random.key(0), 1))
    )


def test_a_learned_start_is_trained_by_resets_and_not_left_out():
    model = lj.LSTM(3, 5, learn_initial_state=True)

    def loss_fn(params, carry, batch, key):
        carry, ys = model.apply(params, batch, carry)
        return jnp.mean(ys**2), (carry, {})

    tx = optax.sgd(1.0)
    start = lambda params, rows: model.initial_state(params, (rows,))
    params = random_like(5, model.init(jax.random.key(0)))
    make = functools.partial(training.make_train_step, loss_fn, tx)
    state = training.create(params, tx, start(params, 8), key=jax.random.key(0))
    before = np.asarray(state.params[0].forward.initial_h)
    state, _ = make(reset_rate=0.5, start=start)(state, normal(1, (8, 4, 3)))
    assert np.abs(before - state.params[0].forward.initial_h).max() > 1e-6
    with pytest.raises(ValueError, match="start: expected lambda params, rows"):
        make(reset_rate=0.5)(state, normal(1, (8, 4, 3)))


def test_bad_options_are_refused():
    loss_fn = lambda params, carry, batch, key: (jnp.sum(params), (carry, {}))
    make = functools.partial(training.make_train_step, loss_fn, optax.sgd(1.0))
    for options, words in (
        ({"accumulate": 0}, "accumulate: expected at least 1"),
        ({"clip_norm": -1.0}, "clip_norm: expected a limit above 0"),
        ({"ema_decay": 1.0}, "ema_decay: expected a rate"),
        ({"reset_rate": 2}, "reset_rate: expected from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**options)
    with pytest.raises(TypeError, match="tx: expected an Optax transformation"):
        training.make_train_step(loss_fn, 0.1)
    with pytest.raises(TypeError, match="compute_dtype: expected a floating dtype"):
        make(compute_dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"batch\['b'\]: expected 4 rows"):
        make(accumulate=2)(
            training.create(jnp.ones(()), optax.sgd(1.0), ()),
            {"a": jnp.ones((4, 2)), "b": jnp.ones(3)},
        )
