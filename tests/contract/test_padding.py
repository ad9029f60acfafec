"""What is not a number reaches what it has to reach, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.common import assert_close, quick_jit, random_like
from tests.contract.cases import contract, is_standard

B, T = 3, 4


def equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def every_pass(run):
    """The pass without a derivative, forward mode and reverse mode in one program."""

    @quick_jit
    def program(args, tangents, cotangents):
        _, d_out = jax.jvp(run, args, tangents)
        out, pull = jax.vjp(run, *args)
        return run(*args), out, d_out, pull(cotangents)

    return program


def with_rows(condition, values, leaf):
    """``leaf`` with other values where the condition, on its first axes, holds."""
    axes = tuple(range(condition.ndim, leaf.ndim))
    filled = jnp.full_like(leaf, values)
    return jnp.where(jnp.expand_dims(condition, axes), filled, leaf)


@contract()
def test_padding_reaches_no_output_and_no_gradient(subject):
    """Not what stands in it, nor its tangents, nor cotangents of its outputs."""
    run, args = subject.case((B,), T, **subject.noise)
    controls = run.keywords
    within = np.arange(T) < np.asarray(controls["lengths"])[:, None]
    padding = ~(within & controls["mask"])
    tangents = random_like(6, args)
    cotangents = random_like(7, jax.eval_shape(run, *args))
    program = every_pass(run)

    def with_padding(value):
        fill = lambda leaf: with_rows(padding, value, leaf)
        params, xs, state, reset_state = args
        d_params, d_xs, *d_states = tangents
        last, ys = cotangents
        return program(
            (params, fill(xs), state, reset_state),
            (d_params, fill(d_xs), *d_states),
            (last, jax.tree.map(fill, ys)),
        )

    clean = with_padding(0)
    for leaf in jax.tree.leaves(clean):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()
    for value in (np.nan, np.inf):
        equal(with_padding(value), clean)
    (_, ys), _, (_, d_ys), (_, d_xs, *_) = clean
    for leaf in jax.tree.leaves((ys, d_ys, d_xs)):
        assert not np.asarray(leaf)[padding].any()


@pytest.mark.parametrize("reverse", [False, True])
@contract()
def test_a_state_that_enters_no_valid_step_reaches_no_gradient_of_parameters(
    subject, reverse
):
    """Such a row hands on the one state or the other, as it is."""
    run, args = subject.case((B,), T, (), reverse=reverse)
    mask = np.ones((B, T), bool)
    mask[1] = False
    mask[2] = [True, True, False, False] if reverse else [False, False, True, True]
    reset = np.zeros((B, T), bool)
    reset[2, 2 if reverse else 1] = True
    params, xs, state, reset_state = args
    cotangents = random_like(7, jax.eval_shape(run, *args))
    program = every_pass(functools.partial(run, mask=mask, reset=reset))
    tangents = random_like(6, args)

    def with_states(value):
        fill = lambda rows, leaf: with_rows(np.asarray(rows), value, leaf)
        first = jax.tree.map(functools.partial(fill, [False, True, True]), state)
        other = jax.tree.map(functools.partial(fill, [True, True, False]), reset_state)
        return program((params, xs, first, other), tangents, cotangents)

    clean, actual = with_states(0), with_states(jnp.nan)
    for (last, ys), (last_clean, ys_clean) in zip(actual[:2], clean[:2], strict=True):
        equal(ys, ys_clean)
        pairs = zip(*map(jax.tree.leaves, (last, last_clean)), strict=True)
        for leaf, expected in pairs:
            equal(leaf[::2], expected[::2])
            assert np.isnan(np.asarray(leaf[1], np.float64)).all()
    equal(actual[2:], clean[2:])
    (d_last, _), (_, _, d_state, _) = cotangents, actual[3]
    pairs = zip(*map(jax.tree.leaves, (d_state, d_last)), strict=True)
    for grad, expected in pairs:
        equal(grad[1], expected[1])
        assert not np.asarray(grad[2]).any()


@contract()
def test_nan_stays_in_its_row_from_its_step_on(subject):
    run, args = subject.case((B,), T, ())
    params, xs, state, reset_state = args
    cotangents = random_like(7, jax.eval_shape(run, *args))
    program = every_pass(run)
    tangents = random_like(6, args)
    row, step = 1, 2
    bad = (params, xs.at[row, step].set(jnp.nan), state, reset_state)
    actual = program(bad, tangents, cotangents)
    clean = program(args, tangents, cotangents)
    others = np.arange(B) != row
    for (last, ys), (last_clean, ys_clean) in zip(actual[:3], clean[:3], strict=True):
        pairs = zip(*map(jax.tree.leaves, (last, last_clean)), strict=True)
        for leaf, expected in pairs:
            equal(leaf[others], expected[others])
        pairs = zip(*map(jax.tree.leaves, (ys, ys_clean)), strict=True)
        for leaf, expected in pairs:
            equal(leaf[others], expected[others])
            equal(leaf[row, :step], expected[row, :step])
            assert np.isnan(np.asarray(leaf[row, step:], np.float64)).all()
    for grad, expected in zip(
        jax.tree.leaves(actual[3][1:3]), jax.tree.leaves(clean[3][1:3]), strict=True
    ):
        equal(grad[others], expected[others])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@contract(is_standard)
def test_an_infinite_input_reaches_the_gradient_of_its_own_weights_alone(
    subject, value
):
    """Gates that it saturates are constant: only its own weights see it itself."""
    run, args = subject.case((B,), T, ())
    params, xs, state, reset_state = args
    cotangents = random_like(7, jax.eval_shape(run, *args))

    @quick_jit
    def program(*args):
        out, pull = jax.vjp(run, *args)
        return out, pull(cotangents)

    actual = program(params, xs.at[1, 2, 0].set(value), state, reset_state)
    # A large number saturates the gates too.
    large = xs.at[1, 2, 0].set(1e4 if value > 0 else -1e4)
    out, (d_params, d_xs, *rest) = program(params, large, state, reset_state)
    bad_out, (bad_params, bad_xs, *bad_rest) = actual
    assert_close(bad_out, out, subject.dtype)
    assert not np.isfinite(np.asarray(bad_params.kernel[0], np.float64)).any()
    strip = lambda d: d._replace(kernel=d.kernel[1:])
    assert_close(strip(bad_params), strip(d_params), subject.dtype)
    assert_close(bad_xs.at[1, 2].set(0), d_xs.at[1, 2].set(0), subject.dtype)
    assert_close(bad_rest, rest, subject.dtype)
