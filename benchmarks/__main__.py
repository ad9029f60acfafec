"""Times lstm_jax and every LSTM that is installed, on this machine, in one run."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import sys
import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console

import lstm_jax as lj
from benchmarks import report
from benchmarks.cases import CASES, MODES, QUICK, Case, choose
from benchmarks.programs import FAILURES, OURS, Program, errors, prepare, resolved
from benchmarks.reference import ARRAY_DTYPES, TOLERANCES, Problem, make_problem
from benchmarks.report import Group, Result
from benchmarks.rivals import RIVALS, missing
from benchmarks.timing import Peak, matmul_precision, measure, on_gpu, peak

_EPILOG = f"""\
{textwrap.fill("cases: " + ", ".join(CASES), 80, subsequent_indent="  ")}
quick: {", ".join(QUICK)}
rivals: {", ".join(RIVALS)}

Every library gets the same weights and inputs; one whose outputs or gradients are not
those of a plain NumPy loop gets no figure. The exit status is 1 if lstm_jax is one.
"""


def run(
    cases: Sequence[Case],
    modes: Sequence[str],
    dtypes: Sequence[str],
    rivals: Sequence[str],
    budget_s: float,
    product_size: int | None = None,
) -> Iterator[Group]:
    """Measures group by group.

    Args:
        cases: the shapes.
        modes: of "forward" and "training".
        dtypes: keys of ``ARRAY_DTYPES``.
        rivals: keys of ``RIVALS`` that can run here.
        budget_s: seconds of timing for a group, where its samples allow that.
        product_size: see :func:`benchmarks.timing.peak`.
    """
    for dtype in dtypes:
        with matmul_precision(dtype):
            best = peak(dtype, product_size)
            for case in cases:
                problem = make_problem(case, dtype)
                for mode in modes:
                    yield _compare(problem, mode, rivals, best, budget_s)


def _compare(
    problem: Problem, mode: str, rivals: Sequence[str], best: Peak, budget_s: float
) -> Group:
    picked = resolved(problem)
    others = [
        f"{OURS}:{name}"
        for name, status in lj.implementations().items()
        if status == "available" and name != picked
    ]
    results, programs = {}, {}
    for library in (OURS, *others, *rivals):
        results[library], program = _check(library, problem, mode)
        if program is not None:
            programs[library] = program.run
    for library, times in measure(programs, budget_s).items():
        results[library] = dataclasses.replace(results[library], times=times)
    return Group(
        problem.case, mode, problem.dtype, picked, best, tuple(results.values())
    )


def _check(library: str, problem: Problem, mode: str) -> tuple[Result, Program | None]:
    """Runs a library once: its result so far, and its program if it may be timed."""
    try:
        program = prepare(library, problem, mode)
        found = errors(problem, mode, program.read(program.run()))
    except FAILURES as error:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return Result(library, reason=text[:200]), None
    limit = TOLERANCES[problem.dtype]
    wrong = [f"{name} is off by {e:.1e}" for name, e in found.items() if not e <= limit]
    if wrong:
        reason = f"wrong, so not timed: {', '.join(wrong)} (allowed: {limit:.0e})"
        return Result(library, None, program.compile_s, found, reason), None
    return Result(library, None, program.compile_s, found), program


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--all",
        action="store_true",
        help="every case and dtype; takes an hour or so",
    )
    add("--cases", metavar="A,B", help="only these cases (default: the quick ones)")
    add("--modes", metavar="A,B", default=",".join(MODES), help="default: %(default)s")
    add(
        "--dtypes",
        metavar="A,B",
        help="float32, bfloat16, float16, and on a GPU tf32 (default: float32, on a "
        "GPU bfloat16 too)",
    )
    add("--rivals", metavar="A,B", help="only these rivals (default: all installed)")
    add("--max-hidden", metavar="H", type=int, help="leave out cases with more units")
    add(
        "--budget",
        metavar="S",
        type=float,
        default=5.0,
        help="seconds of timing for each case, mode and dtype; every library gets at "
        "least 7 samples all the same (default: %(default)s)",
    )
    add(
        "--out",
        metavar="PATH",
        type=pathlib.Path,
        help="where PATH.json and PATH.png go (default: out/benchmarks/cpu-quick, "
        "gpu-all, ...)",
    )
    args = parser.parse_args(argv)
    try:
        _resolve(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _resolve(args: argparse.Namespace) -> None:
    """Replaces the texts of the options by what they name."""
    dtypes = [name for name in ARRAY_DTYPES if on_gpu() or name != "tf32"]
    quick = "float32,bfloat16" if on_gpu() else "float32"
    every = ",".join(name for name in dtypes if on_gpu() or name != "float16")
    names = [name for name, case in CASES.items() if on_gpu() or not case.gpu_only]
    text = args.cases or ",".join(names if args.all else QUICK)
    cases = [CASES[name] for name in choose("--cases", text, CASES)]
    limit = args.max_hidden
    args.cases = [c for c in cases if limit is None or c.hidden_size <= limit]
    if not args.cases:
        raise ValueError(f"--max-hidden: {limit} leaves no case.")
    text = args.dtypes or (every if args.all else quick)
    args.dtypes = choose("--dtypes", text, dtypes)
    args.modes = choose("--modes", args.modes, MODES)
    args.rivals = choose("--rivals", args.rivals or ",".join(RIVALS), RIVALS)
    if args.out is None:
        device, extent = "gpu" if on_gpu() else "cpu", "all" if args.all else "quick"
        args.out = pathlib.Path("out/benchmarks") / f"{device}-{extent}"


def bench(
    console: Console,
    out: pathlib.Path,
    cases: Sequence[Case],
    modes: Sequence[str],
    dtypes: Sequence[str],
    rivals: Sequence[str],
    budget_s: float,
    product_size: int | None = None,
) -> list[Group]:
    """Measures, prints, and writes ``out`` with the endings .json and .png.

    The other arguments, and what comes back, are those of :func:`run`.
    """
    about = report.machine()
    not_run = {name: why for name in rivals if (why := missing(name))}
    for name, status in lj.implementations().items():
        if status != "available":
            not_run[f"{OURS}:{name}"] = status
    report.print_header(console, about, not_run)
    rivals = [name for name in rivals if name not in not_run]
    groups: list[Group] = []
    for group in run(cases, modes, dtypes, rivals, budget_s, product_size):
        report.print_group(console, group)
        groups.append(group)
        # After each group, so that an interrupted run keeps what it has.
        report.write_json(out.with_suffix(".json"), groups, about, not_run)
    report.print_summary(console, report.summarize(groups))
    console.print(f"\nWritten: {out.with_suffix('.json')}", highlight=False)
    if importlib.util.find_spec("matplotlib") is None:
        console.print('No plot: pip install "lstm_jax[training]"', markup=False)
    else:
        from benchmarks.plot import plot

        plot(out.with_suffix(".png"), groups, report.caption(about))
        console.print(f"Plotted: {out.with_suffix('.png')}", highlight=False)
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    # JAX would take most of a GPU's memory, and torch needs some.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    args = _parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 100)
    groups = bench(
        console, args.out, args.cases, args.modes, args.dtypes, args.rivals, args.budget
    )
    return 1 if any(group.ours.times is None for group in groups) else 0


if __name__ == "__main__":
    sys.exit(main())
