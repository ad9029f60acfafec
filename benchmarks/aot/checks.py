"""What has to stay true of a few compiled programs; CI runs it in a minute."""

from __future__ import annotations

from benchmarks.aot import layouts
from benchmarks.aot.programs import Program
from benchmarks.aot.table import Row, measure

_SHAPE = (16, 64, 256)
# For each program the most cycles or launches by step, some percent above what there
# were when it was written. More is a loss that no test of values sees.
LIMITS = {
    ("v5e", Program("lstm_jax", "LSTM", "gradient", "bfloat16", *_SHAPE)): 9_500,
    ("h100", Program("lstm_jax", "LSTM", "gradient", "bfloat16", *_SHAPE)): 6,
    ("h100", Program("lstm_jax", "peephole", "gradient", "float32", *_SHAPE)): 7,
}


# Some of `python -m benchmarks.scaling --compiled`: they exchange what formulas say.
OVER_CHIPS = (
    ("v5e", 8, "data", "gradient"),
    ("v5e", 8, "data, fsdp, model", "gradient"),
)


def wrong(row: Row, limit: float) -> str:
    """What is not as it has to be; empty if all is."""
    if row.error:
        return row.error
    figure = row.cycles if row.launches is None else row.launches
    assert figure is not None
    if figure > limit:
        return f"{figure:,.2f} by step, and at most {limit:,} are allowed"
    # GPUs have been given wrong results by such fusions, TPUs not: jax-ml/jax#39100.
    if row.two_in_place and row.launches is not None:
        return f"{row.two_in_place} fusions update several buffers in place"
    if row.collectives or row.collectives_outside:
        return "collectives on one device"
    return ""


def run() -> int:
    """Checks every program; returns how many are not as they have to be."""
    failures = 0
    for (target, program), limit in LIMITS.items():
        row = measure(target, 1, program)
        why = wrong(row, limit)
        failures += bool(why)
        figure = row.cycles if row.launches is None else row.launches
        name = f"{target} {program.cell} {program.mode} {program.dtype}"
        print(f"{name}: {why or f'{figure:,.2f} by step'} ({row.compile_s or 0:.0f} s)")
    for one in OVER_CHIPS:
        exchanges = layouts.measure(*one)
        why = layouts.wrong(exchanges)
        failures += bool(why)
        print(*one, why or "as expected", f"({exchanges.compile_s:.0f} s)")
    return failures
