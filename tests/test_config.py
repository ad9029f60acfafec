"""Descriptions as plain JSON, and back."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers

import lstm_jax as lj
from tests.descriptions import (
    DESCRIPTIONS,
    Doubled,
    Scaled,
    assert_same,
    disguised,
    halved,
    plain_activation,
    small,
    spike,
    steep_sigmoid,
    with_default,
)


@pytest.mark.parametrize("name", [n for n in DESCRIPTIONS if "own" not in n])
def test_config_goes_through_json_and_back(name):
    model = DESCRIPTIONS[name]
    given = {
        f.__name__: f for f in (steep_sigmoid, spike, halved, plain_activation, small)
    }
    config = json.loads(json.dumps(model.to_config(given), allow_nan=False))
    assert config["class"] == type(model).__name__ and config["format"] == 1
    assert set(config) - {"class", "format"} == {
        field.name for field in dataclasses.fields(model)
    }
    assert_same(lj.from_config(config, functions=given), model)
    assert_same(type(model).from_config(config, functions=given), model)
    assert_same(lj.from_config(model.to_config(given), functions=given), model)


def test_config_is_plain():
    config = lj.LSTMCell(
        3, 5, dtype=jnp.bfloat16, gate_activation=jax.lax.tanh, clip=np.float32(2)
    ).to_config()
    assert config["dtype"] == "bfloat16" and config["param_dtype"] == "float32"
    assert config["gate_activation"] == {"function": "jax.numpy.tanh"}
    assert config["recurrent_init"] == {"function": "lstm_jax.initializers.orthogonal"}
    assert config["clip"] == 2.0 and config["input_size"] == 3
    nested = lj.Stack((lj.Regularized(lj.LSTMCell(3, 5)),)).to_config()
    assert nested["cells"][0]["class"] == "Regularized"
    assert nested["cells"][0]["cell"]["hidden_size"] == 5


def test_config_of_an_older_version_gets_defaults():
    config = lj.LSTM(3, 5).to_config()
    del config["learn_initial_state"], config["gate_activation"]
    assert lj.from_config(config) == lj.LSTM(3, 5)


UNWRITABLE = {
    "lambda": (
        lambda: lj.LSTM(3, 5, gate_activation=lambda x: x),
        r"^gate_activation: .*<lambda>.*functions=\{'gate_activation'",
    ),
    "own": (
        lambda: lj.Stack((lj.LSTMCell(3, 5, clip=1.0, kernel_init=small),)),
        r"^cells\[0\].kernel_init: .*descriptions.small",
    ),
    "factory": (
        lambda: lj.LSTM(3, 5, bias_init=initializers.normal(0.02)),
        r"^bias_init: .*normal.*made by a call of jax.nn.initializers",
    ),
    "partial": (
        lambda: lj.LSTM(3, 5, gate_activation=functools.partial(with_default, slope=2)),
        r"^gate_activation: .*with_default",
    ),
    "class": (lambda: Scaled(3, 5), r"^to_config: expected one of .*LSTMCell.*Scaled"),
    "inside": (
        lambda: lj.Regularized(Doubled(3, 5)),
        r"^cell: expected one of .*Doubled",
    ),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_config_refuses_what_has_no_name(name):
    make, message = UNWRITABLE[name]
    with pytest.raises(ValueError, match=message):
        make().to_config()


UNREADABLE = {
    "class": ({"class": "GRU"}, r"\['class'\]: expected one of .*LSTM.*'GRU'"),
    "no_class": ({"class": None}, r"\['class'\]: expected one of"),
    "base": ({"class": "Layers"}, r"\['class'\]: expected one of"),
    "format": ({"format": 2}, r"\['format'\]: expected a version up to 1.*got 2"),
    "no_format": ({"format": None}, r"\['format'\]"),
    "true": ({"format": True}, r"\['format'\]"),
    "field": ({"hiden_size": 3}, "no field 'hiden_size'. It has .*hidden_size"),
    "function": (
        {"gate_activation": {"function": "os.system"}},
        r"\['gate_activation'\]: expected the name.*\(none\), got 'os.system'",
    ),
    "function_value": (
        {"gate_activation": {"function": ["jax.nn.relu"]}},
        r"\['gate_activation'\]: expected the name of a function",
    ),
    "function_part": (
        {"gate_activation": {"function": "jax.nn.relu", "alpha": 2}},
        r"\['gate_activation'\]: expected the name of a function",
    ),
    "dict": ({"clip": {"value": 1}}, r"\['clip'\]\['class'\]: expected one of"),
    "option": ({"hidden_size": 0}, "hidden_size: expected at least 1"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_config_refuses_what_it_does_not_know(name):
    change, message = UNREADABLE[name]
    with pytest.raises(ValueError, match=message):
        lj.from_config(lj.LSTMCell(3, 5).to_config() | change)


def test_config_refuses_other_objects():
    config = lj.LSTM(3, 5).to_config()
    with pytest.raises(TypeError, match="config: expected a dict"):
        lj.from_config(json.dumps(config))
    with pytest.raises(ValueError, match="expected 'LSTMCell', got 'LSTM'"):
        lj.LSTMCell.from_config(config)
    with pytest.raises(ValueError, match="expected 'Doubled', got 'LSTMCell'"):
        Doubled.from_config(lj.LSTMCell(3, 5).to_config())
    del config["hidden_size"]
    with pytest.raises(ValueError, match="expected the field 'hidden_size' of LSTM"):
        lj.from_config(config)
    stack = lj.Stack((lj.LSTMCell(3, 5),)).to_config()
    stack["cells"][0]["format"] = 7
    with pytest.raises(ValueError, match=r"config\['cells'\]\[0\]\['format'\]"):
        lj.from_config(stack)


def test_config_refuses_wrong_functions():
    model = lj.LSTM(3, 5)
    with pytest.raises(TypeError, match="functions: expected a dict"):
        model.to_config([small])
    with pytest.raises(TypeError, match="functions: expected functions by name"):
        model.to_config({"small": 3})
    with pytest.raises(ValueError, match="'jax.nn.sigmoid' is the name of another"):
        lj.from_config(model.to_config(), functions={"jax.nn.sigmoid": small})


def test_config_takes_functions_by_the_names_given():
    normal_init = initializers.normal(0.02)
    model = lj.LSTM(3, 5, kernel_init=normal_init, gate_activation=jax.jit(disguised))
    given = {"normal": normal_init, "mine": jax.jit(disguised)}
    config = model.to_config(given)
    assert config["kernel_init"] == {"function": "normal"}
    assert config["gate_activation"] == {"function": "mine"}
    assert lj.from_config(config, functions=given) == model
    with pytest.raises(ValueError, match=r"one of functions= \('mine'\)"):
        lj.from_config(config, functions={"mine": given["mine"]})


def test_a_dict_that_could_be_of_two_classes_is_refused():
    class Twin(lj.SLSTMCell):
        pass

    model = lj.Stack((Twin(3, 4),))
    with pytest.raises(ValueError, match="^cells: expected a description.*SLSTMCell"):
        lj.Stack(**dataclasses.asdict(model))
