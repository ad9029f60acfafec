"""A cell over time, evaluated in parallel over time: the public function."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax import meshes, sequence
from lstm_jax.cells.base import Cell, cast_params, compute_dtype
from lstm_jax.checks import options
from lstm_jax.numerics import accumulation_dtype, zero_where_not
from lstm_jax.recurrence import loop
from lstm_jax.recurrence.newton import method as newton
from lstm_jax.recurrence.newton.method import Controls, Layout, Problem, Steps
from lstm_jax.recurrence.newton.method import Options as NewtonOptions
from lstm_jax.types import Array, Options, PyTree

METHODS = ("deer", "quasi-deer", "elk", "quasi-elk")

# Where none is asked for; by dtype of the computation.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
DAMPING = 0.01


class ParallelReport(NamedTuple):
    """How an evaluation by :func:`parallel_scan` went: look at ``converged``.

    Attributes:
        iterations: int32, of Newton's method.
        residual: float32, the largest ``|s_t - f_t(s_{t-1})|`` that is left, over all
            steps, rows and units.
        converged: bool, whether the last iteration changed no state by more than the
            tolerance and the residual is within it. Where it is False, neither values
            nor gradients are to be relied on.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((7, 3))
        >>> state, ys, report = lj.parallel_scan(cell, params, xs)
        >>> bool(report.converged), int(report.iterations) <= 7
        (True, True)
    """

    iterations: Array
    residual: Array
    converged: Array


def parallel_scan(
    cell: Cell,
    params: PyTree,
    xs: Array,
    state: PyTree = None,
    *,
    method: str = "deer",
    max_iterations: int = 100,
    tolerance: float | None = None,
    damping: float | None = None,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    reset_state: PyTree = None,
    reverse: bool = False,
    time_major: bool = False,
) -> tuple[PyTree, PyTree, ParallelReport]:
    r"""Runs a cell over time, in parallel over time.

    Computes what :func:`lstm_jax.scan` computes, by Newton's method on the states of
    all steps. With J_t the Jacobian of step f_t, an iteration solves

    .. math::
        \delta_t = J_t \delta_{t-1} + f_t(s_{t-1}) - s_t, \quad \delta_0 = 0

    with an associative scan and adds :math:`\delta` to s. Undamped, the first k steps
    are exact after k iterations, whatever J is, so that T iterations always are enough;
    it pays where far fewer are. docs/parallel.md says where that is.

    Shapes:
        As in :func:`lstm_jax.scan`.

    Args:
        cell: an :class:`LSTMCell`, or anything that follows the cell protocol.
        params: the cell's parameters.
        xs: the inputs. They set the compute dtype, unless the cell has a ``dtype``;
            the computation is in float32 or wider.
        state: what the scan starts from; zeros if None.
        method: "deer" takes J whole, n by n for a state of n numbers. "quasi-deer"
            keeps what each unit does to itself, H blocks of m by m for the m leaves of
            the state: more iterations, each far cheaper. "elk" and "quasi-elk" damp the
            two, for cells on which they take too many. Where units do not see one
            another (``num_heads=H``) those blocks are all of J, and every method keeps
            them alone; the steps of a :class:`MinLSTMCell` are linear in its state, and
            every method is one scan, of one iteration.
        max_iterations: the most iterations, of Newton's method and, for a gradient of a
            quasi method, of the linear solve behind it.
        tolerance: an iteration that changes no state by more than this is the last one;
            relative to a state's size where that is above 1. None for 1e-5, and 1e-10
            in float64.
        damping: of "elk" and "quasi-elk", more for smaller steps; None for 0.01.
        lengths: as in :func:`lstm_jax.scan`, and so are the next five.
        mask: which steps are valid.
        reset: where a new segment begins.
        reset_state: the state after a reset.
        reverse: whether to run from the last step to the first.
        time_major: whether the first axis is time.

    Returns:
        ``(state, ys, report)``: the last state, the outputs of all steps, and a
        :class:`ParallelReport`. Nothing falls back to another method: where
        ``report.converged`` is False, the values are not those of ``scan``. A gradient
        whose linear solve does not converge is NaN.

    Raises:
        ValueError: if a shape or an option is wrong, or a quasi method does not fit the
            cell.
        TypeError: if a type or dtype is wrong.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> state, ys, report = lj.parallel_scan(cell, params, jnp.ones((2, 50, 3)))
        >>> ys.shape, bool(report.converged), int(report.iterations) < 10
        ((2, 50, 5), True, True)

    References:
        "deer": Lim et al. 2024, arXiv:2309.12252. The others: Gonzalez et al. 2024,
        arXiv:2407.19115.
    """
    _check_options(method, max_iterations, tolerance, damping)
    options.check_flag("reverse", reverse)
    if (over := meshes.units_here()) is not None:
        raise ValueError(
            "layout: expected one without model in a call of parallel_scan, whose "
            "iterations need all units of a step, got hidden units over "
            f"{over.axis!r}."
        )
    given = Options(lengths, mask, reset, reset_state, time_major=time_major)
    cell, params, xs, state, given = sequence.prepare(cell, params, xs, state, given)
    by_unit = bool(cell.unitwise) or method.startswith("quasi-")
    layout = _layout(cell, state, by_unit=by_unit)
    if layout.by_unit and not (cell.unitwise or cell.affine_steps):
        _check_units(cell, params, state, layout, method)
    tolerance = TOLERANCE[layout.dtype.name] if tolerance is None else float(tolerance)
    damping = DAMPING if damping is None else float(damping)
    chosen = NewtonOptions(method, int(max_iterations), tolerance, damping)
    return _parallel_scan(
        Problem(cell.for_program(), layout, chosen),
        params,
        xs,
        state,
        given.arrays,
        reverse=bool(reverse),
        time_major=bool(time_major),
    )


def _check_options(
    method: Any, max_iterations: Any, tolerance: Any, damping: Any
) -> None:
    options.check_choice("method", method, METHODS)
    options.check_positive("max_iterations", max_iterations)
    if tolerance is not None:
        _check_number("tolerance", tolerance)
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance: expected at least 0, got {tolerance}.")
    if damping is None:
        return
    if not method.endswith("elk"):
        raise ValueError(
            f"damping: expected None with method {method!r}, which is not damped, got "
            f"{damping!r}. 'elk' and 'quasi-elk' are."
        )
    _check_number("damping", damping)
    if not 0 < damping < math.inf:
        raise ValueError(
            f"damping: expected more than 0, got {damping}. 'deer' and 'quasi-deer' "
            "are the methods without."
        )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{name}: expected a number, got {value!r} of type {type(value).__name__}."
        )


def _layout(cell: Cell, state: PyTree, *, by_unit: bool) -> Layout:
    leaves, structure = jax.tree.flatten(state)
    rows = jax.tree.leaves(jax.eval_shape(lambda: cell.zero_state(())))
    dtypes = tuple(accumulation_dtype(leaf.dtype) for leaf in leaves)
    return Layout(structure, tuple(row.shape for row in rows), dtypes, by_unit)


def _check_units(
    cell: Cell, params: PyTree, state: PyTree, layout: Layout, method: str
) -> None:
    """Checks that a cell is made of units that a quasi method can take apart."""
    reason = ""
    if len(set(layout.shapes)) > 1 or len(layout.shapes[0]) != 1:
        listed = ", ".join(str(list(shape)) for shape in layout.shapes)
        reason = f"the leaves of its state have the shapes {listed}"
    else:
        pre = jax.tree.leaves(jax.eval_shape(cell.recur, params, state))
        hidden = layout.shapes[0][0]
        if len(pre) != 1 or not pre[0].shape or pre[0].shape[-1] % hidden:
            listed = ", ".join(str(list(leaf.shape)) for leaf in pre)
            reason = f"recur returns {listed}"
    if reason:
        raise ValueError(
            f"method: expected 'deer' or 'elk' for this cell, got {method!r}, which "
            f"needs every leaf of the state to be [*batch, H] and recur to return "
            f"[*batch, G*H], gate by gate; {reason}."
        )


@functools.partial(jax.jit, static_argnames=("problem", "reverse", "time_major"))
def _parallel_scan(problem, params, xs, state, traced, *, reverse, time_major):
    leaf = jax.tree.leaves(state)[0]
    axis = leaf.ndim - len(problem.layout.shapes[0])

    def run(params, xs, state, traced):
        given = Options(*traced, time_major=time_major)
        return _in_time_order(problem, params, xs, state, given, reverse, axis)

    first = int(time_major)
    args = (params, xs, state, traced)
    return meshes.automatic(run, args, xs, (first, axis), (0, first, None))


def _in_time_order(problem, params, xs, state, given, reverse, axis):
    """The steps in the order in which they run, with time in front, and back."""
    dtype = compute_dtype(problem.cell, xs.dtype)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, state)
    axis = 0 if given.time_major else axis
    front = lambda leaf: jnp.moveaxis(leaf, axis, 0)
    flip = lambda leaf: jnp.flip(leaf, 0) if reverse else leaf
    xs, mask, reset = jax.tree.map(front, (xs, given.mask, given.reset))
    given = given._replace(mask=mask, reset=reset)
    valid, reset = loop.step_controls(xs.shape[0], given, reverse)
    xs, valid, reset = jax.tree.map(flip, (xs, valid, reset))
    params = cast_params(problem.cell.params_of_steps(params), dtype)
    state, reset_state, restore = loop.entering(
        state, given.reset_state, valid, reset, False
    )
    controls = Controls(valid, reset, reset_state)
    steps = _steps(problem, params, xs.astype(dtype), state, controls)
    state, ys, report = _run(problem, steps)
    back = lambda y: jnp.moveaxis(flip(y), 0, axis).astype(dtype)
    state = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), restore(state), dtypes)
    return state, jax.tree.map(back, ys), report


def _steps(
    problem: Problem, params: PyTree, xs: Array, state: PyTree, controls: Controls
) -> Steps:
    """Prepares the steps: everything in float32 or wider, the inputs projected."""
    widen = lambda leaf: leaf.astype(accumulation_dtype(leaf.dtype))
    params, xs, state = jax.tree.map(widen, (params, xs, state))
    valid, reset, reset_state = controls
    # 0 * NaN is NaN: what stands in padding must go before the first product.
    xs = zero_where_not(valid, xs)
    reset_state = jax.tree.map(lambda leaf: widen(leaf)[None], reset_state)
    params, xs, state, valid, reset, reset_state = meshes.vary_alike(
        (params, xs, state, valid, reset, reset_state)
    )
    return Steps(
        params,
        problem.cell.project(params, xs),
        problem.layout.pack(state),
        Controls(valid, reset, reset_state),
    )


def _run(problem: Problem, steps: Steps) -> tuple[PyTree, PyTree, ParallelReport]:
    """Solves for all states, and takes every step once more for its output."""
    if problem.cell.affine_steps is None:
        iterations, states, change = newton.solve(problem, steps)
    else:
        iterations, states, change = newton.solve_affine(problem, steps)
    before = newton.before(steps.start, states)
    after, ys = newton.advance(problem, steps, before)
    left = lax.stop_gradient(after - states)
    residual = jnp.max(jnp.abs(left), initial=0)
    tolerance = problem.options.tolerance
    report = ParallelReport(
        iterations,
        residual.astype(jnp.float32),
        (change <= tolerance) & (newton.relative(left, states) <= tolerance),
    )
    last = jnp.concatenate([steps.start[None], after])[-1]
    return problem.layout.unpack(last), ys, report
