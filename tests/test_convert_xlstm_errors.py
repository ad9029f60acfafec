"""xLSTM's sLSTM: what is refused, and in which words."""

import re

import jax
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert import xlstm
from tests.common import random_like
from tests.test_convert_xlstm import H, make_layer, make_state

LAYER = make_layer(30)


def without(*names, **changes):
    found = {name: value for name, value in LAYER.items() if name not in names}
    return found | {name.replace("__", "."): value for name, value in changes.items()}


def model_and_params(**options):
    options = {"variant": "sLSTM", **options}
    model = lj.LSTM(H, H, **options)
    return model, random_like(31, model.init(jax.random.key(0)))


def slstm_stack(**options):
    model = lj.Stack((lj.SLSTMCell(H, H, **options),))
    return model, model.init(jax.random.key(0))


ERRORS = {
    "nothing": (lambda: xlstm.from_xlstm([]), "weights: expected at least one layer"),
    "no names": (
        lambda: xlstm.from_xlstm({"a": 0}, path="b"),
        "weights: b.fgate.weight is missing; there are a. path says where",
    ),
    "a missing gate": (
        lambda: xlstm.from_xlstm(without("zgate.weight")),
        "weights: zgate.weight is missing; there are fgate.weight, igate.weight",
    ),
    "a convolution": (
        lambda: xlstm.from_xlstm(LAYER | {"conv1d.conv.weight": 0}),
        "conv1d.conv.weight: the layer feeds i and f with a convolution of its inputs, "
        "and SiLU of that: pass leave_out=('conv1d',), and both side by side",
    ),
    "a normalisation": (
        lambda: xlstm.from_xlstm(LAYER | {"group_norm.weight": 0}),
        "group_norm.weight: the layer normalises its outputs head by head: pass leave_",
    ),
    "no convolution": (
        lambda: xlstm.from_xlstm(LAYER, leave_out="conv1d"),
        "leave_out: there is no convolution, conv1d, to leave out.",
    ),
    "something else left out": (
        lambda: xlstm.from_xlstm(LAYER, leave_out=("ffn",)),
        "leave_out: expected one of 'conv1d', 'group_norm', got 'ffn'.",
    ),
    "another weight": (
        lambda: xlstm.from_xlstm(LAYER | {"proj.weight": 0}),
        "weights: unknown names proj.weight.",
    ),
    "a recurrent kernel of three gates": (
        lambda: xlstm.from_xlstm(
            LAYER | {"slstm_cell._recurrent_kernel_": np.ones((2, 3, 9), np.float32)}
        ),
        "slstm_cell._recurrent_kernel_: expected shape [N, D, 4D], or [N, 4D, D] of "
        "the backend 'vanilla', got [2, 3, 9].",
    ),
    "a bias of another shape": (
        lambda: xlstm.from_xlstm(
            LAYER | {"slstm_cell._bias_": np.ones(23, np.float32)}
        ),
        "slstm_cell._bias_: expected shape [4H] = [24], got [23].",
    ),
    "a gate of another shape": (
        lambda: xlstm.from_xlstm(
            LAYER | {"zgate.weight": np.ones((2, 3, 4), np.float32)}
        ),
        "zgate.weight: expected shape [N, D, I/N] = [2, 3, 3], got [2, 3, 4].",
    ),
    "a gate without heads": (
        lambda: xlstm.from_xlstm(LAYER | {"fgate.weight": np.ones((6, 6), np.float32)}),
        "fgate.weight: expected shape [N, D, I/N] = [2, 3, 3], got [6, 6].",
    ),
    "a layer of other inputs": (
        lambda: xlstm.from_xlstm([LAYER, make_layer(1, inputs=2)]),
        "fgate.weight: expected I = 6 inputs, got 4. A layer takes all outputs of the",
    ),
    "directions of two sizes": (
        lambda: xlstm.from_xlstm((LAYER, make_layer(1, size=2))),
        "slstm_cell._recurrent_kernel_: expected N = 2 heads, as in the first layer, "
        "and H = 6 in both directions, got 2 and 4.",
    ),
    "one direction of two": (
        lambda: xlstm.from_xlstm([(LAYER, LAYER), make_layer(1, inputs=6)]),
        "weights[1]: expected as many directions as in the first layer, 2, got 1.",
    ),
    "three directions": (
        lambda: xlstm.from_xlstm((LAYER,) * 3),
        "weights: expected two directions in a tuple, (forward, backward), got 3.",
    ),
    "a path into a list": (
        lambda: xlstm.from_xlstm([LAYER], path="a"),
        "path: expected none where weights is a list, got 'a'.",
    ),
    "a kernel that is not of blocks": (
        lambda: xlstm.to_xlstm(*model_and_params(num_heads=2)),
        "params[0].forward.kernel: expected zeros but in the blocks that lead from a "
        "head's inputs to its gates, since xLSTM has no others with 2 heads and",
    ),
    "inputs of no head": (
        lambda: xlstm.to_xlstm(*model_and_params(), inputs="conv1d"),
        "params[0].forward.kernel: expected zeros but in the blocks that lead from",
    ),
    "no identity": (
        lambda: xlstm.to_xlstm(*model_and_params(), inputs="gates"),
        "params[0].forward.kernel: expected the identity, [4H, 4H], with inputs='gat",
    ),
    "inputs by another name": (
        lambda: xlstm.to_xlstm(*model_and_params(), inputs="y"),
        "inputs: expected one of 'x', 'conv1d', 'gates', got 'y'.",
    ),
    "another backend": (
        lambda: xlstm.to_xlstm(*model_and_params(), backend="triton"),
        "backend: expected one of 'cuda', 'vanilla', got 'triton'.",
    ),
    "an exponential forget gate": (
        lambda: xlstm.to_xlstm(*slstm_stack(forget_gate="exponential")),
        "forget_gate: expected 'sigmoid', since xLSTM has no other, got 'exponential'",
    ),
    "a learned start": (
        lambda: xlstm.to_xlstm(*slstm_stack(learn_initial_state=True)),
        "learn_initial_state: expected False, since xLSTM has none, got True in layer",
    ),
    "an LSTM": (
        lambda: xlstm.to_xlstm(*model_and_params(variant=None)),
        "model: expected layers of SLSTMCell, all that xLSTM has, got LSTMCell(6, 6)",
    ),
    "an LSTM's state": (
        lambda: xlstm.state_from_xlstm(lj.LSTM(3, 5), make_state(0)),
        "model: expected sLSTMs, whose states are h, c, n and m, got LSTMCell(3, 5) as",
    ),
    "a state of one layer": (
        lambda: xlstm.state_from_xlstm(lj.LSTM(3, 5, 2, variant="sLSTM"), np.ones(3)),
        "state: expected a list of L = 2 layers' states, got 1.",
    ),
    "a state of other sizes": (
        lambda: xlstm.state_from_xlstm(lj.LSTM(3, 5, variant="sLSTM"), make_state(0)),
        "state[0]: expected shape [4, *batch, H] = [4, 2, 5], got [4, 2, 6].",
    ),
    "h and c alone": (
        lambda: xlstm.state_from_xlstm(
            lj.LSTM(3, 6, variant="sLSTM"), make_state(0)[:2]
        ),
        "state[0]: expected shape [4, *batch, H] = [4, 2, 6], got [2, 2, 6].",
    ),
    "a state of one direction": (
        lambda: xlstm.state_from_xlstm(
            lj.LSTM(3, 6, variant="sLSTM", bidirectional=True), make_state(0)
        ),
        "state[0]: expected a tuple (forward, backward), got ndarray.",
    ),
}


@pytest.mark.parametrize(("call", "words"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


WRONG_TYPES = {
    "an array": (
        lambda: xlstm.from_xlstm(np.ones(3)),
        "weights: expected a dict of arrays by name, got ndarray.",
    ),
    "integers": (
        lambda: xlstm.from_xlstm(
            LAYER | {"zgate.weight": np.ones((2, 3, 3), np.int32)}
        ),
        "zgate.weight: expected a floating dtype, got int32.",
    ),
    "what a layer returns": (
        lambda: xlstm.state_from_xlstm(
            lj.LSTM(3, 6, variant="sLSTM"), {"slstm_state": make_state(0)}
        ),
        "state[0]: expected an array, got dict. Pass its slstm_state.",
    ),
    "a cell": (
        lambda: xlstm.to_xlstm(lj.SLSTMCell(3, 5), ()),
        "model: expected a stack such as lstm_jax.LSTM, got SLSTMCell.",
    ),
}


@pytest.mark.parametrize(("call", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_wrong_types_are_refused(call, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        call()
