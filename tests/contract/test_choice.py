"""Which implementation runs, on which platform, and who says so."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import lstm_jax as lj
from lstm_jax.recurrence import choice
from tests.common import random_params
from tests.contract.cases import contract
from tests.contract.toy import Toy

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def lowered(run, args, *platforms):
    return jax.jit(run).trace(*args).lower(lowering_platforms=platforms).as_text()


@contract()
def test_a_named_implementation_is_lowered_for_its_platforms_alone(subject):
    run, args = subject.case((2,), 3)
    with_gradient = jax.value_and_grad(subject.loss(run, args))
    known = {one.name: one.platforms for one in choice.IMPLEMENTATIONS}
    mine = known[subject.implementation] or PLATFORMS
    for platform in PLATFORMS:
        for function in (run, with_gradient):
            if platform in mine:
                assert lowered(function, args, platform)
                continue
            message = f'"{subject.implementation}" runs on .*, not on {platform}'
            with pytest.raises(NotImplementedError, match=message):
                lowered(function, args, platform)


@contract()
def test_without_a_name_there_is_one_for_every_platform(subject):
    run, args = subject.case((2,), 3)
    controls = run.keywords

    def unnamed(params, xs, state, reset_state):
        options = dict(controls, reset_state=reset_state)
        return lj.scan(subject.cell, params, xs, state, **options)

    with_gradient = jax.value_and_grad(subject.loss(unnamed, args))
    assert lowered(with_gradient, args, *PLATFORMS)


RAN = []
CELL, MODEL = lj.LSTMCell(3, 5), lj.LSTM(3, 5)
PARAMS, XS = random_params(CELL, 0), jnp.ones((2, 3, 3))
CALLS = {
    "scan": lambda xs, **options: lj.scan(CELL, PARAMS, xs, **options)[1],
    "apply": lambda xs, **options: MODEL.apply((lj.Directions(PARAMS),), xs, **options)[
        1
    ],
}


class Recorded(Toy):
    """Tells when it is lowered."""

    def __init__(self, name):
        self.name = name

    def run(self, *args):
        RAN.append(self.name)
        return super().run(*args)


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """Two that are preferred to all others."""
    both = (Recorded("first"), Recorded("second"))
    monkeypatch.setattr(choice, "IMPLEMENTATIONS", (*both, *choice.IMPLEMENTATIONS))
    RAN.clear()


def ran(function, *args, **options):
    """The names of those that were lowered for a call."""
    RAN.clear()
    jax.block_until_ready(function(*args, **options))
    return {*RAN}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_argument_wins_over_a_context_and_that_over_the_environment(
    call, monkeypatch
):
    def run(**options):
        jax.clear_caches()
        return ran(call, XS, **options)

    assert run() == {"first"}
    with lj.implementation("second"):
        assert run() == {"second"}
        assert run(implementation="first") == {"first"}
        with lj.implementation("first"):
            assert run() == {"first"}
        with lj.implementation(None):
            assert run() == {"first"}
        assert run() == {"second"}
    monkeypatch.setenv(choice.VARIABLE, "second")
    assert run() == {"second"}
    assert run(implementation="first") == {"first"}
    for name in ("first", None):
        with lj.implementation(name):
            assert run() == {"first"}
    with lj.implementation("xla"):
        assert run() == set()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_context_traces_an_outer_jit_again(call):
    outer = jax.jit(lambda xs: jax.grad(lambda xs: call(xs).sum())(xs))
    assert ran(outer, XS) == {"first"}
    with lj.implementation("second"):
        assert ran(outer, XS) == {"second"}
        assert ran(outer, XS) == set()
    assert ran(outer, XS) == set()


def test_names_that_nobody_has_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="name: expected one of 'first', 'second'"):
        lj.implementation("third")
    with pytest.raises(ValueError, match="implementation: expected one of 'first'"):
        CALLS["scan"](XS, implementation="third")
    monkeypatch.setenv(choice.VARIABLE, "third")
    with pytest.raises(ValueError, match=f"{choice.VARIABLE}: expected one of"):
        CALLS["scan"](XS)


def test_what_is_added_is_listed_and_resolved():
    names = list(lj.implementations())
    assert names[:2] == ["first", "second"]
    assert names[-2:] == ["xla", "pallas_tpu"]
    resolve = lambda **options: lj.resolve_implementation(CELL, PARAMS, XS, **options)
    assert resolve() == "first"
    assert resolve(platform="tpu") == resolve(implementation="xla") == "xla"
    with pytest.raises(NotImplementedError, match="runs on cpu, not on cuda"):
        resolve(implementation="second", platform="cuda")


def test_the_environment_chooses_for_a_whole_program():
    code = """
import jax, jax.numpy as jnp
import lstm_jax as lj
cell = lj.LSTMCell(3, 5)
params = cell.init(jax.random.key(0))
print(lj.resolve_implementation(cell, params, jnp.ones((2, 3, 3))))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {choice.VARIABLE: "xla"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "xla"
