"""Descriptions of every kind, with functions and cells of a user's."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import pytest
from jax.nn import initializers

import lstm_jax as lj
from tests.common import random_inputs, random_params


@jax.jit
def steep_sigmoid(x):
    return jax.nn.sigmoid(3 * x)


@jax.custom_jvp
def spike(x):
    return (x > 0).astype(x.dtype)


spike.defjvps(lambda tangent, _, x: tangent / (1 + jnp.abs(x)))


@jax.custom_vjp
def halved(x):
    return x / 2


halved.defvjp(lambda x: (x / 2, None), lambda _, given: (given / 3,))


def plain_activation(x):
    return jnp.arctan(x)


def small(key, shape, dtype=jnp.float32):
    return 0.01 * jax.random.normal(key, shape, dtype)


@functools.wraps(jax.nn.sigmoid)
def disguised(x):
    return x


def with_default(x, slope=0.1):
    return slope * x


@dataclasses.dataclass(frozen=True)
class Scaled(lj.LSTMCell):
    """A cell of a user's, with fields of its own."""

    scale: float = 1.0
    squash: Any = jnp.tanh
    sizes: tuple[int, ...] = ()

    def update(self, params, state, z, r):
        return super().update(params, state, self.scale * self.squash(z), r)


@dataclasses.dataclass(frozen=True)
class Derived(lj.LSTMCell):
    """A cell of a user's with fields that are no options."""

    doubled: int = dataclasses.field(init=False, repr=False)
    inner: Any = dataclasses.field(init=False, repr=False)

    INIT_ONLY: ClassVar = ("kernel_init",)

    def __post_init__(self):
        object.__setattr__(self, "doubled", 2 * self.hidden_size)
        inner = lj.LSTMCell(3, 5, kernel_init=self.kernel_init)
        object.__setattr__(self, "inner", inner)
        super().__post_init__()


class Doubled(lj.LSTMCell):
    """A cell of a user's whose steps read what others only begin with."""

    def update(self, params, state, z, r):
        return super().update(params, state, z + self.forget_bias, r)


ACTIVATIONS = (
    jax.nn.relu,
    jax.nn.relu6,
    jax.nn.gelu,
    jax.nn.hard_sigmoid,
    jax.nn.hard_tanh,
    jax.nn.softplus,
    jax.nn.silu,
    jnp.sin,
    jax.scipy.special.erf,
    steep_sigmoid,
    spike,
    plain_activation,
    functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
    functools.partial(jax.nn.elu, 0.5),
)


DESCRIPTIONS = {
    "lstm": lj.LSTM(3, 5),
    "lstm_options": lj.LSTM(
        3,
        [4, 6],
        bidirectional=True,
        zoneout_c=(0.1, 0.0),
        variant=("CIFG", None),
        dtype="bfloat16",
        kernel_init=small,
        gate_activation=jax.nn.hard_sigmoid,
    ),
    "slstm_layers": lj.LSTM(3, 4, 2, variant="sLSTM", num_heads=2),
    "cell": lj.LSTMCell(3, 5),
    "cell_options": lj.LSTMCell(
        3, 6, proj_size=4, layer_norm="ba", clip=2, param_dtype=jnp.bfloat16
    ),
    "slstm": lj.SLSTMCell(3, 4, num_heads=2, kernel_init=initializers.ones),
    "minlstm": lj.MinLSTMCell(3, 4, positive=True, kernel_init=small),
    "conv": lj.ConvLSTMCell([8, 6, 3], 2, 3, padding="valid", peephole=True),
    "regularized": lj.Regularized(lj.LSTMCell(3, 5), recurrent_dropout=0.2),
    "stack": lj.Stack([lj.LSTMCell(3, 4, variant="CIFG"), lj.SLSTMCell(4, 2)]),
    "nested": lj.Stack(
        [
            lj.Regularized(lj.LSTMCell(3, 4), zoneout_h=0.5),
            lj.Regularized(lj.SLSTMCell(8, 4), drop_connect=0.1),
        ],
        bidirectional=True,
    ),
    "own": Scaled(3, 5, scale=0.5, squash=jax.nn.relu, sizes=[1, 2]),
    "own_inside": lj.Stack((Scaled(3, 5, sizes=(4,)), lj.LSTMCell(5, 5))),
} | {
    f"activation_{n}": lj.LSTM(
        3, 5, candidate_activation=function, recurrent_init=small
    )
    for n, function in enumerate(ACTIVATIONS)
}


# dataclasses.asdict can't copy this one: JAX's class can't be copied.
UNCOPIED = {"custom_vjp": lj.LSTM(3, 5, output_activation=halved)}


DESCRIPTIONS |= UNCOPIED


def cells_of(model):
    return getattr(model, "cells", (model,))


def choices(model):
    """Which implementation runs each cell, and whether it is the standard one."""
    return [
        (
            lj.resolve_implementation(
                cell, random_params(cell, 1), random_inputs(cell, 2, (2,), 3)
            ),
            getattr(cell, "standard", None),
        )
        for cell in cells_of(model)
    ]


def assert_same(made, model):
    assert made == model and model == made
    assert hash(made) == hash(model)
    assert type(made) is type(model)
    assert repr(made) == repr(model)
    for name in (field.name for field in dataclasses.fields(model)):
        assert type(getattr(made, name)) is type(getattr(model, name)), name
    assert choices(made) == choices(model)


each_description = pytest.mark.parametrize("name", DESCRIPTIONS)


# One of each kind: a function more or less makes no difference to the arrays.
each_kind = pytest.mark.parametrize(
    "name", [name for name in DESCRIPTIONS if not name.startswith("activation")]
)
