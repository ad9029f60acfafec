"""The character model as its users run it: as a program."""

import csv
import math
import pathlib
import runpy
import signal
import subprocess
import sys

import jax
import pytest

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "char_lm.py"
TEXT = "the cat sat on the mat. " * 300
SMALL = "--hidden-size 32 --batch-size 4 --window 16 --length 60 --log-every 10".split()
FILES = {"checkpoints", "loss.png", "metrics.csv", "model.json", "weights.safetensors"}


def command(*args):
    return [sys.executable, EXAMPLE, *map(str, args)]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, check=False)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs the program in this process; returns what it printed."""

    def run_here(*args):
        monkeypatch.setattr(sys, "argv", ["char_lm", *map(str, args)])
        # As it is in a process of its own.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(EXAMPLE), run_name="__main__")
        if ended.value.code:
            raise ended.value
        return capsys.readouterr().out

    return run_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model trained on one sentence, and what the run printed."""
    folder = tmp_path_factory.mktemp("char_lm")
    text = folder / "text.txt"
    text.write_text(TEXT)
    out = folder / "out"
    done = run(
        "--text", text, "--out", out, *SMALL, "--steps", 120, "--sample-every", 60
    )
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_training_leaves_its_files_and_learns(folder):
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == FILES | {"sample_60.txt", "sample_120.txt"}
    with (folder / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(10, 121, 10))
    counts = [TEXT.count(character) / len(TEXT) for character in set(TEXT)]
    entropy = -sum(p * math.log(p) for p in counts)
    last = rows[-1]
    assert float(last["loss"]) < 0.3 * entropy
    held_out = float(last["valid_loss"])
    assert held_out < 0.3 * entropy
    assert float(last["valid_perplexity"]) == pytest.approx(math.exp(held_out))
    assert "the cat sat" in (folder / "out" / "sample_120.txt").read_text()
    assert (folder / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "valid_perplexity" in (folder / "stdout").read_text()


def test_samples_are_reproducible_and_cold_ones_are_the_likeliest(folder, run_here):
    args = ["--sample", folder / "out", "--length", 40, "--prompt", "the c"]
    first, again = run(*args, "--seed", 1), run_here(*args, "--seed", 1)
    assert first.returncode == 0 and first.stdout == again
    assert first.stdout.startswith("the c") and len(first.stdout) == 5 + 40 + 1
    cold = [run_here(*args, "--temperature", 0, "--seed", n) for n in (2, 3)]
    assert cold[0] == cold[1]
    assert cold[0].startswith("the cat sat on the")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_keeps_what_it_learned(folder, tmp_path, run_here, sign):
    args = ["--text", folder / "text.txt", "--out", tmp_path, *SMALL, "--steps", 10**6]
    process = subprocess.Popen(
        command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step 20/"):
            break
    process.send_signal(sign)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + sign, errors
    assert errors == ""
    assert "interrupted after" in rest and "Saved in" in rest.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert len(run_here("--sample", tmp_path, "--length", 5)) > 5


def test_a_run_goes_on_and_refuses_what_is_another(folder, tmp_path, run_here):
    """The same steps at once, and in two goes."""
    small = ["--text", folder / "text.txt", *SMALL, "--sample-every", 30]
    assert run(*small, "--out", tmp_path / "whole", "--steps", 60).returncode == 0
    process = subprocess.Popen(
        command(*small, "--out", tmp_path / "two", "--steps", 60),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 20/"):
            process.terminate()
    process.communicate()
    again = [*small, "--out", tmp_path / "two", "--steps", 60]
    refusals = {
        (*again,): "which holds a run",
        (*again, "--resume", "--learning-rate", 0.1): r"settings\['learning_rate'\]",
        (
            *again,
            "--resume",
            "--hidden-size",
            33,
        ): r"settings\['hidden_size'\]: expected",
        (
            *small,
            "--out",
            tmp_path / "none",
            "--resume",
        ): "got none. Is this the folder",
    }
    for args, words in refusals.items():
        with pytest.raises(SystemExit, match=words):
            run_here(*args)
    done = run(*again, "--resume")
    assert done.returncode == 0, done.stderr
    for name in ("weights.safetensors", "sample_30.txt", "sample_60.txt"):
        one, two = ((tmp_path / n / name).read_bytes() for n in ("whole", "two"))
        assert one == two, name


def test_bad_input_is_refused_in_one_line(folder, tmp_path, run_here):
    binary, short = tmp_path / "binary", tmp_path / "short"
    binary.write_bytes(b"\xff\xfe\xfd")
    short.write_text("abc")
    cases = {
        ("--text", binary): "'utf-8' codec can't decode",
        ("--text", short): "tokens: expected at least batch_size * (window + 1)",
        ("--text", tmp_path / "none"): f"No such file or directory: '{tmp_path}/none'",
        ("--temperature", -1): "--temperature: expected 0 to 100, got -1.0.",
        ("--prompt", "\u2603"): "not in the vocabulary: '\u2603'.",
        ("--batch-size", 0): "--batch_size: expected 1 to 10000, got 0.",
        ("--log-every", 0): "--log_every: expected 1 to 10000, got 0.",
        ("--validation", 1): "--validation: expected 0 to 0.9, got 1.0.",
        ("--sample", tmp_path): f"No such file or directory: '{tmp_path}/model.json'",
        ("--sample", folder / "out", "--prompt", "X"): "not in the vocabulary: 'X'.",
    }
    for args, words in cases.items():
        with pytest.raises(SystemExit) as stopped:
            run_here(*args)
        message = stopped.value.code
        assert message.startswith("char_lm: ") and words in message
        assert "\n" not in message
    # So it ends as a program: that text on stderr, status 1.
    done = run(*args)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == message + "\n"
