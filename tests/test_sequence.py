"""What scan promises: lengths, masks, resets, chunks, batch axes, memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import (
    assert_close,
    normal,
    random_controls,
    random_like,
    random_params,
    random_state,
    standard_cases,
)

CELLS = standard_cases()
CELL = CELLS["standard"]
B, T = 3, 8
PARAMS, XS = random_params(CELL, 0), normal(1, (B, T, 3))
STATE = random_state(CELL, 2, (B,))
DIRECTIONS = pytest.mark.parametrize(
    "reverse", [False, True], ids=["forward", "reverse"]
)


def equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@DIRECTIONS
def test_lengths_hold_the_state_and_zero_the_outputs(reverse):
    lengths = jnp.array([0, 5, T])
    state, ys = lj.scan(CELL, PARAMS, XS, STATE, lengths=lengths, reverse=reverse)
    for row, length in enumerate([0, 5, T]):
        one = jax.tree.map(lambda leaf: leaf[row], STATE)
        last, some = lj.scan(CELL, PARAMS, XS[row, :length], one, reverse=reverse)
        assert_close(ys[row, :length], some)
        assert_close(jax.tree.map(lambda leaf: leaf[row], state), last)
        assert not ys[row, length:].any()
    empty = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    equal(empty(state), empty(STATE))


@DIRECTIONS
def test_mask_agrees_with_the_steps_alone(reverse):
    mask = random_controls(1, (B,), T, ("mask",))["mask"]
    state, ys = lj.scan(CELL, PARAMS, XS, STATE, mask=mask, reverse=reverse)
    for row in range(B):
        one = jax.tree.map(lambda leaf: leaf[row], STATE)
        last, some = lj.scan(CELL, PARAMS, XS[row][mask[row]], one, reverse=reverse)
        assert_close(ys[row][mask[row]], some)
        assert_close(jax.tree.map(lambda leaf: leaf[row], state), last)
        assert not ys[row][~mask[row]].any()


@DIRECTIONS
def test_lengths_and_mask_are_a_conjunction(reverse):
    lengths = jnp.array([2, 5, T])
    mask = random_controls(1, (B,), T, ("mask",))["mask"]
    both = lj.scan(CELL, PARAMS, XS, lengths=lengths, mask=mask, reverse=reverse)
    joined = mask & (np.arange(T) < np.asarray(lengths)[:, None])
    equal(both, lj.scan(CELL, PARAMS, XS, mask=joined, reverse=reverse))


@DIRECTIONS
def test_reset_agrees_with_separate_segments(reverse):
    reset = jnp.zeros((B, T), bool).at[:, 3].set(True)
    zeros = CELL.zero_state((B,))
    state, ys = lj.scan(CELL, PARAMS, XS, STATE, reset=reset, reverse=reverse)
    starts = (zeros, STATE) if reverse else (STATE, zeros)
    first = lj.scan(CELL, PARAMS, XS[:, :3], starts[0], reverse=reverse)
    second = lj.scan(CELL, PARAMS, XS[:, 3:], starts[1], reverse=reverse)
    assert_close(ys, jnp.concatenate([first[1], second[1]], axis=1))
    assert_close(state, first[0] if reverse else second[0])


def test_reset_of_the_first_step_forgets_the_state_passed_in():
    reset = jnp.zeros((B, T), bool).at[:, 0].set(True)
    equal(lj.scan(CELL, PARAMS, XS, STATE, reset=reset), lj.scan(CELL, PARAMS, XS))
    start = random_state(CELL, 5, (B,))
    equal(
        lj.scan(CELL, PARAMS, XS, STATE, reset=reset, reset_state=start),
        lj.scan(CELL, PARAMS, XS, start),
    )


def test_reset_of_the_first_step_is_before_the_reverse_scan_ends():
    """In reverse that boundary is crossed after the last step, outside the call."""
    reset = jnp.zeros((B, T), bool).at[:, 0].set(True)
    equal(
        lj.scan(CELL, PARAMS, XS, STATE, reset=reset, reverse=True),
        lj.scan(CELL, PARAMS, XS, STATE, reverse=True),
    )


def test_masked_step_still_separates():
    reset = jnp.zeros((B, T), bool).at[:, 3].set(True)
    mask = jnp.ones((B, T), bool).at[:, 3].set(False)
    _, ys = lj.scan(CELL, PARAMS, XS, STATE, reset=reset, mask=mask)
    assert_close(ys[:, 4:], lj.scan(CELL, PARAMS, XS[:, 4:])[1])


@DIRECTIONS
def test_reset_past_the_length_does_nothing(reverse):
    lengths = jnp.array([3, 5, 2])
    reset = np.arange(T) >= np.array([[3], [5], [2]])
    options = dict(lengths=lengths, reverse=reverse)
    assert_close(
        lj.scan(CELL, PARAMS, XS, STATE, reset=reset, **options),
        lj.scan(CELL, PARAMS, XS, STATE, **options),
    )


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_chunks_with_resets_agree_with_the_whole(cut):
    controls = random_controls(6, (B,), T, ("mask", "reset"))
    controls["reset"][:, cut] = [True, False, True]
    parts = [
        {k: v[:, s] for k, v in controls.items()}
        for s in (slice(cut), slice(cut, None))
    ]
    whole = lj.scan(CELL, PARAMS, XS, STATE, **controls)
    state, first = lj.scan(CELL, PARAMS, XS[:, :cut], STATE, **parts[0])
    state, second = lj.scan(CELL, PARAMS, XS[:, cut:], state, **parts[1])
    assert_close((state, jnp.concatenate([first, second], 1)), whole)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_reaches_no_output_and_no_gradient(bad, bidirectional):
    model = lj.LSTM(3, 5, num_layers=2, bidirectional=bidirectional)
    params = random_like(0, model.init(jax.random.key(0)))
    controls = random_controls(3, (B,), T, ("lengths", "mask"))
    valid = controls["mask"] & (np.arange(T) < controls["lengths"][:, None])
    clean = jnp.where(valid[..., None], XS, 0)
    dirty = jnp.where(valid[..., None], XS, bad)

    def value_and_grads(xs):
        def loss(params, xs):
            state, ys = model.apply(params, xs, **controls)
            return jnp.sum(ys**2) + sum(jnp.sum(s) for s in jax.tree.leaves(state))

        return jax.value_and_grad(loss, (0, 1))(params, xs), model.apply(
            params, xs, **controls
        )

    equal(value_and_grads(dirty), value_and_grads(clean))


@pytest.mark.parametrize("batch_shape", [(), (1,), (2, 3), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("time_major", [False, True], ids=["batch_major", "time_major"])
@DIRECTIONS
def test_any_batch_axes_agree_row_by_row(batch_shape, time_major, reverse):
    xs = normal(0, (*batch_shape, T, 3))
    state = random_state(CELL, 1, batch_shape)
    controls = random_controls(2, batch_shape, T, ("lengths", "mask", "reset"))
    lengths, mask, reset = controls.values()
    axis = len(batch_shape)
    front = lambda leaf: jnp.moveaxis(leaf, axis, 0) if time_major else leaf
    options = dict(mask=front(mask), reset=front(reset), lengths=jnp.asarray(lengths))
    last, ys = lj.scan(
        CELL,
        PARAMS,
        front(xs),
        state,
        **options,
        time_major=time_major,
        reverse=reverse,
    )
    ys = jnp.moveaxis(ys, 0, axis) if time_major else ys
    for index in np.ndindex(*batch_shape):
        pick = lambda tree: jax.tree.map(lambda leaf: leaf[index], tree)
        one_last, one_ys = lj.scan(
            CELL,
            PARAMS,
            xs[index],
            pick(state),
            lengths=jnp.asarray(lengths)[index],
            mask=mask[index],
            reset=reset[index],
            reverse=reverse,
        )
        assert_close((pick(last), ys[index]), (one_last, one_ys))


def test_numpy_arguments_agree():
    arrays = jax.tree.map(np.asarray, (PARAMS, XS, STATE))
    equal(lj.scan(CELL, *arrays), lj.scan(CELL, PARAMS, XS, STATE))


def test_compute_dtype_follows_the_inputs_or_the_cell():
    half = XS.astype(jnp.bfloat16)
    state, ys = lj.scan(CELL, PARAMS, half, STATE)
    assert (ys.dtype, state.h.dtype, state.c.dtype) == (jnp.bfloat16,) * 2 + (
        jnp.float32,
    )
    cell = dataclasses.replace(CELL, dtype=jnp.bfloat16)
    equal(lj.scan(cell, PARAMS, XS, STATE), (state, ys))
    state, ys = lj.scan(dataclasses.replace(CELL, dtype=jnp.float32), PARAMS, half)
    assert (ys.dtype, state.h.dtype) == (jnp.float32, jnp.float32)
    grads = jax.grad(lambda p: lj.scan(CELL, p, half)[1].astype(jnp.float32).sum())(
        PARAMS
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


def temporary_bytes(length, **options):
    cell = lj.LSTMCell(64, 64)
    params = cell.init(jax.random.key(0))

    def loss(params, xs):
        return jnp.sum(lj.scan(cell, params, xs, **options)[1])

    xs = jax.ShapeDtypeStruct((1, length, 64), jnp.float32)
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_checkpointing_bounds_the_memory_of_a_gradient():
    plain, longer = temporary_bytes(5_000), temporary_bytes(10_000)
    assert 1.8 < longer / plain < 2.2
    # Inputs and outputs alone are 51 MB here.
    assert temporary_bytes(100_000, checkpoint_every=316) < 100e6
    assert temporary_bytes(100_000) > 150e6


def test_implementations_are_named_and_resolved():
    assert lj.implementations()["xla"] == "available"
    assert lj.resolve_implementation(CELL, PARAMS, XS) in lj.implementations()
    assert lj.resolve_implementation(CELL, PARAMS, XS, implementation="xla") == "xla"
    with pytest.raises(ValueError, match="state.h: expected shape"):
        lj.resolve_implementation(CELL, PARAMS, XS, CELL.zero_state((7,)))
