"""Examples that need no other library run and agree."""

import pathlib
import subprocess
import sys

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def test_from_scratch_agrees():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "from_scratch.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hand-written (10, 50), lstm_jax (10, 50)" in done.stdout
