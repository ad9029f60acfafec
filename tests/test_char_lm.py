"""The character model as its users run it: as a program."""

import csv
import importlib.util
import math
import pathlib
import signal
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "char_lm.py"
TEXT = "the cat sat on the mat. " * 300
SMALL = "--hidden-size 32 --batch-size 4 --window 16 --length 60 --log-every 10".split()
FILES = ["loss.png", "metrics.csv", "model.json", "samples.txt", "weights.safetensors"]


def command(*args):
    return [sys.executable, EXAMPLE, *map(str, args)]


def run(*args):
    return subprocess.run(command(*args), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program():
    """The program as a module: what it prints need not wait for another process."""
    spec = importlib.util.spec_from_file_location("char_lm", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["char_lm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_here(program, monkeypatch, capsys):
    """Runs the program in this process; returns what it printed."""

    def run_here(*args):
        monkeypatch.setattr(sys, "argv", ["char_lm", *map(str, args)])
        program.main()
        return capsys.readouterr().out

    return run_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model trained on one sentence, and what the run printed."""
    folder = tmp_path_factory.mktemp("char_lm")
    text = folder / "text.txt"
    text.write_text(TEXT)
    out = folder / "out"
    done = run("--text", text, "--out", out, *SMALL, "--steps", 120)
    assert done.returncode == 0, done.stderr
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_training_leaves_its_files_and_learns(folder):
    assert sorted(path.name for path in (folder / "out").iterdir()) == FILES
    with (folder / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(10, 121, 10))
    counts = [TEXT.count(character) / len(TEXT) for character in set(TEXT)]
    entropy = -sum(p * math.log(p) for p in counts)
    last = rows[-1]
    assert float(last["loss_nats_per_character"]) < 0.3 * entropy
    held_out = float(last["validation_loss_nats_per_character"])
    assert held_out < 0.3 * entropy
    perplexity = float(last["validation_perplexity_per_character"])
    assert perplexity == pytest.approx(math.exp(held_out))
    assert "the cat sat" in (folder / "out" / "samples.txt").read_text()
    assert (folder / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "held out: perplexity" in (folder / "stdout").read_text()


def test_samples_are_reproducible_and_cold_ones_are_the_likeliest(folder, run_here):
    args = ["--sample", folder / "out", "--length", 40, "--prompt", "the c"]
    first, again = run(*args, "--seed", 1), run_here(*args, "--seed", 1)
    assert first.returncode == 0 and first.stdout == again
    assert first.stdout.startswith("the c") and len(first.stdout) == 5 + 40 + 1
    cold = [run_here(*args, "--temperature", 1e-4, "--seed", n) for n in (2, 3)]
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
    assert process.returncode == 0, errors
    assert errors == ""
    assert "Stopped after" in rest.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert len(run_here("--sample", tmp_path, "--length", 5)) > 5


def test_bad_input_is_refused_in_one_line(folder, tmp_path, run_here):
    binary, short = tmp_path / "binary", tmp_path / "short"
    binary.write_bytes(b"\xff\xfe\xfd")
    short.write_text("abc")
    cases = {
        ("--text", binary): f"--text: {binary} is not UTF-8",
        ("--text", short): "--text: expected at least 2145 characters",
        ("--text", tmp_path / "none"): f"--text: {tmp_path / 'none'} is no file.",
        ("--temperature", 0): "--temperature: expected above 0, got 0.0.",
        ("--batch-size", 0): "--batch-size: expected above 0, got 0.",
        ("--warmup", -1): "--warmup: expected at least 0, got -1.",
        ("--validation", 1): "--validation: expected in (0, 1), got 1.0.",
        ("--sample", tmp_path): "model.json is not there; is this what --out was?",
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
