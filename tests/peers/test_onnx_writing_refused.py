"""What ``to_onnx`` refuses, by name."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx, to_onnx, writing
from tests.peers.test_onnx_writing import MODELS, H, I, params_of

REFUSED = {
    "proj_size": dict(proj_size=2),
    "num_heads": dict(num_heads=2),
    "layer_norm": dict(layer_norm="haste"),
    "cell_clip": dict(cell_clip=0.6),
    "zoneout_h": dict(zoneout_h=0.1),
    "zoneout_c": dict(zoneout_c=0.1),
    "variant": dict(variant="NIG"),
    "gate_activation": dict(gate_activation=jnp.sin),
    "candidate_activation": dict(candidate_activation=jax.nn.silu),
    "output_activation": dict(output_activation=jax.nn.hard_tanh),
}


@pytest.mark.parametrize("name, options", REFUSED.items(), ids=REFUSED)
def test_what_onnx_cannot_say_is_refused_by_name(name, options):
    model = lj.LSTM(I, H, 2, **options)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*ONNX"):
        to_onnx(model, params_of(model))


@pytest.mark.parametrize("variant", ["NFG", "NOG", "FGR"])
def test_variants_that_onnx_has_not(variant):
    model = lj.LSTM(I, H, variant=variant)
    with pytest.raises(ValueError, match=r"^variant: expected .*ONNX"):
        to_onnx(model, params_of(model))


def test_other_cells_are_refused_by_name():
    model = lj.LSTM(I, H, variant="sLSTM")
    with pytest.raises(ValueError, match="ONNX has, got SLSTMCell"):
        to_onnx(model, params_of(model))


ARGUMENTS = {
    "embedding": (
        dict(embedding=np.ones((7, 5))),
        r"\[V, I\] = \[any, 3\], got \[7, 5",
    ),
    "transposed": (dict(readout=np.ones((6, H))), r"readout: .*It is transposed"),
    "readout": (
        dict(readout=(np.ones((H, 6)), np.ones(5))),
        r"bias: .*\[6\], got \[5\]",
    ),
    "readout_values": (dict(readout=(np.ones((H, 6)),)), r"\(kernel, bias\).* 1 val"),
    "opset": (dict(opset=13), "opset: expected a version from 14"),
    "lengths": (dict(step=True, lengths=True), "lengths: expected False with step"),
    "time": (dict(step=True, time_major=True), "time_major: expected False with step"),
}


@pytest.mark.parametrize("given, message", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_that_do_not_fit(given, message):
    model = MODELS["one"]
    with pytest.raises(ValueError, match=message):
        to_onnx(model, params_of(model), **given)


def test_ids_are_no_embedding():
    model = MODELS["one"]
    with pytest.raises(TypeError, match="embedding: expected a floating dtype"):
        to_onnx(model, params_of(model), np.ones((7, I), np.int32))


def test_a_step_of_both_directions_is_refused():
    model = MODELS["both_ways"]
    with pytest.raises(ValueError, match="step: expected a one-directional model"):
        to_onnx(model, params_of(model), step=True)


def test_more_than_two_gigabytes_is_refused(monkeypatch):
    monkeypatch.setattr(writing, "_LARGEST", 100)
    with pytest.raises(ValueError, match="less than 2 GB"):
        to_onnx(MODELS["one"], params_of(MODELS["one"]))


def test_foreign_params_are_refused():
    with pytest.raises(ValueError, match="params"):
        to_onnx(MODELS["one"], params_of(MODELS["three"]))


def test_without_onnx_both_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    wanted = r'needs onnx: pip install "lstm_jax\[onnx\]"'
    with pytest.raises(ImportError, match=f"to_onnx {wanted}"):
        to_onnx(MODELS["one"], params_of(MODELS["one"]))
    with pytest.raises(ImportError, match=f"from_onnx {wanted}"):
        from_onnx(b"")
