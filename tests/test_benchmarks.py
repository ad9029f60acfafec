import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import lstm_jax as lj
from benchmarks import __main__ as program
from benchmarks import programs, report, rivals, timing
from benchmarks.cases import CASES, MODES, QUICK, Case, choose, flops
from benchmarks.reference import make_problem
from benchmarks.report import Group, Result
from benchmarks.timing import Peak, Times

TINY = Case("tiny", 3, 7, 5, 4, 2, bidirectional=True)


def times(median):
    return Times(median, median / 2, median * 2, 7)


def group(case="seed", mode="forward", **medians):
    """A group with these median times in ms; None is a failure."""
    results = tuple(
        Result(name.replace("_jax_", "_jax:"), reason="broken")
        if median is None
        else Result(name.replace("_jax_", "_jax:"), times(median))
        for name, median in medians.items()
    )
    return Group(CASES[case], mode, "float32", "xla", Peak(100.0, "numpy"), results)


def printed(print_, *args):
    console = Console(file=io.StringIO(), width=100)
    print_(console, *args)
    return console.file.getvalue()


def test_flops_counts_each_weight_once_a_step_and_row():
    model = lj.LSTM(TINY.input_size, TINY.hidden_size, 2, bidirectional=True)
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    weights = sum(math.prod(leaf.shape) for leaf in leaves if leaf.ndim == 2)
    assert flops(TINY, "forward") == 2 * weights * TINY.length * TINY.batch
    assert flops(TINY, "training") == 3 * flops(TINY, "forward")


def test_cases_quick_ones_exist_and_run_on_a_cpu():
    assert all(not CASES[name].gpu_only for name in QUICK)
    assert any(CASES[name].bidirectional for name in QUICK)


def test_choose_splits_names_and_lists_them_where_one_is_unknown():
    assert choose("--cases", "rl, seed,rl", CASES) == ("rl", "seed")
    with pytest.raises(ValueError, match="--cases: .*stream.*; got sede"):
        choose("--cases", "sede,rl", CASES)
    with pytest.raises(ValueError, match="got none"):
        choose("--cases", ",", CASES)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--cases", "nope"], "seed, stream"),
        (["--modes", "backward"], "forward, training; got backward"),
        (["--rivals", "tensorflow"], "flax-nnx"),
        (["--dtypes", "int8"], "bfloat16"),
        (["--max-hidden", "1"], "leaves no case"),
    ],
)
def test_main_explains_a_wrong_option(argv, message, capsys):
    with pytest.raises(SystemExit) as error:
        program.main(argv)
    assert error.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_parse_defaults_to_the_quick_cases_and_filters_by_hidden_size():
    assert [case.name for case in program._parse([]).cases] == list(QUICK)
    every = program._parse(["--all", "--max-hidden", "768"])
    assert "long" in [case.name for case in every.cases]
    assert max(case.hidden_size for case in every.cases) == 768
    assert every.dtypes == ("float32", "bfloat16")


def test_problem_gradients_agree_with_finite_differences():
    problem = make_problem(TINY, "float32")
    direction = np.random.default_rng(1).standard_normal(problem.xs.shape)

    def loss(step):
        xs = (problem.xs + step * direction).astype(np.float32)
        moved = make_problem(TINY, "float32")
        object.__setattr__(moved, "xs", xs)
        return float(np.vdot(moved.outputs, problem.cotangent))

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    assert slope == pytest.approx(float(np.vdot(problem.gradients[0], direction)), 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_problem_is_rounded_to_the_dtype(dtype):
    problem = make_problem(TINY, dtype)
    for values in (problem.xs, problem.cotangent, *problem.weights[1][1]):
        np.testing.assert_array_equal(values, jnp.asarray(values, dtype))


@pytest.mark.parametrize("mode", MODES)
def test_check_gives_no_program_for_wrong_numbers(mode):
    problem = make_problem(TINY, "float32")
    right, runnable = program._check("lstm_jax", problem, mode)
    assert runnable is not None and not right.reason
    assert set(right.errors) == ({"ys"} if mode == "forward" else {"xs", "matrices"})
    assert max(right.errors.values()) < 1e-5
    other = make_problem(TINY, "float32", seed=1)
    problem.__dict__.update(forward=other.forward, gradients=other.gradients)
    wrong, runnable = program._check("lstm_jax", problem, mode)
    assert runnable is None
    assert wrong.reason.startswith("wrong, so not timed") and wrong.times is None


def test_measure_takes_turns_until_the_budget_is_spent():
    calls = []
    programs_ = {name: lambda name=name: calls.append(name) for name in "ab"}
    measured = timing.measure(programs_, budget_s=0)
    turns = "".join(a for a, b in zip(calls, [*calls[1:], ""], strict=True) if a != b)
    assert turns == "ab" * timing.MIN_SAMPLES
    for times_ in measured.values():
        assert times_.samples == timing.MIN_SAMPLES
        assert times_.min_ms <= times_.median_ms <= times_.max_ms


def test_measure_takes_the_median():
    measured = timing._summarize([0.004, 0.001, 0.002])
    assert measured == pytest.approx((2.0, 1.0, 4.0, 3))


def test_peak_is_the_rate_of_a_matrix_product():
    best = timing.peak("float32", size=64)
    assert best.gflops > 0.01
    assert best.library in ("jax", "numpy", "torch")


def test_summarize_compares_with_torch_and_the_fastest_other_jax_library():
    one = group(lstm_jax=2.0, lstm_jax_xla=1.0, torch=3.0, haiku=8.0, keras=5.0)
    (row,) = report.summarize([one])
    assert (row.fastest_jax, row.ratio_to_fastest_jax) == ("keras", 2.5)
    assert (row.ours_ms, row.ratio_to_torch) == (2.0, 1.5)
    # 2 * 20 steps * 32 rows * 4 * 256 columns * (100 + 256) products in 2 ms, of 100.
    assert row.share_of_peak == pytest.approx(2 * 20 * 32 * 1024 * 356 / 2e6 / 100)


def test_summarize_has_no_ratio_where_there_is_no_figure():
    (row,) = report.summarize([group(lstm_jax=None, torch=3.0, haiku=8.0)])
    assert row.ours_ms is row.ratio_to_torch is row.ratio_to_fastest_jax is None
    (row,) = report.summarize([group(lstm_jax=2.0, torch=None, haiku=8.0)])
    assert row.ratio_to_torch is None and row.ratio_to_fastest_jax == 4.0


def test_means_are_geometric_and_by_mode():
    rows = report.summarize(
        [
            group("seed", lstm_jax=1.0, torch=2.0, haiku=9.0),
            group("rl", lstm_jax=1.0, torch=8.0, haiku=1.0),
            group("char", lstm_jax=1.0, haiku=3.0),
            group("seed", "training", lstm_jax=2.0, torch=1.0),
        ]
    )
    forward, training = report.means(rows)
    assert (forward["mode"], forward["cases"], training["cases"]) == ("forward", 3, 1)
    assert forward["to_torch"] == pytest.approx(4.0)
    assert forward["to_fastest_jax"] == pytest.approx(3.0)
    assert training["to_torch"] == 0.5 and training["to_fastest_jax"] is None


def test_print_group_says_why_a_library_has_no_figure():
    text = printed(report.print_group, group(lstm_jax=2.0, torch=3.0, haiku=None))
    assert "haiku: broken" in text
    assert "lstm_jax [xla]" in text and "1.50" in text
    assert max(map(len, text.splitlines())) <= 100


def failing(problem):
    raise ValueError("no such shape\nand more")


def test_bench_writes_a_table_json_and_a_plot(tmp_path, monkeypatch):
    broken = rivals.Rival("flax", "pip install broken", failing)
    absent = rivals.Rival("no_such_module", "pip install absent", failing)
    monkeypatch.setitem(rivals.RIVALS, "broken", broken)
    monkeypatch.setitem(rivals.RIVALS, "absent", absent)
    console = Console(file=io.StringIO(), width=100)
    out = tmp_path / "deep" / "tiny"
    names = ("flax-linen", "broken", "absent")
    case = Case("tiny", 3, 7, 5, 4)
    options = {"budget_s": 0.0, "product_size": 64}
    program.bench(console, out, [case], MODES, ("float32",), names, **options)

    text = console.file.getvalue()
    assert "absent: not installed: pip install absent" in text
    assert text.count("broken: ValueError: no such shape") == 2
    assert "and more" not in text
    assert text.count("geometric mean") == 2
    assert max(map(len, text.splitlines())) <= 100

    written = json.loads(out.with_suffix(".json").read_text())
    written["not_run"].pop("lstm_jax:cpu", None)  # where there was no compiler
    assert written["not_run"] == {
        "absent": "not installed: pip install absent",
        "lstm_jax:pallas_tpu": lj.implementations()["pallas_tpu"],
    }
    assert written["versions"]["jax"] == jax.__version__ and written["threads"] >= 1
    assert [g["mode"] for g in written["groups"]] == list(MODES)
    for one, row in zip(written["groups"], written["summary"], strict=True):
        assert one["case"]["hidden_size"] == 4 and one["implementation"]
        by_name = {result["library"]: result for result in one["results"]}
        ours, linen = by_name["lstm_jax"], by_name["flax-linen"]
        assert ours["samples"] == linen["samples"] == timing.MIN_SAMPLES
        assert max(linen["errors"].values()) < 1e-5 and linen["compile_s"] > 0
        assert linen["ratio_to_ours"] == linen["median_ms"] / ours["median_ms"]
        assert ours["gflops"] == pytest.approx(one["flops"] / ours["median_ms"] / 1e6)
        assert by_name["broken"]["reason"] and "median_ms" not in by_name["broken"]
        assert row["fastest_jax"] == "flax-linen" and row["ratio_to_torch"] is None
    png = out.with_suffix(".png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 5000


def test_prepare_runs_a_named_implementation():
    problem = make_problem(TINY, "float32")
    assert set(programs.resolved(problem).split("+")) <= set(lj.implementations())
    ran = programs.prepare("lstm_jax:xla", problem, "forward")
    assert programs.errors(problem, "forward", ran.read(ran.run()))["ys"] < 1e-5
    with pytest.raises(ValueError, match="implementation"):
        programs.prepare("lstm_jax:abacus", problem, "forward")
