"""The tasks in examples/: that they run and go on, and what their models compute."""

import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

import lstm_jax as lj
from tests.tasks import EXAMPLES, TASKS, functions, run_here


def test_each_task_is_here_and_in_the_makefile_and_short():
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    others = {"from_keras", "from_pytorch", "from_scratch", "serve"}
    paths = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert {task.split()[0] for task in TASKS} | others | {"char_lm"} == set(paths)
    for name in set(paths) - others:
        assert re.search(rf"^TASKS := .*\b{name}\b", makefile, re.MULTILINE)
        assert len(paths[name].read_text().splitlines()) <= 150


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_is_stopped_goes_on_to_the_same_weights(task, tmp_path):
    flags, figure = TASKS[task]
    flags = [*flags.split(), "--steps", "6"]
    status, printed = run_here(task, *flags, "--out", tmp_path / "whole")
    assert status == 0 and figure in printed, printed
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert files >= {"checkpoints", "loss.png", "metrics.csv", "weights.safetensors"}

    args = [*map(str, flags), "--out", tmp_path / "two"]
    name, *rest = task.split()
    program = f"""
import os, runpy, sys, jax
jax.config.update("jax_num_cpu_devices", 4)  # As here: sums depend on the threads.
from lstm_jax import training
fit = training.fit
def stopped(*args, **options):
    hook = lambda state, row: os.kill(os.getpid(), {signal.SIGTERM:d})
    return fit(*args, **options | dict(log_every=3, hooks=[hook]))
training.fit = stopped
sys.argv = {[name, *rest, *map(str, args)]!r}
runpy.run_path({str(EXAMPLES / name)!r} + ".py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    status, printed = run_here(task, *args)
    assert "holds a run" in status
    assert run_here(task, *args, "--resume")[0] == 0
    one, two = (
        (tmp_path / n / "weights.safetensors").read_bytes() for n in ("whole", "two")
    )
    assert one == two


def test_a_series_that_repeats_itself_is_forecast(tmp_path):
    """The naive forecast has no error then, which nothing can be divided by."""
    path = tmp_path / "x.csv"
    path.write_text("\n".join(str(n % 4) for n in range(200)))
    sizes = "--season 4 --length 8 --horizon 4 --batch-size 512 --hidden-size 4"
    status, printed = run_here(
        *("forecast", "--data", path, "--steps", 3, *sizes.split()),
        *("--out", tmp_path / "out"),
    )
    assert status == 0 and "naive 0.0000: nan% less" in printed


def test_a_text_is_written_whatever_the_terminal_can_show(tmp_path):
    """And a length of 0 is refused before training, not after it."""
    path = tmp_path / "x.txt"
    path.write_text("äöü€→ " * 200, encoding="utf-8")
    small = "--hidden-size 4 --embedding-size 4 --batch-size 2 --window 4 --steps 2"
    given = [*small.split(), "--sample-every", "2", "--data", str(path)]
    run = lambda *args: subprocess.run(
        [sys.executable, str(EXAMPLES / "char_lm.py"), *given, *args],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"},
    )
    done = run("--length", "5", "--out", str(tmp_path / "one"))
    assert done.returncode == 0 and b"step 2" in done.stdout, done.stderr
    done = run("--length", "0", "--out", str(tmp_path / "two"))
    assert done.returncode == 1 and b"--length: expected 1 to" in done.stderr
    assert not (tmp_path / "two").exists()


@pytest.fixture
def plain_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def translator(plain_promotion):
    """The model of sums with weights, as they come."""
    module = functions("add")
    lstms = lj.LSTM(12, 4, bidirectional=True), lj.LSTM(12, 8)
    model = module["Model"](*lstms, nn.Dense(12))
    return module, model, model.init(jax.random.key(0))


def test_attention_looks_at_no_padding(translator):
    module, model, params = translator
    sums, lengths, answers, ends = module["encode"](np.array([[12, 5], [123, 456]]))
    alone = model.loss(params, (), (sums, lengths, answers, ends), None)[0]
    wide = lambda a, n: np.pad(a, ((0, 0), (0, n)), constant_values=7)
    padded = wide(sums, 14), lengths, wide(answers, 9), ends
    loss = model.loss(params, (), padded, None)[0]
    assert float(loss.total) == pytest.approx(float(alone.total), rel=1e-6)
    assert int(loss.weight) == int(alone.weight) == sum(ends - 1)


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_an_answer_does_not_see_what_comes_after(translator, changed):
    """Targets are shifted once: a token changes the logits after it alone."""
    module, model, params = translator
    sums, lengths, answers, _ = module["encode"](np.array([[12, 500]]))
    encoded = model.encode(params, sums, lengths)
    before, _ = model.decode(params, encoded, answers[:, :-1])
    other = answers.copy()
    other[:, changed] = (other[:, changed] + 1) % 12
    after, _ = model.decode(params, encoded, other[:, :-1])
    np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).any(-1).all()


def test_returns_go_on_over_a_cut_and_end_at_an_end(plain_promotion):
    """One maze ends at its second step, one is cut off there, one goes on."""
    module = functions("play")
    past = module["Moment"](
        seen=None,
        reset=None,
        action=None,
        reward=np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1.0]]),
        cut=np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], bool),
        over=np.array([[0, 0, 0], [1, 1, 0], [0, 0, 0]], bool),
        next_value=np.array([[9, 9, 9], [9, 3, 9], [5, 7, 2.0]]),
    )
    last = [0.5 * 5, 0.5 * 7, 1 + 0.5 * 2]
    middle = [1, 0.5 * 3, 0.5 * last[2]]
    expected = [[0.5 * m for m in middle], middle, last]
    np.testing.assert_allclose(module["returns"](past, 0.5), expected, rtol=1e-6)


def test_an_episode_that_is_cut_off_begins_anew(plain_promotion):
    module = functions("play")
    config = module["Config"](corridor=2, limit=3)
    maze = module["Maze"](*np.zeros((3, 1), np.int32))
    seen = []
    for action in (0, 0, 0):
        maze, *rest = module["move"](maze, np.array([action]), config)
        seen.append([float(np.ravel(one)[0]) for one in rest])
    assert seen == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert int(maze.place[0]) == 2
