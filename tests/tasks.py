"""The tasks in examples/, run here."""

import contextlib
import functools
import io
import pathlib
import runpy
import sys

import jax
import pytest

from lstm_jax import training

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


# Flags that make a run of each short, and what it prints at the end.
TASKS = {
    "add": ("--batch-size 16", "right in every digit: 0."),
    "classify": ("--batch-size 64", "test accuracy 0."),
    "distributed": ("--batch-size 16", "held-out error 0."),
    "forecast": ("--batch-size 512", "test MSE"),
    "memory": ("--length 10 --batch-size 8", "test loss 0."),
    "memory --task copy": ("--delay 5 --batch-size 8", "test accuracy 0."),
    "play": ("--rollout 8 --mazes 4", "right turns: 0."),
    "tag": ("--batch-size 64", "f1 0."),
    "transcribe": ("--batch-size 2", "beam: "),
}


def run_here(task, *args):
    """Runs an example as a program, in this process; its status and what it printed.

    With a row of the log every three steps.
    """
    name, *rest = task.split()
    fit = functools.partial(training.fit, log_every=3)
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    plain = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with (
        plain[0],
        plain[1],
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(training, "fit", fit)
        patch.setattr(sys, "argv", [name, *rest, *map(str, args)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return ended.value.code, printed.buffer.getvalue().decode()


def functions(name):
    """The functions of an example, by name."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))
