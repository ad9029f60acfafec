"""Sharded batches in the ways that programs have them: by hand, in steps, uneven."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from tests import programs
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_like,
)
from tests.sharded import (
    ALL,
    AXIS_TYPES,
    BACKWARD,
    CASES,
    FORWARD,
    KERNELS,
    LAYOUTS,
    B,
    Layout,
    arguments,
    assert_sharded,
    case,
    differentiated,
    function_of,
    on_one_device,
    place,
)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("name", ["stack", "bidirectional", "slstm", "noisy"])
def test_shard_map_runs_rows_by_hand(name, check_vma):
    mesh = LAYOUTS["Auto-arrays-2"].mesh()
    names = ("lengths", "reset")
    model = CASES[name]
    run, args = function_of(model, names), arguments(model, names)
    out = quick_jit(run)(*args)
    cotangents = random_like(4, out)
    by_hand = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    forward = quick_jit(by_hand).lower(*args).compile()
    backward = quick_jit(differentiated(by_hand)).lower(*args, cotangents).compile()
    assert bool(programs.calls(forward.as_text(), FORWARD)) == (name in KERNELS)
    assert bool(programs.calls(backward.as_text(), BACKWARD)) == (name in KERNELS)
    assert not programs.collectives(forward.as_text())
    assert_close(forward(*args), out)
    grads = quick_jit(differentiated(run))(*args, cotangents)
    assert_close(backward(*args, cotangents), grads)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_shard_map_over_some_axes_of_a_mesh(implementation):
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    args, out, cotangents, grads = on_one_device("standard", ALL)
    by_hand = functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=P("data"),
        axis_names={"data"},
    )
    sharded = by_hand(case("standard", ALL, implementation))
    assert_close(quick_jit(sharded)(*args), out)
    backward = quick_jit(differentiated(sharded))
    assert_close(backward(*args, cotangents), grads)
    named = by_hand(case("standard", ALL, "cpu"))
    with pytest.raises(NotImplementedError, match="shard_map over some axes of a mesh"):
        jax.jit(named)(*args)


# JAX differentiates explicit axes only in a jitted function or beside the mesh, once
# any part of the result is on one device.
@pytest.mark.parametrize(
    "name, layout",
    [
        *(("standard", name) for name in LAYOUTS if name.endswith("2")),
        ("slstm", "Auto-arrays-2"),
        ("slstm", "Explicit-current-2"),
    ],
)
def test_calls_that_are_not_jitted(name, layout):
    args, out, cotangents, grads = on_one_device(name, ())
    layout, run = LAYOUTS[layout], case(name, ())
    mesh = layout.mesh()
    with jax.set_mesh(mesh) if layout.current else contextlib.nullcontext():
        placed = place(mesh, args, "data")
        ours = place(mesh, ((), cotangents), "data")[1]
        got = run(*placed)
        got_grads = differentiated(run)(*placed, ours)
    assert_sharded(mesh, got, "data")
    assert_close(got, out)
    assert_sharded(mesh, got_grads[1], "data")
    assert_close(got_grads, grads)


@pytest.mark.parametrize("jitted", [False, True], ids=["plain", "jitted"])
@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", ["layer_norm", "slstm", "stack"])
def test_steps_stay_with_their_rows(name, kind, jitted):
    mesh, model = Layout(kind, True, 2).mesh(), CASES[name]
    params, xs, state, _ = arguments(model, ALL)
    args = params, xs[:, 0], state, np.arange(B) % 3 == 0

    def step(params, x, state, reset):
        if name == "stack":
            return model.step(params, state, x), model.step(
                params, state, x, reset=reset
            )
        return model(params, state, x), model(params, None, x)

    out = quick_jit(step)(*args)
    loss = lambda params, *rest: sum(map(jnp.sum, jax.tree.leaves(step(params, *rest))))
    both = lambda *args: (step(*args), jax.grad(loss)(*args))
    with jax.set_mesh(mesh):
        placed = place(mesh, args, "data")
        got, grads = (quick_jit(both) if jitted else both)(*placed)
    assert_sharded(mesh, got, "data")
    assert_close(got, out)
    assert_close(grads, quick_jit(jax.grad(loss))(*args))


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_a_population_stays_where_it_is(kind, implementation):
    mesh = Layout(kind, False, 2).mesh()
    run = case("standard", ALL, implementation)
    args, _, _, _ = on_one_device("standard", ALL)
    halved = lambda leaf: leaf / 2 if leaf.dtype == jnp.float32 else leaf
    many = jax.tree.map(lambda leaf: jnp.stack([halved(leaf), leaf]), args)
    both = jax.vmap(run), jax.vmap(differentiated(run))
    out = quick_jit(both[0])(*many)
    cotangents = random_like(4, out)
    grads = quick_jit(both[1])(*many, cotangents)
    placed, ours = jax.device_put((many, cotangents), NamedSharding(mesh, P("data")))
    forward = quick_jit(both[0]).lower(*placed).compile()
    backward = quick_jit(both[1]).lower(*placed, ours).compile()
    for program, got, expected in (
        (forward, forward(*placed), out),
        (backward, backward(*placed, ours), grads),
    ):
        assert not programs.collectives(program.as_text())
        assert_sharded(mesh, got, "data")
        assert_close(got, expected)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_rows_of_very_unequal_size(implementation):
    """What a device's rows are worth does not reach those of another."""
    mesh = LAYOUTS["Auto-arrays-4"].mesh()
    cell = CASES["standard"]
    params, xs, _, _ = arguments(cell, ())
    xs = xs.at[B - 1].multiply(100)
    function = lambda params, xs: lj.scan(
        cell, params, xs, implementation=implementation
    )[1]
    expected = quick_jit(function)(params, xs)
    cotangents = normal(4, expected.shape).at[B - 1].multiply(100)
    both = lambda params, xs, cotangents: (
        function(params, xs),
        jax.vjp(function, params, xs)[1](cotangents),
    )
    got = quick_jit(both)(*place(mesh, (params, xs, cotangents), "data"))
    want = quick_jit(both)(params, xs, cotangents)
    assert_close(got, want)
    # The other rows by themselves, not beside one that is a hundred times as large.
    small = lambda out: (out[0][:-1], out[1][1][:-1])
    assert_close(small(got), small(want))


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_an_uneven_batch(implementation):
    """What makes the parts of a batch equal is summed into no gradient."""
    mesh, rows = LAYOUTS["Auto-arrays-2"].mesh(), 5
    cell = CASES["standard"]
    params, xs, _, _ = arguments(cell, (), (rows,))
    function = lambda params, xs: lj.scan(
        cell, params, jnp.cos(xs) + 3, implementation=implementation
    )[1]
    loss = lambda params, xs: jnp.sum(jnp.tanh(function(params, xs) + 1) ** 2)

    def sharded(params, xs):
        xs = jax.lax.with_sharding_constraint(xs, NamedSharding(mesh, P("data")))
        return loss(params, xs)

    both = lambda loss: quick_jit(jax.value_and_grad(loss, (0, 1)))(params, xs)
    assert_close(both(sharded), both(loss))


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_weights_that_are_sharded(implementation):
    """They are gathered where they are used, and gradients come as they are made."""
    mesh = LAYOUTS["Explicit-arrays-2"].mesh()
    args, out, cotangents, grads = on_one_device("standard", ALL)
    run = case("standard", ALL, implementation)
    _, *rest = place(mesh, args, "data")
    cut = lambda leaf: NamedSharding(mesh, P(*[None] * (leaf.ndim - 1), "data"))
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, cut(leaf)), args[0])
    got = quick_jit(run)(params, *rest)
    assert_sharded(mesh, got, "data")
    assert_close(got, out)
    ours = place(mesh, ((), cotangents), "data")[1]
    assert_close(quick_jit(differentiated(run))(params, *rest, ours), grads)


@pytest.mark.parametrize("spec", [P("data"), P(None, "data")], ids=str)
@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_a_table_keeps_its_sharding_where_words_are_dropped(kind, spec):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    key, table = jax.random.key(0), np.asarray(normal(1, (6, 4)))
    expected = lj.embedding_dropout(key, 0.5, table)
    with jax.set_mesh(mesh):
        placed = jax.device_put(table, NamedSharding(mesh, spec))
        dropped = lj.embedding_dropout(key, 0.5, placed)
        assert_close(dropped, expected)
        assert dropped.sharding.is_equivalent_to(placed.sharding, 2)
        assert_close(lj.embedding_dropout(key, 0.5, table), expected)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_a_program_of_several_meshes(implementation):
    mesh = LAYOUTS["Auto-arrays-2"].mesh()
    auto = (AxisType.Auto,)
    grid = jax.make_mesh((1, 2), ("a", "b"), auto * 2, devices=jax.devices()[:2])
    rows = jax.make_mesh((2,), ("rows",), auto, devices=jax.devices()[:2])
    args, out, cotangents, grads = on_one_device("standard", ALL)
    run = case("standard", ALL, implementation)
    constrain = jax.lax.with_sharding_constraint

    def over_three(params, xs, state, controls):
        state = constrain(state, NamedSharding(grid, P("b")))
        last, ys = run(params, xs, state, controls)
        return last, constrain(ys, NamedSharding(rows, P("rows")))

    placed = place(mesh, args, "data")
    forward = quick_jit(over_three).lower(*placed).compile()
    assert not programs.collectives(forward.as_text())
    assert_close(forward(*placed), out)
    assert_close(quick_jit(differentiated(over_three))(*placed, cotangents), grads)


def test_programs_are_lowered_for_a_mesh_without_devices():
    mesh = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))
    args, _, _, _ = on_one_device("standard", ())
    cut = lambda leaf, spec: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
    )
    params = jax.tree.map(lambda leaf: cut(leaf, P()), args[0])
    traced = jax.jit(case("standard", ())).trace(params, cut(args[1], P()), None, ())
    for platform in ("cpu", "cuda", "tpu"):
        assert "lstm_jax" not in traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_time_that_is_sharded(implementation):
    run = case("standard", (), implementation)
    (params, xs, _, _), out, _, _ = on_one_device("standard", ())
    xs, out = xs[:, :20], quick_jit(run)(params, xs[:, :20], None, ())
    auto, explicit = (Layout(kind, False, 2).mesh() for kind in AXIS_TYPES)
    cut = lambda mesh, *axes: jax.device_put(xs, NamedSharding(mesh, P(*axes)))
    assert_close(run(params, cut(auto, None, "data"), None, ()), out)
    words = "expected a sharding of batch axes alone.*got P.None, 'data', None.*reshard"
    with pytest.raises(ValueError, match=words):
        run(params, cut(explicit, None, "data"), None, ())
