"""What each library can say of a model: the table in docs/, and what is refused."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

import lstm_jax as lj
from lstm_jax.convert import TARGETS, targets

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "targets.md"
# A value of each option that is not its default, and what else it needs.
OTHERWISE = {
    "reverse": {"num_layers": 2, "reverse": True},
    "merge": {"bidirectional": True, "merge": "sum"},
    "residual": {"num_layers": 2, "residual": True},
    "skip": {"num_layers": 2, "skip": True},
    "zoneout_h": {"zoneout_h": 0.1},
    "zoneout_c": {"zoneout_c": 0.1},
    "proj_size": {"proj_size": 2},
    "peephole": {"peephole": True},
    "variant": {"variant": "NFG"},
    "layer_norm": {"layer_norm": "ba"},
    "gate_activation": {"gate_activation": jax.nn.hard_sigmoid},
    "candidate_activation": {
        "candidate_activation": jax.nn.relu,
        "output_activation": jax.nn.relu,
    },
    "output_activation": {"output_activation": jax.nn.relu},
    "clip": {"clip": 1.0},
    "cell_clip": {"cell_clip": 1.0},
    "num_heads": {"num_heads": 2},
    "learn_initial_state": {"learn_initial_state": True},
}
STANDARD = [one for one in TARGETS if lj.LSTMCell in one.cells]


def test_the_page_has_the_table():
    assert targets.table(TARGETS) in PAGE.read_text(encoding="utf-8")


def test_every_option_is_in_the_table():
    fields = {field.name for field in dataclasses.fields(lj.LSTM)}
    assert set(targets.OPTIONS) == set(OTHERWISE)
    assert fields == set(targets.OPTIONS) | set(targets.EVERYWHERE)


@pytest.mark.parametrize("option", OTHERWISE)
@pytest.mark.parametrize("target", STANDARD, ids=lambda target: target.name)
def test_an_option_is_said_or_refused_by_name(target, option):
    model = lj.LSTM(4, 4, **OTHERWISE[option])
    params = model.init(jax.random.key(0))
    value = OTHERWISE[option][option]
    said = value in target.merges if option == "merge" else target.says(option, value)
    if said and not (option == "output_activation" and target.one_activation):
        targets.check(target, model, params)
        return
    with pytest.raises(ValueError, match=f"^{option}: expected .*{target.name}"):
        targets.check(target, model, params)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_other_cells_are_refused(target):
    model = lj.Stack((lj.ConvLSTMCell((4, 4, 2), 3, 3),))
    with pytest.raises(ValueError, match=f"model: expected layers of .*{target.name}"):
        targets.check(target, model, model.init(jax.random.key(0)))
    cell = lj.LSTMCell(3, 5)
    with pytest.raises(TypeError, match="model: expected a stack .*got LSTMCell"):
        targets.check(target, cell, cell.init(jax.random.key(0)))


def test_a_value_that_is_not_said_names_those_that_are():
    onnx = next(one for one in TARGETS if one.name == "ONNX")
    model = lj.LSTM(3, 5, variant="NIG")
    words = (
        "variant: expected one of None, 'CIFG', .*since ONNX has no other, got 'NIG'"
    )
    with pytest.raises(ValueError, match=words):
        targets.check(onnx, model, model.init(jax.random.key(0)))


def test_noise_of_training_goes_without_saying():
    model = lj.LSTM(3, 5, 2, dropout=0.5, recurrent_dropout=0.1, dtype=jnp.bfloat16)
    params = model.init(jax.random.key(0))
    for target in STANDARD:
        targets.check(target, model, params)
