import jax
import pytest

from benchmarks.cases import MODES, Case
from benchmarks.programs import errors, prepare
from benchmarks.reference import TOLERANCES, make_problem
from benchmarks.rivals import RIVALS, missing

LAYERS = {"one": (1, False), "two_both": (2, True)}
DTYPES = ("float32", "bfloat16")


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
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", RIVALS)
def test_rival_computes_what_numpy_does(name, layers, dtype, mode):
    if why := missing(name):
        pytest.skip(why)
    if RIVALS[name].gpu_only and dtype != "float32":
        pytest.skip("float32 only")
    case = Case("small", 3, 7, 5, 4, *LAYERS[layers])
    problem = make_problem(case, dtype)
    program = prepare(name, problem, mode)
    answer = program.read(program.run())
    if mode == "forward":
        assert answer["ys"].shape == (7, 3, 4 * case.directions)
    else:
        assert answer["xs"].shape == (7, 3, 5)
    limit = {"float32": 1e-5}.get(dtype, TOLERANCES[dtype])
    assert max(errors(problem, mode, answer).values()) < limit
