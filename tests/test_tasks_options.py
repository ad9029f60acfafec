"""Options of the tasks in examples/ that are out of range."""

import dataclasses
import math

import numpy as np
import pytest
import safetensors.numpy

from tests.tasks import TASKS, functions, run_here


@pytest.mark.parametrize(
    "options, words",
    [
        ({"season": 200}, "--season: expected 1 to 168 of 1000 steps"),
        ({"season": 0}, "--season: expected 1 to 168"),
        ({"length": 690}, "--length: expected 1 to 652"),
        ({"horizon": 151, "length": 24}, "--horizon: expected 1 to 150"),
    ],
)
def test_which_size_of_a_forecast_does_not_fit(options, words):
    module = functions("forecast")
    with pytest.raises(ValueError, match=words):
        module["split"](np.arange(1000.0)[:, None], module["Config"](**options))


MAY_BE_0 = {"seed", "port"}


@pytest.mark.parametrize(
    "name", [*dict.fromkeys(task.split()[0] for task in TASKS), "serve"]
)
def test_numbers_out_of_range_are_refused_by_the_name_of_their_option(name):
    module = functions(name)
    fields = dataclasses.asdict(module["Config"]())
    for field, default in fields.items():
        if type(default) is int:
            wrong = [-1, 10**10, *([] if field in MAY_BE_0 else [0])]
        elif type(default) is float:
            wrong = [-1e-3, 1e9, math.inf, math.nan]
        else:
            continue
        for number in wrong:
            config = module["Config"](**{field: number})
            with pytest.raises(ValueError, match=f"^--{field}: expected .*{number}"):
                module["check" if name == "serve" else "train"](config)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sizes": (8, 0, 2)}, "--sizes: expected 1 to 10000, got 0"),
        ({"chunk_sizes": (1, -4)}, "--chunk_sizes: expected 1 to 1000000, got -4"),
        ({"batch_sizes": (0,)}, "--batch_sizes: expected 1 to"),
    ],
)
def test_sizes_of_a_server_are_refused_one_by_one(options, words):
    module = functions("serve")
    with pytest.raises(ValueError, match=words):
        module["make_server"](module["Config"](**options))


def test_a_rate_of_0_is_one_and_sizes_are_refused_by_name(tmp_path):
    out = tmp_path / "out"
    short = "--steps 2 --batch-size 2 --length 4 --hidden-size 4 --learning-rate 0"
    status, _ = run_here("memory", *short.split(), "--out", out)
    assert status == 0
    weights = safetensors.numpy.load_file(out / "weights.safetensors")
    kept = [name for name in weights if "readout" in name and "bias" in name]
    assert kept and not any(weights[name].any() for name in kept)
    for task, flags, words in (
        (
            "memory --task copy",
            "--delay 0",
            "memory: --delay: expected 1 to 10000, got 0",
        ),
        ("memory", "--length 1", "memory: --length: expected 2 to 10000, got 1"),
        ("char_lm", "--window 0", "char_lm: --window: expected 1 to 10000, got 0"),
        ("char_lm --sample x", "--temperature -1", "char_lm: --temperature: expected"),
    ):
        status, _ = run_here(task, *flags.split(), "--out", tmp_path / "no")
        assert words in status and not (tmp_path / "no").exists()
