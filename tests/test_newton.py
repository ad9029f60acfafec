"""Newton's method: how fast it converges, what it reports, what it leaves aside."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.recurrence.newton import maps
from tests.common import assert_close, normal, random_params
from tests.test_parallel import CELL, T, arguments, every_method, quick_jit


@pytest.mark.parametrize("method", ["deer", "quasi-deer"])
def test_iterations_are_exact_for_as_many_steps(method):
    cell = lj.LSTMCell(2, 4)
    params, xs, *_ = arguments(cell, (), 20)
    params = params._replace(recurrent_kernel=8 * params.recurrent_kernel)
    _, expected = lj.scan(cell, params, xs)
    _, ys, report = lj.parallel_scan(cell, params, xs, method=method, max_iterations=3)
    # One more step: outputs are taken from the states before them.
    assert_close(ys[:4], expected[:4])
    assert np.abs(ys - expected).max() > 1e-2
    assert report.iterations == 3
    assert not report.converged and report.residual > 1e-3


def test_units_that_do_not_meet_are_solved_as_by_whole_jacobians():
    params, xs, *_ = arguments(CELL)
    own = jnp.tile(jnp.eye(3), 4) * params.recurrent_kernel
    run = lambda method: lj.parallel_scan(
        CELL, params._replace(recurrent_kernel=own), xs, method=method, max_iterations=2
    )
    assert_close(run("quasi-deer")[1], run("deer")[1])


def test_report_says_whether_it_converged():
    params, xs, *_ = arguments(CELL)
    *_, report = lj.parallel_scan(CELL, params, xs, max_iterations=1)
    assert not report.converged and report.iterations == 1
    # One step is exact at once, and nothing has yet said that it is.
    *_, report = lj.parallel_scan(CELL, params, xs[:, :1], max_iterations=1)
    assert not report.converged and report.residual < 1e-5
    *_, report = lj.parallel_scan(CELL, params, xs)
    assert report.converged and report.iterations < T and report.residual < 1e-5


def test_damping_converges_where_newton_needs_many_iterations():
    """Steps that contract along the solution, but not along the way to it."""
    cell = lj.LSTMCell(2, 2)
    params = random_params(cell, 1)
    params = params._replace(recurrent_kernel=8 * params.recurrent_kernel)
    xs = normal(10, (150, 2), scale=0.3)
    run = lambda method, damping: quick_jit(
        lambda xs: lj.parallel_scan(
            cell, params, xs, method=method, damping=damping, max_iterations=50
        )
    )(xs)
    *_, undamped = run("quasi-deer", None)
    state, ys, damped = run("quasi-elk", 0.1)
    assert damped.converged and not undamped.converged
    assert_close((state, ys), lj.scan(cell, params, xs))


def test_more_damping_takes_smaller_steps():
    params, xs, *_ = arguments(CELL, (), 7)
    run = lambda damping: quick_jit(
        lambda xs: lj.parallel_scan(
            CELL, params, xs, method="quasi-elk", damping=damping
        )[2]
    )(xs)
    few, many = run(0.01), run(10.0)
    assert few.converged and many.converged
    assert many.iterations > 2 * few.iterations


@pytest.mark.parametrize("method", ["deer", "quasi-elk"])
def test_a_row_that_is_not_finite_is_reported_and_leaves_the_others(method):
    params, xs, *_ = arguments(CELL)
    bad = xs.at[1, 3].set(jnp.nan)
    _, ys, report = lj.parallel_scan(CELL, params, bad, method=method)
    _, expected = lj.scan(CELL, params, xs)
    assert_close(ys[::2], expected[::2])
    assert not report.converged and np.isnan(report.residual)


@dataclasses.dataclass(frozen=True)
class Exponential:
    """A cell that overflows at a state it never reaches."""

    input_size: int = 1

    def init(self, key):
        return jnp.ones((1, 1))

    def zero_state(self, batch_shape=(), dtype=jnp.float32):
        return jnp.zeros((*batch_shape, 1), dtype)

    def project(self, params, xs):
        return xs

    def recur(self, params, state):
        return jnp.matmul(state, params)

    def update(self, params, state, z, r):
        h = 0.1 * jnp.exp(r) + z
        return h, h


@every_method
def test_guesses_that_overflow_are_left(method):
    cell, xs = Exponential(), normal(1, (T, 1))
    args = jnp.ones((1, 1)), xs, jnp.full((1,), 200.0)
    reset = np.arange(T) == 0
    *out, report = lj.parallel_scan(cell, *args, reset=reset, method=method)
    assert report.converged
    assert_close(tuple(out), lj.scan(cell, *args, reset=reset))


def test_gradient_that_does_not_converge_is_nan():
    params, xs, *_ = arguments(CELL)

    def loss(params):
        return lj.parallel_scan(
            CELL, params, xs, method="quasi-deer", max_iterations=1
        )[1].sum()

    assert all(np.isnan(leaf).all() for leaf in jax.grad(loss)(params)[:2])


def recurrences(m):
    """Blocks and offsets of a recurrence, and the matrix of all of it."""
    blocks, offsets = (
        normal(0, (6, 2, m, m), "float64"),
        normal(1, (6, 2, m), "float64"),
    )
    matrix = np.eye(6 * m)
    for t in range(1, 6):
        matrix[t * m : (t + 1) * m, (t - 1) * m : t * m] = -blocks[t, 1]
    return blocks, offsets, matrix


@pytest.mark.parametrize("m", [1, 2, 3])
def test_affine_solutions_agree_with_the_matrix(m):
    with jax.enable_x64(True):
        blocks, offsets, matrix = recurrences(m)
        right = np.asarray(offsets[:, 1]).ravel()
        for solve, left in (
            (maps.solve, matrix),
            (maps.solve_transposed, matrix.T),
        ):
            actual = solve(blocks, offsets)[:, 1].ravel()
            assert_close(actual, np.linalg.solve(left, right), "float64")


@pytest.mark.parametrize("m", [1, 2, 3])
def test_damped_solution_is_that_of_a_filter_step_by_step(m):
    with jax.enable_x64(True):
        blocks, offsets, _ = recurrences(m)
        actual = maps.solve_damped(blocks, offsets, jnp.float64(0.3))[:, 1]
        mean, covariance, means = np.zeros(m), np.zeros((m, m)), []
        for a, b in zip(
            np.asarray(blocks[:, 1]), np.asarray(offsets[:, 1]), strict=True
        ):
            mean, covariance = a @ mean + b, a @ covariance @ a.T + np.eye(m)
            gain = covariance @ np.linalg.inv(covariance + np.eye(m) / 0.3)
            mean, covariance = mean - gain @ mean, covariance - gain @ covariance
            means.append(mean)
        assert_close(actual, np.stack(means), "float64")
