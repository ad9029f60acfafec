"""Newton's method on the states of all steps at once, and its derivative.

The unknowns are the states of ``s_t = f_t(s_{t-1})``. One iteration linearises every
step at the last guess, all at once, and solves the linear recurrence that is left. The
solution is differentiated by the implicit function theorem, so that no iteration is
kept for a gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lstm_jax.cells.base import Cell
from lstm_jax.numerics import where_rows, zero_where_not
from lstm_jax.recurrence.newton import maps
from lstm_jax.recurrence.steps import batch_axis_first, enter, hold
from lstm_jax.types import Array, PyTree


class Options(NamedTuple):
    """What Newton's method is run with; see :func:`lstm_jax.parallel_scan`."""

    method: str
    max_iterations: int
    tolerance: float
    damping: float

    @property
    def damped(self) -> bool:
        """Whether an iteration is damped."""
        return self.method.endswith("elk")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a state and an array ``[..., K, m]`` are made from each other.

    Attributes:
        structure: of the state.
        shapes: of its leaves, without batch axes.
        dtypes: of its leaves, float32 or wider.
        by_unit: whether a block is what one unit holds: ``[H, m]`` for m leaves of
            ``[H]``. Otherwise everything is one block, ``[1, n]``.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    by_unit: bool

    @property
    def dtype(self) -> Any:
        """Of the array: the widest."""
        return max(self.dtypes, key=lambda dtype: dtype.itemsize)

    def pack(self, state: PyTree) -> Array:
        """Returns a state, with any leading axes, as one array."""
        leaves = [leaf.astype(self.dtype) for leaf in jax.tree.leaves(state)]
        if self.by_unit:
            return jnp.stack(leaves, -1)
        leading = leaves[0].shape[: leaves[0].ndim - len(self.shapes[0])]
        sizes = map(math.prod, self.shapes)
        rows = [
            leaf.reshape(*leading, 1, size)
            for leaf, size in zip(leaves, sizes, strict=True)
        ]
        return jnp.concatenate(rows, -1)

    def unpack(self, array: Array) -> PyTree:
        """Returns the state that :meth:`pack` was given."""
        if self.by_unit:
            parts = [array[..., n] for n in range(len(self.shapes))]
        else:
            ends = np.cumsum([math.prod(shape) for shape in self.shapes])
            parts = jnp.split(array[..., 0, :], ends[:-1], axis=-1)
            parts = [
                part.reshape(*part.shape[:-1], *shape)
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
        leaves = map(lambda part, dtype: part.astype(dtype), parts, self.dtypes)
        return self.structure.unflatten(leaves)


class Controls(NamedTuple):
    """What holds or resets the state, step by step; None where nothing does.

    Attributes:
        valid: ``[T, *batch]`` bool; a step that is not valid holds the state.
        reset: ``[T, *batch]`` bool; the state becomes ``reset_state`` before this step.
        reset_state: a state of the batch, with a time axis of 1.
    """

    valid: Array | None = None
    reset: Array | None = None
    reset_state: PyTree = None


class Problem(NamedTuple):
    """What is static about an evaluation."""

    cell: Cell
    layout: Layout
    options: Options

    @property
    def cut(self) -> bool:
        """Whether blocks leave out what units do to one another."""
        return self.layout.by_unit and not self.cell.unitwise


class Steps(NamedTuple):
    """What the functions f_t are made of.

    Attributes:
        params: the cell's.
        zs: what the inputs contribute, ``[T, *batch, ...]``.
        start: the state before the first step, ``[*batch, K, m]``.
        controls: see :class:`Controls`.
    """

    params: PyTree
    zs: PyTree
    start: Array
    controls: Controls


def solve(problem: Problem, steps: Steps) -> tuple[Array, Array, Array]:
    """Solves for the states of all steps.

    Returns:
        ``(iterations, states, change)``: the states, ``[T, *batch, K, m]``, and the
        last iteration's change, as :func:`relative` measures it. Only the states have a
        derivative.
    """
    constant = lax.stop_gradient(steps)
    linearise = _linearisation(problem, constant)
    options = problem.options

    def improve(states):
        after, blocks = linearise(states)
        left = after - states
        correct = functools.partial(maps.solve, blocks)
        if options.damped:
            damping = options.damping * _share(left)
            correct = functools.partial(maps.solve_damped, blocks, damping=damping)
        states, change = _correct(states, left, correct)
        return states, relative(change, states)

    length = jax.tree.leaves(steps.zs)[0].shape[0]
    guess = jnp.broadcast_to(constant.start, (length, *steps.start.shape))
    iterations, states, change = _iterate(improve, guess, options)
    return iterations, _implicit(problem, states, steps), change


def solve_affine(problem: Problem, steps: Steps) -> tuple[Array, Array, Array]:
    """Solves for the states of all steps of a cell that has ``affine_steps``.

    One scan, exact but for rounding: what is returned is as from :func:`solve`.
    """
    pack = problem.layout.pack
    valid, reset, reset_state = steps.controls
    affine = problem.cell.affine_steps(steps.params, steps.zs)
    log_scales, offsets = zero_where_not(valid, tuple(map(pack, affine)))
    if reset is not None:
        anew = offsets + jnp.exp(log_scales) * pack(reset_state)
        offsets = where_rows(reset, anew, offsets)
        nothing = jnp.full_like(log_scales, -jnp.inf)
        log_scales = where_rows(reset, nothing, log_scales)
    first = offsets[:1] + jnp.exp(log_scales[:1]) * steps.start[None]
    states = maps.solve_decays(log_scales, jnp.concatenate([first, offsets[1:]]))
    states = batch_axis_first(states)
    one = lax.full_like(states, 1, jnp.int32, shape=())
    return one, states, lax.full_like(states, 0, shape=())


def before(start: Array, states: Array) -> Array:
    """The state before every step, of the states after every step."""
    return jnp.concatenate([jnp.expand_dims(start, 0), states])[:-1]


def advance(
    problem: Problem,
    steps: Steps,
    states: Array,
    recur: Callable[[PyTree], PyTree] | None = None,
) -> tuple[Array, PyTree]:
    """Takes all steps at once.

    Args:
        problem: what is static.
        steps: what the steps are made of.
        states: the state before every step, ``[T, *batch, K, m]``.
        recur: takes the place of the cell's own.

    Returns:
        ``(after, ys)``: the state after every step, and the outputs.
    """
    cell, layout, _ = problem
    params, zs, _, (valid, reset, reset_state) = steps
    state = enter(layout.unpack(states), reset, reset_state)
    rs = cell.recur(params, state) if recur is None else recur(state)
    after, ys = hold(valid, state, cell.update(params, state, zs, rs))
    return layout.pack(after), zero_where_not(valid, ys)


def relative(change: Array, states: Array) -> Array:
    """The largest change, relative to what is changed where that is above 1."""
    size = jnp.maximum(jnp.abs(states), 1)
    return jnp.max(jnp.abs(change) / size, initial=0)


def _linearisation(
    problem: Problem, steps: Steps
) -> Callable[[Array], tuple[Array, Array]]:
    """Returns the function of all states that linearises every step at them.

    It returns the state after every step, and the Jacobian blocks of every step,
    ``[T, *batch, K, m, m]``. A vector of the basis is pushed through all K blocks at
    once and comes out as a column of each: units do nothing to one another, or
    ``_own_recur`` has taken away what they do.
    """
    recur = _own_recur(problem, steps.params) if problem.cut else None

    def linearise(states):
        states = before(steps.start, states)
        take = lambda states: advance(problem, steps, states, recur)[0]
        after, push = jax.linearize(take, states)
        identity = jnp.eye(states.shape[-1], dtype=states.dtype)
        basis = jnp.expand_dims(identity, tuple(range(1, states.ndim)))
        # Added to zeros and not broadcast: see meshes.vary_alike.
        columns = basis + jnp.expand_dims(jnp.zeros_like(states), 0)
        return after, jnp.moveaxis(jax.vmap(push)(columns), 0, -1)

    return linearise


def _own_recur(problem: Problem, params: PyTree) -> Callable[[PyTree], Array]:
    """Returns ``recur`` with its derivative cut down to what a unit does to itself.

    The weights with which a unit enters its own gates come from handing ``recur`` every
    one-hot state, once.
    """
    cell, layout, _ = problem
    hidden, leaves = layout.shapes[0][0], len(layout.shapes)
    zeros = jnp.zeros((hidden, hidden, leaves), layout.dtype)

    def own_weights(leaf):
        one_hot = jnp.multiply.outer(jnp.eye(hidden, dtype=layout.dtype), leaf)
        recur = lambda packed: cell.recur(params, layout.unpack(packed))
        _, rs = jax.jvp(recur, (zeros,), (one_hot,))
        return jnp.diagonal(rs.reshape(hidden, -1, hidden), axis1=0, axis2=2)

    weights = jax.vmap(own_weights)(jnp.eye(leaves, dtype=layout.dtype))

    def own_recur(state):
        rs = lax.stop_gradient(cell.recur(params, state))
        packed = layout.pack(state)
        change = packed - lax.stop_gradient(packed)
        own = jnp.einsum("...hl,lgh->...gh", change, weights)
        return rs + own.reshape(rs.shape).astype(rs.dtype)

    return own_recur


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _implicit(problem, states, steps):
    """Returns the solution as it is, with the derivative that the equations give it."""
    return batch_axis_first(states)


@_implicit.defjvp
def _implicit_jvp(problem, primals, tangents):
    states, steps = primals
    _, d_steps = tangents
    states = _implicit(problem, states, steps)

    def take(steps, states):
        return advance(problem, steps, before(steps.start, states))[0]

    def matvec(d_states):
        through = functools.partial(take, steps)
        return d_states - jax.jvp(through, (states,), (d_states,))[1]

    _, offsets = jax.jvp(lambda steps: take(steps, states), (steps,), (d_steps,))
    solvers = _linear_solvers(problem, *lax.stop_gradient((steps, states)))
    d_states = lax.custom_linear_solve(matvec, offsets, *solvers)
    return states, batch_axis_first(d_states)


def _linear_solvers(
    problem: Problem, steps: Steps, states: Array
) -> tuple[Callable, Callable]:
    """Returns what solves the linear recurrence at the solution, and its transpose.

    Whole Jacobians solve it at once. Those cut down to units do so for one more step in
    every round of an iteration.
    """
    _, blocks = _linearisation(problem, steps)(states)

    def solver(solve):
        solve = functools.partial(solve, blocks)
        if problem.cut:
            return functools.partial(_refine, solve=solve, options=problem.options)
        return lambda matvec, offsets: solve(offsets)

    return solver(maps.solve), solver(maps.solve_transposed)


def _refine(
    matvec: Callable[[Array], Array],
    offsets: Array,
    *,
    solve: Callable[[Array], Array],
    options: Options,
) -> Array:
    """Solves ``matvec(x) = offsets``; NaN where that does not converge."""

    def improve(x):
        x, change = _correct(x, offsets - matvec(x), solve)
        largest = jnp.maximum(jnp.max(jnp.abs(x), initial=0), jnp.finfo(x.dtype).tiny)
        return x, jnp.max(change, initial=0) / largest

    _, x, change = _iterate(improve, jnp.zeros_like(offsets), options)
    return jnp.where(change <= options.tolerance, x, jnp.nan)


def _iterate(
    improve: Callable[[Array], tuple[Array, Array]], guess: Array, options: Options
) -> tuple[Array, Array, Array]:
    """Improves a guess until the change is within the tolerance.

    Args:
        improve: takes a guess and returns a better one and how large the change is.
        guess: the first one.
        options: the limits.

    Returns:
        ``(iterations, guess, change)``: the last ones.
    """

    def unmet(carry):
        iterations, _, change = carry
        # Not change > tolerance: NaN is no more within it than it is above.
        return (iterations < options.max_iterations) & ~(change <= options.tolerance)

    def body(carry):
        iterations, guess, _ = carry
        return iterations + 1, *improve(guess)

    # Made like the guess: see meshes.vary_alike.
    none = lax.full_like(guess, 0, jnp.int32, shape=())
    infinite = lax.full_like(guess, jnp.inf, shape=())
    return lax.while_loop(unmet, body, (none, guess, infinite))


def _correct(
    guess: Array, left: Array, solve: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Returns a better guess, and the change of every number in it.

    ``left`` is what is left of the equations at the guess. A number that would not be
    finite becomes what they say by themselves instead, lest it poison the steps after
    it. A damped change may be small far from the solution: what is left then is not.
    """
    better = guess + solve(left)
    plain = jnp.nan_to_num(guess + left, nan=0, posinf=0, neginf=0)
    better = jnp.where(jnp.isfinite(better), better, plain)
    return better, jnp.maximum(jnp.abs(better - guess), jnp.abs(left))


def _share(left: Array) -> Array:
    """The share of the damping that is used: less than all of it near the solution.

    In proportion to what is left of the equations, so that the last iterations are
    those of Newton's method; damped to the end they gain a fixed factor each.
    """
    largest = jnp.max(jnp.abs(left), initial=0)
    return jnp.where(largest < 1, largest, 1)
