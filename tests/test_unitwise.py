"""Cells whose units do not see one another, ParaRNN's LSTM among them, in parallel.

Newton's method with exact blocks, one for each unit: as few iterations as with whole
Jacobians, and memory in proportion to the number of units.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from lstm_jax.time_parallel import METHODS
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_controls,
    random_like,
    random_params,
    random_state,
    relative_error,
    value_and_pullback,
)

ALL = ("lengths", "mask", "reset")
B, T, I, H = 3, 12, 2, 5
PARARNN = lj.LSTMCell(I, H, num_heads=H, variant="CIFG", peephole=True)
CELLS = {
    "pararnn": PARARNN,
    "standard": lj.LSTMCell(I, H, num_heads=H),
    "one_unit": lj.LSTMCell(I, 1),
    "slstm": lj.SLSTMCell(I, H, num_heads=H),
    "zoneout": lj.Regularized(PARARNN, zoneout_c=0.2, zoneout_h=0.1),
}


@dataclasses.dataclass(frozen=True, repr=False)
class Whole(lj.LSTMCell):
    """The same steps, of which Newton's method takes the Jacobians whole."""

    unitwise = False


def pararnn(weights, xs):
    """Equations 3.3 of arXiv:2510.21450, one unit beside the other, step after step.

    Args:
        weights: ``A``, ``B``, ``b`` for f, z and o, ``C`` for f and o.
        xs: ``[B, T, I]``.
    """
    A, Bx, b, C = (weights[name] for name in ("A", "B", "b", "C"))

    def step(state, x):
        h, c = state
        f = jax.nn.sigmoid(A["f"] * h + x @ Bx["f"] + C["f"] * c + b["f"])
        z = jnp.tanh(A["z"] * h + x @ Bx["z"] + b["z"])
        c = f * c + (1 - f) * z
        o = jax.nn.sigmoid(A["o"] * h + x @ Bx["o"] + C["o"] * c + b["o"])
        h = o * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros_like(b["f"])
    run = lambda xs: jax.lax.scan(step, (zeros, zeros), xs)[1]
    return jax.vmap(run)(xs)


def as_paper_has_it(params, hidden):
    """Our weights of i = 1 - f, g and o as theirs of f, z and o, in float64."""
    wide = lambda leaf: jnp.asarray(np.asarray(leaf, np.float64))
    signs = {"f": -1, "z": 1, "o": 1}
    split = lambda leaf: {
        name: sign * part
        for (name, sign), part in zip(
            signs.items(), jnp.split(wide(leaf), 3, -1), strict=True
        )
    }
    own = jnp.moveaxis(params.recurrent_kernel[:, 0], 0, 1).reshape(3 * hidden)
    i, o = wide(params.peephole)
    return {
        "A": split(own),
        "B": split(params.kernel),
        "b": split(params.bias),
        "C": {"f": -i, "o": o},
    }


def test_pararnn_is_what_its_paper_says():
    """Values and gradients by the steps, by Newton's method, by the float64 loop."""
    cell, xs = PARARNN, normal(1, (B, 200, I))
    params, cotangent = random_params(cell, 2), normal(3, (B, 200, H))

    with jax.enable_x64(True):
        weights = as_paper_has_it(params, H)
        wide = jnp.asarray(np.asarray(xs, np.float64))
        expected, pull = jax.vjp(jax.jit(pararnn), weights, wide)
        d_weights, d_xs = pull(jnp.asarray(np.asarray(cotangent, np.float64)))
    for run in (lj.scan, lj.parallel_scan):
        ys, pull = jax.vjp(
            lambda params, xs, run=run: run(cell, params, xs)[1], params, xs
        )
        assert relative_error(ys, expected) < 1e-5
        grads, d_inputs = pull(cotangent)
        with jax.enable_x64(True):
            taken = as_paper_has_it(grads, H)
        assert_close(taken, d_weights)
        assert_close(d_inputs, d_xs)


def test_few_iterations_over_many_steps():
    cell = lj.LSTMCell(8, 16, num_heads=16, variant="CIFG", peephole=True)
    params, xs = cell.init(jax.random.key(0)), normal(1, (2, 4096, 8))
    run = jax.jit(lambda params, xs: lj.parallel_scan(cell, params, xs))
    state, ys, report = run(params, xs)
    assert report.converged and report.iterations <= 6
    assert_close((state, ys), lj.scan(cell, params, xs))


@pytest.mark.parametrize(
    "name, method",
    [(name, "deer") for name in CELLS] + [("pararnn", one) for one in METHODS[1:]],
)
def test_every_cell_and_method_agrees_with_scan(name, method):
    """Values and all gradients, in float64, where rounding hides nothing."""
    with jax.enable_x64(True):
        check_method(CELLS[name], method)


def check_method(cell, method):
    args = (
        random_params(cell, 0, "float64"),
        normal(1, (B, T, I), "float64"),
        random_state(cell, 2, (B,), "float64"),
        random_state(cell, 3, (B,), "float64"),
    )
    controls = random_controls(4, (B,), T, ALL)

    def scan(params, xs, state, reset_state):
        given = {"reset_state": reset_state, **controls}
        return lj.scan(cell, params, xs, state, reverse=True, **given)

    def parallel(params, xs, state, reset_state):
        given = {"reset_state": reset_state, **controls, "tolerance": 1e-13}
        *out, report = lj.parallel_scan(
            cell, params, xs, state, reverse=True, method=method, **given
        )
        return tuple(out), report

    cotangents = random_like(5, jax.eval_shape(scan, *args))
    expected = value_and_pullback(scan, args, cotangents)

    @quick_jit
    def actual(args, cotangents):
        out, pull, report = jax.vjp(parallel, *args, has_aux=True)
        return (out, pull(cotangents)), report

    values, report = actual(args, cotangents)
    assert report.converged
    assert_close(values, expected, "float64")


def test_blocks_are_the_whole_jacobian():
    """So that not one iteration more is needed than with all n by n of it."""
    options = dict(num_heads=H, variant="CIFG", peephole=True)
    params, xs = random_params(PARARNN, 1), normal(2, (B, 60, I), scale=2.0)
    for limit in (2, 3, 100):
        whole, by_unit = (
            lj.parallel_scan(cell, params, xs, max_iterations=limit)
            for cell in (Whole(I, H, **options), PARARNN)
        )
        assert_close(by_unit[:2], whole[:2])
        assert by_unit[2].iterations == whole[2].iterations
    quasi = lj.parallel_scan(
        Whole(I, H, **options), params, xs, method="quasi-deer", max_iterations=3
    )
    assert_close(quasi[:2], lj.parallel_scan(PARARNN, params, xs, max_iterations=3)[:2])


def shapes_in(jaxpr):
    """The shapes of all values in a program, inner programs too."""
    for equation in jaxpr.eqns:
        for value in equation.outvars:
            yield value.aval.shape
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def program(hidden, gradient, cell=None):
    cell = cell or lj.LSTMCell(
        I, hidden, num_heads=hidden, variant="CIFG", peephole=True
    )
    params = jax.eval_shape(cell.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((16, I), jnp.float32)
    run = lambda params, xs: lj.parallel_scan(cell, params, xs)[1].sum()
    return jax.jit(jax.grad(run, (0, 1)) if gradient else run).trace(params, xs)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "gradient"])
def test_memory_is_in_proportion_to_the_units(gradient):
    """No value has two axes of units, and what is compiled grows as they do."""
    hidden = 37
    found = list(shapes_in(program(hidden, gradient).jaxpr.jaxpr))
    assert any(hidden in shape for shape in found)
    assert all(sum(size % hidden == 0 for size in shape if size) < 2 for shape in found)
    whole = Whole(I, hidden, num_heads=hidden, variant="CIFG", peephole=True)
    other = shapes_in(program(hidden, gradient, whole).jaxpr.jaxpr)
    assert any(shape[-2:] == (2 * hidden, 2 * hidden) for shape in other)
    sizes = [
        program(hidden, gradient).lower().compile().memory_analysis().temp_size_in_bytes
        for hidden in (128, 512)
    ]
    assert sizes[1] < 4.2 * sizes[0]


def test_transforms():
    params, xs = random_params(PARARNN, 1), normal(2, (4, T, I))
    run = lambda xs: lj.parallel_scan(PARARNN, params, xs)[1]
    expected = lj.scan(PARARNN, params, xs)[1]
    assert_close(jax.vmap(run, 1, 1)(xs[:, None])[:, 0], expected)
    with jax.disable_jit():
        assert_close(lj.parallel_scan(PARARNN, params, xs[:, :5])[1], expected[:, :5])
    with jax.debug_nans(True):
        jax.grad(lambda xs: run(xs).sum())(xs)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    cut = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert_close(jax.jit(cut)(xs), expected)
    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(xs.shape, xs.dtype))
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(xs), expected)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, xs))
        state, ys, report = lj.parallel_scan(PARARNN, *wide)
        assert report.converged
        assert_close((state, ys), lj.scan(PARARNN, *wide), "float64")


def test_which_cells_are():
    of = lambda **options: lj.LSTMCell(4, 4, **options).unitwise
    assert of(num_heads=4) and lj.LSTMCell(3, 1).unitwise
    assert not (of() or of(num_heads=2))
    assert not of(num_heads=4, layer_norm="haste")
    assert not of(num_heads=4, variant="FGR")
    assert lj.SLSTMCell(3, 4, num_heads=4).unitwise
    assert not lj.SLSTMCell(3, 4, num_heads=2).unitwise
    assert lj.Regularized(PARARNN, zoneout_h=0.1).unitwise
    assert not lj.Regularized(lj.LSTMCell(3, 4), zoneout_h=0.1).unitwise
    assert lj.MinLSTMCell(3, 4).unitwise and not lj.ConvLSTMCell((4, 2), 2, 3).unitwise
