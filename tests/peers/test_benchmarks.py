import jax
import pytest

from benchmarks.cases import MODES, Case
from benchmarks.programs import errors, prepare
from benchmarks.reference import make_problem
from benchmarks.rivals import RIVALS, missing

STACK = make_problem(Case("stack", 3, 7, 5, 4, 2, bidirectional=True), "float32")


@pytest.fixture(autouse=True)
def their_own_rules():
    """Other libraries promise less than what the rest of the tests run under."""
    with (
        jax.legacy_prng_key("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RIVALS)
def test_rival_computes_what_numpy_does(name, mode):
    if why := missing(name):
        pytest.skip(why)
    program = prepare(name, STACK, mode)
    answer = program.read(program.run())
    if mode == "forward":
        assert answer["ys"].shape == (7, 3, 8)
    else:
        assert answer["xs"].shape == (7, 3, 5)
    assert max(errors(STACK, mode, answer).values()) < 1e-5
