"""Models over several devices: where their rows are, and what devices exchange."""

import contextlib
import functools
from typing import NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstm_jax as lj
from tests import programs
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_controls,
    random_like,
    random_params,
    random_state,
)

# No part of a batch over two or four devices, nor any number of steps of it, is B, and
# T has blocks of seven steps.
B, T, BLOCK = 44, 21, 7


WHOLE = {B, B * BLOCK, B * T}


FORWARD, BACKWARD = "lstm_jax_forward", "lstm_jax_backward"


ALL = ("lengths", "mask", "reset")


AXIS_TYPES = (AxisType.Auto, AxisType.Explicit)


RATES = dict(input_dropout=0.3, recurrent_dropout=0.3, zoneout_c=0.4, drop_connect=0.2)


STANDARD = {
    "standard": lj.LSTMCell(3, 5),
    "projection": lj.LSTMCell(3, 5, proj_size=2),
    "stack": lj.LSTM(3, 5, num_layers=2, dropout=0.3),
    "bidirectional": lj.LSTM(3, 5, num_layers=2, bidirectional=True),
}


OTHERS = {
    "peephole": lj.LSTMCell(3, 5, peephole=True, proj_size=2),
    "layer_norm": lj.LSTMCell(3, 5, layer_norm="haste", learn_initial_state=True),
    "heads": lj.LSTMCell(3, 6, num_heads=2),
    "slstm": lj.SLSTMCell(3, 6, num_heads=2, learn_initial_state=True),
    "minlstm": lj.MinLSTMCell(3, 5),
    "conv": lj.ConvLSTMCell((4, 3), 2, 3, peephole=True),
    "noisy": lj.Regularized(lj.LSTMCell(3, 5), **RATES),
    "mixed": lj.Stack((lj.LSTMCell(3, 5, variant="CIFG"), lj.LSTMCell(5, 5))),
}


CASES = STANDARD | OTHERS


# Of these every layer has kernels, or some have.
KERNELS = {*STANDARD, "mixed", "peephole", "noisy", "diagonal", "layer_norm", "heads"}
KERNELS &= CASES.keys()


class Layout(NamedTuple):
    """Over what a batch is sharded, and how JAX is told."""

    axis_type: AxisType
    current: bool
    devices: int

    def mesh(self):
        return jax.make_mesh(
            (self.devices,),
            ("data",),
            axis_types=(self.axis_type,),
            devices=jax.devices()[: self.devices],
        )


LAYOUTS = {
    f"{kind.name}-{'current' if current else 'arrays'}-{devices}": Layout(
        kind, current, devices
    )
    for kind in AXIS_TYPES
    for current in (False, True)
    for devices in (2, 4)
}


FEW = ("Auto-current-2", "Explicit-arrays-4")


def function_of(model, names, **options):
    """The model as a function of arrays, the first of them differentiable."""

    def run(params, xs, state, controls, through=lj.scan):
        given = dict(zip(names, controls, strict=True)) | options
        if isinstance(model, lj.LSTM | lj.Stack):
            return model.apply(params, xs, state, **given)
        return through(model, params, xs, state, **given)

    return run


def arguments(model, names, batch_shape=(B,), dtype="float32"):
    """Parameters, inputs, a state where there are controls, and those."""
    shape = getattr(model, "input_shape", None) or (3,)
    return (
        random_params(model, 0, dtype),
        normal(1, (*batch_shape, T, *shape), dtype),
        random_state(model, 2, batch_shape, dtype) if names else None,
        tuple(random_controls(3, batch_shape, T, names).values()),
    )


def place(mesh, args, *axes):
    """Parameters on every device, all else cut along its leading axes."""
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    params, *rest = args
    return put(params, P()), *put(tuple(rest), P(*axes))


def differentiated(run):
    """The gradients for given cotangents, of what has some."""

    def pullback(params, xs, state, controls, cotangents):
        moving = lambda *moving: run(*moving, controls)
        return jax.vjp(moving, params, xs, state)[1](cotangents)

    return pullback


def case(name, names, implementation=None):
    """A function that takes arrays, noise included where there is some."""
    noisy = getattr(CASES[name], "noisy", False)
    key = {"key": jax.random.key(5)} if noisy else {}
    return function_of(CASES[name], names, implementation=implementation, **key)


@functools.cache
def on_one_device(name, names):
    """Arguments, outputs, cotangents and gradients without any sharding."""
    run, args = case(name, names), arguments(CASES[name], names)
    out = quick_jit(run)(*args)
    cotangents = random_like(4, out)
    return args, out, cotangents, quick_jit(differentiated(run))(*args, cotangents)


def assert_sharded(mesh, tree, *axes):
    expected = NamedSharding(mesh, P(*axes))
    for leaf in jax.tree.leaves(tree):
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), leaf.sharding


def assert_rows_stay(text, whole=WHOLE):
    """No device holds all rows of anything."""
    for one in programs.operations(text):
        for shape in programs.shapes(one.line):
            assert not whole & set(shape), one.line


def assert_gradients_meet_once(text, params, more=0):
    """Devices exchange the gradient of each parameter once, and nothing else."""
    reductions = programs.collectives(text)
    assert {one.name for one in reductions} == {"all-reduce"}
    # XLA may reduce a parameter in parts, where its parts come from different places.
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(programs.sizes(reductions)) == total + more
    assert not any(one.in_loop for one in reductions)


def check(layout, run, data, kernels, more=0):
    """Values, shardings and both compiled programs of one case."""
    args, out, cotangents, grads = data
    mesh = layout.mesh()
    with jax.set_mesh(mesh) if layout.current else contextlib.nullcontext():
        args = place(mesh, args, "data")
        cotangents = place(mesh, ((), cotangents), "data")[1]
        forward = quick_jit(run).lower(*args).compile()
        backward = quick_jit(differentiated(run)).lower(*args, cotangents).compile()
        got_out, got_grads = forward(*args), backward(*args, cotangents)
    assert not programs.collectives(forward.as_text())
    assert_rows_stay(forward.as_text())
    assert_sharded(mesh, got_out, "data")
    assert_close(got_out, out)
    assert_gradients_meet_once(backward.as_text(), args[0], more)
    assert_rows_stay(backward.as_text())
    assert_sharded(mesh, got_grads[1:], "data")
    assert_sharded(mesh, got_grads[0])
    assert_close(got_grads, grads)
    for text, target in ((forward, FORWARD), (backward, FORWARD), (backward, BACKWARD)):
        assert bool(programs.calls(text.as_text(), target)) == kernels
