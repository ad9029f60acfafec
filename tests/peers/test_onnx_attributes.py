"""Attributes of nodes, and other nodes, that are said or refused by name."""

import functools

import jax
import pytest
from onnx import helper

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx
from tests.peers.test_onnx_reading import WEIGHTS, H, I, file_of, lstm, weights_of


def test_clip_is_said():
    with pytest.warns(UserWarning, match="'n'.*clip=0.6 is taken as onnxruntime does"):
        model, _ = from_onnx(file_of([lstm(clip=0.6)], WEIGHTS))["n"]
    assert model.clip == 0.6


ATTRIBUTES = [
    ("direction", dict(direction="sideways")),
    ("activations", dict(activations=["Sigmoid", "Tanh"])),
    ("activations", dict(activations=["Sigmoid", "Tanh", "Swish"])),
    ("activation_alpha", dict(activations=["Affine", "Tanh", "Tanh"])),
    (
        "activation_beta",
        dict(activations=["ScaledTanh"] * 3, activation_alpha=[1.0] * 3),
    ),
    ("hidden_size", dict(hidden_size="5")),
    ("clip", dict(clip=-1.0)),
    ("layout", dict(layout=2)),
    ("input_forget", dict(input_forget=3)),
    ("extra", dict(extra=1)),
    ("R", dict(hidden_size=H + 1)),
]


@pytest.mark.parametrize("name, given", ATTRIBUTES)
def test_attributes_that_are_not_known_are_refused(name, given):
    with pytest.raises(ValueError, match=rf"^node 'n' \(LSTM\): ({name}|W): "):
        from_onnx(file_of([lstm(**given)], WEIGHTS))


def test_directions_with_different_activations_are_refused():
    given = dict(direction="bidirectional", activations=["Sigmoid", "Tanh", "Tanh"] * 2)
    given["activations"][4] = "Relu"
    with pytest.raises(ValueError, match="'n'.*the same in both directions"):
        from_onnx(file_of([lstm(**given)], weights_of(0, 2)))


def test_numbers_that_no_activation_takes_are_said():
    given = dict(activations=["sigmoid", "TANH", "elu"], activation_alpha=[0.5, 7.0])
    with pytest.warns(UserWarning, match="activation_alpha has 1 more numbers"):
        model, _ = from_onnx(file_of([lstm(**given)], WEIGHTS))["n"]
    expected = lj.LSTM(I, H, output_activation=functools.partial(jax.nn.elu, alpha=0.5))
    assert model == expected


def test_other_cells_are_named():
    for kind in ("GRU", "RNN"):
        node = helper.make_node(kind, ["X", "W", "R"], ["Y"], name="cell")
        with pytest.raises(ValueError, match=rf"no.*'cell' \({kind}\)"):
            from_onnx(file_of([node], WEIGHTS))
    with pytest.raises(ValueError, match="got none. Its operators are: Relu"):
        from_onnx(file_of([helper.make_node("Relu", ["X"], ["Y"])], {}))


def test_nodes_in_branches_are_named():
    body = file_of([lstm(name="hidden")], WEIGHTS, inputs=()).graph
    node = helper.make_node("If", ["X"], ["Y"], then_branch=body, else_branch=body)
    with pytest.raises(ValueError, match="branches or functions alone: 'hidden'"):
        from_onnx(file_of([node], {}))
