"""Checkpoints: what is saved comes back, and old ones are kept by two rules."""

import asyncio
import concurrent.futures
import os
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lstm_jax as lj
from lstm_jax import training
from tests.checkpoints import assert_good, assert_same, restored, saved, simple
from tests.test_processes import run_python


class Point(NamedTuple):
    x: Any
    y: Any


def everything():
    """Every kind of leaf, and names that are hard to keep apart."""
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000], np.uint32)
    return {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 3),
        "point": Point(jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), None),
        "a": [jnp.asarray(odd.view(np.float32)), jnp.int32(3), jnp.zeros((0, 4))],
        "a/": {"b": jnp.ones(2, bool), "": ()},
        "numpy": [np.arange(6.0).reshape(2, 3).T, np.zeros((3, 0), np.int8)],
        "scalar": np.float16(0.5),
        "numbers": [3, -(2**62), True, 0.1, float("nan")],
    }


def test_everything_comes_back_bit_for_bit(tmp_path):
    state, record = everything(), {"a": [1, None, {"b": "ä\ud800"}], "c": True}
    with training.Checkpoints(tmp_path / "new" / "run") as checkpoints:
        assert checkpoints.steps() == ()
        checkpoints.save(jnp.int32(3), state, record)
    checkpoints = training.Checkpoints(tmp_path / "new" / "run")
    assert checkpoints.steps() == (3,)
    like = {**state, "point": jax.eval_shape(lambda: state["point"])}
    found = checkpoints.restore(like)
    assert found.step == 3 and found.record == record
    assert_same(found.state, state)
    for leaf in found.state["numpy"]:
        assert leaf.flags.owndata and leaf.flags.writeable


@pytest.mark.parametrize("state", [{}, None, (), {"x": jnp.zeros((0, 3))}])
def test_states_without_numbers_come_back(tmp_path, state):
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        found = checkpoints.restore(state)
    assert_same(found.state, state)
    assert found.record is None


def test_a_training_state_comes_back_as_it_would_be_made(tmp_path):
    model, tx = lj.LSTM(3, 5, num_layers=2), optax.adam(1e-3)
    make = lambda: training.create(
        model.init(jax.random.key(0)), tx, model.zero_state((2,))
    )
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make())
        assert_same(checkpoints.restore(jax.eval_shape(make)).state, make())


def test_64_bit_types(tmp_path):
    with jax.enable_x64(True):
        state = {"w": jnp.arange(3, dtype=jnp.float64), "i": jnp.int64(2**40)}
        with training.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state)
            assert_same(checkpoints.restore(jax.eval_shape(lambda: state)).state, state)
    with pytest.raises(ValueError, match="64-bit types are off"):
        training.Checkpoints(tmp_path).restore(state)


def test_in_a_thread_and_beside_a_running_loop(tmp_path):
    async def there_and_back(folder):
        saved(folder, 1)
        assert_good(folder, 1)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, there_and_back(tmp_path / "thread")).result()
    asyncio.run(there_and_back(tmp_path / "loop"))


def test_what_is_saved_may_be_donated_and_overwritten(tmp_path):
    step = jax.jit(
        lambda state: jax.tree.map(lambda leaf: leaf * 0, state), donate_argnums=0
    )
    state = {"w": jnp.arange(400_000.0), "b": jnp.arange(7.0)}
    expected = jax.tree.map(np.array, state)
    step(jax.tree.map(jnp.copy, state))
    array = np.arange(400_000.0)
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, (state, array))
        state = step(state)
        array[:] = 0
        jax.block_until_ready(state)
        found = checkpoints.restore((state, array)).state
    assert_same(jax.tree.map(np.asarray, found[0]), expected)
    assert_same(found[1], np.arange(400_000.0))


def test_a_donated_state_is_refused_and_may_be_what_is_expected(tmp_path):
    state = {"w": jnp.ones(3), "key": jax.random.key(0)}
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        state["w"].delete()
        with pytest.raises(RuntimeError, match="deleted"):
            checkpoints.save(2, state)
        assert_same(checkpoints.restore(state).state["w"], jnp.ones(3))


FLOATS = [0.1, -0.0, 5e-324, 1e308, float("inf"), -float("inf"), np.float64(1 / 3)]


NANS = [
    struct.unpack(">d", bytes.fromhex(bits))[0]
    for bits in ("7ff8" + 12 * "0", "fff8" + 12 * "0", "7ff8" + "1" * 12)
]


def test_floats_of_a_record_keep_their_bits(tmp_path):
    bits = lambda numbers: [struct.pack(">d", number) for number in numbers]
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, simple(1), {"losses": FLOATS + NANS})
        back = checkpoints.restore(simple(1)).record["losses"]
    assert bits(back) == bits(FLOATS + NANS)


@pytest.mark.parametrize(
    "record, error, match",
    [
        ([1], TypeError, "record: expected a dict, got list"),
        ({"a": [0, np.float32(1)]}, TypeError, r"record\['a'\]\[1\]: .* got float32"),
        ({"a": {"b": (1, 2)}}, TypeError, r"record\['a'\]\['b'\]: .* got tuple"),
        ({"a": {1: 2}}, TypeError, r"record\['a'\]: expected keys of type str, got 1"),
        ({"__float64__": 1}, ValueError, "record: expected another key"),
    ],
)
def test_a_record_that_json_has_not_is_refused(tmp_path, record, error, match):
    with pytest.raises(error, match=match):
        training.Checkpoints(tmp_path).save(1, simple(1), record)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda c: c.save(1.5, {}), TypeError, "step: expected an integer, got 1.5"),
        (lambda c: c.save(-1, {}), ValueError, "step: expected 0 or more, got -1"),
        (lambda c: c.save(1, {}, best=2), ValueError, "best: expected 1 or an earlier"),
        (lambda c: c.save(1, {"x": "adam"}), TypeError, r"state\['x'\]: .* got str"),
        (lambda c: c.save(1, [2**70]), ValueError, r"state\[0\]: expected an integer"),
        (lambda c: c.save(1, [np.zeros(1, "S3")]), (ValueError, TypeError), r"state\["),
        (lambda c: c.restore({"x": "adam"}), FileNotFoundError, "no checkpoint; there"),
        (lambda c: c.restore({}, 3), FileNotFoundError, "of step 3; there are none"),
        (lambda c: training.Checkpoints("gs://b/run"), ValueError, "folder: expected"),
        (lambda c: training.Checkpoints("run", keep=0), ValueError, "keep: expected"),
    ],
)
def test_wrong_arguments_are_told(tmp_path, call, error, match):
    with pytest.raises(error, match=match):
        call(training.Checkpoints(tmp_path))
    assert not os.listdir(tmp_path)


def test_the_newest_and_the_best_are_kept_by_two_rules(tmp_path):
    bests = {10: 10, 20: 20, 30: 20, 40: 20, 50: 20, 60: 60, 70: 60, 80: 60, 90: None}
    there = {
        30: (20, 30), 40: (20, 30, 40), 50: (20, 40, 50), 60: (20, 50, 60),
        70: (60, 70), 80: (60, 70, 80), 90: (60, 80, 90),
    }  # fmt: skip
    with training.Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, best in bests.items():
            checkpoints.save(step, simple(step), best=best)
            checkpoints.wait()
            assert checkpoints.steps() == there.get(step, checkpoints.steps())
            assert_good(tmp_path, step)
    assert_same(restored(tmp_path, 60).state, simple(60))
    saved(tmp_path, 100, 110, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step_100", "step_110"]


def test_a_best_that_is_not_there_is_told(tmp_path):
    with pytest.warns(UserWarning, match="best: .* got 3; there are 1, 2"):
        with training.Checkpoints(tmp_path) as checkpoints:
            saved(tmp_path, 1, 2)
            checkpoints.save(5, simple(5), best=3)
    assert_good(tmp_path, 5)


def over(count):
    mesh = jax.make_mesh(
        (count,), ("d",), (AxisType.Auto,), devices=jax.devices()[:count]
    )
    return lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))


def spread(count):
    """A state over so many devices."""
    place = over(count)
    return {
        "w": jax.device_put(np.arange(8.0, dtype=np.float32).reshape(4, 2), place("d")),
        "keys": jax.device_put(jax.random.split(jax.random.key(0), 4), place("d")),
        "all": jax.device_put(np.float32(3), place()),
    }


DEVICES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
from lstm_jax import training
from tests import test_checkpoints as tests
state = tests.spread(int(sys.argv[2]))
with training.Checkpoints(sys.argv[1]) as checkpoints:
    back = checkpoints.restore(state).state
    tests.assert_same(back, state)
    for name, leaf in back.items():
        assert leaf.sharding == state[name].sharding, name
    checkpoints.save(int(sys.argv[2]), back)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_process_with_other_devices_goes_on(tmp_path, count):
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, spread(4))
        assert run_python(DEVICES, str(tmp_path), str(count)) == ""
        found = checkpoints.restore(spread(4))
    assert found.step == count
    assert_same(found.state, spread(4))
    assert found.state["w"].sharding == spread(4)["w"].sharding


def test_arrays_go_where_like_says(tmp_path):
    state = spread(4)
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        shape = jax.ShapeDtypeStruct((4, 2), jnp.float32, sharding=over(2)("d"))
        plain = jax.eval_shape(lambda: state) | {"w": shape, "all": jnp.float32(0)}
        back = checkpoints.restore(plain).state
        assert back["w"].sharding == over(2)("d")
        assert back["all"].devices() == back["keys"].devices() == {jax.devices()[0]}
        assert not back["all"].committed and not back["keys"].committed
        mesh = jax.make_mesh((4,), ("d",), (AxisType.Explicit,))
        with jax.set_mesh(mesh):
            double = lambda w: {"w": 2 * w}
            like = jax.eval_shape(
                double, jax.device_put(state["w"], PartitionSpec("d"))
            )
            back = checkpoints.restore(state | like).state["w"]
        assert back.sharding == NamedSharding(mesh, PartitionSpec("d", None))
        assert_same(checkpoints.restore(state | like).state, state)


def test_ordinary_use_says_nothing(tmp_path, capfd, caplog):
    saved(tmp_path, 1, 2, 3, keep=1)
    assert_good(tmp_path, 3)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
