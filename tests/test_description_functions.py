"""A function in a description is the same under every spelling, and no other."""

import copy
import dataclasses
import functools
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import lstm_jax as lj
from lstm_jax.descriptions import functions
from lstm_jax.initializers import glorot_uniform, orthogonal
from tests.common import normal
from tests.descriptions import (
    assert_same,
    disguised,
    halved,
    plain_activation,
    spike,
    steep_sigmoid,
    with_default,
)


@pytest.mark.parametrize(
    "function",
    [lambda x: x, jax.jit(lambda x: x), initializers.normal(0.02)],
    ids=["lambda", "compiled", "factory"],
)
def test_pickle_names_a_function_that_has_no_name(function):
    model = lj.LSTM(3, 5, kernel_init=function)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda|<locals>"):
        pickle.dumps(model)
    assert copy.deepcopy(model) == model == lj.LSTM(**dataclasses.asdict(model))


SPELLINGS = {
    "tanh_of_lax": ({"output_activation": jax.lax.tanh}, {}),
    "tanh_of_nn": ({"candidate_activation": jax.nn.tanh}, {}),
    "logistic": ({"gate_activation": jax.lax.logistic}, {}),
    "expit": ({"gate_activation": jax.scipy.special.expit}, {}),
    "compiled_twice": ({"gate_activation": jax.jit(jax.nn.sigmoid)}, {}),
    "inside": ({"gate_activation": jax.nn.sigmoid.__wrapped__}, {}),
    "swish": (
        {"gate_activation": jax.nn.swish},
        {"gate_activation": jax.nn.silu},
    ),
    "compiled_plain": (
        {"gate_activation": jax.jit(plain_activation)},
        {"gate_activation": plain_activation},
    ),
    "copied_relu": (
        {"gate_activation": copy.deepcopy(jax.nn.relu)},
        {"gate_activation": jax.nn.relu},
    ),
    "copied_own": (
        {"gate_activation": copy.deepcopy(steep_sigmoid)},
        {"gate_activation": steep_sigmoid},
    ),
    "partials": (
        {"gate_activation": functools.partial(copy.deepcopy(jax.nn.elu), alpha=0.5)},
        {"gate_activation": functools.partial(jax.nn.elu, alpha=0.5)},
    ),
    "dtype_word": ({"dtype": "float32"}, {"dtype": jnp.float32}),
    "dtype_of_numpy": ({"dtype": np.float32}, {"dtype": np.dtype("float32")}),
    "bfloat16": ({"dtype": "bfloat16"}, {"dtype": jnp.bfloat16}),
    "param_dtype": ({"param_dtype": "float32"}, {}),
    "float": ({"param_dtype": float}, {"param_dtype": jnp.result_type(float)}),
    "default_dtype": ({"dtype": None}, {}),
    "integers": ({"num_heads": np.int64(1), "clip": np.float64(2)}, {"clip": 2.0}),
    "flags": ({"peephole": np.True_, "use_bias": np.bool_(False)}, None),
    "forget_bias": ({"forget_bias": np.float32(0.5)}, {"forget_bias": 0.5}),
    "words": ({"variant": np.str_("CIFG")}, {"variant": "CIFG"}),
}


@pytest.mark.parametrize("cls", [lj.LSTM, lj.LSTMCell])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_are_one(cls, name):
    spelled, plain = SPELLINGS[name]
    if plain is None:
        plain = {"peephole": True, "use_bias": False}
    assert_same(cls(3, 5, **spelled), cls(3, 5, **plain))


def test_lists_and_numbers_of_numpy_are_one_with_tuples_and_python():
    rates = [np.float64(0.25), 0]
    model = lj.LSTM(
        np.int32(3), [np.int64(4), 5], zoneout_h=rates, dropout=np.float32(0.5)
    )
    assert_same(model, lj.LSTM(3, (4, 5), zoneout_h=(0.25, 0), dropout=0.5))
    conv = lj.ConvLSTMCell([8, np.int8(6), 3], 2, [3, 1], strides=np.int64(2))
    assert_same(conv, lj.ConvLSTMCell((8, 6, 3), 2, (3, 1), strides=(2, 2)))


def test_wrong_options_are_still_refused_in_words():
    with pytest.raises(TypeError, match="hidden_size: expected an integer"):
        lj.LSTMCell(3, np.float32(5))
    with pytest.raises(TypeError, match="dtype: expected a floating dtype"):
        lj.LSTMCell(3, 5, dtype="int32")
    with pytest.raises(ValueError, match="variant"):
        lj.LSTM(3, 5, variant=["CIFG"] * 1 + ["none such"], num_layers=2)
    with pytest.raises(TypeError, match="gate_activation: expected a function"):
        lj.LSTMCell(3, 5, gate_activation="sigmoid")


def other_rule():
    """JAX's relu with another derivative."""
    function = jax.custom_jvp(jax.nn.relu.fun)
    function.defjvps(lambda tangent, _, x: 2 * tangent)
    return function


def other_backward():
    """This module's ``halved`` with another derivative."""
    function = jax.custom_vjp(halved.fun)
    function.defvjp(halved.fwd, lambda _, given: (given / 4,))
    return function


def with_default_last(slope, x):
    return slope * x


OTHERS = {
    "rule": (other_rule(), jax.nn.relu),
    "backward": (other_backward(), halved),
    "no_rule": (jax.nn.relu.fun, jax.nn.relu),
    "wraps": (disguised, jax.nn.sigmoid),
    "vmap": (jax.vmap(jax.nn.sigmoid), jax.nn.sigmoid),
    "partial": (
        functools.partial(jax.nn.elu, alpha=0.5),
        functools.partial(jax.nn.elu, alpha=0.25),
    ),
    # NumPy's numbers have a dtype, which they give to what they are multiplied with.
    "number": (
        functools.partial(jax.nn.elu, alpha=np.float32(0.5)),
        functools.partial(jax.nn.elu, alpha=0.5),
    ),
    "number_by_place": (
        functools.partial(with_default_last, np.float32(2)),
        functools.partial(with_default_last, 2.0),
    ),
    "lambdas": (lambda x: x, lambda x: x),
}


@pytest.mark.parametrize("name", OTHERS)
def test_functions_that_differ_stay_what_they_are(name):
    one, other = OTHERS[name]
    assert lj.LSTM(3, 5, gate_activation=one) != lj.LSTM(3, 5, gate_activation=other)
    x = normal(1, (4,))
    kept = lj.LSTM(3, 5, gate_activation=one).gate_activation
    assert (kept(x) == one(x)).all()
    slope, expected = (jax.vjp(f, x)[1](x)[0] for f in (kept, one))
    assert (slope == expected).all()


def test_a_function_defined_anew_is_another():
    code = with_default.__code__
    old = types.FunctionType(code, globals(), "with_default", (0.2,))
    old.__module__, old.__qualname__ = with_default.__module__, "with_default"
    model = lj.LSTM(3, 5, gate_activation=old)
    assert model.gate_activation is old
    assert model != lj.LSTM(3, 5, gate_activation=with_default)


def rebuilt(value, memo=None):
    """A function as a process finds it that was sent its code, and all it refers to."""
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, tuple):
        return tuple(rebuilt(part, memo) for part in value)
    if isinstance(value, jax.custom_jvp):
        made = memo[id(value)] = jax.custom_jvp(rebuilt(value.fun, memo))
        made.jvp = rebuilt(value.jvp, memo)
        return made
    if not isinstance(value, types.FunctionType):
        wrapped = getattr(value, "__wrapped__", None)
        return value if wrapped is None else jax.jit(rebuilt(wrapped, memo))
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    made = memo[id(value)] = types.FunctionType(
        value.__code__.replace(),
        dict(value.__globals__),
        value.__name__,
        value.__defaults__,
        cells,
    )
    made.__module__, made.__qualname__ = value.__module__, value.__qualname__
    made.__kwdefaults__ = value.__kwdefaults__
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        cell.cell_contents = rebuilt(old.cell_contents, memo)
    return made


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.sigmoid,
        jnp.tanh,
        jax.nn.relu,
        jax.nn.gelu,
        jax.nn.hard_sigmoid,
        initializers.zeros,
        steep_sigmoid,
        spike,
        plain_activation,
        glorot_uniform,
    ],
    ids=functions.describe,
)
def test_functions_rebuilt_from_their_code_are_the_same(function):
    made = rebuilt(function)
    assert made is not function
    assert lj.LSTM(3, 5, gate_activation=made).gate_activation is function


def test_a_copy_of_a_local_function_is_the_same():
    @jax.jit
    def compiled(x):
        return x / 3

    @jax.custom_jvp
    def ruled(x):
        return x / 3

    ruled.defjvps(lambda tangent, _, x: tangent)
    for function in (compiled, ruled):
        model = lj.LSTM(3, 5, gate_activation=function)
        assert lj.LSTM(**dataclasses.asdict(model)) == model
        partial = functools.partial(function)
        model = lj.LSTM(3, 5, gate_activation=partial)
        assert lj.LSTM(**dataclasses.asdict(model)) == model


@pytest.mark.parametrize(
    "mine, factory",
    [
        (glorot_uniform, initializers.glorot_uniform),
        (orthogonal, initializers.orthogonal),
    ],
)
@pytest.mark.parametrize("shape", [(3, 20), (5, 20), (7, 3)])
def test_initializers_are_those_of_jax(mine, factory, shape):
    key = jax.random.key(3)
    assert (mine(key, shape) == factory()(key, shape, jnp.float32)).all()
    assert mine(key, shape).dtype == jnp.float32
    assert mine(key, shape, jnp.complex64).dtype == jnp.complex64
