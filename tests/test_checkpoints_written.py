"""Checkpoints are whole or not there, whatever ends the writing."""

import contextlib
import errno
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest

from lstm_jax import training
from lstm_jax.training.disk import aside, sealed
from tests.checkpoints import assert_good, assert_same, files, restored, saved, simple


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
