"""What is read in compiled programs; that they compile, `make aot-check` sees."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from benchmarks.aot import exchanges, layouts, reading, table, targets
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


OVER_CHIPS = """HloModule jit_f

%scattered (p: f32[8,4]) -> f32[1,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %whole = f32[8,4]{1,0} all-reduce(%p), to_apply=%add
  ROOT %part = f32[1,4]{1,0} dynamic-slice(%whole, %p)
}

%begin (q: bf16[2,4]) -> bf16[16,4] {
  %q = bf16[2,4]{1,0} parameter(0)
  ROOT %gather.1 = bf16[16,4]{1,0} all-gather(%q), channel_id=4, frontend_attributes={chain_id="0"}
}

%continue (r: bf16[2,4]) -> bf16[16,4] {
  %r = bf16[2,4]{1,0} parameter(0)
  ROOT %gather.2 = bf16[16,4]{1,0} all-gather(%r), channel_id=4, frontend_attributes={chain_id="0"}
}

%body (s: (s32[], f32[3])) -> (s32[], f32[3]) {
  %s = (s32[], f32[3]{0}) parameter(0)
  %x = f32[3]{0} get-tuple-element(%s), index=1
  %on = bf16[16,4]{1,0} fusion(%x), kind=kCustom, calls=%continue
  %start = ((f32[3]{0}), (f32[24]{0})) all-gather-start(%x), dimensions={0}
  %done = f32[24]{0} all-gather-done(%start)
  ROOT %out = (s32[], f32[3]{0}) tuple(%x, %x)
}

%condition (t: (s32[], f32[3])) -> pred[] {
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[8,4], b: bf16[2,4]) -> f32[1,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[2,4]{1,0} parameter(1)
  %part.1 = f32[1,4]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
  %async-collective-start = (bf16[2,4]{1,0}, bf16[16,4]{1,0}, u32[]) fusion(%b), kind=kCustom, calls=%begin
  %sums = (f32[8,4]{1,0}, bf16[2,4]{1,0}) all-reduce-start(%a, %b), to_apply=%add
  %less = (f32[8,4]{1,0}, f32[1,4]{1,0}) reduce-scatter-start(%a), dimensions={0}
  %moved = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%a)
  %loop = (s32[], f32[3]{0}) while(%a), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %end = f32[1,4]{1,0} add(%part.1, %part.1)
}
""".replace("%scattered", "%all-reduce-scatter.3")  # noqa: E501


def test_exchanges_are_counted_once_whatever_they_are_part_of():
    """Begun and ended, in a fusion, gone on with in a loop: numbers and bytes."""
    assert exchanges.exchanged(OVER_CHIPS) == {
        ("all-gather", False): (1, 64, 128),
        ("all-gather", True): (5, 5 * 24, 5 * 96),
        ("all-reduce", False): (1, 40, 144),
        ("collective-permute", False): (1, 32, 128),
        ("reduce-scatter", False): (2, 64, 256),
    }


COMMITTED = layouts.read(ROOT / "benchmarks/results/scaling.json")


def test_compiled_layouts_exchange_what_the_formulas_say():
    plan = [(one.target, one.chips, one.layout, one.mode) for one in COMMITTED]
    assert plan == layouts.plan()
    assert not [why for one in COMMITTED if (why := layouts.wrong(one))]
    row = dataclasses.replace(COMMITTED[0], mode="gradient")
    assert "exchanges {}, expected {'all-reduce': 67125248}" in layouts.wrong(row)


def test_the_page_has_the_table_that_was_counted():
    assert layouts.markdown(COMMITTED) in (ROOT / "docs/scaling.md").read_text()
