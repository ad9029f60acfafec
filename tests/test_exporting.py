"""Files of whole models: any size, any platform, read by nothing but JAX."""

import io
import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler

import lstm_jax as lj
from lstm_jax.exporting import loader
from tests import documentation
from tests.common import assert_close, normal, random_params

MODELS = {
    "two directions": lj.LSTM(3, 5, 2, bidirectional=True, merge="sum"),
    "learned start": lj.LSTM(3, 5, 2, learn_initial_state=True, proj_size=2),
    "options": lj.LSTM(3, 4, 2, peephole=True, clip=0.7, zoneout_h=0.2, residual=True),
    "cells": lj.Stack((lj.LSTMCell(3, 8, variant="CIFG"), lj.SLSTMCell(8, 4))),
    "minlstm": lj.Stack((lj.MinLSTMCell(3, 4), lj.MinLSTMCell(4, 3, positive=True))),
    "images": lj.Stack((lj.ConvLSTMCell((4, 5, 2), 3, 3),)),
}


def written(folder, model, params, **options):
    path = folder / "model.zip"
    path.write_bytes(lj.export(model, params, **options))
    return path


def random_state(model, params, batch):
    """A state that is not zero, as a call returned it."""
    shape = lj.exporting.writing.as_cell(model.cells[0]).input_shape
    return model.apply(params, normal([batch, 1], (batch, 3, *shape)))[0]


def controls(batch, length):
    """Lengths with 0 and T among them, and some resets."""
    rng = np.random.default_rng([batch, length])
    lengths = rng.integers(0, length + 1, batch).astype(np.int32)
    lengths[:1] = length
    return {"lengths": lengths, "reset": rng.random((batch, length)) < 0.3}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_file_gives_what_apply_gives_for_every_size(model, tmp_path):
    params = random_params(model, 0)
    call = lj.exporting.load(written(tmp_path, model, params))
    shape = model.cells[0].input_shape
    sizes = [(1, 1), (2, 2), (1, 5), (3, 1), (2, 9), (0, 3), (2, 0), (0, 0)]
    for batch, length in sizes:
        xs = normal([batch, length], (batch, length, *shape))
        given, state = controls(batch, length), random_state(model, params, batch)
        expected, ys = model.apply(params, xs, state, **given)
        actual = call(xs, jax.tree.leaves(state), **given)
        assert_close(actual, (jax.tree.leaves(expected), ys), name=f"{batch} {length}")
        expected, ys = model.apply(params, xs)
        assert_close(call(xs), (jax.tree.leaves(expected), ys), name="nothing given")


def test_every_length_is_the_same_program(tmp_path):
    model = MODELS["learned start"]
    params = random_params(model, 0)
    call = lj.exporting.load(written(tmp_path, model, params, time_major=True))
    for length in range(1, 18):
        xs = normal(length, (length, 2, 3))
        expected, ys = model.apply(params, xs, time_major=True)
        assert_close(call(xs), (jax.tree.leaves(expected), ys), name=str(length))


@pytest.mark.parametrize("name", ["learned start", "options", "cells", "images"])
def test_a_step_goes_on_from_the_state_it_is_given(name, tmp_path):
    model = MODELS[name]
    params = random_params(model, 0)
    call = lj.exporting.load(written(tmp_path, model, params, step=True))
    state, expected = None, None
    for step in range(3):
        x = normal(step, (2, *model.cells[0].input_shape))
        reset = np.array([step == 2, False])
        expected, y = model.step(params, expected, x, reset=reset)
        state, ours = call(x, state, reset=reset)
        assert_close((state, ours), (jax.tree.leaves(expected), y))
    state, y = call(x[:0])
    assert y.shape == (0, *ours.shape[1:]) and state[0].shape[0] == 0


def test_ids_go_in_and_logits_come_out(tmp_path):
    model = lj.LSTM(3, 5, 2)
    params = random_params(model, 0)
    table, kernel, bias = normal(1, (11, 3)), normal(2, (5, 11)), normal(3, (11,))
    path = written(
        tmp_path, model, params, embedding=table, readout=(kernel, bias), step=True
    )
    ids = jnp.array([4, 10, 0], jnp.int32)
    state, logits = lj.exporting.load(path)(ids)
    expected, y = model.step(params, None, table[ids])
    assert_close((state, logits), (jax.tree.leaves(expected), y @ kernel + bias[None]))
    read = lj.exporting.read_model(path)
    assert read.model == model
    assert_same(read[1:4], (params, table, (kernel, bias)))


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for ours, theirs in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_program_computes_in_the_dtype_of_its_model(dtype, tmp_path):
    model = lj.LSTM(3, 5, 2, dtype=dtype)
    params = random_params(model, 0)
    path = written(tmp_path, model, params)
    xs = normal(1, (2, 4, 3)).astype(dtype)
    expected, ys = model.apply(params, xs)
    assert_close(lj.exporting.load(path)(xs), (jax.tree.leaves(expected), ys), dtype)
    assert_same(lj.exporting.read_model(path)[:2], (model, params))


def test_weights_keep_their_bits_in_bfloat16(tmp_path):
    model = lj.LSTM(3, 5, param_dtype=jnp.bfloat16)
    params = random_params(model, 0, "bfloat16")
    assert params[0].forward.kernel.dtype == jnp.bfloat16
    path = written(tmp_path, model, params)
    assert_same(lj.exporting.read_model(path)[:2], (model, params))


BARE = """
import sys
sys.modules["lstm_jax"] = None
sys.path.insert(0, "model.zip")
import load, jax.numpy as jnp, numpy as np
given = dict(np.load("given.npz"))
state = [given[f"state{n}"] for n in range(4)]
call = load.load("model.zip")
state, ys = call(given["xs"], state, given["lengths"], given["reset"])
none = jnp.zeros((2, 0, 3))
kept, nothing = call(none, state, given["lengths"] * 0, none[..., 0] > 0)
assert nothing.shape == (2, 0, 5) and all((a == b).all() for a, b in zip(kept, state))
np.savez("out.npz", ys=ys, **{f"state{n}": leaf for n, leaf in enumerate(state)})
"""


def test_the_ten_lines_in_the_file_run_it_without_the_package(tmp_path):
    model = lj.LSTM(3, 5, 2)
    params = random_params(model, 0)
    written(tmp_path, model, params)
    xs, state = normal(1, (2, 7, 3)), random_state(model, params, 2)
    given = controls(2, 7)
    flat = {f"state{n}": leaf for n, leaf in enumerate(jax.tree.leaves(state))}
    np.savez(tmp_path / "given.npz", xs=xs, **flat, **given)
    command = [sys.executable, "-c", BARE]
    subprocess.run(command, cwd=tmp_path, check=True)
    last, ys = model.apply(params, xs, state, **given)
    out = np.load(tmp_path / "out.npz")
    expected = {f"state{n}": leaf for n, leaf in enumerate(jax.tree.leaves(last))}
    for name, value in {"ys": ys, **expected}.items():
        np.testing.assert_allclose(out[name], value, atol=1e-5)


def test_the_loader_has_ten_lines():
    source = pathlib.Path(loader.__file__).read_text().partition("def load")[2]
    lines = [line for line in source.splitlines()[2:] if line.strip()]
    assert len(lines) == 10
    page = documentation.PAGES["docs/how-to/deploy.md"].read_text()
    assert all(line in page for line in lines)


def changed(path, name, change):
    """The file with one of its members changed."""
    data = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(data, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            new.writestr(member, change(content) if member == name else content)
    path.write_bytes(data.getvalue())


def test_a_program_of_another_age_is_refused_in_words(tmp_path):
    model = lj.LSTM(3, 5)
    words = rf"written by jax {jax.__version__} on 20.*Install jax=={jax.__version__}"
    # Its operations are in a version that this jaxlib does not know.
    path = written(tmp_path, model, model.init(jax.random.key(0)))
    change = lambda data: data.replace(b"_v1", b"_v2")
    changed(path, "program", change)
    with pytest.raises(ValueError, match=words):
        lj.exporting.load(path)
    assert lj.exporting.read_model(path).model == model


def test_about_says_what_is_needed(tmp_path):
    model = MODELS["learned start"]
    path = written(tmp_path, model, random_params(model, 0))
    about = json.loads(zipfile.ZipFile(path).read("about.json"))
    assert about["jax"] == jax.__version__
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["inputs"] == {"name": "xs", "shape": ["b", "t", 3], "dtype": "float32"}
    assert [one["name"] for one in about["state"]] == [
        f"[{layer}].forward.{name}" for layer in range(2) for name in "hc"
    ]


def test_gradients_where_they_are_asked_for(tmp_path):
    model = lj.LSTM(3, 5)
    params = random_params(model, 0)
    xs = normal(1, (2, 4, 3))
    call = lj.exporting.load(written(tmp_path, model, params, vjp_order=1))
    gradient = jax.grad(lambda xs: (call(xs)[1] ** 2).sum())(xs)
    expected = jax.grad(lambda xs: (model.apply(params, xs)[1] ** 2).sum())(xs)
    assert_close(gradient, expected)


def test_few_sizes_are_few_compilations(tmp_path, monkeypatch):
    model = lj.LSTM(3, 5)
    call = lj.exporting.load(written(tmp_path, model, random_params(model, 0)))
    for length in (4, 8):
        call(jnp.ones((2, length, 3)))
    inputs = [normal(length, (2, length, 3)) for length in (4, 8, 4, 8)]
    compile_, compiled = compiler.compile_or_get_cached, []

    def counted(*args, **kwargs):
        compiled.append(args)
        return compile_(*args, **kwargs)

    monkeypatch.setattr(compiler, "compile_or_get_cached", counted)
    for xs in inputs:
        call(xs)
    assert compiled == []
    call(inputs[0][:, :3])
    assert compiled


def test_arguments_of_a_loaded_program_are_checked(tmp_path):
    model = lj.LSTM(3, 5)
    path = written(tmp_path, model, random_params(model, 0))
    call = lj.exporting.load(path)
    with pytest.raises(ValueError, match=r"xs: expected shape \['b', 't', 3\], got"):
        call(jnp.ones((2, 7, 4)))
    with pytest.raises(TypeError, match="xs: expected dtype float32, got bfloat16"):
        call(jnp.ones((2, 7, 3), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"lengths: expected shape \[b\] = \[2\]"):
        call(jnp.ones((2, 7, 3)), lengths=[1, 2, 3])
    with pytest.raises(ValueError, match="lengths: expected values from 0 to T = 7"):
        call(jnp.ones((2, 7, 3)), lengths=[-1, 8])
    with pytest.raises(TypeError, match="reset: expected a bool dtype"):
        call(jnp.ones((2, 7, 3)), reset=np.zeros((2, 7), np.int32))
    check_states_of(model, call)
    step = lj.exporting.load(
        written(tmp_path, model, random_params(model, 0), step=True)
    )
    with pytest.raises(TypeError, match="lengths: expected None, since this is a file"):
        step(jnp.ones((2, 3)), lengths=[1, 1])


def check_states_of(model, call):
    """Also where there is nothing to compute, and the state comes back as it went."""
    for batch, length in ((2, 7), (0, 7), (2, 0)):
        xs, state = jnp.ones((batch, length, 3)), model.zero_state((batch,))
        h, c = jax.tree.leaves(state)
        with pytest.raises(TypeError, match=r"list of arrays.*jax.tree.leaves\(state"):
            call(xs, state)
        with pytest.raises(ValueError, match=rf"forward.c: .* = \[{batch}, 5\], got"):
            call(xs, [h, jnp.ones((batch + 1, 5))])
        with pytest.raises(TypeError, match="forward.h: expected dtype float32, got"):
            call(xs, [h.astype("float16"), c])
        assert_same(call(xs, (h, c)), call(xs, [np.asarray(h), c]))


def test_lengths_of_64_bits_do_not_wrap_around(tmp_path):
    model = lj.LSTM(3, 5)
    call = lj.exporting.load(written(tmp_path, model, random_params(model, 0)))
    with jax.enable_x64(True), pytest.raises(ValueError, match="from 0 to T = 7, .*"):
        call(np.ones((2, 7, 3), np.float32), lengths=np.array([2**32 + 3, 7]))


def test_a_program_of_float64_says_where_it_can_not_run(tmp_path):
    model = lj.LSTM(3, 5, param_dtype="float64")
    with jax.enable_x64(True):
        path = written(tmp_path, model, model.init(jax.random.key(0)))
        assert lj.exporting.load(path)(np.ones((1, 2, 3)))[1].dtype == "float64"
    with pytest.raises(ValueError, match="of float64, and 64-bit types are off"):
        lj.exporting.load(path)


def test_parameters_on_several_devices_and_without_jit(tmp_path):
    model, xs = lj.LSTM(3, 5), normal(1, (2, 4, 3))
    params = random_params(model, 0)
    everywhere = jax.sharding.NamedSharding(
        jax.make_mesh((4,), ("data",)), jax.sharding.PartitionSpec()
    )
    placed = jax.device_put((params, jnp.eye(5)), everywhere)
    with jax.disable_jit():
        path = written(tmp_path, model, placed[0], readout=placed[1])
    assert_close(lj.exporting.load(path)(xs)[1], model.apply(params, xs)[1])
