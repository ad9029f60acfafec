"""A batch over several devices: each runs its own rows, gradients meet once."""

import jax
import pytest

import lstm_jax as lj
from tests import programs
from tests.common import (
    assert_close,
    quick_jit,
    random_like,
)
from tests.sharded import (
    ALL,
    AXIS_TYPES,
    BACKWARD,
    CASES,
    FEW,
    FORWARD,
    KERNELS,
    LAYOUTS,
    STANDARD,
    T,
    arguments,
    assert_gradients_meet_once,
    assert_sharded,
    case,
    check,
    differentiated,
    function_of,
    on_one_device,
    place,
)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("names", [(), ALL], ids=["plain", "controls"])
@pytest.mark.parametrize("implementation", [None, "xla"])
def test_each_device_runs_its_own_rows(implementation, names, layout):
    run = case("standard", names, implementation)
    check(layout, run, on_one_device("standard", names), implementation is None)


@pytest.mark.parametrize("layout", FEW)
@pytest.mark.parametrize("name", CASES)
def test_every_model_runs_its_own_rows(name, layout):
    names = ALL if layout == FEW[0] else ()
    data = on_one_device(name, names)
    check(LAYOUTS[layout], case(name, names), data, name in KERNELS)


@pytest.mark.parametrize("layout", FEW)
@pytest.mark.parametrize("name", [*list(STANDARD)[1:], "layer_norm"])
def test_the_reference_runs_its_own_rows(name, layout):
    names = ALL if layout == FEW[1] else ()
    # Scales of what inputs and what states contribute are one parameter, but used once
    # for all steps and once in each.
    more = 20 if name == "layer_norm" else 0
    run, data = case(name, names, "xla"), on_one_device(name, names)
    check(LAYOUTS[layout], run, data, False, more)


def test_states_of_all_steps_stay_with_their_rows():
    cell = CASES["projection"]
    layout, args = LAYOUTS["Auto-arrays-4"], arguments(cell, ALL)
    run = function_of(cell, ALL)
    states = lambda *args: run(*args, through=lj.scan_states)
    out = quick_jit(states)(*args)
    cotangents = random_like(4, out)
    grads = quick_jit(differentiated(states))(*args, cotangents)
    check(layout, states, (args, out, cotangents, grads), True)


@pytest.mark.parametrize("reset", [False, True])
def test_parallel_scan_exchanges_how_far_it_is_alone(reset):
    """Each iteration asks all rows whether they are done: one number."""
    cell, mesh = lj.LSTMCell(3, 5), LAYOUTS["Auto-arrays-2"].mesh()
    args = arguments(cell, ("lengths", "reset") if reset else ())
    run = function_of(cell, ("lengths", "reset") if reset else ())
    newton = lambda *args: run(*args, through=lj.parallel_scan)[:2]
    out = run(*args)
    cotangents = random_like(4, out)
    placed = place(mesh, args, "data")
    ours = place(mesh, ((), cotangents), "data")[1]
    forward = quick_jit(newton).lower(*placed).compile()
    exchanged = programs.collectives(forward.as_text())
    assert {one.name for one in exchanged} == {"all-reduce"}
    assert {*programs.sizes(exchanged)} == {1}
    assert_sharded(mesh, forward(*placed), "data")
    assert_close(forward(*placed), out)
    grads = quick_jit(differentiated(run))(*args, cotangents)
    assert_close(quick_jit(differentiated(newton))(*placed, ours), grads)


GRIDS = {
    "both": (("data", "fsdp"), ("data", "fsdp")),
    "first": (("data", None), ("data",)),
    "second": ((None, "fsdp"), ("fsdp",)),
    "one": ((("data", "fsdp"), None), ("data", "fsdp")),
    "crossed": (("fsdp", "data"), ("data", "fsdp")),
}


@pytest.mark.parametrize("axes, used", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("kind", AXIS_TYPES, ids=lambda kind: kind.name)
def test_several_batch_axes_over_several_mesh_axes(kind, axes, used):
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(kind, kind))
    cell, batch = CASES["standard"], (4, 2)
    run, args = function_of(cell, ALL), arguments(cell, ALL, batch)
    out = quick_jit(run)(*args)
    cotangents = random_like(4, out)
    grads = quick_jit(differentiated(run))(*args, cotangents)
    placed = place(mesh, args, *axes)
    ours = place(mesh, ((), cotangents), *axes)[1]
    forward = quick_jit(run).lower(*placed).compile()
    backward = quick_jit(differentiated(run)).lower(*placed, ours).compile()
    assert not programs.collectives(forward.as_text())
    assert_sharded(mesh, forward(*placed), *axes)
    assert_close(forward(*placed), out)
    assert_gradients_meet_once(backward.as_text(), args[0])
    assert_close(backward(*placed, ours), grads)
    rows = batch[0] * batch[1] // 2 ** len(used)
    for text, target in ((forward, FORWARD), (backward, BACKWARD)):
        (call,) = programs.calls(text.as_text(), target)
        assert (T, rows, 3) in programs.shapes(call.line)
