"""The kernels for a TPU, interpreted on a CPU, beside what the contract suite asks.

``LSTM_JAX_INTERPRET=1 pytest tests/contract -k pallas_tpu`` is that suite's share.
"""

import base64
import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import core
from jax._src.interpreters import mlir
from jax._src.lib import tpu
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxlib.mlir import ir

import lstm_jax as lj
from lstm_jax.recurrence.pallas_tpu import blocks, sizes
from tests.common import (
    assert_close,
    random_controls,
    random_inputs,
    random_like,
    random_params,
    random_state,
    value_and_pullback,
)
from tests.contract import truth

ALL = ("lengths", "mask", "reset")
STEPS, ROWS = 4, 8  # of a block, so that few make several


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Two cores, a look-out for races, memory of NaN; afterwards all is as it was."""
    monkeypatch.setenv("LSTM_JAX_INTERPRET", "1")
    monkeypatch.setattr(sizes, "MOST_STEPS", STEPS)
    monkeypatch.setattr(sizes, "MOST_ROWS", ROWS)
    set_interpreter(monkeypatch, 0)
    jax.clear_caches()
    yield
    jax.clear_caches()
    # Whatever a test left there: it would fail the next.
    pltpu.reset_tpu_interpret_mode_state()


def set_interpreter(monkeypatch, seed):
    params = pltpu.InterpretParams(
        num_cores_or_threads=2,
        detect_races=True,
        uninitialized_memory="nan",
        random_seed=seed,
    )
    monkeypatch.setattr(blocks, "INTERPRETER", params)


def arguments(cell, batch, length, dtype="float32"):
    return (
        random_params(cell, 0, dtype),
        random_inputs(cell, 1, (batch,), length, dtype),
        random_state(cell, 2, (batch,), dtype),
        random_state(cell, 3, (batch,), dtype),
    )


def runner(cell, controls, reverse=False):
    def run(params, xs, state, reset_state):
        last, ys = lj.scan(
            cell,
            params,
            xs,
            state,
            reset_state=reset_state if "reset" in controls else None,
            reverse=reverse,
            implementation="pallas_tpu",
            **controls,
        )
        named = {("last", "h"): last.h, ("last", "c"): last.c, ("ys", ""): ys}
        return named

    return run


def check(cell, batch, length, names=ALL, reverse=False, dtype="float32"):
    """Outputs and the gradient of every leaf, against the float64 loop."""
    args = arguments(cell, batch, length, dtype)
    controls = random_controls(4, (batch,), length, names)
    run = runner(cell, controls, reverse)
    out = run(*args)
    cotangents = random_like(5, out)
    again, grads = value_and_pullback(run, args, cotangents)
    expected = truth.outputs(cell, controls, reverse, truth.flat(args))
    for key in out:
        assert_close(out[key], expected[key], dtype, str(key))
        assert_close(again[key], expected[key], dtype, str(key))
    by_hand = truth.gradients_by_hand(args, controls, reverse, cotangents)
    flat = {
        key: leaf
        for kind, tree in zip(truth.KINDS, grads, strict=True)
        for key, leaf in truth.named(kind, tree).items()
    }
    for key, grad in by_hand.items():
        if key[0] != "reset_state" or "reset" in names:
            assert_close(flat[key], grad, dtype, str(key))
    assert interpreter.races is None or not interpreter.races.races_found


SIZES = [
    *((3, length) for length in (1, 2, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS + 3)),
    *((batch, 3) for batch in (1, ROWS, 2 * ROWS + 1)),
]


@pytest.mark.parametrize("batch, length", SIZES)
def test_blocks_of_rows_and_steps_are_one_sequence(batch, length):
    """Three blocks of rows on two cores, lengths that blocks do not divide."""
    check(lj.LSTMCell(3, 5), batch, length)


CASES = {
    "plain": (lj.LSTMCell(3, 5), (), False, "float32"),
    "reverse": (lj.LSTMCell(3, 5), ("lengths",), True, "float32"),
    "reset": (lj.LSTMCell(3, 5), ("reset",), True, "float32"),
    "mask": (lj.LSTMCell(3, 5, use_bias=False), ("mask",), False, "float32"),
    "two_tiles": (lj.LSTMCell(3, 200), ALL, False, "float32"),
    "three_tiles": (lj.LSTMCell(3, 260), (), False, "float32"),
    "projection": (lj.LSTMCell(3, 130, proj_size=7), ALL, True, "float32"),
    "bfloat16": (lj.LSTMCell(3, 5), ALL, False, "bfloat16"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_leaf_has_the_gradient_of_the_loop(case):
    cell, names, reverse, dtype = case
    check(cell, 2, STEPS + 1, names, reverse, dtype)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_cores_changes_nothing(seed, monkeypatch):
    set_interpreter(monkeypatch, seed)
    check(lj.LSTMCell(3, 5), 2 * ROWS + 1, STEPS + 1)


@pytest.mark.parametrize("wanted", [("last", "h"), ("last", "c"), ("ys", "")])
def test_a_loss_on_one_output_alone(wanted):
    """And the start given, but not differentiated by."""
    cell = lj.LSTMCell(3, 5)
    params, xs, state, reset_state = arguments(cell, 3, STEPS + 1)
    controls = random_controls(4, (3,), STEPS + 1, ALL)
    run = runner(cell, controls)
    cotangent = random_like(6, run(params, xs, state, reset_state)[wanted])
    one = lambda params, xs: run(params, xs, state, reset_state)[wanted]
    _, grads = value_and_pullback(one, (params, xs), cotangent)
    by_hand = truth.gradients_by_hand(
        (params, xs, state, reset_state), controls, False, {wanted: cotangent}
    )
    for kind, tree in zip(("params", "xs"), grads, strict=True):
        for key, leaf in truth.named(kind, tree).items():
            assert_close(leaf, by_hand[key], name=str(key))


def test_steps_shared_by_cores_are_seen_as_wrong(monkeypatch):
    """What the interpreter is asked to look out for: each core begins with nothing."""
    params = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"))
    monkeypatch.setattr(pltpu, "CompilerParams", lambda **_: params)
    with pytest.raises(AssertionError):
        check(lj.LSTMCell(3, 5), 1, 3 * STEPS, ())


# What is lowered for a TPU, which needs none.


def lowered(cell, args, controls=None, gradient=False):
    run = runner(cell, controls or {})
    function = lambda *args: sum(
        leaf.astype(jnp.float32).sum() for leaf in run(*args).values()
    )
    function = jax.grad(function, (0, 1)) if gradient else function
    return jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",)).as_text()


def modules(text):
    """The kernels' own modules in a lowered program."""
    context = mlir.make_ir_context()
    tpu.register_dialect(context)
    context.allow_unregistered_dialects = True
    bodies = {*re.findall(r"TUzvUg[A-Za-z0-9+/]+=*", text)}
    with context:
        return [str(ir.Module.parse(base64.b64decode(body))) for body in bodies]


@pytest.mark.parametrize(
    ("precision", "found"),
    [(None, set()), ("bfloat16", set()), ("highest", {"contract_precision<fp32>"})],
)
def test_the_context_decides_how_precise_products_are(precision, found):
    """The interpreter computes in float32 whatever was asked for."""
    cell = lj.LSTMCell(3, 5)
    with jax.default_matmul_precision(precision):
        text = lowered(cell, arguments(cell, 2, 3), gradient=True)
    kernels = modules(text)
    assert len(kernels) == 2
    for kernel in kernels:
        products = [line for line in kernel.splitlines() if "tpu.matmul" in line]
        assert products
        for line in products:
            assert {*re.findall(r"contract_precision<\w+>", line)} == found


def test_a_precision_that_kernels_have_not_is_refused():
    cell = lj.LSTMCell(3, 5)
    with jax.default_matmul_precision("high"):
        with pytest.raises(NotImplementedError, match="precision 'high'.*'highest'"):
            lowered(cell, arguments(cell, 2, 3))


OPTIONS = [*itertools.product((None, 3), ((), ("lengths",), ALL), (False, True))]


@pytest.mark.parametrize(("proj_size", "names", "gradient"), OPTIONS)
def test_a_kernel_is_given_only_what_it_reads(proj_size, names, gradient):
    cell = lj.LSTMCell(3, 5, proj_size=proj_size)
    controls = random_controls(4, (2,), 3, names)
    run, args = runner(cell, controls), arguments(cell, 2, 3)
    jaxprs = kernels_of(run, args, gradient)
    assert len(jaxprs) == 1 + gradient
    for jaxpr, inputs in jaxprs:
        read = {*read_by(jaxpr)}
        assert read >= {*jaxpr.invars[:inputs]}


def kernels_of(run, args, gradient):
    """The jaxpr of each kernel, and how many inputs it has."""
    found = []
    real = pl.pallas_call

    def recorded(kernel, **options):
        call = real(kernel, **options)

        def traced(*operands):
            eqns = jax.make_jaxpr(call)(*operands).jaxpr.eqns
            (one,) = [eqn for eqn in eqns if eqn.primitive.name == "pallas_call"]
            found.append((one.params["jaxpr"], len(operands)))
            return call(*operands)

        return traced

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "pallas_call", recorded)
        loss = lambda *args: sum(leaf.sum() for leaf in run(*args).values())
        function = jax.grad(loss, (0, 1)) if gradient else run
        jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",))
    return found


def read_by(jaxpr):
    """The references that a kernel reads, in what it calls too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "get":
            yield eqn.invars[0]
        for inner in core.jaxprs_in_params(eqn.params):
            read = {*read_by(inner)}
            offset = len(eqn.invars) - len(inner.invars)
            for outer, var in zip(eqn.invars[offset:], inner.invars, strict=True):
                if var in read:
                    yield outer


@pytest.mark.parametrize(
    ("cell", "dtype", "words"),
    [
        (lj.LSTMCell(3, 5, peephole=True), "float32", "runs the standard LSTMCell"),
        (lj.LSTMCell(3, 5), "float16", "float32 and bfloat16 only, not float16"),
        (lj.LSTMCell(3, 2304), "bfloat16", "40 are for them, not 40.5 MiB"),
        (lj.LSTMCell(3, 1664), "float32", "40 are for them, not 42.2 MiB"),
    ],
)
def test_what_it_cannot_run_is_refused_with_the_reason(cell, dtype, words):
    params = jax.eval_shape(cell.init, jax.random.key(0))
    cast = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype)
    xs = jax.ShapeDtypeStruct((2, 3, 3), dtype)
    run = lambda params, xs: lj.scan(cell, params, xs, implementation="pallas_tpu")
    with pytest.raises(NotImplementedError, match=re.escape(words)):
        jax.eval_shape(run, jax.tree.map(cast, params), xs)


@pytest.mark.parametrize(("hidden", "dtype"), [(2176, "bfloat16"), (1536, "float32")])
def test_the_largest_that_fits_is_lowered(hidden, dtype):
    cell = lj.LSTMCell(3, hidden)
    shapes = jax.eval_shape(lambda: arguments(cell, 2, 3, dtype))
    assert len(modules(lowered(cell, shapes, gradient=True))) == 2


def test_without_the_variable_a_cpu_is_no_tpu(monkeypatch):
    monkeypatch.delenv("LSTM_JAX_INTERPRET")
    assert "interpreted on a CPU" in lj.implementations()["pallas_tpu"]
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), jnp.ones((2, 3, 3))
    with pytest.raises(NotImplementedError, match="runs on tpu, not on cpu"):
        lj.scan(cell, params, xs, implementation="pallas_tpu")
    assert lj.resolve_implementation(cell, params, xs, platform="tpu") == "xla"


def test_over_devices_it_is_refused_but_by_hand():
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), jnp.ones((4, 3, 3))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")
    run = lambda params, xs: lj.scan(cell, params, xs, implementation="pallas_tpu")[1]
    placed = jax.device_put(xs, jax.sharding.NamedSharding(mesh, rows))
    with pytest.raises(NotImplementedError, match="on one device: XLA can't cut it"):
        jax.jit(run)(params, placed)
    whole = jax.sharding.PartitionSpec()
    by_hand = jax.shard_map(run, mesh=mesh, in_specs=(whole, rows), out_specs=rows)
    assert_close(jax.jit(by_hand)(params, placed), run(params, xs))


def test_weights_are_mapped_over():
    cell = lj.LSTMCell(3, 5)
    some = [random_params(cell, seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *some)
    xs = random_inputs(cell, 1, (2,), 3)
    run = lambda params: lj.scan(cell, params, xs, implementation="pallas_tpu")[1]
    ys = jax.jit(jax.vmap(run))(stacked)
    assert_close(ys, np.stack([run(params) for params in some]))


def test_it_is_exported_for_a_tpu():
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), jnp.ones((2, 3, 3))
    run = jax.jit(lambda *args: lj.scan(cell, *args, implementation="pallas_tpu")[1])
    exported = jax.export.export(run, platforms=("tpu",))(params, xs)
    assert exported.out_avals[0].shape == (2, 3, 5)
    assert dataclasses.is_dataclass(jax.export.deserialize(exported.serialize()))
    with pytest.raises(NotImplementedError, match="interpreted by this package"):
        jax.export.export(run, platforms=("cpu",))(params, xs)
