"""What is read in compiled programs; that they compile, `make aot-check` sees."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from benchmarks.aot import reading, table, targets
from benchmarks.aot.programs import Program, cells

ROOT = pathlib.Path(__file__).parents[1]

TEXT = """HloModule jit_f, entry_computation_layout={...}

%fused (p: f32[4], q: f32[4]) -> (f32[4], f32[4]) {
  %p = f32[4]{0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %zero = s32[] constant(0)
  %one.1 = f32[4]{0} dynamic-update-slice(%p, %q, %zero)
  %two.1 = f32[4]{0} dynamic-update-slice(%q, %p, %zero)
  ROOT %both = (f32[4]{0}, f32[4]{0}) tuple(%one.1, %two.1)
}

%inner_body (p.1: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.1 = (s32[], f32[4]{0:T(128)S(1)}) parameter(0)
  %x = f32[4]{0:T(128)S(1)} get-tuple-element(%p.1), index=1
  %kernel = f32[4]{0} custom-call(%x), custom_call_target="gemm"
  ROOT %out = (s32[], f32[4]{0}) tuple(%x, %kernel)
}

%inner_condition (p.2: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%limit, %limit), direction=LT
}

%body (p.3: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.3 = (s32[], f32[4]{0}) parameter(0)
  %sum = f32[4]{0} all-reduce(%p.3), to_apply=%add
  %f.1 = (f32[4]{0:T(8,128)(2,1)}, /*index=1*/f32[4]{0}) fusion(%sum, %sum), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %loop.1 = (s32[], f32[4]{0}) while(%p.3), condition=%inner_condition, body=%inner_body
}

%condition (p.4: (s32[], f32[4])) -> pred[] {
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %before = f32[4]{0} fusion(%a), kind=kLoop, calls=%other, backend_config={"window_config":{"estimated_cycles":"7"}}
  %loop.2 = (s32[], f32[4]{0}) while(%before), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %gathered = f32[4]{0} all-gather(%loop.2), dimensions={0}
}
"""  # noqa: E501


def test_figures_count_each_operation_as_often_as_it_runs():
    assert reading.figures(TEXT) == reading.Figures(
        cycles=7 + 5 * 100,
        cycles_in_loops=5 * 100,
        # Five all-reduces and fusions, and three custom calls in each round.
        launches=5 * (1 + 1 + 3),
        launches_outside=2,
        collectives=5,
        collectives_outside=1,
        two_in_place=1,
    )


def test_figures_refuse_what_they_cannot_read():
    with pytest.raises(ValueError, match="with an ENTRY"):
        reading.figures("module @jit_f {}")
    unknown = TEXT.replace("constant(3)", "parameter(0)")
    with pytest.raises(ValueError, match="whose length is not in the text"):
        reading.figures(unknown)


def test_plan_has_every_cell_every_dtype_and_every_library():
    every = list(table.plan(list(targets.TARGETS), 1536, ("lstm_jax", "haiku")))
    assert len(set(every)) == len(every)
    programs = [program for _, _, program in every]
    assert {one.cell for one in programs} == set(cells(128))
    assert {one.library for one in programs} == {"lstm_jax", "haiku"}
    assert {target for target, *_ in every} == set(targets.TARGETS)
    small = list(table.plan(["v5e"], 256, ("haiku",)))
    assert {program.size for *_, program in small} == {256}


def test_table_has_a_figure_or_a_reason_for_each_program(tmp_path):
    program = Program("lstm_jax", "LSTM", "gradient", "bfloat16", 16, 1024, 256)
    haiku = dataclasses.replace(program, library="haiku")
    rows = [
        table.Row("v5e", 1, program, cycles=1234.4, temporaries=20.0),
        table.Row("h100", 1, haiku, error="Error: no"),
    ]
    about = {"date": "2026-01-01", "versions": {"jax": "0"}}
    text = table.markdown(about, rows)
    assert "| v5e H 256 |  / 1,234 (20 MiB) |" in text
    assert "does not compile" in text
    table._write(tmp_path / "aot", about, rows)
    known = table._known(tmp_path / "aot", about)
    # What this library came to is always compiled anew.
    assert known == {("h100", 1, haiku): rows[1]}
    assert table._known(tmp_path / "aot", {**about, "versions": {"jax": "1"}}) == {}


def test_without_the_compilers_the_command_says_what_to_do():
    if not targets.missing():
        pytest.skip("the compilers are installed here")
    command = [sys.executable, "-m", "benchmarks.aot", "--check"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "make aot sets up .venv-aot" in ran.stderr
