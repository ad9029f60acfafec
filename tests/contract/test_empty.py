"""No rows, and no steps: the forward pass and every gradient, jitted or not."""

import contextlib

import jax
import numpy as np
import pytest

from tests.common import random_like
from tests.contract.cases import contract

SHAPES = {"B0": ((0,), 3), "B2x0": ((2, 0), 3), "T0": ((2,), 0), "B0_T0": ((0,), 0)}


@pytest.mark.parametrize("jitted", [True, False], ids=["jitted", "plain"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@contract()
def test_nothing_is_computed_of_nothing(subject, shape, jitted):
    batch_shape, length = shape
    run, args = subject.case(batch_shape, length)
    shapes = jax.eval_shape(run, *args)
    cotangents = random_like(5, shapes)
    tangents = random_like(6, args)

    def program(args, tangents, cotangents):
        out, pull = jax.vjp(run, *args)
        return run(*args), out, pull(cotangents), jax.jvp(run, args, tangents)[1]

    if jitted:
        program = jax.jit(program)
    with contextlib.nullcontext() if jitted else jax.disable_jit():
        plain, out, grads, d_out = program(args, tangents, cotangents)
    for actual in (plain, out, d_out):
        jax.tree.map(lambda a, s: check_shape(a, s), actual, shapes)
    equal = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    d_params, d_xs, d_state, d_reset_state = grads
    for leaf in jax.tree.leaves((d_params, d_xs, d_reset_state)):
        assert not np.asarray(leaf).any()
    # Without steps the state comes back.
    equal((plain[0], out[0], d_out[0]), (args[2], args[2], tangents[2]))
    equal(d_state, cotangents[0])


def check_shape(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
