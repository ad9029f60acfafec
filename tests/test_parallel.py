"""A cell in parallel over time: the values, gradients and transforms of scan."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from lstm_jax.time_parallel import METHODS
from tests.common import (
    GRUCell,
    assert_close,
    cell_cases,
    normal,
    quick_jit,
    random_controls,
    random_inputs,
    random_like,
    random_params,
    random_state,
    value_and_pullback,
)

CELL = lj.LSTMCell(2, 3)
B, T = 3, 6
ALL = ("lengths", "mask", "reset")
# A linear rate ends where the change is small: the error may still be larger than it.
OPTIONS = {"quasi-deer": {"tolerance": 1e-6}, "quasi-elk": {"tolerance": 1e-6}}
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_a_state_without_a_valid_step_is_handed_on_and_reaches_nothing(method):
    params, xs, state, _ = arguments(CELL)

    def run(params, value):
        start = jax.tree.map(lambda leaf: leaf.at[1].set(value), state)
        last, ys, report = lj.parallel_scan(
            CELL, params, xs, start, method=method, lengths=[T, 0, 2]
        )
        return (ys**2).sum(), (last, report)

    grads, (last, report) = jax.grad(run, has_aux=True)(params, jnp.nan)
    assert report.converged and np.isnan(last.h[1]).all()
    assert_close(grads, jax.grad(run, has_aux=True)(params, 0.0)[0])


def arguments(cell, batch_shape=(B,), length=T, dtype="float32"):
    size = cell.size if isinstance(cell, GRUCell) else cell.input_size
    return (
        random_params(cell, 0, dtype),
        normal(1, (*batch_shape, length, size), dtype),
        random_state(cell, 2, batch_shape, dtype),
        random_state(cell, 3, batch_shape, dtype),
    )


def both(cell, batch_shape, length, names, method, *, reverse=False, **options):
    """The function under test and scan, of all float arguments."""
    controls = random_controls(4, batch_shape, length, names)
    options = {"method": method, **OPTIONS.get(method, {}), **options}

    def start(reset_state):
        return {"reset_state": reset_state} if "reset" in names else {}

    def parallel(params, xs, state, reset_state):
        *out, report = lj.parallel_scan(
            cell,
            params,
            xs,
            state,
            **start(reset_state),
            **controls,
            reverse=reverse,
            **options,
        )
        return tuple(out), report

    def scan(params, xs, state, reset_state):
        start_of = start(reset_state)
        return lj.scan(cell, params, xs, state, **start_of, **controls, reverse=reverse)

    return parallel, scan


def assert_agrees(cell, batch_shape, length, names, method, dtype="float32", **options):
    """Values and all gradients against those of scan."""
    parallel, scan = both(cell, batch_shape, length, names, method, **options)
    args = arguments(cell, batch_shape, length, dtype)
    cotangents = random_like(5, jax.eval_shape(scan, *args))

    @quick_jit
    def actual(args, cotangents):
        out, pull, report = jax.vjp(parallel, *args, has_aux=True)
        return (out, pull(cotangents)), report

    out, report = actual(args, cotangents)
    assert report.converged and report.iterations.dtype == jnp.int32
    assert_close(out, value_and_pullback(scan, args, cotangents), dtype)


@every_method
def test_every_method_agrees_with_scan(method):
    assert_agrees(CELL, (B,), T, ("mask",), method)


def test_reverse_agrees_with_scan():
    assert_agrees(CELL, (B,), T, ALL, "deer", reverse=True)


@pytest.mark.parametrize("names", [(name,) for name in ALL], ids=str)
def test_each_control_agrees_with_scan(names):
    parallel, scan = both(CELL, (B,), T, names, "quasi-deer")
    args = arguments(CELL)
    assert_close(quick_jit(parallel)(*args)[0], scan(*args))


def test_several_batch_axes_agree_with_scan():
    assert_agrees(CELL, (2, 3), 4, ALL, "deer")


@pytest.mark.parametrize("length", [1, 2, 63])
def test_any_length_agrees_with_scan(length):
    assert_agrees(CELL, (), length, ("reset",), "quasi-deer")


@pytest.mark.parametrize(
    "cell", [lj.LSTMCell(3, 4, proj_size=2), GRUCell(3)], ids=["projection", "gru"]
)
def test_other_cells_agree_with_scan(cell):
    assert_agrees(cell, (2,), 5, ("lengths",), "deer")


def test_units_of_another_cell_agree_with_scan():
    assert_agrees(GRUCell(3), (2,), 5, ("lengths",), "quasi-deer")


def test_float64_agrees_with_scan():
    with jax.enable_x64(True):
        assert_agrees(CELL, (2,), 5, ALL, "quasi-deer", "float64", tolerance=1e-13)


def test_half_precision_agrees_with_scan():
    params, xs, *_ = arguments(CELL)
    xs = xs.astype(jnp.bfloat16)
    state, ys, report = lj.parallel_scan(CELL, params, xs)
    assert report.converged and report.residual.dtype == jnp.float32
    expected = lj.scan(CELL, params, xs)
    assert_close((state, ys), expected, "bfloat16")
    dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert dtypes((state, ys)) == dtypes(expected)


def test_no_steps_give_the_state_back():
    params, xs, state, _ = arguments(CELL)
    last, ys, report = lj.parallel_scan(CELL, params, xs[:, :0], state)
    assert_close(last, state)
    assert ys.shape == (B, 0, 3) and report.converged


def test_time_major_agrees():
    params, xs, state, _ = arguments(CELL)
    mask = random_controls(4, (B,), T, ("mask",))["mask"]
    front = lambda leaf: jnp.moveaxis(jnp.asarray(leaf), 1, 0)
    last, ys, _ = lj.parallel_scan(
        CELL, params, front(xs), state, mask=front(mask), time_major=True
    )
    expected, expected_ys = lj.scan(CELL, params, xs, state, mask=mask)
    assert_close((last, ys), (expected, front(expected_ys)))


def test_padding_reaches_nothing():
    params, xs, state, _ = arguments(CELL)
    lengths = jnp.array([0, 4, T])
    padding = np.arange(T)[:, None] >= np.array([0, 4, T])[:, None, None]

    def loss(params, xs):
        last, ys, report = lj.parallel_scan(CELL, params, xs, state, lengths=lengths)
        return jnp.sum(ys**2) + jnp.sum(last.c), report

    value_and_grads = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    clean = value_and_grads(params, jnp.where(padding, 0, xs))
    dirty = value_and_grads(params, jnp.where(padding, np.nan, xs))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize("method", ["deer", "quasi-deer"])
def test_jvp_of_vmap_of_jit_agrees_with_a_loop(method):
    parallel, scan = both(CELL, (2,), 5, ALL, method)
    args = arguments(CELL, (2,), 5)
    inner = jax.jit(lambda xs, state: parallel(args[0], xs, state, args[3])[0])
    each = lambda xs, state: scan(args[0], xs, state, args[3])
    spread = lambda leaf, axis: jnp.stack([leaf, -leaf], axis)
    # The added axis of xs is not in front: see recurrence.xla.batch_axis_first.
    many = spread(args[1], 1), jax.tree.map(lambda leaf: spread(leaf, 0), args[2])
    tangents = random_like(6, many)
    mapped = lambda run: jax.vmap(run, (1, 0))
    actual = jax.jvp(mapped(inner), many, tangents)
    assert_close(actual, jax.jit(lambda *a: jax.jvp(mapped(each), *a))(many, tangents))


@pytest.mark.parametrize(
    "method, second",
    [("deer", jax.jacfwd), ("quasi-deer", jax.jacrev)],
    ids=["forward_over_reverse", "reverse_over_reverse"],
)
def test_hessian_agrees_with_scan(method, second):
    cell = lj.LSTMCell(1, 1)
    with jax.enable_x64(True):
        parallel, scan = both(cell, (), 3, ("reset",), method, tolerance=1e-14)
        args = arguments(cell, (), 3, "float64")
        flat, restore = jax.flatten_util.ravel_pytree(args)
        weights = random_like(8, jax.eval_shape(scan, *args))

        def loss(run):
            dots = lambda out: jax.tree.leaves(jax.tree.map(jnp.vdot, weights, out))
            return lambda flat: jnp.tanh(sum(dots(run(*restore(flat)))))

        function = loss(lambda *args: parallel(*args)[0])
        expected = quick_jit(jax.hessian(loss(scan)))(flat)
        assert_close(quick_jit(second(jax.grad(function)))(flat), expected, "float64")


def test_shard_map_over_two_devices_agrees():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    params, xs, *_ = arguments(CELL, (4,), 5)
    run = lambda params, xs: lj.parallel_scan(CELL, params, xs, method="quasi-deer")[1]
    sharded = jax.shard_map(
        run, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
    )
    assert_close(jax.jit(sharded)(params, xs), lj.scan(CELL, params, xs)[1])


ERRORS = {
    "method": ({"method": "newton"}, ValueError, "method: expected one of 'deer'"),
    "no_iterations": ({"max_iterations": 0}, ValueError, "max_iterations: .* least 1"),
    "half_iteration": ({"max_iterations": 1.5}, TypeError, "max_iterations: .*integer"),
    "tolerance": ({"tolerance": -1e-3}, ValueError, "tolerance: .* at least 0"),
    "tolerance_kind": ({"tolerance": "low"}, TypeError, "tolerance: .* a number"),
    "damping": ({"method": "elk", "damping": 0}, ValueError, "damping: .* more than 0"),
    "damping_nan": ({"method": "elk", "damping": np.nan}, ValueError, "damping: "),
    "undamped": ({"damping": 1.0}, ValueError, "damping: expected None with .*'deer'"),
    "reset_state": ({"reset_state": 0}, ValueError, "reset_state: expected None"),
    "state": ({"state": 0}, TypeError, "state: expected an LSTMState"),
}


@pytest.mark.parametrize("options, kind, message", ERRORS.values(), ids=ERRORS)
def test_wrong_options_are_refused_in_words(options, kind, message):
    params, xs, *_ = arguments(CELL)
    with pytest.raises(kind, match=message):
        lj.parallel_scan(CELL, params, xs, **options)


@dataclasses.dataclass(frozen=True)
class TwoPieces(GRUCell):
    """A cell whose pre-activations are not one array."""

    def recur(self, params, state):
        r = super().recur(params, state)
        return r, r


@pytest.mark.parametrize(
    "cell, reason",
    [
        (lj.LSTMCell(3, 4, proj_size=2), r"state have the shapes \[2\], \[4\]"),
        (TwoPieces(3), r"recur returns \[3, 9\], \[3, 9\]"),
    ],
    ids=["projection", "pieces"],
)
def test_cells_without_units_are_refused_by_quasi_methods(cell, reason):
    params, xs, *_ = arguments(cell)
    with pytest.raises(ValueError, match=f"method: expected 'deer' or 'elk'.*{reason}"):
        lj.parallel_scan(cell, params, xs, method="quasi-elk")


OTHERS = {
    "FGR": "deer",
    "norm_ba": "deer",
    "heads": "quasi-deer",
    "diagonal": "elk",
    "learned_start": "quasi-deer",
    "slstm": "deer",
    "minlstm": "deer",
    "minlstm_positive": "quasi-elk",
    "conv1d": "deer",
    "regularized": "deer",
}


@pytest.mark.parametrize("name, method", OTHERS.items(), ids=OTHERS)
def test_every_kind_of_cell_agrees_with_scan(name, method):
    cell = cell_cases()[name]
    params, xs = random_params(cell, 0), random_inputs(cell, 1, (2,), 12)
    controls = random_controls(2, (2,), 12, ("lengths", "reset"))
    state, ys, report = lj.parallel_scan(
        cell, params, xs, method=method, tolerance=1e-6, **controls
    )
    assert report.converged
    assert_close((state, ys), lj.scan(cell, params, xs, **controls))
