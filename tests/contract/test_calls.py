"""What a call depends on: its arguments as they were, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.common import (
    TOLERANCE,
    assert_close,
    quick_jit,
    random_like,
    relative_error,
)
from tests.contract import truth
from tests.contract.cases import SUBJECTS, contract

B, T = 3, 5


def pick(tree, row):
    return jax.tree.map(lambda leaf: leaf[row], tree)


@contract()
def test_results_are_the_same_twice_and_in_any_batch(subject):
    run, args = subject.case((B,), T)
    cotangents = random_like(5, jax.eval_shape(run, *args))

    @quick_jit
    def program(controls, args, cotangents):
        out, pull = jax.vjp(functools.partial(subject.scan, **controls), *args)
        return out, pull(cotangents)

    whole = program(run.keywords, args, cotangents)
    again = program(run.keywords, args, cotangents)
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    out, (_, *d_rows) = whole
    exact = 1e-6 if subject.dtype == "float32" else TOLERANCE[subject.dtype]
    for row in range(B):
        controls, rows, d_out = pick((run.keywords, args[1:], cotangents), row)
        alone, (_, *d_alone) = program(controls, (args[0], *rows), d_out)
        assert_close(d_alone, pick(d_rows, row), subject.dtype)
        pairs = zip(*map(jax.tree.leaves, (alone, pick(out, row))), strict=True)
        for actual, expected in pairs:
            assert relative_error(actual, expected) <= exact


@contract(lambda subject: subject.dtype == "float32")
def test_float64_can_be_switched_on_late(subject):
    """Before, float64 is float32; then it is what it says, in outputs and states."""
    run, args = subject.case((B,), T)
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), args)
    expected = quick_jit(run)(*args)
    jax.tree.map(np.testing.assert_array_equal, run(*narrow), run(*args))
    loop = functools.partial(truth.outputs, subject.cell, run.keywords, False)
    exact = loop(truth.flat(args))
    with jax.enable_x64(True):
        # A state of NumPy's own making, in a model in float32.
        mixed = (*args[:2], *narrow[2:])
        assert_close(quick_jit(run)(*mixed), expected)
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), args)
        try:
            last, ys = run(*wide)
        except NotImplementedError:
            assert subject._replace(dtype="float64") not in SUBJECTS
            return
    actual = truth.named("last", last) | truth.named("ys", ys)
    assert all(leaf.dtype == jnp.float64 for leaf in actual.values())
    assert_close(actual, {key: exact[key] for key in actual}, "float64")


def aligned(array):
    """A copy at an address that JAX would take without one."""
    array = np.asarray(array)
    room = np.empty(array.nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@contract()
def test_buffers_may_be_used_again_at_once(subject):
    """Everything is overwritten while the program still runs."""
    run, args = subject.case((512,), 8)
    expected = run(*args)
    for _ in range(3):
        given = jax.tree.map(aligned, (args, run.keywords))
        arrays, controls = given
        out = subject.scan(*arrays, **controls)
        for leaf in jax.tree.leaves(given):
            leaf[...] = 1
        jax.tree.map(np.testing.assert_array_equal, out, expected)
