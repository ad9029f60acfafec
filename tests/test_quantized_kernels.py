"""The kernels in 8 bits: every instruction set, any number of threads."""

import functools

import pytest

import lstm_jax as lj
from lstm_jax.recurrence.cpu import library
from tests.common import normal, random_controls, random_state
from tests.oracles import quantized as oracle
from tests.test_processes import run_python
from tests.test_quantized import ALL, RUNNERS, check_saturating, random_cell, same

CASES = [
    (5, 7, 33, 19, None),
    (3, 6, 9, 40, 13),
    (1, 9, 17, 65, None),
    (70, 3, 20, 33, None),
]


def on_kernels():
    """Whether the kernels give, to the bit, what the loop does; for other processes."""
    for n, (B, T, I, H, P) in enumerate(CASES):
        cell, params = random_cell(n, I, H, proj_size=P)
        controls = random_controls(n, (B,), T, ALL)
        xs, state = normal([n, 1], (B, T, I)), random_state(cell, n, (B,))
        expected = oracle.forward(params._asdict(), xs, state, state, controls)
        run = functools.partial(lj.scan, implementation="cpu", reset_state=state)
        last, ys = run(cell, params, xs, state, **controls)
        same((ys, last.h, last.c), expected)
    for depth, units in ((2, 2), (700, 5)):
        check_saturating(depth, units, "cpu")


@pytest.mark.skipif("cpu" not in RUNNERS, reason="no CPU kernels here")
@pytest.mark.parametrize(
    "isa", library.known_instruction_sets() if "cpu" in RUNNERS else []
)
def test_every_instruction_set_gives_the_same_bits(isa):
    if not library.supports(isa):
        pytest.skip(f"this processor has no {isa}")
    code = """
from lstm_jax.recurrence.cpu import library
from tests.test_quantized_kernels import on_kernels
on_kernels()
print(library.instruction_set())
"""
    assert run_python(code, LSTM_JAX_ISA=isa).strip() == isa


@pytest.mark.skipif("cpu" not in RUNNERS, reason="no CPU kernels here")
@pytest.mark.parametrize("B, T, H", [(1, 300, 130), (10, 20, 100), (50, 10, 70)])
def test_any_number_of_threads_gives_the_same_bits(B, T, H, monkeypatch):
    cell, params = random_cell(0, 30, H)
    xs, results = normal(1, (B, T, 30)), []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("LSTM_JAX_NUM_THREADS", threads)
        results.append(lj.scan(cell, params, xs, implementation="cpu"))
    same(results[1], results[0])
    same(results[2], results[0])


@pytest.mark.skipif("cpu" not in RUNNERS, reason="no CPU kernels here")
def test_the_kernels_say_what_they_do_not_run():
    cell, params = random_cell(0, 3, 5, clip=0.5)
    with pytest.raises(NotImplementedError, match="without clip only"):
        lj.scan(cell, params, normal(0, (2, 4, 3)), implementation="cpu")
    assert lj.resolve_implementation(cell, params, normal(0, (2, 4, 3))) == "xla"
    cell, params = random_cell(0, 3, 5)
    assert lj.resolve_implementation(cell, params, normal(0, (2, 4, 3))) == "cpu"
