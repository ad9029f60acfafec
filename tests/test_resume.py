"""Runs that are stopped and gone on with, and what is on disk."""

import csv
import json
import math
import random
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax import training
from lstm_jax.training.runs import resuming
from tests import chaos, runs
from tests.test_fit import leaves_equal


def rows_of(out):
    return chaos.left(out)["rows"]


def stopping_at(step):
    """A hook that raises after the row of a step."""

    def hook(state, row):
        if row["step"] == step:
            raise InterruptedError(step)

    return hook


def stop_and_resume(out, stops, **options):
    """Runs, stopped after each of the rows, until the end."""
    for n, step in enumerate(stops):
        with pytest.raises(InterruptedError):
            runs.run(out, resume=n > 0, hooks=[stopping_at(step)], **options)
    return runs.run(out, resume=True, **options)


OPTIONS = {
    "of": runs.state(jnp.zeros((4, 2)), ema=True),
    "continues": True,
    "ema_decay": 0.9,
    "clip_norm": 1.0,
    "reset_rate": 0.25,
    "steps": 31,
    "valid": runs.VALID,
    "evaluate_every": 6,
    "save_every": 5,
    "log_every": 1,
}


@pytest.mark.parametrize("stops", [[1, 2], [5, 6], [10, 15, 29], [30, 31]])
def test_a_run_that_was_stopped_is_the_one_that_was_not(tmp_path, stops):
    whole = runs.run(tmp_path / "whole", **OPTIONS)
    result = stop_and_resume(tmp_path / "stopped", stops, **OPTIONS)
    leaves_equal(result.state, whole.state)
    leaves_equal(result.best, whole.best)
    assert (result.best_step, result.reason) == (whole.best_step, whole.reason)
    assert chaos.left(tmp_path / "stopped") == chaos.left(tmp_path / "whole")
    assert [row["step"] for row in result.history] == list(range(1, 32))


def test_every_batch_is_trained_on_once_wherever_it_is_stopped(tmp_path):
    """37 examples by 4, three epochs; stopped after each batch in turn."""

    def batches(epoch):
        order = np.random.default_rng(epoch).permutation(37)
        return [order[n : n + 4].astype(np.int32) for n in range(0, 37, 4)]

    def loss_fn(params, carry, batch, key):
        used = jnp.zeros(37).at[batch].add(1.0)
        return jnp.sum(params * jax.lax.stop_gradient(used)), (carry, {})

    def fit(out, **options):
        return training.fit(
            *(loss_fn, optax.sgd(1.0), jnp.zeros(37), batches),
            epochs=3,
            log_every=1,
            out=out,
            show=False,
            **options,
        )

    for step in range(1, 30, 4):
        out = tmp_path / str(step)
        with pytest.raises(InterruptedError):
            fit(out, hooks=[stopping_at(step)])
        result = fit(out, resume=True)
        np.testing.assert_array_equal(result.state.params, -3.0)
        assert int(result.state.step) == 30


def test_patience_goes_on_where_it_was_and_a_finished_run_takes_no_step(tmp_path):
    values = [1.0, 0.9, 0.95, 0.96, 0.97, 0.1]
    for stop in range(1, 5):
        out = tmp_path / str(stop)
        options = {"patience": 3, "out": out}
        with pytest.raises(InterruptedError):
            runs.run_scripted(values, hooks=[stopping_at(stop)], **options)
        result = runs.run_scripted(values, resume=True, **options)
        assert (result.reason, int(result.state.step)) == ("stopped early", 5)
        assert result.best_step == 2 and float(result.best["n"]) == 2
        before = chaos.left(out)
        again = runs.run_scripted(values, resume=True, **options)
        assert (again.reason, int(again.state.step)) == ("stopped early", 5)
        assert chaos.left(out) == before


def test_newest_and_best_are_kept_by_two_rules(tmp_path):
    values = [0.5, math.nan, 0.6, 0.7, 0.8, 0.9]
    runs.run_scripted(values, out=tmp_path, keep=2, save_every=1)
    steps = training.Checkpoints(tmp_path / "checkpoints").steps()
    assert steps == (1, 5, 6)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_after_a_damaged_checkpoint_saving_goes_on(tmp_path):
    whole = runs.run(tmp_path / "whole", steps=200, save_every=50)
    out = tmp_path / "out"
    with pytest.raises(InterruptedError):
        runs.run(out, steps=200, save_every=50, hooks=[stopping_at(100)])
    flip(out / "checkpoints/step_100/record.json")
    with pytest.warns(UserWarning, match="step 100"), pytest.raises(InterruptedError):
        runs.run(out, steps=200, save_every=50, resume=True, hooks=[stopping_at(188)])
    steps = training.Checkpoints(out / "checkpoints").steps()
    assert steps[-1] == 188 and 150 in steps
    shutil.rmtree(out / "checkpoints/step_188")
    result = runs.run(out, steps=200, save_every=50, resume=True)
    leaves_equal(result.state, whole.state)
    assert rows_of(out) == rows_of(tmp_path / "whole")


def test_a_damaged_best_is_said_and_training_goes_on(tmp_path):
    with pytest.raises(InterruptedError):
        runs.run(tmp_path, **OPTIONS, hooks=[stopping_at(29)])
    record = json.loads((tmp_path / "checkpoints/step_29/record.json").read_text())
    best = record["standing"]["best_step"]
    shutil.rmtree(tmp_path / f"checkpoints/step_{best}")
    with pytest.warns(UserWarning, match=f"of step {best}, are lost"):
        result = runs.run(tmp_path, resume=True, **OPTIONS)
    assert result.reason == "done" and result.best_step in (30, 31)


def test_the_last_state_is_there_and_a_writers_error_is_raised(tmp_path, monkeypatch):
    runs.run(tmp_path / "good", steps=21, save_every=10)
    assert training.Checkpoints(tmp_path / "good/checkpoints").steps()[-1] == 21
    import os

    real = os.replace

    def full(source, target):
        if "step_20" in str(target):
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        runs.run(tmp_path / "full", steps=21, save_every=10)
    monkeypatch.undo()
    steps = training.Checkpoints(tmp_path / "full/checkpoints").steps()
    assert 10 in steps and 20 not in steps
    result = runs.run(tmp_path / "full", steps=21, save_every=10, resume=True)
    whole = runs.run(steps=21)
    leaves_equal(result.state, whole.state)


def test_nothing_to_resume_and_a_folder_in_use_are_errors(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="resume: expected a run to go on with in out="
    ):
        runs.run(tmp_path / "mistyped", resume=True)
    runs.run(tmp_path / "used", steps=4)
    with pytest.raises(FileExistsError, match="which holds a run"):
        runs.run(tmp_path / "used", steps=4)
    with pytest.raises(
        FileNotFoundError, match="resume: expected a run to go on with in out=None"
    ):
        runs.run(resume=True)
    assert runs.run(tmp_path / "new", steps=4, resume="auto").reason == "done"
    assert runs.run(tmp_path / "new", steps=4, resume="auto").reason == "done"
    assert len(rows_of(tmp_path / "new")) == 1


def test_what_a_resume_must_not_change(tmp_path):
    settings = {"characters": "abcdef", "model": {"hidden_size": 5}, "seed": 0}
    options = {"steps": 8, "save_every": 4, "settings": settings}
    with pytest.raises(InterruptedError):
        runs.run(tmp_path, hooks=[stopping_at(4)], **options)
    cases = (
        ({"characters": "abcxef"}, r"\['characters'\]: expected 'abcdef', .*'abcxef'"),
        ({"model": {"hidden_size": 6}}, r"\['model'\]\['hidden_size'\]: .* 5, .* 6\."),
        ({"model": {}}, r"\['model'\]\['hidden_size'\]: expected 5, .* got none"),
        ({"dropout": 0.1}, r"settings\['dropout'\].*got new ones"),
    )
    for changed, words in cases:
        with pytest.raises(ValueError, match=words):
            runs.run(
                tmp_path, resume=True, **{**options, "settings": settings | changed}
            )
    with pytest.raises(ValueError, match="batches: expected the data"):
        runs.run(tmp_path, runs.batches(seed=1), resume=True, **options)

    def reordered(epoch):
        first, *rest = runs.batches()(epoch)
        return [first, *rest[::-1]]

    with pytest.raises(ValueError, match="got another last batch"):
        runs.run(tmp_path, reordered, resume=True, **options)
    with pytest.raises(ValueError, match="expected at least 4 batches in epoch 0"):
        runs.run(
            tmp_path, lambda epoch: runs.batches()(epoch)[:2], resume=True, **options
        )
    state = training.create({"w": jnp.ones(4)}, runs.tx(), (), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"params\['w'\]"):
        runs.run(tmp_path, of=state, resume=True, **options)
    with pytest.warns(UserWarning, match=r"goes on with steps=12 \(was 8\)"):
        result = runs.run(tmp_path, resume=True, **{**options, "steps": 12})
    leaves_equal(result.state, runs.run(steps=12).state)


def test_a_changed_setting_is_named_before_the_leaves_that_it_changed(tmp_path):
    """Another size changes the shapes of parameters, and of the optimizer's state."""
    settings = {"hidden_size": 3, "rate": math.nan, "words": ["a"]}
    options = {"steps": 8, "save_every": 4}
    with pytest.raises(InterruptedError):
        runs.run(tmp_path, hooks=[stopping_at(4)], settings=settings, **options)
    state = training.create({"w": jnp.ones(4)}, runs.tx(), (), key=jax.random.key(0))
    again = {"of": state, "resume": True, **options}
    with pytest.raises(ValueError, match=r"settings\['hidden_size'\]: .* 3, .* 4\."):
        runs.run(tmp_path, settings=settings | {"hidden_size": 4}, **again)
    with pytest.raises(ValueError, match=r"params\['w'\]: expected .* \[4\], got"):
        runs.run(tmp_path, settings=settings, **again)


@pytest.mark.parametrize(
    "was, now, expected, got",
    [
        ("32", "33", "'32'", "'33'"),
        ("a" * 100 + "bc", "a" * 100 + "Bc", "'aaaaaaaabc' from", "'aaaaaaaaBc' from"),
        (["x" * 99, 1], ["x" * 99, 2], "1", "2"),
        (["x" * 99], ["x" * 99, math.inf], "none", "inf"),
        ([math.nan, 1], [float("nan"), 2], "[nan, 1]", "[nan, 2]"),
        (1, None, "1", "None"),
    ],
)
def test_a_changed_setting_is_shown_before_and_after(was, now, expected, got):
    with pytest.raises(ValueError) as error:
        resuming.check_settings("out", {"it": was, "b": 0}, {"it": now, "b": 0})
    words = re.fullmatch(
        r"settings\['it'\](\[1\])?: expected (.*), got (.*)\.", str(error.value)
    )
    assert words and words[2].startswith(expected) and words[3].startswith(got)
    on_disk = json.loads(json.dumps({"it": was}))  # Another NaN than that of settings.
    resuming.check_settings("out", on_disk, {"it": was})


def test_rows_after_the_checkpoint_are_cut_off(tmp_path):
    whole = runs.run(tmp_path / "whole", **OPTIONS)
    assert whole.reason == "done"
    out = tmp_path / "out"
    with pytest.raises(InterruptedError):
        runs.run(out, **OPTIONS, hooks=[stopping_at(13)])
    with (out / "metrics.csv").open("a") as file:
        file.write("14,2,56,1.0\n15,2,60")  # written, then killed before a save
    runs.run(out, resume=True, **OPTIONS)
    assert rows_of(out) == rows_of(tmp_path / "whole")
    (out / "metrics.csv").write_text("step\n")
    with pytest.raises(
        ValueError, match=r"metrics.csv: expected at least the \d+ bytes"
    ):
        runs.run(out, resume=True, **OPTIONS)


def scalars_of(folder):
    """What TensorBoard shows: of each figure the last value that was written a step."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    shown = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content, place, from_step = path.read_bytes(), 0, None
        while place < len(content):
            size = int.from_bytes(content[place : place + 8], "little")
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
            place += 16 + size
            if event.HasField("session_log"):
                from_step = event.step
                shown = {at: v for at, v in shown.items() if at[1] < from_step}
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    return shown


def test_tensorboard_shows_the_rows_of_a_run_that_was_resumed(tmp_path):
    with pytest.raises(InterruptedError):
        runs.run(tmp_path, tensorboard=True, **OPTIONS, hooks=[stopping_at(8)])
    result = runs.run(tmp_path, tensorboard=True, resume=True, **OPTIONS)
    folder = tmp_path / "tensorboard"
    assert len(list(folder.iterdir())) == 2
    shown = scalars_of(folder)
    expected = {
        (name, row["step"]): value
        for row in result.history
        for name, value in row.items()
        if name != "step"
    }
    assert set(shown) == set(expected)
    for at, value in expected.items():
        assert shown[at] == pytest.approx(value, rel=1e-6), at


def test_data_that_fail_leave_the_newest_state_to_go_on_from(tmp_path):
    def failing(epoch):
        batches = runs.batches()(epoch)
        yield from batches[: 2 if epoch == 2 else None]
        if epoch == 2:
            raise OSError("the disk went away")

    options = {"steps": 20, "valid": runs.VALID, "evaluate_every": 12, "log_every": 4}
    with pytest.raises(OSError, match="the disk went away"):
        runs.run(tmp_path, failing, **options)
    # The step whose batch was the last is there, its row and evaluation still to come.
    assert training.Checkpoints(tmp_path / "checkpoints").steps()[-1] == 12
    assert len(rows_of(tmp_path)) == 2
    result = runs.run(tmp_path, resume=True, **options)
    leaves_equal(result.state, runs.run(**options).state)
    assert [row["step"] for row in result.history] == [4, 8, 12, 16, 20]
    assert "valid_loss" in result.history[2]


@pytest.mark.parametrize("kind", ["early", "epochs"])
def test_a_killed_run_goes_on_bit_for_bit(kind, tmp_path):
    chaos.torment(kind, tmp_path, 3, random.Random(kind), say=lambda words: None)


def test_a_resume_on_another_number_of_devices(tmp_path):
    """Saved from a mesh of four, gone on with on one; and the other way round."""
    import subprocess
    import sys

    program = """
import sys, jax
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
from tests import runs
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
mesh = jax.make_mesh((int(sys.argv[2]),), ("data",), axis_types=(AxisType.Auto,))
rows, copied = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
data = lambda epoch: [jax.device_put(b, rows) for b in runs.batches()(epoch)]
def state():
    made = runs.state(jax.numpy.zeros((4, 2)))
    return jax.device_put(made, copied)._replace(carry=jax.device_put(made.carry, rows))
result = runs.run(sys.argv[1], data, state(), continues=True, save_every=5,
                  steps=int(sys.argv[3]), resume="auto")
print(result.state.params["w"].tolist())
"""

    def go(out, devices, steps):
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                program,
                out,
                str(devices),
                str(steps),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return np.array(json.loads(done.stdout))

    whole = go(tmp_path / "whole", 1, 20)
    for n, (first, second) in enumerate([(4, 1), (1, 2)]):
        go(tmp_path / str(n), first, 10)
        np.testing.assert_allclose(go(tmp_path / str(n), second, 20), whole, rtol=1e-5)


def test_csv_is_readable_by_others(tmp_path):
    runs.run(tmp_path, **OPTIONS)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({len(row) for row in rows}) == 1
    assert rows[5]["ema_valid_loss"] and not rows[4]["ema_valid_loss"]
