"""What one process has compiled runs in another; many threads call at once."""

import concurrent.futures
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.recurrence.cpu import library
from tests.common import assert_close, normal, random_params

WHY = lj.implementations()["cpu"]

# What both processes run: a forward pass, a gradient, and a backward pass on its own.
FUNCTIONS = """
import pickle, sys
import lstm_jax as lj
import jax, numpy as np
from jax.experimental import serialize_executable

folder = sys.argv[1]
jax.config.update("jax_compilation_cache_dir", folder + "/cache")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
model = lj.LSTM(3, 21, num_layers=2, bidirectional=True, proj_size=5)

def forward(params, xs, lengths):
    params = jax.tree.unflatten(structure, params)
    return jax.tree.leaves(model.apply(params, xs, lengths=lengths))

def gradient(params, xs, lengths):
    loss = lambda params, xs: sum(out.sum() for out in forward(params, xs, lengths))
    return jax.tree.leaves(jax.grad(loss, (0, 1))(params, xs))

def saved(params, xs, lengths):
    return jax.tree.leaves(jax.vjp(lambda *args: forward(*args, lengths), params, xs))

structure = jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0)))
functions = {"forward": forward, "gradient": gradient, "saved": saved}
"""

FIRST = """
from tests.common import normal, random_params
params = jax.tree.leaves(random_params(model, 0))
args = (params, normal(1, (4, 7, 3)), np.array([7, 0, 3, 5], np.int32))
programs, results = {}, {}
for name, function in functions.items():
    compiled = jax.jit(function).lower(*args).compile()
    programs[name] = serialize_executable.serialize(compiled)
    results[name] = jax.device_get(compiled(*args))
with open(folder + "/first", "wb") as file:
    pickle.dump((programs, jax.device_get(args), results), file)
"""

# The programs come first, so that nothing but the import has touched the kernels.
SECOND = """
with open(folder + "/first", "rb") as file:
    programs, args, results = pickle.load(file)
loaded = {}
for name, program in programs.items():
    run = serialize_executable.deserialize_and_load(*program)
    loaded[name] = jax.device_get(run(*args))
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
cached = {
    name: jax.device_get(jax.jit(function)(*args))
    for name, function in functions.items()
}
hits = sum(event.endswith("compilation_cache/cache_hits") for event in seen)
params, xs, lengths = args
out, pull = jax.vjp(lambda *args: forward(*args, lengths), params, xs)
leaves, whole = jax.tree.flatten((out, pull))
_, pull = jax.tree.unflatten(whole, results["saved"])
pulled = jax.device_get(jax.tree.leaves(pull([np.ones_like(leaf) for leaf in out])))
from lstm_jax.recurrence.cpu import library
with open(folder + "/second", "wb") as file:
    pickle.dump((loaded, cached, hits, pulled, library.instruction_set()), file)
"""


def run_python(code, *arguments, **environment):
    """Runs code in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.getcwd()} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """What two processes with different instruction sets made of the same programs."""
    if WHY != "available":
        pytest.skip(WHY)
    folder = tmp_path_factory.mktemp("exchanged")
    run_python(FUNCTIONS + FIRST, str(folder), LSTM_JAX_ISA="baseline")
    run_python(FUNCTIONS + SECOND, str(folder))
    first, second = (
        pickle.loads((folder / name).read_bytes()) for name in ("first", "second")
    )
    return first[2], *second


@pytest.mark.parametrize("name", ["forward", "gradient"])
def test_a_compiled_program_runs_in_a_fresh_process(exchanged, name):
    results, loaded, *_ = exchanged
    assert_close(loaded[name], results[name])


def test_programs_come_from_the_cache_of_another_process(exchanged):
    _, loaded, cached, hits, *_ = exchanged
    assert hits >= len(cached)
    for name in ("forward", "gradient"):
        jax.tree.map(np.testing.assert_array_equal, cached[name], loaded[name])


def test_what_one_instruction_set_saved_another_reads(exchanged):
    results, *_, pulled, isa = exchanged
    known = library.known_instruction_sets()
    assert isa != "baseline" or len(known) == 1
    assert_close(pulled, results["gradient"])


def by_value(model, params, xs):
    return jax.device_get(model.apply(params, xs))


def test_a_spawned_process_gives_the_same_numbers():
    model = lj.LSTM(3, 5, num_layers=2)
    args = (
        model,
        jax.device_get(random_params(model, 0)),
        np.asarray(normal(1, (2, 7, 3))),
    )
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert_close(pool.apply(by_value, args), by_value(*args))


def test_eight_threads_call_at_once():
    """Each traces, compiles and runs its own shapes, half of them on the reference."""
    cell = lj.LSTMCell(3, 5)
    params, start = random_params(cell, 0), threading.Barrier(8)

    def run(n, wait=lambda: None):
        xs = normal(n, (n // 2 + 1, 7, 3))
        wait()
        with lj.implementation("xla" if n % 2 else None):
            loss = lambda params: jnp.sum(lj.scan(cell, params, xs)[1] ** 2)
            chosen = lj.resolve_implementation(cell, params, xs)
            return chosen, jax.value_and_grad(loss)(params)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: run(n, start.wait), range(8)))
    for n, (chosen, results) in enumerate(together):
        alone, expected = run(n)
        assert chosen == alone
        assert_close(results, expected)
