"""Resumes in odd places: loaders with a state, figures and data that are others."""

import errno
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax import training
from lstm_jax.training.runs import log
from tests import runs
from tests.test_resume import leaves_equal, rows_of, stopping_at

STEPS = {"steps": 12, "save_every": 3, "log_every": 2}


def stopped(out, data=None, at=8, **options):
    """Trains until a hook stops it."""
    with pytest.raises(InterruptedError):
        runs.run(out, data, hooks=[stopping_at(at)], **STEPS | options)


class OneBuffer:
    """A loader that fills the same memory again for every batch."""

    def __init__(self):
        self.buffer = np.empty((4, 3), np.float32)

    def __iter__(self):
        for batch in runs.batches(7)(0):
            self.buffer[:] = batch
            yield self.buffer


class OneIterator:
    """A loader whose ``iter`` begins its only pass anew."""

    def __iter__(self):
        self.left = iter(runs.batches(7)(0))
        return self

    def __next__(self):
        return next(self.left)


@pytest.mark.parametrize("at", [2, 4, 6, 8])
@pytest.mark.parametrize("loader", [OneBuffer, OneIterator])
def test_loaders_that_keep_a_state(tmp_path, loader, at):
    one = loader()
    source = one if loader is OneBuffer else (lambda epoch: one)
    stopped(tmp_path, source, at)
    result = runs.run(tmp_path, source, resume=True, **STEPS)
    leaves_equal(result.state, runs.run(None, runs.batches_of(7), **STEPS).state)


def test_the_best_evaluation_may_fall_on_a_skipped_step(tmp_path):
    def loss_fn(params, carry, batch, key):
        loss, aux = runs.loss_fn(params, carry, batch, None)
        return loss._replace(total=loss.total + 0 * batch.sum()), aux

    def batches(epoch):
        bad = [np.full((4, 3), np.nan, np.float32)]
        return [*runs.batches(3)(0), *bad, *runs.batches(8)(1)]

    options = {
        "steps": 12,
        "evaluate_every": 4,
        "valid": runs.VALID,
        "valid_fn": lambda p, c, b, k: (
            training.Weighted(jnp.abs(p["w"] - worst).sum(), 1),
            (c, {}),
        ),
        "loss_fn": loss_fn,
        "log_every": 4,
    }
    worst = runs.run(None, batches, **options | {"steps": 4, "valid_fn": None}).state
    worst = worst.params["w"]
    whole = runs.run(None, batches, **options)
    assert (whole.best_step, int(whole.state.skipped)) == (4, 1)
    with pytest.raises(InterruptedError):
        runs.run(tmp_path, batches, hooks=[stopping_at(8)], **options)
    result = runs.run(tmp_path, batches, resume=True, **options)
    assert (result.best_step, result.best_value) == (4, whole.best_value)
    leaves_equal(result.best, whole.best)


@pytest.mark.parametrize("fails", ["write", "show"])
def test_an_evaluation_counts_once_whatever_fails_after_it(
    tmp_path, monkeypatch, fails
):
    options = STEPS | {
        "valid": runs.VALID,
        "evaluate_every": 2,
        "plateau": training.Plateau(0.5, 2),
        "min_delta": 100.0,
        "patience": 5,
    }
    real = getattr(log.Log, fails)

    def full(self, row):
        if row["step"] == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, row)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(log.Log, fails, full)
        runs.run(tmp_path, **options)
    result = runs.run(tmp_path, resume=True, **options)
    whole = runs.run(**options)
    leaves_equal(result.state, whole.state)
    assert result.reason == whole.reason
    steps = [row["step"] for row in whole.history]
    assert [int(row["step"]) for row in rows_of(tmp_path)] == steps


def test_a_disk_that_is_full_in_the_middle_of_a_row_leaves_none_of_it(tmp_path):
    written = log.Log(
        tmp_path, ["step", "loss"], total=None, show=False, tensorboard=False
    )
    written.write({"step": 1, "loss": 0.5})

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, line):
            return self.file.write(line[:3])

    written._file, file = Full(written._file), written._file
    with pytest.raises(OSError, match="No space left"):
        written.write({"step": 2, "loss": 0.25})
    written._file = file
    written.write({"step": 3, "loss": 0.125})
    written.close()
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n3,0.125\n"


def test_numbers_without_a_dtype_of_their_own(tmp_path):
    """A Python number among bfloat16 parameters, in a run that goes on from step 0."""

    def loss_fn(params, carry, batch, key):
        error = params["w"] * params["g"] * batch[:, 0].astype(jnp.bfloat16) - 1
        loss = training.Weighted((error.astype(jnp.float32) ** 2).sum(), 4)
        return loss, (carry, {})

    def run(out, **options):
        params = {"w": jnp.bfloat16(0.7), "g": 1.0}
        data = runs.batches()
        options = {"steps": 9, "show": False, "out": out, "save_every": 50} | options
        return training.fit(loss_fn, optax.sgd(0.1), params, data, **options)

    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(InterruptedError):
            # The row of step 1 is written when only step 0 is on the disk.
            run(tmp_path, hooks=[stopping_at(1)], log_every=1)
        for step in training.Checkpoints(tmp_path / "checkpoints").steps()[1:]:
            path = tmp_path / "checkpoints" / f"step_{step}"
            path.rename(tmp_path / path.name)
        result = run(tmp_path, resume=True, log_every=1)
        leaves_equal(result.state, run(None, log_every=1).state)


@pytest.mark.parametrize(
    "now, words",
    [
        ({"monitor": "valid_error"}, "monitor: expected 'valid_loss', as the run in"),
        ({"mode": "max"}, "mode: expected None, as the run in .* got 'max'"),
        ({"clip_norm": 1.0}, "figures: expected those that .* got .*grad_norm"),
        ({"derived": {"half": lambda r: r["loss"] / 2}}, "figures: expected .*half"),
        ({"valid": [runs.VALID[1]]}, "valid: expected the data .* another first"),
        ({"valid": None, "monitor": None, "mode": None}, "figures: expected those"),
    ],
)
def test_another_figure_and_other_held_out_data_are_refused(tmp_path, now, words):
    options = STEPS | {"valid": runs.VALID}
    stopped(tmp_path, **options)
    if now.get("monitor"):
        now = now | {"mode": "min"}
    with pytest.raises(ValueError, match=words):
        runs.run(tmp_path, resume=True, **options | now)


def test_patience_may_be_another_and_is_said(tmp_path):
    options = STEPS | {"valid": runs.VALID, "patience": 3}
    stopped(tmp_path, **options)
    with pytest.warns(UserWarning, match=r"goes on with patience=4 \(was 3\)"):
        runs.run(tmp_path, resume=True, **options | {"patience": 4})


def test_settings_may_hold_nan(tmp_path):
    stopped(tmp_path, settings={"rate": float("nan")})
    runs.run(tmp_path, resume=True, settings={"rate": float("nan")}, **STEPS)


def test_a_due_checkpoint_is_written_once(tmp_path):
    stopped(tmp_path, at=6, keep=50)
    runs.run(tmp_path, resume=True, **STEPS | {"keep": 50})
    assert training.Checkpoints(tmp_path / "checkpoints").steps() == (0, 3, 6, 9, 12)


def test_auto_does_not_begin_over_rows_of_a_run(tmp_path):
    stopped(tmp_path)
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="holds the metrics.csv of one"):
        runs.run(tmp_path, resume="auto", **STEPS)


def test_one_run_at_a_time_in_a_folder(tmp_path):
    def hook(state, row):
        with pytest.raises(BlockingIOError, match="out: expected a folder that no one"):
            runs.run(tmp_path, resume="auto", **STEPS)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        runs.run(tmp_path, hooks=[hook], **STEPS)
    runs.run(tmp_path, resume="auto", **STEPS)


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    runs.run("out", hooks=[lambda state, row: os.chdir(tmp_path / "other")], **STEPS)
    assert {"metrics.csv", "checkpoints"} <= set(os.listdir(tmp_path / "out"))


def test_data_that_fail_while_steps_are_skipped_lose_nothing(tmp_path):
    def batches(epoch):
        yield from runs.batches(5)(0)
        yield np.full((4, 3), np.nan, np.float32)
        yield np.full((4, 3), np.nan, np.float32)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        runs.run(tmp_path, batches, **STEPS | {"save_every": 1000})
    steps = training.Checkpoints(tmp_path / "checkpoints").steps()
    assert steps[-1] >= 5


PROGRAM = """
import pathlib, signal, sys
from tests import runs

out, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
kept = open(out / "kept.txt", "w")

def stop(state, row):
    if row["step"] == 4:
        signal.raise_signal(signal.SIGTERM)

kept.write("not flushed by anyone")
first = runs.run(out / "one", steps=8, hooks=[stop])
assert first.reason == "interrupted" and first.exit_status == 143
if mode == "goes on":
    assert runs.run(out / "one", steps=8, resume=True).exit_status == 0
else:
    assert runs.run(out / "two", steps=8).exit_status == 0
"""


@pytest.mark.parametrize("mode, status", [("goes on", 0), ("another", 143)])
def test_a_program_of_several_runs_ends_as_the_one_that_was_interrupted(
    tmp_path, mode, status
):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, mode],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert (tmp_path / "kept.txt").read_text() == "not flushed by anyone"
