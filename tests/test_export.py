"""Exported programs: of any size, for any platform, where this package is not."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import lstm_jax as lj
from tests.common import assert_close, normal, random_params

PLATFORMS = ("cpu", "cuda", "tpu")
MODELS = {
    "standard": lj.LSTM(3, 5, 2, bidirectional=True),
    "variant": lj.LSTM(3, 4, peephole=True, layer_norm="ba"),
    "cells": lj.Stack((lj.LSTMCell(3, 8, proj_size=4), lj.SLSTMCell(4, 4))),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_file_runs_every_size(model):
    params = random_params(model, 0)
    rows, steps = export.symbolic_shape("b, t")
    arguments = (
        jax.ShapeDtypeStruct((rows, steps, 3), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    call = jax.jit(lambda xs, lengths: model.apply(params, xs, lengths=lengths))
    data = export.export(call, platforms=PLATFORMS)(*arguments).serialize()
    loaded = export.deserialize(data)
    assert loaded.platforms == PLATFORMS
    for batch, length in ((1, 1), (3, 8), (2, 13)):
        xs = normal(batch, (batch, length, 3))
        lengths = jnp.arange(length, length - batch, -1, dtype=jnp.int32)
        assert_close(loaded.call(xs, lengths), call(xs, lengths))


def test_a_step_takes_and_returns_states():
    model = MODELS["cells"]
    params = random_params(model, 0)
    (rows,) = export.symbolic_shape("b")
    open_rows = lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)
    arguments = jax.tree.map(
        open_rows, (model.zero_state((1,)), jnp.ones((1, 3)), jnp.ones(1, bool))
    )
    step = jax.jit(lambda state, x, reset: model.step(params, state, x, reset=reset))
    data = export.export(step, platforms=PLATFORMS)(*arguments).serialize()
    state, _ = model.apply(params, normal(1, (4, 6, 3)))
    given = (state, normal(2, (4, 3)), jnp.array([True, False, False, True]))
    assert_close(export.deserialize(data).call(*given), step(*given))


WITHOUT_THE_PACKAGE = """
import pathlib, sys
sys.modules["lstm_jax"] = None
import jax.export, numpy as np
data = pathlib.Path("program").read_bytes()
np.save("ys.npy", jax.export.deserialize(data).call(np.load("xs.npy")))
"""


def test_a_file_runs_where_the_package_is_not(tmp_path):
    model = MODELS["standard"]
    params, xs = random_params(model, 0), normal(1, (2, 7, 3))
    call = jax.jit(lambda xs: model.apply(params, xs)[1])
    data = export.export(call, platforms=PLATFORMS)(xs).serialize()
    (tmp_path / "program").write_bytes(data)
    np.save(tmp_path / "xs.npy", xs)
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert_close(np.load(tmp_path / "ys.npy"), call(xs))


def test_compiled_code_is_not_exported_when_it_is_named():
    if lj.implementations()["cpu"] != "available":
        pytest.skip(lj.implementations()["cpu"])
    model = lj.LSTM(3, 5)
    params = model.init(jax.random.key(0))
    call = jax.jit(lambda xs: model.apply(params, xs, implementation="cpu"))
    with pytest.raises(NotImplementedError, match="an exported program can't"):
        export.export(call)(jnp.ones((2, 7, 3)))
