"""What only the parameters begin with is no part of a compiled program's key."""

import copy
import dataclasses
import functools
import pickle
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest
from jax.nn import initializers

import lstm_jax as lj
from lstm_jax.descriptions import base as description
from tests.common import random_inputs, random_params
from tests.descriptions import (
    DESCRIPTIONS,
    Doubled,
    cells_of,
    choices,
    each_description,
    each_kind,
    small,
)


def counted():
    """A small compiled function of a description, and how often it was compiled."""
    compiled = []

    @functools.partial(jax.jit, static_argnames="model")
    def run(model, x):
        compiled.append(model)
        return 2 * x

    return run, compiled


FRESH = {
    "kernel_init": lambda: initializers.normal(0.02),
    "recurrent_init": lambda: lambda key, shape, dtype: jnp.ones(shape, dtype),
    "bias_init": lambda: initializers.constant(0.5),
}


@pytest.mark.parametrize("option", FRESH)
@pytest.mark.parametrize(
    "make",
    [
        lambda options: lj.LSTM(3, 4, 2, zoneout_h=0.5, **options),
        lambda options: lj.LSTM(3, 4, 2, variant=("sLSTM", None), **options),
        lambda options: lj.LSTMCell(3, 4, **options),
        lambda options: lj.SLSTMCell(3, 4, **options),
        lambda options: lj.ConvLSTMCell((5, 3), 4, 3, **options),
        lambda options: lj.Regularized(lj.LSTMCell(3, 4, **options), zoneout_c=0.5),
        lambda options: lj.Stack(
            (lj.SLSTMCell(3, 4), lj.Regularized(lj.LSTMCell(4, 4, **options)))
        ),
    ],
    ids=["LSTM", "sLSTM", "LSTMCell", "SLSTMCell", "Conv", "Regularized", "Stack"],
)
def test_new_initializers_compile_nothing(make, option):
    run, compiled = counted()
    plain = make({})
    run(plain.for_program(), 1.0)
    for _ in range(3):
        model = make({option: FRESH[option](), "param_dtype": jnp.bfloat16})
        assert model != plain
        assert model.for_program() == plain.for_program()
        assert hash(model.for_program()) == hash(plain.for_program())
        for cell, other in zip(cells_of(model), cells_of(plain), strict=True):
            assert description.program_of(cell) == description.program_of(other)
        run(model.for_program(), 1.0)
    assert len(compiled) == 1


@each_description
def test_copies_compile_nothing(name):
    run, compiled = counted()
    model = DESCRIPTIONS[name]
    fields = dataclasses.fields(model)
    run(model.for_program(), 1.0)
    for made in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        dataclasses.replace(model),
        type(model)(**{f.name: getattr(model, f.name) for f in fields}),
    ):
        run(made.for_program(), 1.0)
    assert len(compiled) == 1


@each_kind
def test_the_description_for_a_program_takes_the_same_steps(name):
    model = DESCRIPTIONS[name]
    made = model.for_program()
    layered = hasattr(model, "cells")
    assert type(made) is (lj.Stack if layered else type(model))
    assert made.for_program() is made and model.for_program() is made
    assert choices(made) == choices(model)
    for cell, other in zip(cells_of(made), cells_of(model), strict=True):
        params, xs = random_params(other, 1), random_inputs(other, 2, (2,), 3)
        ours, theirs = (lj.scan(one, params, xs)[1] for one in (cell, other))
        assert (ours == theirs).all()


def test_the_description_for_a_program_is_itself_by_default():
    for model in (lj.Stack((lj.LSTMCell(3, 5),)), lj.SLSTMCell(3, 4)):
        assert model.for_program() is model
    other = lj.LSTMCell(3, 5, kernel_init=small, forget_bias=2.0, clip=1.0)
    assert other.for_program() == lj.LSTMCell(3, 5, clip=1.0)


def test_a_cell_of_a_user_keeps_what_its_steps_may_read():
    cell = Doubled(3, 5, forget_bias=2.0)
    assert cell.for_program() is cell
    assert lj.Stack((cell,)).for_program().cells[0].forget_bias == 2.0
    params, xs = random_params(cell, 1), random_inputs(cell, 2, (2,), 4)
    one = lj.scan(cell.for_program(), params, xs)[1]
    other = lj.scan(Doubled(3, 5), params, xs)[1]
    assert (one != other).any()

    class Plain(lj.LSTMCell):
        INIT_ONLY: ClassVar = ("kernel_init",)

    assert Plain(3, 5, kernel_init=small).for_program() == Plain(3, 5)
    kept = Plain(3, 5, forget_bias=2.0, kernel_init=small).for_program()
    assert kept == Plain(3, 5, forget_bias=2.0)
