"""Files of stacks in 8 bits, run by onnxruntime and checked by ONNX's own checker."""

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import lstm_jax as lj
from lstm_jax.convert.onnx import to_onnx
from tests.common import assert_close, normal, random_params

MODELS = {
    "two": lj.LSTM(6, 9, 2, residual=False),
    "both ways": lj.LSTM(6, 9, 2, bidirectional=True, merge="sum", use_bias=False),
    "projected": lj.LSTM(6, 9, 2, proj_size=4, clip=0.5, cell_clip=0.4),
    "learned start": lj.LSTM(6, 9, learn_initial_state=True, bidirectional=True),
}
XS, LENGTHS = normal(2, (3, 8, 6)), np.array([8, 0, 5], np.int32)


def run(file, **feed):
    onnx.checker.check_model(file, full_check=True)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), quiet, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("opset", [14, 18])
def test_a_file_computes_what_the_model_does(name, opset):
    plain = MODELS[name]
    model, params = lj.quantize(plain, random_params(plain, 1))
    file = to_onnx(model, params, lengths=True, states=True, opset=opset)
    out = run(file, xs=np.asarray(XS), lengths=LENGTHS)
    state, ys = model.apply(params, XS, lengths=LENGTHS)
    assert_close(out["ys"], ys)
    for index, layer in enumerate(state):
        for suffix, one in zip(("", "_reverse"), layer, strict=True):
            if one is not None:
                assert_close(out[f"h_n_l{index}{suffix}"], one.h)
                assert_close(out[f"c_n_l{index}{suffix}"], one.c)
    plainly = run(to_onnx(model, params, opset=opset), xs=np.asarray(XS))
    assert_close(plainly["ys"], model.apply(params, XS)[1])
    kinds = {node.op_type for node in file.graph.node}
    assert {"Scan", "MatMulInteger"} <= kinds and "LSTM" not in kinds


def test_one_step_and_a_row_that_sees_no_other():
    plain = MODELS["projected"]
    model, params = lj.quantize(plain, random_params(plain, 1))
    file = to_onnx(model, params, step=True)
    x = np.asarray(XS[:, 0])
    y = run(file, x=x)["y"]
    assert_close(y, model.step(params, None, x)[1])
    loud = x * np.array([[1], [1000], [1]], np.float32)
    np.testing.assert_array_equal(run(file, x=loud)["y"][[0, 2]], y[[0, 2]])


def test_mixed_layers():
    cells = (lj.LSTMCell(6, 5), lj.LSTMCell(5, 4))
    params = random_params(lj.Stack(cells), 3)
    second, small = lj.quantize(cells[1], params[1].forward)
    model = lj.Stack((cells[0], second))
    params = (params[0], lj.Directions(small))
    ys = run(to_onnx(model, params), xs=np.asarray(XS))["ys"]
    assert_close(ys, model.apply(params, XS)[1])


def test_other_libraries_refuse_it():
    model, params = lj.quantize(lj.LSTM(3, 5), lj.LSTM(3, 5).init(jax.random.key(0)))
    with pytest.raises(ValueError, match="expected layers of LSTMCell, .*PyTorch"):
        lj.convert.to_torch(model, params)
