"""The loops of the reference on accelerators, beside what the contract suite asks."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.recurrence import choice, xla
from tests.common import (
    assert_close,
    fields,
    quick_jit,
    random_controls,
    random_inputs,
    random_like,
    random_params,
    random_state,
)
from tests.contract.loops import GPULoops, TPULoops
from tests.oracles import lstm

CELLS = {
    "peephole": lj.LSTMCell(2, 3, peephole=True, layer_norm="ba", proj_size=2),
    "noise": lj.Regularized(
        lj.LSTMCell(2, 3, peephole=True), recurrent_dropout=0.3, zoneout_c=0.4
    ),
}


class ByRow(TPULoops):
    """What ``update`` takes of the parameters is summed by rows."""

    name = "by_row"

    def arrangement(self, target):
        return super().arrangement(target)._replace(by_row=True, merge=False)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_gradients_summed_by_rows_are_those_summed_at_once(cell, monkeypatch):
    monkeypatch.setattr(
        choice, "IMPLEMENTATIONS", (*choice.IMPLEMENTATIONS, ByRow(), TPULoops())
    )
    key = jax.random.key(1) if cell.noisy else None
    args = random_params(cell, 0), random_inputs(cell, 1, (3,), 8)
    lengths = jnp.array([8, 0, 5])

    def loss(params, xs, implementation):
        options = dict(lengths=lengths, key=key, implementation=implementation)
        state, ys = lj.scan(cell, params, xs, **options)
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((state, ys)))

    names = ("xla", "tpu_loops", "by_row")
    losses = [functools.partial(loss, implementation=name) for name in names]
    program = quick_jit(lambda *args: [jax.grad(f, (0, 1))(*args) for f in losses])
    expected, *others = program(*args)
    for actual in others:
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tape_is_saved_of_whole_vectors_by_every_platform(dtype, monkeypatch):
    """The contract's cells are all of odd sizes, of which it is not saved here."""
    monkeypatch.setattr(
        choice, "IMPLEMENTATIONS", (*choice.IMPLEMENTATIONS, GPULoops(), TPULoops())
    )
    cell, length = lj.LSTMCell(2, 16), 8
    args = random_params(cell, 0, dtype), random_inputs(cell, 1, (3,), length, dtype)
    controls = random_controls(2, (3,), length, ("lengths", "mask", "reset"))
    state = random_state(cell, 3, (3,), dtype)
    cotangents = random_like(4, (state, args[1][..., :1].repeat(16, -1)))
    names = ("xla", "tpu_loops", "gpu_loops")

    @quick_jit
    def program(*args):
        results = []
        for name in names:
            run = functools.partial(
                lj.scan, cell, reset_state=state, implementation=name, **controls
            )
            results.append(jax.vjp(run, *args)[1](cotangents))
        return results

    params, xs = args
    layer = lstm.Layer(fields(params))
    given = [controls[name] for name in ("lengths", "mask", "reset")]
    layer.forward(xs, *state, *given, *state)
    (d_h, d_c), d_ys = jax.tree.map(lambda d: np.asarray(d, np.float64), cotangents)
    right = layer.backward(d_ys, d_h, d_c, np.zeros((3, length, 16)))
    for d_params, d_xs, d_state in program(*args, state):
        assert_close(d_xs, right["xs"], dtype)
        assert_close(d_state.c, right["c"], dtype)
        for name, expected in fields(d_params).items():
            if expected is not None:
                assert_close(expected, right[name], dtype, name)


def lowered_gradient(platform, dtype="bfloat16"):
    """T 32, B 3, H 16: two blocks of 16 steps."""
    cell = lj.LSTMCell(16, 16)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
        jax.eval_shape(cell.init, jax.random.key(0)),
    )
    xs = jax.ShapeDtypeStruct((32, 3, 16), dtype)
    loss = lambda params, xs: lj.scan(cell, params, xs, time_major=True)[1].sum()
    traced = jax.jit(jax.grad(loss)).trace(params, xs)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_loops_write_pre_activations_by_blocks_in_the_inputs_dtype(platform):
    text = lowered_gradient(platform)
    loops = re.findall(r"stablehlo\.while.*", text)
    assert len(loops) == 2
    assert all("tensor<2x16x3x64xbf16>" in loop for loop in loops)
    assert not any("tensor<2x16x3x64xf32>" in loop for loop in loops)


def test_a_cpu_walks_single_steps():
    with lj.implementation("xla"):
        assert "2x16x3x64" not in lowered_gradient("cpu")
    assert xla.arrangement(xla.Target("cpu")).differentiated == 1
