"""The compiled library: what it is given, what it is told, where it is known."""

import functools
import os
import pickle
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import lstm_jax as lj
from lstm_jax.recurrence.cpu import library
from lstm_jax.recurrence.cpu.step import Step
from tests.common import assert_close, normal, random_params

WHY = lj.implementations()["cpu"]
pytestmark = pytest.mark.skipif(WHY != "available", reason=f"CPU kernels: {WHY}")

NAMES = library.known_instruction_sets() if WHY == "available" else []


BUFFERS = {
    "kernel": (1, (3, 24)),
    "rank": (0, (14, 3)),
    "dtype": (6, (2, 6), jnp.int32),
    "bias": (3, (19,)),
    "empty": (2, (0,)),
    "valid": (7, (2, 7)),
    "peephole": (11, (4, 5)),
    "recurrent_mask": (12, (2, 6)),
    "output_mask": (13, (2, 4)),
    "keep_h": (14, (7, 2, 4), bool),
    "diagonal": (16, (3, 5)),
    "keep_c": (15, (2, 7, 5), bool),
    "norm_scale": (17, (2, 19)),
    "norm_shift": (18, (2, 20)),
    "cell_norm": (19, (2, 5)),
}


@pytest.mark.parametrize("change", BUFFERS.values(), ids=BUFFERS)
def test_wrong_buffers_are_an_error(change):
    position, shape, *dtype = change
    B, T, I, H = 2, 7, 3, 5
    f32 = jnp.float32
    empty, flags = jnp.zeros((0,)), jnp.zeros((0,), bool)
    args = [
        *(jnp.zeros(s) for s in [(T, B, I), (I, 4 * H), (H, 4 * H), (4 * H,), (0,)]),
        *(jnp.zeros((B, H)), jnp.zeros((B, H)), flags, flags, empty, empty),
        *(empty, empty, empty, flags, flags, *(empty,) * 4),
    ]
    results = [
        jax.ShapeDtypeStruct(s, f32) for s in [(T, B, H), (0,), (B, H), (B, H)]
    ] + [jax.ShapeDtypeStruct((0,), dtype) for dtype in ("uint32", "uint32", f32)]
    attributes = {"reverse": np.int64(0), "standard": True}
    attributes |= Step(lj.LSTMCell(I, H)).attributes
    call = functools.partial(jax.ffi.ffi_call(library.FORWARD, results), **attributes)
    jax.block_until_ready(call(*args))
    bad = jnp.ones(shape, dtype[0] if dtype else args[position].dtype)
    args[position] = bad
    with pytest.raises(jax.errors.JaxRuntimeError, match="lstm_jax"):
        jax.block_until_ready(call(*args))
    with pytest.raises(jax.errors.JaxRuntimeError, match="number of buffers"):
        jax.block_until_ready(call(*args[:-1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_saved_can_be_cut_along_the_batch(dtype):
    T, B, I, H, padded = 6, 5, 3, 20, 32
    bits = {"float32": "uint32", "bfloat16": "uint16"}[dtype]
    shape = jax.ShapeDtypeStruct
    kernels = [normal(n, s, dtype) for n, s in enumerate([(I, 4 * H), (H, 4 * H)])]
    empty, flags, none = jnp.zeros(0, dtype), jnp.zeros(0, bool), jnp.zeros(0)

    def operands(xs, h, c):
        extras = [empty, none, none, flags, flags, *[empty] * 4]
        return [xs, *kernels, empty, empty, h, c, flags, flags, empty, none, *extras]

    cell = lj.LSTMCell(I, H)
    attributes = {"reverse": np.int64(0), "standard": True, **Step(cell).attributes}

    def forward(xs, h, c):
        shapes = [shape((T, B, H), dtype), shape((0,), "float32")]
        shapes += [shape((B, H), dtype), shape((B, H), "float32")]
        shapes += [shape((T, B, 4 * padded), bits), shape((T, B, padded), "uint32")]
        shapes += [shape((0,), dtype)]
        call = jax.ffi.ffi_call(library.FORWARD, shapes)
        ys, _, _, _, gates, cells, _ = call(*operands(xs, h, c), **attributes)
        return ys, gates, cells

    def d_xs(xs, h, c, ys, gates, cells):
        shapes = [shape(xs.shape, dtype), *[shape((0,), dtype)] * 5]
        shapes += [shape((0,), "float32"), shape((0,), dtype), shape((0,), "float32")]
        shapes += [shape((0,), dtype)] * 4
        call = jax.ffi.ffi_call(library.BACKWARD, shapes)
        saved = [ys, empty, gates, cells]
        cotangents = [jnp.ones_like(ys), none, jnp.ones_like(h), jnp.ones_like(c)]
        return call(*operands(xs, h, c), *saved, *cotangents, **attributes)[0]

    xs = normal(2, (T, B, I), dtype)
    state = normal(3, (B, H), dtype), normal(4, (B, H))
    saved = forward(xs, *state)
    whole = d_xs(xs, *state, *saved)
    assert np.abs(np.asarray(whole, np.float32)).min() > 0
    some = slice(1, 4)
    rows = d_xs(
        xs[:, some], *(leaf[some] for leaf in state), *(leaf[:, some] for leaf in saved)
    )
    assert_close(rows, whole[:, some], dtype)


def run_python(code, **environment):
    """Runs code in a process of its own, and returns that."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.getcwd()} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "isa", library.known_instruction_sets() if WHY == "available" else []
)
def test_other_instruction_sets_agree(isa):
    """The kernels are chosen once a process, so this is another one."""
    if not library.supports(isa):
        pytest.skip(f"this processor has no {isa}")
    code = """
import jax, numpy as np
import lstm_jax as lj
from lstm_jax.recurrence.cpu import library
from lstm_jax.recurrence.cpu.step import Step
from tests.test_cpu import program, ALL
from tests.common import assert_close
cell = lj.LSTMCell(9, 21, proj_size=13)
run = lambda name: program(cell, name, ALL, shape=(30, 12))()
assert_close(run("cpu"), run("xla"))
run = lambda name: program(cell, name, (), shape=(4, 9), dtype="bfloat16")()
assert_close(run("cpu"), run("xla"), "bfloat16")
print(library.instruction_set())
"""
    done = run_python(code, LSTM_JAX_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


def test_an_instruction_set_that_cannot_be_had_is_an_error():
    code = """
import jax, jax.numpy as jnp
import lstm_jax as lj
cell = lj.LSTMCell(3, 5)
params = cell.init(jax.random.key(0))
lj.scan(cell, params, jnp.ones((2, 7, 3)))
"""
    done = run_python(code, LSTM_JAX_ISA="avx1024")
    message = re.search("^ValueError: LSTM_JAX_ISA: expected.*$", done.stderr, re.M)
    assert message, done.stderr
    for word in ("got 'avx1024'", *library.known_instruction_sets()):
        assert word in message[0]


def test_a_number_of_threads_that_is_none_is_an_error(monkeypatch):
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), jnp.ones((2, 7, 3))
    for text in ("0", "-2", "two", "1.5", "65537"):
        monkeypatch.setenv("LSTM_JAX_NUM_THREADS", text)
        with pytest.raises(
            jax.errors.JaxRuntimeError, match=f"from 1 to 65536, got '{text}'"
        ):
            jax.block_until_ready(lj.scan(cell, params, xs, implementation="cpu"))


@pytest.fixture
def compiled_anew():
    """Without JAX's cache on disk: what comes from there cannot be handed on."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("compiled_anew")
def test_importing_makes_the_kernels_known_and_starts_no_backend(tmp_path):
    """What one process compiled runs in another that only imports the package."""
    cell = lj.LSTMCell(3, 5)
    params, xs = random_params(cell, 0), normal(1, (2, 7, 3))
    run = jax.jit(lambda xs: lj.scan(cell, params, xs, implementation="cpu")[1])
    program = serialize_executable.serialize(run.lower(xs).compile())
    (tmp_path / "program").write_bytes(pickle.dumps((program, np.asarray(xs))))
    code = f"""
import pickle, jax, numpy as np
import lstm_jax
jax.config.update("jax_num_cpu_devices", 2)  # an error once a backend has started
from jax.experimental import serialize_executable
program, xs = pickle.load(open({str(tmp_path / "program")!r}, "rb"))
device = jax.devices()[:1]
run = serialize_executable.deserialize_and_load(*program, execution_devices=device)
np.save({str(tmp_path / "ys.npy")!r}, run(xs))
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "ys.npy"), run(xs))
