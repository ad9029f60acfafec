"""Truncated backpropagation over a whole sequence against loops by hand."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.training import truncated_value_and_grad
from tests.common import assert_close, normal, random_controls, random_like

B, I, H = 2, 3, 5
MODEL = lj.LSTM(I, H, num_layers=2, dropout=0.4)
RNN = {"w": normal(0, (1, I)), "u": normal(1, (1, I))}
ZEROS = jnp.zeros((B, I))


def rnn_loss(params, carry, xs, key):
    """A network of single units, which compiles fast."""
    ys = []
    for x in jnp.moveaxis(xs, 1, 0):
        carry = jnp.tanh(x * params["w"] + carry * params["u"])
        ys.append(carry)
    ys = jnp.stack(ys)
    if key is not None:
        ys *= jax.random.bernoulli(key, 0.5, ys.shape).astype(ys.dtype)
    return jnp.sum(ys**3), (carry, {"size": xs.shape[1], "last": carry})


def stack_loss(params, carry, batch, key):
    carry, ys = MODEL.apply(
        params, batch["xs"], carry, mask=batch["mask"], reset=batch["reset"], key=key
    )
    return jnp.sum(jnp.sin(ys) * batch["weights"]), (carry, jnp.sum(batch["mask"]))


@functools.partial(jax.jit, static_argnums=0)
def window_by_hand(loss_fn, params, carry, before, last):
    """The gradient of the last piece's loss, through those before it."""

    def loss_of(params):
        now = carry
        for piece, key in before:
            _, (now, _) = loss_fn(params, now, piece, key)
        return loss_fn(params, now, *last)

    return jax.value_and_grad(loss_of, has_aux=True)(params)


def by_hand(loss_fn, window, depth, params, carry, batch, key_of=lambda start: None):
    """A Python loop over windows, each differentiated by itself, with plain sums."""
    length = jax.tree.leaves(batch)[0].shape[1]
    cut = lambda start, stop: (
        jax.tree.map(lambda leaf: leaf[:, start:stop], batch),
        key_of(start),
    )
    value, grads = 0.0, jax.tree.map(jnp.zeros_like, params)
    carries, rows = {0: carry}, []
    for start in range(0, length, window):
        stop = min(start + window, length)
        first = max(start, stop - depth)
        if first > start:
            piece, key = cut(start, first)
            loss, (carry, metrics) = jax.jit(loss_fn)(params, carry, piece, key)
            value, carries[first] = value + loss, carry
            rows.append(metrics)
        earlier = range(max(0, start - max(depth - window, 0)), start, window)
        before = tuple(cut(one, one + window) for one in earlier)
        carry = carries[earlier[0] if before else first]
        out, grad = window_by_hand(loss_fn, params, carry, before, cut(first, stop))
        loss, (carry, metrics) = out
        value, grads = value + loss, jax.tree.map(jnp.add, grads, grad)
        carries[stop] = carry
        rows.append(metrics)
    metrics = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return (value, (carry, metrics)), grads


CASES = {
    "default": (10, 4, None),
    "same": (8, 4, 4),
    "fewer": (10, 4, 3),
    "fewer_than_the_last_window": (11, 4, 2),
    "more": (10, 4, 8),
    "all": (10, 3, 12),
    "more_and_a_rest": (7, 3, 6),
    "window_of_one_back_three": (6, 1, 3),
    "window_longer_than_the_sequence": (5, 8, None),
    "window_longer_fewer": (5, 8, 3),
    "window_longer_more": (5, 8, 16),
}


@pytest.mark.parametrize(("length", "window", "depth"), CASES.values(), ids=CASES)
def test_agrees_with_a_loop_by_hand(length, window, depth):
    args = RNN, normal(2, (B, I)), normal(3, (B, length, I))
    run = truncated_value_and_grad(rnn_loss, window=window, depth=depth)
    expected = by_hand(rnn_loss, window, depth or window, *args)
    assert_close(jax.jit(run)(*args), expected)


@pytest.mark.parametrize("depth", [1, 4])
def test_stack_agrees_with_a_loop_by_hand(depth):
    length = 4
    params = random_like(1, MODEL.init(jax.random.key(0)))
    carry = random_like(2, MODEL.zero_state((B,)))
    controls = random_controls(5, (B,), length, ("mask", "reset"))
    within = np.arange(length) < np.array([[length], [3]])
    batch = {
        "xs": normal(3, (B, length, I)),
        "weights": normal(4, (B, length, H)),
        "mask": jnp.asarray(controls["mask"] & within),
        "reset": jnp.asarray(controls["reset"]),
    }
    key = jax.random.key(7)
    run = truncated_value_and_grad(stack_loss, window=2, depth=depth)
    args = params, carry, batch
    expected = by_hand(stack_loss, 2, depth, *args, key_of=lambda start: key)
    assert_close(jax.jit(run)(*args, key), expected)


@pytest.mark.parametrize(("window", "depth"), [(9, None), (2, 10)])
def test_enough_depth_is_full_backpropagation(window, depth):
    args = RNN, normal(2, (B, I)), normal(3, (B, 9, I)), None
    run = truncated_value_and_grad(rnn_loss, window=window, depth=depth)
    (loss, (carry, _)), grads = jax.jit(run)(*args)
    (expected, (last, _)), whole = jax.value_and_grad(rnn_loss, has_aux=True)(*args)
    assert_close((loss, carry, grads), (expected, last, whole))


@pytest.mark.parametrize(
    ("depth", "fold_key"), [(4, False), (3, True), (8, True)], ids=str
)
def test_keys(depth, fold_key):
    key = jax.random.key(3)
    args = RNN, ZEROS, normal(3, (B, 8, I))
    run = truncated_value_and_grad(rnn_loss, window=4, depth=depth, fold_key=fold_key)
    key_of = lambda start: jax.random.fold_in(key, start) if fold_key else key
    expected = by_hand(rnn_loss, 4, depth, *args, key_of=key_of)
    assert_close(jax.jit(run)(*args, key), expected)


def test_time_may_be_the_first_axis():
    xs = normal(3, (B, 8, I))
    moved = lambda params, carry, xs, key: rnn_loss(
        params, carry, jnp.moveaxis(xs, 0, 1), key
    )
    run = truncated_value_and_grad(moved, window=4, time_axis=0)
    actual = jax.jit(run)(RNN, ZEROS, jnp.moveaxis(xs, 1, 0))
    assert_close(actual, by_hand(rnn_loss, 4, 4, RNN, ZEROS, xs))


def test_jit_and_vmap_change_nothing():
    run = truncated_value_and_grad(rnn_loss, window=2, depth=4)
    xs = normal(3, (3, B, 6, I))
    jitted = jax.jit(run)
    each = [jitted(RNN, ZEROS, one) for one in xs]
    assert_close(run(RNN, ZEROS, xs[0]), each[0])
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    assert_close(jax.jit(jax.vmap(run, (None, None, 0)))(RNN, ZEROS, xs), expected)


@pytest.mark.parametrize("rows", [None, 2], ids=["one", "vmap"])
@pytest.mark.parametrize(
    ("window", "depth", "expected"),
    [
        (3, 6, {(0, 1, 2): 2, (3, 4, 5): 2, (6,): 1}),
        (3, 9, {(0, 1, 2): 3, (3, 4, 5): 2, (6,): 1}),
        (3, 2, {(0,): 1, (1, 2): 1, (3,): 1, (4, 5): 1, (6,): 1}),
        (9, 18, {tuple(range(7)): 1}),
    ],
    ids=str,
)
def test_each_piece_runs_as_often_as_it_should(window, depth, expected, rows):
    """No step before the sequence is asked for: such a slice would move its start."""
    seen = collections.Counter()

    def loss_fn(params, carry, xs, key):
        see = lambda piece: seen.update([tuple(map(int, piece))])
        jax.debug.callback(see, xs[0])
        return jnp.sum(params * xs), (carry, {})

    run = truncated_value_and_grad(loss_fn, window=window, depth=depth)
    steps = jnp.arange(7.0).reshape(1, 7)
    if rows:
        run = jax.vmap(run, (None, None, 0))
        steps = jnp.broadcast_to(steps, (rows, *steps.shape))
    jax.block_until_ready(jax.jit(run)(jnp.ones((1, 1)), ZEROS, steps))
    jax.effects_barrier()
    assert seen == {piece: count * (rows or 1) for piece, count in expected.items()}


def test_numpy_arguments_and_any_leaves_of_the_carry():
    def counting(params, carry, xs, key):
        h, count, noise = carry
        loss, (h, _) = rnn_loss(params, h, xs, noise)
        return loss, ((h, count + xs.shape[1], jax.random.fold_in(noise, 1)), {})

    run = jax.jit(truncated_value_and_grad(counting, window=2, depth=4))
    carry = ZEROS, 0, jax.random.key(0)
    arrays = jax.tree.map(np.asarray, (RNN, normal(3, (B, 5, I))))
    (_, ((_, count, _), metrics)), _ = run(arrays[0], carry, arrays[1])
    assert int(count) == 5 and metrics == {}


def test_half_precision_gradients_are_summed_in_float32():
    loss_fn = lambda params, carry, xs, key: (jnp.sum(params) * 1, (carry, {}))
    run = truncated_value_and_grad(loss_fn, window=1)
    params = jnp.ones((2,), jnp.bfloat16)
    _, grads = jax.jit(run)(params, None, jnp.zeros((1, 1000)))
    assert grads.dtype == jnp.bfloat16
    np.testing.assert_array_equal(grads, jnp.full(2, 1000, jnp.bfloat16))


def compiled(length, depth):
    cell = lj.LSTMCell(64, 64)
    params = jax.eval_shape(cell.init, jax.random.key(0))

    def loss_fn(params, carry, xs, key):
        carry, ys = lj.scan(cell, params, xs, carry)
        return jnp.sum(ys), (carry, {})

    run = truncated_value_and_grad(loss_fn, window=50, depth=depth)
    xs = jax.ShapeDtypeStruct((1, length, 64), jnp.float32)
    carry = jax.eval_shape(lambda: cell.zero_state((1,)))
    return jax.jit(run).lower(params, carry, xs)


@pytest.mark.parametrize("depth", [20, 100])
def test_memory_and_program_do_not_grow_with_time(depth):
    short, long = compiled(1_000, depth), compiled(10_000, depth)
    lines = lambda lowered: len(lowered.as_text().splitlines())
    assert lines(short) == lines(long)
    temporary = lambda lowered: lowered.compile().memory_analysis().temp_size_in_bytes
    # The batch, which is an argument, is 2.3 MB longer; a loss a window is not much.
    assert temporary(long) < temporary(short) + 10_000


def call(loss_fn=rnn_loss, carry=ZEROS, batch=None, **options):
    batch = normal(3, (B, 10, I)) if batch is None else batch
    run = truncated_value_and_grad(loss_fn, **{"window": 4, **options})
    return run(RNN, carry, batch)


def grows(params, carry, xs, key):
    loss, _ = rnn_loss(params, ZEROS, xs, key)
    return loss, ({"h": jnp.zeros((B, xs.shape[1]))}, {})


def from_nothing(params, carry, xs, key):
    return rnn_loss(params, ZEROS, xs, key)


def per_step(params, carry, xs, key):
    loss, (carry, _) = rnn_loss(params, carry, xs, key)
    return loss, (carry, {"xs": xs})


ERRORS = {
    "window": (dict(window=0), "window: expected at least 1, got 0."),
    "depth": (dict(depth=-1), "depth: expected at least 1, got -1."),
    "multiple": (
        dict(depth=6),
        "depth: expected at most window = 4, or a multiple of it, got 6. Carries",
    ),
    "axis": (
        dict(time_axis=-2),
        "time_axis: expected an axis counted from the front, got -2.",
    ),
    "lengths": (
        dict(batch={"xs": np.ones((2, 7, 3)), "lengths": np.ones(2, int)}),
        "batch['lengths']: expected time on axis 1, got shape [2]. Lengths become",
    ),
    "leaf": (
        dict(batch={"a": np.ones((2, 7, 3)), "mask": np.ones((7, 2))}),
        "batch['mask']: expected T = 7 steps on axis 1, as batch['a'] has, got shape "
        "[7, 2].",
    ),
    "no_steps": (
        dict(batch=np.ones((2, 0, 3))),
        "batch: expected at least one step, got T = 0.",
    ),
    "no_leaves": (dict(batch={}), "batch: expected arrays with a time axis, got none."),
    "none": (
        dict(loss_fn=from_nothing, carry=None),
        "carry: expected loss_fn to return one of the struc",
    ),
    "grows": (
        dict(loss_fn=grows, carry={"h": ZEROS}),
        "carry['h']: expected loss_fn to return float32 [2, 3], as it was given, got "
        "float32 [2, 4].",
    ),
    "metrics": (
        dict(loss_fn=per_step),
        "metrics: expected the same shapes from every piece, {'xs': (2, 4, 3)}, got "
        "{'xs': (2, 2, 3)} from a shorter one.",
    ),
    "metrics_of_parts": (
        dict(loss_fn=per_step, depth=1),
        "{'xs': (2, 3, 3)}, got {'xs': (2, 1, 3)} from a shorter one.",
    ),
}


@pytest.mark.parametrize(("options", "words"), ERRORS.values(), ids=ERRORS)
def test_refuses_what_does_not_fit(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call(**options)


def test_refuses_sizes_that_are_no_integers():
    with pytest.raises(TypeError, match="window: expected an integer, got 4.0"):
        call(window=4.0)
    with pytest.raises(TypeError, match="depth: expected an integer, got True"):
        call(depth=True)
