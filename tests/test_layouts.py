"""Layouts of `lstm_jax.sharding`: what devices exchange, where, and that it is right.

What the compiled programs have is the table of docs/scaling.md.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import lstm_jax as lj
from benchmarks.aot import exchanges, layouts
from lstm_jax import training
from lstm_jax.sharding import Layout, use
from tests import programs
from tests.common import assert_close, normal, quick_jit, random_like

# No size is another one, or a part of it.
B, T, I, H = 44, 38, 12, 16
BLOCK = 19  # steps that stand in the body of the forward loop
ROWS = {B, B * T}
MODELS = {
    "stack": lj.LSTM(I, H, num_layers=2),
    "both_ways": lj.LSTM(I, H, num_layers=2, bidirectional=True),
    "projection": lj.LSTM(I, H, proj_size=8),
    "coupled": lj.Stack((lj.LSTMCell(I, H, variant="CIFG", peephole=True),)),
}
LAYOUTS = {
    "data": ({"data": 4}, dict(data="data")),
    "fsdp": ({"data": 2, "fsdp": 2}, dict(data=("data", "fsdp"), fsdp="fsdp")),
    "fsdp_alone": ({"data": 4}, dict(data="data", fsdp="data")),
    "data_model": ({"data": 2, "model": 2}, dict(data="data", model="model")),
    "model": ({"model": 4}, dict(model="model")),
    "all": ({"data": 2, "model": 2}, dict(data="data", fsdp="data", model="model")),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# One model in every layout; of the others each kind of layout, and both kinds of axes.
RUNS = [("stack", layout, kind) for layout in LAYOUTS for kind in KINDS]
RUNS += [
    (name, layout, kind)
    for name, kinds in [
        ("both_ways", ("auto", "explicit")),
        ("projection", ("explicit", "auto")),
        ("coupled", ("auto", "explicit")),
    ]
    for layout, kind in zip(("fsdp", "data_model"), kinds, strict=True)
]


def layout_of(name, kind="auto"):
    sizes, axes = LAYOUTS[name]
    types = (KINDS[kind],) * len(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types)
    return Layout(mesh, **axes)


def put(layout, tree, specs):
    shard = lambda spec: NamedSharding(layout.mesh, spec)
    return jax.device_put(tree, jax.tree.map(shard, specs))


@functools.cache
def problem(name):
    """A model's loss and its arguments; one row is a hundred times the others."""
    model = MODELS[name]
    # Small enough that steps do not enlarge what was rounded.
    params = jax.tree.map(
        lambda leaf: 0.3 * leaf, random_like(0, model.init(jax.random.key(0)))
    )
    xs = normal(1, (B, T, I)).at[3].multiply(100)
    state = random_like(2, model.zero_state((B,)))
    weights = random_like(3, jax.eval_shape(model.apply, params, xs, state))

    def loss(params, xs, state, weights):
        out = model.apply(params, xs, state)
        products = jax.tree.map(lambda y, w: (y * w).sum(), out, weights)
        return sum(jax.tree.leaves(products))

    return model, loss, (params, xs, state, weights)


@functools.cache
def alone(name, implementation=None, dtype="float32"):
    """Outputs and gradients on one device."""
    model, loss, args = problem(name)
    with lj.implementation(implementation), jax.enable_x64(dtype == "float64"):
        args = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), args)
        grads = quick_jit(jax.grad(loss, (0, 1, 2)))(*args)
        return jax.device_get((quick_jit(model.apply)(*args[:3]), grads))


@functools.cache
def run(name, layout_name, kind="auto"):
    """Outputs and gradients over devices, and the texts of both programs."""
    model, loss, (params, xs, state, (d_state, d_ys)) = problem(name)
    layout = layout_of(layout_name, kind)
    specs = layout.state(model)
    args = (
        put(layout, params, layout.params(model)),
        put(layout, xs, layout.inputs()),
        put(layout, state, specs),
        (put(layout, d_state, specs), put(layout, d_ys, layout.inputs())),
    )
    with jax.set_mesh(layout.mesh), use(layout):
        forward = quick_jit(model.apply).lower(*args[:3]).compile()
        backward = quick_jit(jax.grad(loss, (0, 1, 2))).lower(*args).compile()
        out, grads = forward(*args[:3]), backward(*args)
    return out, grads, forward.as_text(), backward.as_text()


def assert_equal_by_norm(actual, expected, exact):
    """As near to float64 as one device, three times as far at most, or 1e-6.

    The row that is larger takes the gradient of the weights it meets 3e-6 from it.
    """
    leaves = zip(*map(jax.tree.leaves, (actual, expected, exact)), strict=True)
    for ours, theirs, true in leaves:
        apart = lambda a, b: np.linalg.norm(np.asarray(a, np.float64) - b)
        limit = max(1e-6 * np.linalg.norm(true), 3 * apart(theirs, true))
        assert apart(ours, true) <= limit


@pytest.mark.parametrize(("name", "layout", "kind"), RUNS)
def test_numbers_do_not_depend_on_the_mesh(name, layout, kind):
    """Rows of very unequal size; every leaf, and parameters after a step."""
    out, grads, *_ = run(name, layout, kind)
    over_units = "model" in LAYOUTS[layout][1]
    expected = alone(name, "xla" if over_units else None)
    exact = alone(name, dtype="float64")
    assert_equal_by_norm((out, grads), expected, exact)
    params = problem(name)[2][0]
    step = lambda out, grads: jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads[0])
    steps = step(*jax.device_get((out, grads))), step(*expected), step(*exact)
    assert_equal_by_norm(*steps)


def split(text):
    """Collectives in loops and outside of them."""
    found = programs.collectives(text)
    return [one for one in found if one.in_loop], [
        one for one in found if not one.in_loop
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_exchanged_is_what_the_formulas_say(layout, kind):
    """How many numbers of each kind, in loops and outside; nothing else."""
    texts = dict(
        zip(("forward", "gradient"), run("stack", layout, kind)[2:], strict=True)
    )
    sizes, axes = LAYOUTS[layout]
    for mode, text in texts.items():
        counted = {
            name + " in loops" * in_loop: one.numbers
            for (name, in_loop), one in exchanges.exchanged(text).items()
        }
        shape = layouts.Shape(B, T, I, H, layers=2)
        options = dict(scatters=False, inputs=True)
        assert counted == layouts.expected(axes, sizes, mode, shape, **options)


def test_with_a_projection_a_step_sums_it():
    """Twice for a gradient: once forward and once backward, ``[B, P]``."""
    *_, forward, backward = run("projection", "data_model", "auto")
    numbers = T * B // 2 * 8
    for text, times in ((forward, 1), (backward, 2)):
        found = exchanges.exchanged(text)
        in_loops = {name: one for (name, inside), one in found.items() if inside}
        assert {name: one.numbers for name, one in in_loops.items()} == {
            "all-reduce": times * numbers
        }


@pytest.mark.parametrize(
    ("name", "layout", "kind"), [one for one in RUNS if one[1].startswith("fsdp")]
)
def test_weights_are_gathered_once_and_in_no_loop(name, layout, kind):
    *_, forward, backward = run(name, layout, kind)
    params = problem(name)[2][0]
    specs = layout_of(layout, kind).params(MODELS[name])
    pairs = zip(*map(jax.tree.leaves, (params, specs)), strict=True)
    cut = [leaf.size for leaf, spec in pairs if any(spec)]
    inside, outside = split(forward)
    assert not inside and {one.name for one in outside} == {"all-gather"}
    assert programs.sizes(outside) == sorted(cut)
    inside, outside = split(backward)
    assert not inside
    gathered = [one for one in outside if one.name == "all-gather"]
    reduced = [one for one in outside if one.name == "all-reduce"]
    assert len(gathered) + len(reduced) == len(outside)
    assert programs.sizes(gathered) == sorted(cut)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(programs.sizes(reduced)) == total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["data_model", "model", "all"])
def test_over_units_a_step_gathers_h_and_nothing_else(layout, kind):
    *_, forward, backward = run("stack", layout, kind)
    sizes = layout_of(layout, kind).mesh.shape
    rows, units = B // sizes.get("data", 1), H // sizes["model"]
    inside, _ = split(forward)
    # The steps of a block stand one after the other in the loop's body.
    assert len(inside) == 2 * BLOCK
    assert {(one.name, *one.shapes) for one in inside} == {("all-gather", (rows, H))}
    inside, outside = split(backward)
    assert sorted((one.name, *one.shapes) for one in inside) == [
        *2 * [("all-gather", (rows, H))],
        *2 * [("reduce-scatter", (rows, units))],
    ]
    if rows < B:
        for one in programs.operations(forward) + programs.operations(backward):
            assert not any(ROWS & set(shape) for shape in one.shapes), one.line
    # A layer's inputs have a gradient from the units of every device.
    summed = [one.shapes for one in outside if one.name == "all-reduce"]
    for size in (I, H):
        assert (T, rows, size) in sum(summed, [])


def test_each_device_multiplies_its_share():
    """A device's product of a step has its rows, and the columns of its units."""
    *_, forward, _ = run("stack", "data_model")
    products = [one for one in programs.operations(forward) if one.name == "dot"]
    rows, columns = B // 2, 4 * H // 2
    shapes = {shape for one in products for shape in one.shapes}
    assert shapes == {(rows, columns), (rows * BLOCK, columns)}


@pytest.mark.parametrize("layout", ["data_model", "model", "fsdp"])
def test_what_is_stored_does_not_depend_on_the_mesh(layout, tmp_path):
    """Parameters and Adam's moments, saved here and loaded anywhere: the same bits."""
    model, params = MODELS["stack"], problem("stack")[2][0]
    layout = layout_of(layout)
    placed = put(layout, params, layout.params(model))
    tx = optax.adam(1e-2)
    state = tx.init(params)[0]._replace(mu=random_like(7, params))
    there = state._replace(mu=put(layout, state.mu, layout.params(model)))
    training.save_weights(tmp_path / "weights.safetensors", (placed, there.mu))
    like = jax.eval_shape(lambda: (params, state.mu))
    loaded = training.load_weights(tmp_path / "weights.safetensors", like)
    jax.tree.map(np.testing.assert_array_equal, loaded, (params, state.mu))
    other = layout_of("model")
    again = put(other, loaded[0], other.params(model))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    jax.tree.map(
        np.testing.assert_array_equal,
        lj.convert.to_torch(model, again),
        lj.convert.to_torch(model, params),
    )
    step = functools.partial(model.step, state=model.zero_state((1,)))
    x = jnp.ones((1, I))
    ours, theirs = step(jax.device_get(placed), x=x), step(params, x=x)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_does_not_depend_on_the_mesh(layout):
    """Which outputs are dropped, with threefry's keys, to the bit."""
    rates = dict(output_dropout=0.5, zoneout_c=0.3, recurrent_dropout=0.3)
    cell = lj.Regularized(lj.LSTMCell(I, H), **rates)
    params, xs = random_like(5, cell.init(jax.random.key(0))), normal(1, (B, T, I))
    key = jax.random.key(3)
    apply = lambda params, xs: lj.scan(cell, params, xs, key=key)[1]
    expected = quick_jit(apply)(params, xs)
    layout = layout_of(layout)
    args = (
        put(layout, params, layout.params(cell)),
        put(layout, xs, layout.inputs()),
    )
    with jax.set_mesh(layout.mesh), use(layout):
        ys = quick_jit(apply)(*args)
    np.testing.assert_array_equal(np.asarray(ys) == 0, np.asarray(expected) == 0)
    assert_close(ys, expected)


def test_kernels_say_why_they_do_not_run_over_units():
    model, _, (params, xs, *_) = problem("stack")
    cell, own = model.cells[0], params[0].forward
    layout = layout_of("model")
    with use(layout):
        assert lj.resolve_implementation(cell, own, xs) == "xla"
        with pytest.raises((ValueError, NotImplementedError), match="hidden units"):
            lj.scan(cell, own, xs, implementation="cpu")
        with pytest.raises(ValueError, match="parallel_scan.*all units"):
            lj.parallel_scan(cell, own, xs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: Layout(m, data="rows"), "data: expected .*data.*got 'rows'"),
        (lambda m: Layout(m, fsdp="x"), "fsdp: expected .*got 'x'"),
        (lambda m: Layout(m, data=("data", "data")), "data: expected every axis once"),
        (lambda m: Layout(m, data="data", model="data"), "model: expected an axis of"),
        (
            lambda m: Layout(m, model="model").params(lj.LSTM(I, 15)),
            "hidden_size that the 2 parts.*'model'.*got H = 15",
        ),
        (
            lambda m: Layout(m, data="data", fsdp="data").params(lj.LSTM(I, 15)),
            "recurrent_kernel: expected rows that the 2 parts.*got 15",
        ),
        (
            lambda m: Layout(m, model="model").params(
                lj.LSTMCell(I, H, layer_norm="ba")
            ),
            "model: expected layer_norm=None",
        ),
        (
            lambda m: Layout(m, model="model").params(lj.LSTMCell(I, H, variant="FGR")),
            "another variant than 'FGR'",
        ),
        (
            lambda m: Layout(m, model="model").state(lj.SLSTMCell(I, H)),
            "model: expected LSTMCells",
        ),
    ],
)
def test_layouts_that_do_not_fit_are_refused(make, words):
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    with pytest.raises(ValueError, match=words):
        make(mesh)


def test_a_batch_that_does_not_divide_is_refused_over_units():
    model, _, (params, xs, *_) = problem("stack")
    layout = layout_of("data_model")
    with use(layout), pytest.raises(ValueError, match="xs: .*2 parts.*got B = 3"):
        model.apply(params, xs[:3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time_major", [False, True])
def test_every_c_has_its_units_over_the_axis_and_its_time_whole(kind, time_major):
    cell, xs = lj.LSTMCell(I, H), normal(0, (B, 6, I))
    xs = xs.swapaxes(0, 1) if time_major else xs
    params = cell.init(jax.random.key(0))
    given = functools.partial(lj.scan_states, cell, time_major=time_major)
    expected = given(params, xs, implementation="xla")
    layout = layout_of("data_model", kind)
    own = NamedSharding(layout.mesh, layout.inputs(time_major=time_major))
    with jax.set_mesh(layout.mesh), use(layout):
        after, states = quick_jit(given)(params, jax.device_put(xs, own))
    assert_close((after, states), expected)
    spec = (None, "data", "model") if time_major else ("data", None, "model")
    assert tuple(states.c.sharding.spec) == spec


@pytest.mark.parametrize("call", [jax.jit, lambda function: function])
def test_inputs_on_no_mesh_are_refused_over_explicit_units(call):
    model, _, (params, xs, *_) = problem("stack")
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    layout = Layout(mesh, data="data", model="model")
    for there in (contextlib.nullcontext(), jax.set_mesh(mesh)):
        with there, use(layout), pytest.raises(ValueError, match="xs: .*on no mesh"):
            call(model.apply)(params, xs)


def test_time_is_not_an_axis_of_a_layout():
    with pytest.raises(TypeError, match="Time is never over devices"):
        Layout(jax.make_mesh((2,), ("data",)), time="data")  # pyright: ignore
    with pytest.raises(TypeError, match="mesh: expected one such as"):
        Layout("data")  # pyright: ignore
    with pytest.raises(TypeError, match="layout: expected a Layout"):
        use("data")  # pyright: ignore
