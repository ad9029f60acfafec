"""One comparison for every library of JAX's world: it runs, and we run its weights."""

import dataclasses
import doctest
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.common import assert_close, random_like, value_and_pullback

I, SIZES = 3, (5, 4)
SHAPES = {"B1-T1": (1, 1), "B3-T1": (3, 1), "B1-T7": (1, 7), "B3-T7": (3, 7)}
# Layers and directions.
STACKS = {"one": (1, 1), "both": (1, 2), "two": (2, 1), "two_both": (2, 2)}


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library's converters, and how it runs what they convert.

    Attributes:
        take: its weights to ``(model, params)``.
        give: back.
        take_state: its states to ours.
        give_state: back.
        run: ``run(weights, xs, states) -> (ys, states)``, with ``xs`` batch first.
        gradient: what ``give`` would return if it were linear.
    """

    take: Callable[..., Any]
    give: Callable[..., Any]
    take_state: Callable[..., Any]
    give_state: Callable[..., Any]
    run: Callable[..., Any]
    gradient: Callable[..., Any] | None = None

    def check(self, weights, shape, carries):
        """Compares outputs, last states, and gradients for random cotangents.

        Args:
            weights: shapes and dtypes.
            shape: B and T.
            carries: shapes and dtypes of the states.
        """
        weights, carries = random_like(1, weights), random_like(2, carries)
        xs = random_like(3, jax.ShapeDtypeStruct((*shape, I), jnp.float32))
        model, params = self.take(weights)
        state = self.take_state(model, carries)

        def ours(params, xs, state):
            state, ys = model.apply(params, xs, state)
            return ys, state

        args = weights, xs, carries
        cotangents = random_like(4, jax.eval_shape(self.run, *args))
        theirs, d_theirs = value_and_pullback(self.run, args, cotangents)
        given = cotangents[0], self.take_state(model, cotangents[1])
        (ys, last), gradients = value_and_pullback(ours, (params, xs, state), given)
        assert_close((ys, self.give_state(model, last)), theirs)
        d_params, d_xs, d_state = gradients
        d_weights = (self.gradient or self.give)(model, d_params)
        d_ours = d_weights, d_xs, self.give_state(model, d_state)
        assert_close(d_ours, d_theirs, name="gradient")
        return weights, model, params


def assert_equal(actual, expected):
    """Compares two pytrees of one structure, bit for bit and by their dtypes."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        assert isinstance(a, jax.Array)
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(e))


def states(layers, directions, shape, make):
    """The states of some layers as a library nests them, from one of a size."""
    found = []
    for size in SIZES[:layers]:
        one = jax.ShapeDtypeStruct((*shape, size), jnp.float32)
        made = tuple(make(one) for _ in range(directions))
        found.append(made if directions == 2 else made[0])
    return found[0] if layers == 1 else found


def inputs_of(layers, directions):
    """The number of inputs of each layer."""
    return [I, *(directions * size for size in SIZES)][:layers]


def run_without(library, program):
    """Runs a program in a process in which a library can't be imported."""
    begin = f"import sys\nsys.modules[{library!r}] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + textwrap.dedent(program)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_example(function):
    """Runs a docstring's example, with what is skipped where the library is absent."""
    (test,) = doctest.DocTestFinder().find(function, function.__name__, globs={})
    assert test.examples
    for example in test.examples:
        example.options.pop(doctest.SKIP, None)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test).failed == 0
