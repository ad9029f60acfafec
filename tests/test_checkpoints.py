"""Checkpoints: whole or not there, checked when read, and old ones when to be kept."""

import asyncio
import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lstm_jax as lj
from lstm_jax import training
from lstm_jax.training.disk import aside, sealed
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


def assert_same(back, state):
    """The same structure, kinds of leaves and bits."""
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        if isinstance(old, (bool, int, float)):
            assert type(new) is type(old)
            assert struct.pack(">d", new) == struct.pack(">d", old)
            continue
        assert isinstance(new, jax.Array if isinstance(old, jax.Array) else np.ndarray)
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
            new, old = jax.random.key_data(new), jax.random.key_data(old)
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def simple(step):
    return {"w": np.full((5, 7), step, np.float32), "step": step}


def saved(folder, *steps, keep=9, best=None):
    with training.Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, simple(step), {"step": step}, best=best)
    return checkpoints


def restored(folder, step=None):
    return training.Checkpoints(folder).restore(simple(0), step)


def assert_good(folder, step):
    """The newest good one is of this step."""
    found = restored(folder)
    assert found.step == step
    assert_same(found.state, simple(step))


def flip(path, bit=None):
    content = bytearray(path.read_bytes())
    bit = random.Random(path.name).randrange(8 * len(content)) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


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


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for call in (lambda c: c.save(1, {}), lambda c: c.restore({})):
        with pytest.raises(NotImplementedError, match="one process, got one of 2"):
            call(training.Checkpoints(tmp_path))


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


def test_a_changed_bit_of_any_file_is_noticed(tmp_path):
    saved(tmp_path, 1, 2)
    paths = files(tmp_path / "step_2")
    assert {"record.json", "manifest.json", "manifest.sha256"} <= {
        p.name for p in paths
    }
    assert len(paths) > 6
    for path in paths:
        content = path.read_bytes()
        last = 8 * len(content) - 1
        for bit in (0, None, last):
            flip(path, bit)
            with pytest.raises(ValueError, match=f"damaged .*step 2: .*{path.name}"):
                restored(tmp_path, 2)
            path.write_bytes(content)
        for spoil in (b"", content[:-1], content + b"\n"):
            path.write_bytes(spoil)
            with pytest.raises(ValueError, match=f"step 2: .*{path.name}"):
                restored(tmp_path, 2)
        path.unlink()
        with pytest.raises(ValueError, match=f"step 2: .*{path.name}"):
            restored(tmp_path, 2)
        path.write_bytes(content)
    (tmp_path / "step_2" / "arrays" / "more").touch()
    with pytest.raises(ValueError, match="step 2: arrays/more is not its own"):
        restored(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_1", "step_2"]


def test_another_name_and_another_leaf_are_noticed(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "step_1", tmp_path / "step_5")
    with pytest.raises(ValueError, match="manifest.json is of step 1"):
        restored(tmp_path, 5)
    content = json.loads((tmp_path / "step_1" / "manifest.json").read_bytes())
    content["leaves"]["['w']"]["sha256"] = hashlib.sha256(b"").hexdigest()
    seal(tmp_path / "step_1", content)
    with pytest.raises(ValueError, match=r"leaf \['w'\] is not what was saved"):
        restored(tmp_path, 1)


def seal(folder, content):
    """Writes a manifest of other content, with the digest that goes with it."""
    (folder / "manifest.json").write_text(json.dumps(content))
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def test_what_was_wrong_before_it_was_sealed_is_noticed(tmp_path):
    """Orbax refuses it, or the leaf's digest does, or it does not matter.

    With one leaf alone: Orbax drops what reads the others, and Python tells of that.
    """
    state, checkpoints = {"w": jnp.arange(35.0)}, training.Checkpoints(tmp_path)
    checkpoints.save(1, state)
    checkpoints.wait()
    folder, noticed = tmp_path / "step_1", set()
    whole = json.loads((folder / "manifest.json").read_bytes())
    for path in files(folder / "arrays"):
        content, name = path.read_bytes(), path.relative_to(folder).as_posix()
        flip(path)
        changed = hashlib.sha256(path.read_bytes()).hexdigest()
        seal(folder, whole | {"files": whole["files"] | {name: changed}})
        try:
            assert_same(checkpoints.restore(state).state, state)
        except ValueError as error:
            assert "step 1: " in str(error)
            noticed.add(str(error).partition("step 1: ")[2][:5])
        path.write_bytes(content)
    assert "Orbax" in noticed


def test_a_damaged_one_goes_aside_and_saving_goes_on_below_it(tmp_path):
    saved(tmp_path, 100, 150, 200)
    flip(files(tmp_path / "step_200" / "arrays")[0])
    (tmp_path / "step_150" / "record.json").unlink()
    with pytest.warns(UserWarning) as told:
        assert_good(tmp_path, 100)
    texts = sorted(str(warning.message) for warning in told)
    assert len(texts) == 2 and all(w.filename == __file__ for w in told)
    assert "step_150 is damaged, step 150: record.json is missing" in texts[0]
    assert "step_200 is damaged, step 200: arrays/" in texts[1]
    assert sorted(os.listdir(tmp_path / "aside")) == ["step_150", "step_200"]
    saved(tmp_path, 150)
    assert_good(tmp_path, 150)
    saved(tmp_path, 200)
    (tmp_path / "step_200" / "record.json").unlink()
    with pytest.warns(UserWarning, match="moved to aside/step_200_1"):
        assert_good(tmp_path, 150)


def test_none_that_is_good_is_an_error_each_time(tmp_path):
    saved(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"step_{step}" / "record.json").unlink()
    for _ in range(2):
        with pytest.raises(
            ValueError, match="step 2: record.json.*step 1: record.json"
        ):
            restored(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["step_1", "step_2"]


@pytest.mark.parametrize(
    "like, match",
    [
        ({"w": 0}, r"\['w'\]: expected int64 \[\], got float32 \[5, 7\]"),
        ({"v": jnp.zeros(3)}, r"\['v'\]: expected float32 \[3\], got no such leaf"),
        ({"step": None}, r"\['step'\]: an unknown leaf"),
        ({"w": np.zeros((5, 8), np.float32)}, r"\['w'\]: expected float32 \[5, 8\]"),
        ({"w": jnp.zeros((5, 7), jnp.bfloat16)}, r"\['w'\]: expected bfloat16"),
        (
            {"key": jax.random.key(0, impl="rbg")},
            r"\['key'\]<key<rbg>>, got \['key'\]<",
        ),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"expected \['key'\], got \['key'\]<key"),
    ],
)
def test_what_does_not_fit_is_told_and_stays(tmp_path, like, match):
    state = simple(2) | {"key": jax.random.key(0)}
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state | like)
        checkpoints.save(2, state)
        for step in (None, 2):
            with pytest.raises(ValueError, match=match) as raised:
                checkpoints.restore(state | like, step)
            assert "damaged" not in str(raised.value)
        assert checkpoints.steps() == (1, 2)
    assert sorted(os.listdir(tmp_path)) == ["step_1", "step_2"]


def test_going_on_from_an_earlier_one_moves_the_later_ones_aside(tmp_path):
    saved(tmp_path, 100, 150, 200)
    assert restored(tmp_path, 100).step == 100
    with pytest.warns(UserWarning, match="step 150 is saved after 150, 200") as told:
        with training.Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(150, simple(-150))
    assert told[0].filename == __file__
    assert checkpoints.steps() == (100, 150)
    assert_same(restored(tmp_path).state, simple(-150))
    assert sorted(os.listdir(tmp_path / "aside")) == ["step_150", "step_200"]


def test_what_is_half_written_goes_aside_unless_someone_writes_it(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "writing_4_gh").mkdir()  # In between being made and being marked.
    for name in ("writing_2_ab", "writing_3_cd", "deleting_0_ef"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with aside.held(tmp_path / "writing_3_cd"):
        with pytest.warns(UserWarning, match="writing_2_ab is half written: moved"):
            assert_good(tmp_path, 1)
        assert sorted(os.listdir(tmp_path)) == [
            *("aside", "step_1", "writing_3_cd", "writing_4_gh"),
        ]
        saved(tmp_path, 2)
    with pytest.warns(UserWarning, match="writing_3_cd is half written: moved"):
        saved(tmp_path, 3)
    assert os.listdir(tmp_path / "aside" / "writing_2_ab") == ["file"]
    assert_good(tmp_path, 3)


def test_what_cannot_be_moved_aside_does_not_matter(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "aside").touch()
    (tmp_path / "step_2" / "record.json").unlink()
    with pytest.warns(UserWarning, match="step_2 is damaged.*could not be moved"):
        assert_good(tmp_path, 1)


def test_one_reads_while_another_writes(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    sync = sealed.sync
    monkeypatch.setattr(sealed, "sync", lambda path: (time.sleep(0.02), sync(path)))
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, simple(2))
        assert_good(tmp_path, 1)
    assert_good(tmp_path, 2)


@contextlib.contextmanager
def full_disk(monkeypatch, where, name):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        yield


@pytest.mark.parametrize(
    "where, name",
    [
        (os, "rename"),
        (os, "fsync"),
        (pathlib.Path, "write_bytes"),
        (pathlib.Path, "write_text"),
        (sealed, "_checkpointer"),
    ],
)
@pytest.mark.parametrize("call", ["save", "wait", "close", "restore", "with"])
def test_errors_of_the_writer_are_raised_by_the_next_call(
    tmp_path, monkeypatch, where, name, call
):
    calls = {
        "save": lambda c: c.save(3, simple(3)),
        "restore": lambda c: c.restore(simple(0)),
        "with": lambda c: c.__exit__(None, None, None),
    }
    checkpoints = saved(tmp_path, 1)
    with full_disk(monkeypatch, where, name):
        checkpoints.save(2, simple(2))
        with pytest.raises(OSError, match="No space left") as raised:
            calls.get(call, lambda c: getattr(c, call)())(checkpoints)
    assert "the checkpoint of step 2" in raised.value.__notes__[0]
    assert os.listdir(tmp_path) == ["step_1"]
    assert_good(tmp_path, 1)
    checkpoints.save(2, simple(2))
    checkpoints.close()
    assert_good(tmp_path, 2)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(OSError, match="run"):
        saved(tmp_path / "run", 1)


def test_an_error_on_its_way_is_not_replaced(tmp_path, monkeypatch):
    with full_disk(monkeypatch, os, "fsync"):
        with pytest.raises(KeyError) as raised:
            with training.Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(1, simple(1))
                raise KeyError("x")
    assert "No space left" in raised.value.__notes__[0]


class Killed(BaseException):
    """The process ends here: nothing that comes after reaches the disk."""


def die_at(patch, number):
    """Lets the disk stay as it is after so many changes of it; counts them."""
    seen = []

    def watch(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            seen.append(name)
            if len(seen) > number:
                if name == "rmtree":
                    files(args[0])[0].unlink()  # It has begun, and no more.
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(owner, name, call)

    for owner, name in ((os, "rename"), (os, "fsync"), (pathlib.Path, "mkdir")):
        watch(owner, name)
    watch(pathlib.Path, "write_bytes")
    watch(shutil, "rmtree")
    return seen


def test_there_is_a_good_one_at_every_instant(tmp_path, monkeypatch):
    """Step 3 is saved by a run that had 2, 4 and 6, and turned back to 2."""
    saved(tmp_path / "before", 2, 4, 6)
    for number in range(200):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", folder)
        with warnings.catch_warnings(), monkeypatch.context() as patch:
            warnings.simplefilter("ignore")
            checkpoints = training.Checkpoints(folder, keep=1)
            seen = die_at(patch, number)
            checkpoints.save(3, simple(3))
            with contextlib.suppress(Killed):
                checkpoints.wait()
        done = len(seen) <= number
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert restored(folder).step in ((3,) if done else (2, 3, 4, 6))
            for step in training.Checkpoints(folder).steps():
                assert_same(restored(folder, step).state, simple(step))
            saved(folder, 7)
            assert_good(folder, 7)
        shutil.rmtree(folder)
        if done:
            break
    assert {"rename", "fsync", "mkdir", "rmtree"} <= set(seen) and number > 20


LOOP = """
import sys, warnings
import numpy as np
from lstm_jax import training
warnings.simplefilter("ignore")
state = lambda step: {"w": np.full((5, 7), step, np.float32), "step": step}
checkpoints = training.Checkpoints(sys.argv[1])
try:
    step = checkpoints.restore(state(0)).step
except FileNotFoundError:
    step = 0
while True:
    step += 1
    checkpoints.save(step, state(step), {"step": step}, best=step - step % 5 or None)
    print(step - 1, flush=True)
"""


def test_a_killed_process_leaves_a_good_one(tmp_path):
    choose, last = random.Random(0), 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        process.stdout.readline()
        time.sleep(choose.uniform(0.05, 1.0))
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.communicate()[0].split()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*half written")
            found = restored(tmp_path)
        assert found.step >= max([last, *told]) and found.record == {"step": found.step}
        assert_same(found.state, simple(found.step))
        last = found.step
    assert last > 4


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


END = """
import sys, numpy as np
from lstm_jax import training
training.Checkpoints(sys.argv[1]).save(2, {"w": np.ones((3000, 3000))})
"""


def test_a_program_that_ends_without_closing_is_told(tmp_path):
    """What is not written yet is lost, as Python runs no more threads by then."""
    done = subprocess.run(
        [sys.executable, "-c", END, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    there = training.Checkpoints(tmp_path).steps() == (2,)
    assert there or "This was the checkpoint of step 2" in done.stderr


def test_ordinary_use_says_nothing(tmp_path, capfd, caplog):
    saved(tmp_path, 1, 2, 3, keep=1)
    assert_good(tmp_path, 3)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
