"""Variants against the ONNX operator LSTM: its reference evaluator, or onnxruntime."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest

import lstm_jax as lj
from tests.common import assert_close, normal, random_params, random_state

B, T, I, H = 3, 6, 4, 5


def hard_sigmoid(x):
    """ONNX's default HardSigmoid, which is not that of Keras or JAX."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def in_onnx_order(columns, gates):
    """``[..., G*H]`` as ``[1, 4H, ...]``, gates i, o, f, c; a missing one is zeros."""
    parts = dict(zip(gates, np.split(np.asarray(columns), len(gates), -1), strict=True))
    zeros = np.zeros_like(parts["g"])
    return np.concatenate([parts.get(name, zeros) for name in "iofg"], -1).T[None]


def model_of(cell, params, reverse, **attributes):
    """The cell as an ONNX model of X, initial_h and initial_c."""
    gates = "igo" if cell.variant == "CIFG" else "ifgo"
    bias = in_onnx_order(params.bias, gates)
    weights = {
        "W": in_onnx_order(params.kernel, gates),
        "R": in_onnx_order(params.recurrent_kernel, gates),
        "B": np.concatenate([bias, np.zeros_like(bias)], -1),
    }
    names = ["X", "W", "R", "B", "", "initial_h", "initial_c"]
    if params.peephole is not None:
        rows = dict(zip(gates.replace("g", ""), params.peephole, strict=True))
        zeros = np.zeros(H, np.float32)
        weights["P"] = np.concatenate([rows.get(name, zeros) for name in "iof"])[None]
        names.append("P")
    node = onnx.helper.make_node(
        "LSTM",
        names,
        ["Y", "Y_h", "Y_c"],
        hidden_size=H,
        direction="reverse" if reverse else "forward",
        **attributes,
    )
    real = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "lstm",
        [
            info("X", real, [T, B, I]),
            info("initial_h", real, [1, B, H]),
            info("initial_c", real, [1, B, H]),
        ],
        [info("Y", real, [T, 1, B, H])]
        + [info(name, real, [1, B, H]) for name in ("Y_h", "Y_c")],
        [onnx.numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items()],
    )
    opset = [onnx.helper.make_opsetid("", 22)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.checker.check_model(model)
    return model


def by_reference(model, feed):
    return onnx.reference.ReferenceEvaluator(model).run(None, feed)


def by_runtime(model, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


CASES = {
    "standard": ({}, {}, by_reference),
    "peephole": (dict(peephole=True), {}, by_reference),
    "cifg": (dict(variant="CIFG"), dict(input_forget=1), by_runtime),
    "cifg_peephole": (
        dict(variant="CIFG", peephole=True),
        dict(input_forget=1),
        by_runtime,
    ),
    "clip": (dict(clip=0.6), dict(clip=0.6), by_runtime),
    "clip_peephole": (dict(clip=0.6, peephole=True), dict(clip=0.6), by_runtime),
    "activations": (
        dict(
            gate_activation=hard_sigmoid,
            candidate_activation=jax.nn.soft_sign,
            output_activation=jax.nn.relu,
        ),
        dict(activations=["HardSigmoid", "Softsign", "Relu"]),
        by_runtime,
    ),
    "peephole_runtime": (dict(peephole=True), {}, by_runtime),
}


@pytest.mark.parametrize("options, attributes, evaluate", CASES.values(), ids=CASES)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_variant_agrees_with_onnx(options, attributes, evaluate, reverse):
    cell = lj.LSTMCell(I, H, **options)
    params, state = random_params(cell, 0), random_state(cell, 1, (B,))
    xs = normal(2, (T, B, I))
    model = model_of(cell, params, reverse, **attributes)
    feed = {
        "X": np.asarray(xs),
        "initial_h": np.asarray(state.h)[None],
        "initial_c": np.asarray(state.c)[None],
    }
    ys, h, c = evaluate(model, feed)
    last, ours = lj.scan(cell, params, xs, state, time_major=True, reverse=reverse)
    assert_close((ours, last), (ys[:, 0], lj.LSTMState(h[0], c[0])))
