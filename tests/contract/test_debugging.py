"""Ways to look inside: disable_jit, debug_nans, checkify, prints in a cell."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import lstm_jax as lj
from tests.common import (
    LeakyCell,
    assert_close,
    assert_rounded_otherwise,
    normal,
    quick_jit,
    random_like,
    random_params,
    value_and_pullback,
)
from tests.contract.cases import contract


def gradients(run, args, cotangents):
    out, pull = jax.vjp(run, *args)
    return out, pull(cotangents)


@contract()
def test_disable_jit_changes_nothing(subject):
    run, args = subject.case((2,), 7)
    cotangents = random_like(5, jax.eval_shape(run, *args))
    program = functools.partial(gradients, run)
    expected = quick_jit(program)(args, cotangents)
    with jax.disable_jit():
        plain, actual = run(*args), program(args, cotangents)
    assert_close(plain, expected[0], subject.dtype)
    assert_rounded_otherwise(actual, expected, subject.dtype)


@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "plain"])
@contract()
def test_debug_nans_raises_where_there_is_one_and_nowhere_else(subject, jitted):
    run, args = subject.case((2,), 3, ("lengths", "mask"))
    params, xs, *states = args
    cotangents = random_like(5, jax.eval_shape(run, *args))
    program = functools.partial(gradients, run)
    if jitted:
        program = quick_jit(program)
    expected = program(args, cotangents)
    padding = np.arange(3) >= np.asarray(run.keywords["lengths"])[:, None]
    dirty = xs.at[padding].set(jnp.nan)
    bad = jax.tree.map(lambda leaf: leaf.at[...].set(jnp.nan), params)
    with jax.debug_nans(True):
        for some in (xs, dirty):
            actual = program((params, some, *states), cotangents)
            jax.tree.map(np.testing.assert_array_equal, actual, expected)
        with pytest.raises(FloatingPointError):
            jax.block_until_ready(program((bad, xs, *states), cotangents))


@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "plain"])
@contract()
def test_checkify_reports_a_nan_that_is_made(subject, jitted):
    run, args = subject.case((2,), 3)
    params, xs, *states = args
    checked = checkify.checkify(run, errors=checkify.float_checks)
    if jitted:
        checked = quick_jit(checked)
    error, out = checked(*args)
    error.throw()
    assert_close(out, run(*args), subject.dtype)
    # 0 times infinity, in the first product.
    infinite = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), params)
    error, _ = checked(infinite, jnp.zeros_like(xs), *states)
    with pytest.raises(checkify.JaxRuntimeError, match="nan"):
        error.throw()


@dataclasses.dataclass(frozen=True)
class WatchedCell(LeakyCell):
    """Tells of each step what it puts out, and checks it."""

    def update(self, params, state, z, r):
        state, y = super().update(params, state, z, r)
        jax.debug.callback(SEEN.append, y)
        checkify.debug_check(jnp.all(y < 0.9), "y is {y}", y=y.max())
        return state, y


SEEN = []
B, T = 2, 5
WATCHED = WatchedCell(2, 3)
PARAMS, XS = random_params(WATCHED, 0), normal(1, (B, T, 2))
WAYS = {
    "plain": lambda run: run,
    "jit": quick_jit,
    "remat": lambda run: quick_jit(jax.checkpoint(run)),
    "disable_jit": lambda run: jax.disable_jit()(run),
    "grad": lambda run: lambda *args: value_and_pullback(run, args, run(*args))[0],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("every", [None, 2])
def test_side_effects_of_a_cell_happen_at_each_step(way, every):
    expected = lj.scan(LeakyCell(2, 3), PARAMS, XS)
    run = lambda *args: lj.scan(WATCHED, *args, checkpoint_every=every)
    SEEN.clear()
    assert_close(jax.block_until_ready(WAYS[way](run)(PARAMS, XS)), expected)
    jax.effects_barrier()
    ys = np.moveaxis(np.asarray(expected[1]), 1, 0)
    # Where it is differentiated, steps are run again.
    assert len(SEEN) == T or way == "grad"
    for y in ys:
        assert any(np.allclose(y, other, atol=1e-6) for other in SEEN)


def test_checks_of_a_cell_are_functionalized():
    run = lambda scale: lj.scan(WATCHED, PARAMS, XS * scale)[1]
    checked = quick_jit(checkify.checkify(run, errors=checkify.user_checks))
    error, _ = checked(jnp.float32(0.1))
    error.throw()
    error, _ = checked(jnp.float32(10))
    with pytest.raises(checkify.JaxRuntimeError, match="y is 0.99"):
        error.throw()
