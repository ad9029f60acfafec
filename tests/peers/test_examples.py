"""The programs taken over from other libraries run and agree."""

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("from_pytorch.py", "PyTorch (32, 10), lstm_jax (32, 10)"),
        ("from_keras.py", "Keras (32, 10), lstm_jax (32, 10)"),
    ],
)
def test_example_agrees(name, line):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert line in done.stdout
