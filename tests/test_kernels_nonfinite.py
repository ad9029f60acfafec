"""What is not finite spreads in the kernels as in the reference, and no further.

The kernels compute with whole vectors: where the last one is not full, 0 times infinity
in the lanes beyond would reach every gradient.
"""

import jax
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import (
    normal,
    quick_jit,
    random_controls,
    random_like,
    random_params,
    random_state,
)

WHY = lj.implementations()["cpu"]
pytestmark = pytest.mark.skipif(WHY != "available", reason=f"CPU kernels: {WHY}")

B, I = 3, 5
CELLS = {
    "5": lj.LSTMCell(I, 5),
    "16": lj.LSTMCell(I, 16),
    "20": lj.LSTMCell(I, 20),
    "100": lj.LSTMCell(I, 100),
    "20 to 7": lj.LSTMCell(I, 20, proj_size=7),
    "32 to 16": lj.LSTMCell(I, 32, proj_size=16),
}


# Steps, and controls.
SEQUENCES = {"one step": (1, ()), "steps": (6, ()), "controls": (6, ("mask", "reset"))}


def problem(cell, dtype, T, names):
    """Both implementations as functions of the same arguments, and those."""
    controls = random_controls(2, (B,), T, names)
    args = {
        "params": random_params(cell, 0, dtype),
        "xs": normal(1, (B, T, I), dtype),
        "state": random_state(cell, 3, (B,), dtype),
        "reset_state": random_state(cell, 4, (B,), dtype),
    }

    def run(implementation, args):
        options = {"reset_state": args["reset_state"]} if "reset" in names else {}
        return lj.scan_states(
            cell,
            args["params"],
            args["xs"],
            args["state"],
            **controls,
            **options,
            implementation=implementation,
        )

    def both(implementation):
        def value_and_gradients(args, cotangents):
            out, pull = jax.vjp(lambda args: run(implementation, args), args)
            return out, pull(cotangents)

        return quick_jit(value_and_gradients)

    shapes = jax.eval_shape(lambda args: run("xla", args), args)
    return both("cpu"), both("xla"), args, random_like(5, shapes)


def poisonings(tree, rng):
    """The tree with one element of one leaf not finite, for each leaf."""
    leaves, structure = jax.tree.flatten_with_path(tree)
    for n, (path, leaf) in enumerate(leaves):
        index = tuple(rng.integers(leaf.shape))
        value = [np.inf, -np.inf, np.nan][rng.integers(3)]
        poisoned = [one for _, one in leaves]
        poisoned[n] = leaf.at[index].set(value)
        name = f"{jax.tree_util.keystr(path)}{list(map(int, index))} = {value}"
        yield name, structure.unflatten(poisoned)


def finite(tree):
    return {
        jax.tree_util.keystr(path): np.isfinite(np.asarray(leaf, np.float32))
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CELLS)
def test_what_is_not_finite_spreads_as_in_the_reference(name, dtype, sequence):
    T, names = SEQUENCES[sequence]
    kernels, reference, args, cotangents = problem(CELLS[name], dtype, T, names)
    rng = np.random.default_rng(CELLS[name].hidden_size)
    for what, (some, others) in poisonings((args, cotangents), rng):
        actual, expected = (finite(run(some, others)) for run in (kernels, reference))
        for path, pattern in expected.items():
            # The reference computes with steps that are not valid before it drops them,
            # and may find a weight that is not finite there.
            found = actual[path] & pattern if "mask" in names else actual[path]
            np.testing.assert_array_equal(found, pattern, f"{what}: {path}")


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CELLS)
def test_an_infinite_input_reaches_the_weights_of_its_feature_alone(name, dtype, value):
    kernels, _, args, cotangents = problem(CELLS[name], dtype, 6, ())
    args["xs"] = args["xs"].at[1, 2, 3].set(value)
    (_, states), (grads,) = kernels(args, cotangents)
    assert all(leaf.all() for leaf in finite(states).values())
    kernel, *others = finite(grads["params"]).values()
    expected = np.ones_like(kernel)
    expected[3] = False
    np.testing.assert_array_equal(kernel, expected)
    assert all(leaf.all() for leaf in others)
