"""The tasks in examples/: what they read, what they refuse, and that they go on."""

import csv
import functools
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import training

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
# Flags that make a run of each short, and what it prints at the end.
TASKS = {
    "add": ("--batch-size 16", "right in every digit: 0."),
    "classify": ("--batch-size 64", "test accuracy 0."),
    "forecast": ("--batch-size 512", "test MSE"),
    "memory": ("--length 10 --batch-size 8", "test loss 0."),
    "memory --task copy": ("--delay 5 --batch-size 8", "test accuracy 0."),
    "play": ("--rollout 8 --mazes 4", "right turns: 0."),
    "tag": ("--batch-size 64", "f1 0."),
    "transcribe": ("--batch-size 2", "beam: "),
}


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs an example as a program, in this process; its status and what it printed.

    With a row of the log every three steps.
    """
    fit = functools.partial(training.fit, log_every=3)
    monkeypatch.setattr(training, "fit", fit)

    def run_here(task, *args):
        name, *rest = task.split()
        argv = [name, *rest, *map(str, args)]
        monkeypatch.setattr(sys, "argv", argv)
        plain = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
        with plain[0], plain[1], pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return ended.value.code, capsys.readouterr().out

    return run_here


@pytest.fixture(scope="module")
def functions():
    """The functions of an example, by name."""
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_each_task_is_here_and_in_the_makefile_and_short():
    makefile = (EXAMPLES.parent / "Makefile").read_text()
    others = {"from_keras", "from_pytorch", "from_scratch", "serve"}
    paths = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert {task.split()[0] for task in TASKS} | others | {"char_lm"} == set(paths)
    for name in set(paths) - others:
        assert re.search(rf"^TASKS := .*\b{name}\b", makefile, re.MULTILINE)
        assert len(paths[name].read_text().splitlines()) < 150


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_is_stopped_goes_on_to_the_same_weights(task, run_here, tmp_path):
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


def test_series_of_a_ts_file_have_their_lengths(functions, tmp_path):
    path = tmp_path / "X_TRAIN.ts"
    path.write_text("#of\n@equalLength false\n@DATA\n1,2,3:4,5,6:a b\n\n7:8:c\n")
    series, labels = functions("classify")["read"](path)
    assert [one.tolist() for one in series] == [[[1, 4], [2, 5], [3, 6]], [[7, 8]]]
    assert labels == ["a b", "c"]


def test_sentences_of_a_file_of_columns(functions, tmp_path):
    path = tmp_path / "x.conll"
    path.write_text(
        "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n"
        "Peter N x I-PER\n"
    )
    assert functions("tag")["read"](path) == [
        (("EU", "rejects"), ("B-ORG", "O")),
        (("Peter",), ("I-PER",)),
    ]


@pytest.mark.parametrize("head", ["", "date,load,heat\n"])
def test_columns_of_a_csv_that_have_numbers(head, functions, tmp_path):
    path = tmp_path / "x.csv"
    rows = [("2020-01-01", 1.5, -2e3), ("2020-01-02", 2, 0.25)]
    with path.open("w", newline="") as file:
        file.write(head)
        csv.writer(file).writerows(rows)
    values = functions("forecast")["read"](path)
    np.testing.assert_array_equal(values, [[1.5, -2000], [2, 0.25]])


def test_windows_of_the_test_part_forecast_nothing_of_the_others(functions):
    """The scale is that of training; a target is in one part alone."""
    module = functions("forecast")
    series = np.arange(1000.0)[:, None]
    config = module["Config"](length=48, horizon=12)
    parts, scaler = module["split"](series, config)
    np.testing.assert_allclose(scaler.mean, series[:700].mean(0))
    targets = [np.unique(np.rint(scaler.unscale(truth))) for _, _, truth in parts]
    assert targets[0].max() < 700 <= targets[1].min()
    assert targets[1].max() < 850 <= targets[2].min() and targets[2].max() == 999
    seen, naive, truth = parts[2]
    np.testing.assert_allclose(naive[:, 0], seen[:, -24], rtol=1e-6)


def test_sums_that_are_held_out_are_never_trained_on(functions):
    module = functions("add")
    held_out = module["HELD_OUT"]
    assert (held_out == held_out.T).all() and 0.04 < held_out.mean() < 0.06
    trained, tested = (module["pairs"](3, 500, which) for which in (False, True))
    assert not held_out[tuple(trained.T)].any() and held_out[tuple(tested.T)].all()
    sums, lengths, answers, ends = module["encode"](np.array([[12, 999], [0, 7]]))
    decode = module["VOCABULARY"].decode
    assert decode(sums[0, : lengths[0]]) == "12+999"
    assert decode(answers[0, : ends[0]]) == "\n1101\n"
    assert decode(answers[1, : ends[1]]) == "\n7\n"


REFUSED = {
    "classify": ("1,?:2,3:a\n", "line 1: could not convert"),
    "tag": ("word X\n", "line 1: expected a word and B-, I- or O."),
    "forecast": ("1,2\n3,\n", "line 2: expected 2 numbers."),
}


@pytest.mark.parametrize("task", REFUSED)
def test_bad_data_are_refused_in_one_line(task, run_here, tmp_path):
    text, words = REFUSED[task]
    path = tmp_path / "X_TRAIN.ts"
    path.write_text(text)
    given = tmp_path if task == "classify" else path
    for args, expected in (
        (("--data", given), words),
        (("--data", tmp_path / "none"), "none"),
    ):
        status, _ = run_here(task, *args, "--out", tmp_path / "out")
        assert status.startswith(f"{task}: ") and expected in status
        assert "\n" not in status


@pytest.mark.parametrize(
    "text, words",
    [
        ("date;load\n2020-01-01;1,5\n2020-01-02;2,5\n", "got '2020-01-01;1,5'"),
        ("2020-01-01;1,5\n", "expected 1.5,2 and not 1,5;2"),
        ("a;1.5;2.5\n", "got 'a;1.5;2.5'"),
        ("date\t1.5\n", "got 'date"),
        ('x,y\n"1,5",2\n"2,5",3\n', "got '\"1,5\",2'"),
        ('x,y\n"1,500,000",2\n', "got '\"1,500,000\",2'"),
    ],
)
def test_a_csv_of_another_kind_is_not_read_as_other_numbers(
    text, words, functions, tmp_path
):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        functions("forecast")["read"](path)


def test_blank_lines_of_a_csv_hold_nothing_and_lines_are_counted_as_they_lie(
    functions, tmp_path
):
    read, path = functions("forecast")["read"], tmp_path / "x.csv"
    path.write_bytes("\ufeff\nday; or week,load\n\na,1\nb,2\n\n".encode())
    np.testing.assert_array_equal(read(path), [[1], [2]])
    path.write_text("\nday,load\n\na,1\nb,\n")
    with pytest.raises(ValueError, match="line 5: expected 1 numbers"):
        read(path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"season": 200}, "--season: expected 1 to 168 of 1000 steps"),
        ({"season": 0}, "--season: expected 1 to 168"),
        ({"length": 690}, "--length: expected 1 to 652"),
        ({"horizon": 151, "length": 24}, "--horizon: expected 1 to 150"),
    ],
)
def test_which_size_of_a_forecast_does_not_fit(options, words, functions):
    module = functions("forecast")
    with pytest.raises(ValueError, match=words):
        module["split"](np.arange(1000.0)[:, None], module["Config"](**options))


def test_a_series_that_repeats_itself_is_forecast(run_here, tmp_path):
    """The naive forecast has no error then, which nothing can be divided by."""
    path = tmp_path / "x.csv"
    path.write_text("\n".join(str(n % 4) for n in range(200)))
    sizes = "--season 4 --length 8 --horizon 4 --batch-size 512 --hidden-size 4"
    status, printed = run_here(
        *("forecast", "--data", path, "--steps", 3, *sizes.split()),
        *("--out", tmp_path / "out"),
    )
    assert status == 0 and "naive 0.0000: nan% less" in printed


def test_classes_of_any_encoding_stay_apart(functions, tmp_path):
    path = tmp_path / "X_TRAIN.ts"
    read = functions("classify")["read"]
    path.write_bytes("#é\n1,2:ä\n1,2:ö\n".encode("latin-1"))
    assert len(set(read(path)[1])) == 2
    path.write_bytes("\ufeff1,2:ä\n1,2:ö\n".encode())
    series, labels = read(path)
    assert labels == ["ä", "ö"] and series[0].tolist() == [[1], [2]]


def test_ids_are_no_words_and_comments_no_sentences(functions, tmp_path):
    read, path = functions("tag")["read"], tmp_path / "x.conll"
    path.write_text("# text = a b\n# id 1\na O\nb B-X\n\n# NN O\n1 O\n")
    assert read(path) == [(("a", "b"), ("O", "B-X")), (("#", "1"), ("O", "O"))]
    path.write_text("1 EU B-ORG\n2 rejects O\n\n1 Peter B-PER\n")
    with pytest.raises(ValueError, match="words first, no numbers"):
        read(path)


OF_TRAIN = {
    "classify": [
        ("1,nan:a\n1,2:b\n", "line 1: expected finite numbers"),
        ("1,2:3:a\n", "line 1: "),
    ],
    "tag": [
        ("a O\n", "expected 2 or more"),
        ("\n", "expected 2 or more"),
    ],
}


@pytest.mark.parametrize("task", OF_TRAIN)
def test_data_that_do_not_do_are_refused_before_training(task, run_here, tmp_path):
    for number, (text, words) in enumerate(OF_TRAIN[task]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "X_TRAIN.ts"
        path.write_text(text)
        given = folder if task == "classify" else path
        status, _ = run_here(task, "--data", given, "--out", folder / "out")
        assert status.startswith(f"{task}: ") and words in status
        assert not (folder / "out").exists()


@pytest.mark.parametrize(
    "test, words",
    [
        ("1,nan:a\n", "X_TEST.ts, line 1: expected finite numbers"),
        ("1,2:a\n", "values: expected shape"),
    ],
)
def test_series_to_test_with_are_like_those_of_training(
    test, words, run_here, tmp_path
):
    (tmp_path / "X_TRAIN.ts").write_text("1,2:3,4:a\n1,3:2,4:b\n")
    (tmp_path / "X_TEST.ts").write_text(test)
    status, _ = run_here("classify", "--data", tmp_path, "--out", tmp_path / "out")
    assert words in status and not (tmp_path / "out").exists()


def test_a_rate_of_0_is_one_and_sizes_are_refused_by_name(run_here, tmp_path):
    out = tmp_path / "out"
    short = "--steps 2 --batch-size 2 --length 4 --hidden-size 4 --learning-rate 0"
    status, _ = run_here("memory", *short.split(), "--out", out)
    assert status == 0
    weights = safetensors.numpy.load_file(out / "weights.safetensors")
    kept = [name for name in weights if "readout" in name and "bias" in name]
    assert kept and not any(weights[name].any() for name in kept)
    for task, flags in ("memory --task copy", "--delay 0"), ("memory", "--length 1"):
        status, _ = run_here(task, *flags.split(), "--out", tmp_path / "no")
        assert "expected at least --length 2" in status


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
    assert done.returncode == 1 and b"length: expected at least 1" in done.stderr
    assert not (tmp_path / "two").exists()


@pytest.fixture
def plain_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def translator(functions, plain_promotion):
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


def test_returns_go_on_over_a_cut_and_end_at_an_end(functions, plain_promotion):
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


def test_an_episode_that_is_cut_off_begins_anew(functions, plain_promotion):
    module = functions("play")
    config = module["Config"](corridor=2, limit=3)
    maze = module["Maze"](*np.zeros((3, 1), np.int32))
    seen = []
    for action in (0, 0, 0):
        maze, *rest = module["move"](maze, np.array([action]), config)
        seen.append([float(np.ravel(one)[0]) for one in rest])
    assert seen == [[0, 0, 0], [0, 0, 0], [0, 1, 1]]
    assert int(maze.place[0]) == 2
