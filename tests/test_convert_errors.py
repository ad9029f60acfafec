"""Converters: what they refuse, and in which words."""

import re

import jax
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import random_like


def ones(shape, dtype=np.float32):
    return np.ones(shape, dtype)


def build(options):
    model = lj.LSTM(3, 5, **options)
    return model, random_like(1, model.init(jax.random.key(0)))


def torch_weights(**changes):
    model, params = build({})
    return {**lj.convert.to_torch(model, params), **changes}


def without(*names, **options):
    model, params = build(options)
    weights = lj.convert.to_torch(model, params)
    return {name: value for name, value in weights.items() if name not in names}


def gates(count):
    """The weights of a torch module with another number of gates."""
    return {
        "weight_ih_l0": ones((count * 5, 3)),
        "weight_hh_l0": ones((count * 5, 5)),
        "bias_ih_l0": ones(count * 5),
        "bias_hh_l0": ones(count * 5),
    }


class Module:
    def state_dict(self):
        return {}


class Layer:
    def get_weights(self):
        return []


from_torch, from_keras = lj.convert.from_torch, lj.convert.from_keras
CASES = {
    "names that are no texts": (
        lambda: from_torch(torch_weights() | {7: ones(3)}),
        "state_dict: unknown names 7.",
    ),
    "what an average of weights counts": (
        lambda: from_torch(
            {"n_averaged": ones(())}
            | {f"module.{name}": value for name, value in torch_weights().items()}
        ),
        "state_dict: unknown names n_averaged. The LSTM's names begin with "
        "prefix='module.'.",
    ),
    "nothing": (
        lambda: from_torch({}),
        "state_dict: weight_ih_l0 is missing. There is no name at all, as where a "
        "dynamically quantized LSTM was saved: its weights are packed. Take the LSTM",
    ),
    "no such names": (
        lambda: from_torch({"conv.weight": ones(2)}, prefix="lstm."),
        "state_dict: lstm.weight_ih_l0 is missing. Names begin with conv; the prefix "
        "is 'lstm.'. A dynamically quantized LSTM has no names of its own.",
    ),
    "no prefix": (
        lambda: from_torch({"rnn.weight_ih_l0": ones((20, 3))}),
        "state_dict: weight_ih_l0 is missing. It is there with prefix='rnn.'.",
    ),
    "several cells": (
        lambda: from_torch(
            {f"{n}.{k[:-3]}": v for n in (1, 0) for k, v in torch_weights().items()}
        ),
        "It is there with prefix='0.' or '1.'.",
    ),
    "a checkpoint": (
        lambda: from_torch({"epoch": 1, "model": torch_weights()}),
        "state_dict: weight_ih_l0 is missing. It is in the dict under 'model': pass",
    ),
    "parametrized": (
        lambda: from_torch({"parametrizations.weight_ih_l0.original": ones((20, 3))}),
        "Weights such as parametrizations.weight_ih_l0.original are parametrized: call",
    ),
    "quantized": (
        lambda: from_torch({"_all_weight_values.0.param": object()}),
        "Weights such as _all_weight_values.0.param are quantized: take the LSTM as it",
    ),
    "two of a name": (
        lambda: from_torch(torch_weights() | {"module.bias_ih_l0": ones(20)}),
        "state_dict: bias_ih_l0 and module.bias_ih_l0 are both bias_ih_l0 after the",
    ),
    "another module's weights": (
        lambda: from_torch(torch_weights(**{"fc.weight": ones(2)})),
        "state_dict: unknown names fc.weight. For an LSTM inside a larger module pass",
    ),
    "a bias is missing": (
        lambda: from_torch(without("bias_hh_l0")),
        "state_dict: bias_hh_l0 is missing.",
    ),
    "a matrix is missing": (
        lambda: from_torch(without("weight_hh_l1", num_layers=2)),
        "state_dict: weight_hh_l1 is missing. Files lose weights that share memory, as",
    ),
    "a projection is missing": (
        lambda: from_torch(without("weight_hr_l1", num_layers=2, proj_size=2)),
        "state_dict: weight_hr_l1 is missing.",
    ),
    "one direction is missing": (
        lambda: from_torch(
            without("weight_ih_l1_reverse", num_layers=2, bidirectional=True)
        ),
        "state_dict: weight_ih_l1_reverse is missing.",
    ),
    "a GRU": (
        lambda: from_torch(gates(3)),
        "weight_hh_l0: expected shape [4H, H] = [20, 5], got [15, 5]. These look like "
        "the weights of a GRU.",
    ),
    "a plain RNN": (
        lambda: from_torch(gates(1)),
        "weight_hh_l0: expected shape [4H, H] = [20, 5], got [5, 5]. These look like "
        "the weights of a plain RNN.",
    ),
    "transposed": (
        lambda: from_torch({k: v.T for k, v in torch_weights().items()}),
        "weight_hh_l0: expected shape [4H, H] = [80, 20], got [5, 20]. It is transpos",
    ),
    "one wrong matrix": (
        lambda: from_torch(torch_weights(weight_ih_l0=ones((15, 3)))),
        "weight_ih_l0: expected shape [4H, I] = [20, 3], got [15, 3].",
    ),
    "no matrix": (
        lambda: from_torch(torch_weights(weight_ih_l0=ones(60))),
        "weight_ih_l0: expected shape [4H, I], got [60].",
    ),
    "a wrong bias": (
        lambda: from_torch(torch_weights(bias_ih_l0=ones(5))),
        "bias_ih_l0: expected shape [4H] = [20], got [5].",
    ),
    "two wrong biases": (
        lambda: from_torch(torch_weights(bias_ih_l0=ones(5), bias_hh_l0=ones(5))),
        "bias_ih_l0: expected shape [4H] = [20], got [5].",
    ),
    "a layer of other inputs": (
        lambda: from_torch(without(num_layers=2) | {"weight_ih_l1": ones((20, 10))}),
        "weight_ih_l1: expected shape [4H, I] = [20, 5], got [20, 10]. Twice the inp",
    ),
    "per-layer sizes": (
        lambda: lj.convert.to_torch(lj.LSTM(3, (4, 5)), ()),
        "hidden_size: expected one size for all layers, as PyTorch has, got (4, 5).",
    ),
    "another merge": (
        lambda: lj.convert.to_torch(lj.LSTM(3, 4, bidirectional=True, merge="sum"), ()),
        "merge: expected 'concat', which is all that PyTorch has, got 'sum'.",
    ),
    "others' parameters": (
        lambda: lj.convert.to_torch(lj.LSTM(3, 4), build({})[1]),
        "params[0].forward.kernel: expected shape [I, 4H] = [3, 16], got [3, 20].",
    ),
    "a state of other layers": (
        lambda: lj.convert.state_from_torch(
            lj.LSTM(3, 5, 2), ones((1, 4, 5)), ones((1, 4, 5))
        ),
        "h: expected shape [L*D, *batch, P] with L*D = 2 * 1 and P = 5, got [1, 4, 5].",
    ),
    "h and c swapped": (
        lambda: lj.convert.state_from_torch(
            lj.LSTM(3, 5, proj_size=2), ones((1, 4, 5)), ones((1, 4, 2))
        ),
        "h: expected shape [L*D, *batch, P] with L*D = 1 * 1 and P = 2, got [1, 4, 5].",
    ),
    "a state of two directions": (
        lambda: lj.convert.state_to_torch(
            lj.LSTM(3, 5), lj.LSTM(3, 5, bidirectional=True).zero_state(())
        ),
        "state[0].backward: expected None, the model is one-directional, got one.",
    ),
    "a state of other sizes": (
        lambda: lj.convert.state_to_torch(
            lj.LSTM(3, 5), lj.LSTM(3, 9).zero_state((2,))
        ),
        "state[0].forward.h: expected shape [B, H] = [2, 5], got [2, 9].",
    ),
    "a state of per-layer sizes": (
        lambda: lj.convert.state_to_torch(lj.LSTM(3, (4, 5)), ()),
        "hidden_size: expected one size for all layers, as PyTorch has, got (4, 5).",
    ),
    "a state with more than h and c": (
        lambda: lj.convert.state_from_torch(lj.LSTM(3, 5, variant="sLSTM"), 0, 0),
        "model: expected layers whose states are h and c, all that PyTorch has, got "
        "SLSTMCell(3, 5) as layer 0.",
    ),
    "h and c of two batches": (
        lambda: lj.convert.state_from_torch(
            lj.LSTM(3, 5), ones((1, 4, 5)), ones((1, 3, 5))
        ),
        "c: expected the batch of h, [4], got [3].",
    ),
    "Bidirectional without saying so": (
        lambda: from_keras([ones((3, 20)), ones((5, 20)), ones(20)] * 2),
        "layers[0]: expected 2 or 3 arrays (kernel, recurrent_kernel and, with "
        "use_bias, bias), got 6. These are a Bidirectional layer's: pass",
    ),
    "two layers in one list": (
        lambda: from_keras(
            [ones((3, 20)), ones((5, 20)), ones((5, 20)), ones((5, 20))]
        ),
        "got 4. These are two layers': pass a list for each.",
    ),
    "half a Bidirectional layer": (
        lambda: from_keras(
            [ones((3, 20)), ones((5, 20)), ones(20)], bidirectional=True
        ),
        "layers[0]: expected 4 or 6 arrays (kernel, recurrent_kernel and, with "
        "use_bias, bias, forward then backward), got 3.",
    ),
    "no Keras layers": (
        lambda: from_keras(),
        "layers: expected the weights of at least one layer, got none.",
    ),
    "a Keras GRU": (
        lambda: from_keras([ones((3, 15)), ones((5, 15)), ones((2, 15))]),
        "layers[0] recurrent_kernel: expected shape [H, 4H] = [5, 20], got [5, 15]. "
        "These look like the weights of a GRU.",
    ),
    "a layer after a Bidirectional one": (
        lambda: from_keras(
            *[[ones((3, 20)), ones((5, 20))] * 2] * 1,
            [ones((5, 20)), ones((5, 20))] * 2,
            bidirectional=True,
        ),
        "layers[1] forward kernel: expected shape [I, 4H] = [10, 20], got [5, 20]. A "
        "layer after a bidirectional one takes both outputs.",
    ),
    "a bias in one layer": (
        lambda: from_keras(
            [ones((3, 20)), ones((5, 20))],
            [ones((5, 20)), ones((5, 20)), ones(20)],
        ),
        "layers[1] bias: expected none, as for the first layer, got one.",
    ),
    "directions of two sizes": (
        lambda: from_keras(
            [ones((3, 20)), ones((5, 20)), ones((3, 24)), ones((6, 24))],
            bidirectional=True,
        ),
        "layers[0] backward recurrent_kernel: expected shape [H, 4H] = [5, 20], got",
    ),
    "a Keras merge_mode": (
        lambda: from_keras([], merge_mode="mean"),
        "merge_mode: expected one of 'concat', 'sum', 'ave', 'mul', got 'mean'.",
    ),
    "a projection to Keras": (
        lambda: lj.convert.to_keras(lj.LSTM(3, 5, proj_size=2), ()),
        "proj_size: expected None, since Keras has none, got 2 in layer 0.",
    ),
    "a learned start": (
        lambda: lj.convert.to_keras(lj.LSTM(3, 5, learn_initial_state=True), ()),
        "learn_initial_state: expected False, since Keras has none, got True in layer",
    ),
    "zoneout": (
        lambda: lj.convert.to_torch(lj.LSTM(3, 5, zoneout_h=0.1), ()),
        "zoneout_h: expected 0.0, since PyTorch has none, got 0.1 in layer 0.",
    ),
    "a residual": (
        lambda: lj.convert.to_torch(lj.LSTM(5, 5, residual=True), ()),
        "residual: expected False, since PyTorch has none, got True.",
    ),
    "peepholes": (
        lambda: lj.convert.to_torch(lj.LSTM(3, 5, peephole=True), ()),
        "peephole: expected False, since PyTorch has none, got True in layer 0.",
    ),
    "a Keras state": (
        lambda: lj.convert.state_from_keras([ones(2)]),
        "states[0]: expected [h, c] or [h, c, h, c], got 1 arrays.",
    ),
    "no Keras state": (
        lambda: lj.convert.state_from_keras(None),
        "states[0]: expected [h, c] or [h, c, h, c], got NoneType.",
    ),
    "one array as a Keras state": (
        lambda: lj.convert.state_from_keras(ones((2, 5))),
        "states[0]: expected [h, c] or [h, c, h, c], got one array of shape [2, 5].",
    ),
    "h and c of two sizes": (
        lambda: lj.convert.state_from_keras([ones((4, 5)), ones((3, 5))]),
        "states[0][1]: expected shape [4, 5], as states[0][0] has, got [3, 5].",
    ),
}


@pytest.mark.parametrize(("call", "words"), CASES.values(), ids=CASES)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


WRONG_TYPES = {
    "a module": (
        lambda: from_torch(Module()),
        "state_dict: expected a dict of arrays by name, got Module. Pass "
        "module.state_dict().",
    ),
    "nothing": (
        lambda: from_torch(None),
        "state_dict: expected a dict of arrays by name, got NoneType.",
    ),
    "strings": (
        lambda: from_torch(torch_weights(weight_hh_l0="a")),
        "weight_hh_l0: expected an array, got str.",
    ),
    "integers": (
        lambda: from_torch(torch_weights(weight_hh_l0=ones((20, 5), int))),
        "weight_hh_l0: expected a floating dtype, got int32.",
    ),
    "a cell as a model": (
        lambda: lj.convert.to_torch(lj.LSTMCell(3, 5), build({})[1][0].forward),
        "model: expected a stack such as lstm_jax.LSTM, got LSTMCell. One cell is "
        "lstm_jax.Stack((cell,)), its params are (lstm_jax.Directions(params),).",
    ),
    "a state as a pair": (
        lambda: lj.convert.state_from_torch(lj.LSTM(3, 5), (ones((1, 4, 5)),) * 2),
        "c: expected by state_from_torch. PyTorch's pair goes in as two: "
        "state_from_torch(model, *state).",
    ),
    "a state before the model": (
        lambda: lj.convert.state_from_torch(ones((1, 5)), ones((1, 5)), None),
        "model: expected a stack such as lstm_jax.LSTM, got ndarray.",
    ),
    "a state of integers": (
        lambda: lj.convert.state_from_torch(
            lj.LSTM(3, 5), ones((1, 4, 5), int), ones((1, 4, 5))
        ),
        "h: expected a floating dtype, got int32. Cast numbers: ",
    ),
    "one layer's state to Keras": (
        lambda: lj.convert.state_to_keras(lj.LSTMCell(3, 5).zero_state((4,))),
        "state: expected a tuple of Directions of LSTMState, as a model returns, got "
        "LSTMState. One layer's is (lstm_jax.Directions(state),).",
    ),
    "a second bias of integers": (
        lambda: from_torch(torch_weights(bias_hh_l0=ones(20, int))),
        "bias_hh_l0: expected a floating dtype, got int32.",
    ),
    "a second bias of complex numbers": (
        lambda: from_torch(torch_weights(bias_hh_l0=ones(20, complex))),
        "bias_hh_l0: expected a floating dtype, got complex64.",
    ),
    "a layer": (
        lambda: from_keras(Layer()),
        "layers[0]: expected a list of arrays, got Layer. Pass layer.get_weights().",
    ),
    "arrays instead of a list": (
        lambda: from_keras(ones((3, 20)), ones((5, 20)), ones(20)),
        "layers[0]: expected a list of arrays, got one array of shape [3, 20]. Each",
    ),
    "lists of numbers": (
        lambda: from_keras([[1.0, 2.0], [3.0]]),
        "layers[0][0]: expected an array, got list.",
    ),
}


@pytest.mark.parametrize(("call", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_wrong_types_are_refused(call, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        call()


def test_float64_is_rounded_with_a_word():
    weights = without()
    wide = {name: value.astype(np.float64) for name, value in weights.items()}
    with pytest.warns(UserWarning, match="float64 becomes float32, since"):
        _, params = from_torch(wide)
    assert params[0].forward.kernel.dtype == np.float32
    with jax.enable_x64(True):
        _, params = from_torch(wide)
    assert params[0].forward.kernel.dtype == np.float64
    layer = [np.ones((3, 20)), ones((5, 20)), ones(20)]
    with pytest.warns(UserWarning, match=r"layers\[0\]\[0\]: float64 becomes"):
        from_keras(layer)
