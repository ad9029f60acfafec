"""Which implementation runs, on which platform, and who says so."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.recurrence import choice
from tests.common import assert_close, normal, random_params
from tests.contract.cases import TOY, contract

CELL = lj.LSTMCell(3, 5)
PARAMS, XS = random_params(CELL, 0), normal(1, (2, 7, 3))
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def lowered(run, args, *platforms):
    return jax.jit(run).trace(*args).lower(lowering_platforms=platforms).as_text()


@contract()
def test_a_named_implementation_is_lowered_for_its_platforms_alone(subject):
    run, args = subject.case((2,), 3)
    both = jax.value_and_grad(subject.loss(run, args))
    mine = {one.name: one.platforms for one in choice.IMPLEMENTATIONS}
    for platform in PLATFORMS:
        for function in (run, both):
            if platform in (mine[subject.implementation] or PLATFORMS):
                assert lowered(function, args, platform)
                continue
            message = f'"{subject.implementation}" runs on .*, not on {platform}'
            with pytest.raises(NotImplementedError, match=message):
                lowered(function, args, platform)
    anywhere = lambda params, xs: lj.scan(subject.cell, params, xs)
    assert lowered(anywhere, args[:2], *PLATFORMS)
