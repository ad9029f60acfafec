"""TensorFlow 1's cells: what is refused, and in which words."""

import re

import jax
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert import tf1, tf1_states
from tests.test_convert_tf1 import AROUND, CELLS, H, I, make_cells, named


def variables(count=1, both=False, kind="dynamic_rnn", options=None, **changes):
    found = named(make_cells(count, both, options or {}), AROUND[kind][2])
    found |= {f"rnn/lstm_cell/{name}": value for name, value in changes.items()}
    return {name: value for name, value in found.items() if value is not None}


STACK = variables(3, False, "MultiRNNCell")
BOTH = variables(1, True, "bidirectional_dynamic_rnn")
LAYER_NORM = {
    f"rnn/layer_norm_basic_lstm_cell/{name}": np.ones(5, np.float32)
    for name in ("kernel", "input/gamma", "input/beta")
}
GRU = {
    f"rnn/gru_cell/{name}": np.ones((8, 10), np.float32)
    for name in ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias")
}
ERRORS = {
    "nothing": (lambda: tf1.from_tf1({}), "path: expected where in weights an LSTM is"),
    "no such path": (
        lambda: tf1.from_tf1(variables(), path="decoder"),
        "path: expected where in weights an LSTM is, got 'decoder', where nothing is. "
        "Names begin with rnn.",
    ),
    "a GRU": (
        lambda: tf1.from_tf1(GRU),
        "expected a BasicLSTMCell's or an LSTMCell's, got gru_cell, which is a GRU.",
    ),
    "a plain RNN": (
        lambda: tf1.from_tf1(
            {
                "rnn/basic_rnn_cell/kernel": np.ones((11, 8), np.float32),
                "rnn/basic_rnn_cell/bias": np.ones(8, np.float32),
            }
        ),
        "rnn/basic_rnn_cell/kernel: expected a BasicLSTMCell's or an LSTMCell's, got "
        "basic_rnn_cell, which is a plain RNN.",
    ),
    "a layer normalised cell": (
        lambda: tf1.from_tf1(LAYER_NORM),
        "got layer_norm_basic_lstm_cell, which is layer normalised, in a way that no",
    ),
    "another cell": (
        lambda: tf1.from_tf1({"rnn/grid2_lstm_cell/kernel": np.ones((8, 20))}),
        "got grid2_lstm_cell, which is no LSTM of the standard kind.",
    ),
    "an opaque vector": (
        lambda: tf1.from_tf1({"cudnn_lstm/opaque_kernel": np.ones(200)}),
        "cudnn_lstm/opaque_kernel: it is cuDNN's own vector, which holds no sizes: "
        "take it with lstm_jax.convert.from_cudnn(vector, input_size=..., hidden_size=",
    ),
    "proj_clip": (
        lambda: tf1.from_tf1(variables(), proj_clip=3.0),
        "proj_clip: expected None, since no cell here clips its projection, got 3.0.",
    ),
    "cell_clip": (
        lambda: tf1.from_tf1(variables(), cell_clip=-1.0),
        "cell_clip: expected a limit above 0, got -1.0.",
    ),
    "forget_bias": (
        lambda: tf1.from_tf1(variables(), forget_bias=float("nan")),
        "forget_bias: expected a finite number, got nan.",
    ),
    "no bias": (
        lambda: tf1.from_tf1(variables(bias=None)),
        "rnn/lstm_cell/bias: it is missing; there are rnn/lstm_cell/kernel.",
    ),
    "a peephole": (
        lambda: tf1.from_tf1(variables(w_i_diag=np.ones(5))),
        "rnn/lstm_cell/w_f_diag: it is missing; there are",
    ),
    "one of three peepholes of another shape": (
        lambda: tf1.from_tf1(
            variables(options=CELLS["peepholes"], w_o_diag=np.ones(4, np.float32))
        ),
        "rnn/lstm_cell/w_o_diag: expected shape [H] = [5], got [4].",
    ),
    "a bias of another shape": (
        lambda: tf1.from_tf1(variables(bias=np.ones(16, np.float32))),
        "rnn/lstm_cell/bias: expected shape [4H] = [20], got [16].",
    ),
    "a projection of another shape": (
        lambda: tf1.from_tf1(
            variables(**{"projection/kernel": np.ones((4, 2), np.float32)})
        ),
        "rnn/lstm_cell/projection/kernel: expected shape [H, P] = [5, 2], got [4, 2].",
    ),
    "a transposed kernel": (
        lambda: tf1.from_tf1(variables(kernel=np.ones((20, 8), np.float32))),
        "rnn/lstm_cell/bias: expected shape [4H] = [8], got [20].",
    ),
    "a kernel without inputs": (
        lambda: tf1.from_tf1(variables(kernel=np.ones((5, 20), np.float32))),
        "rnn/lstm_cell/kernel: expected shape [I + P, 4H] with P = 5, got [5, 20], "
        "which leaves no inputs.",
    ),
    "a kernel of three gates": (
        lambda: tf1.from_tf1(variables(kernel=np.ones((8, 15), np.float32))),
        "rnn/lstm_cell/kernel: expected shape [I + P, 4H], got [8, 15].",
    ),
    "a second layer of other inputs": (
        lambda: tf1.from_tf1(
            STACK
            | {
                "rnn/multi_rnn_cell/cell_1/lstm_cell/kernel": np.ones(
                    (11, 20), np.float32
                )
            }
        ),
        "cell_1/lstm_cell/kernel: expected shape [I + P, 4H] = [10, 20], got [11, 20].",
    ),
    "a missing layer": (
        lambda: tf1.from_tf1({k: v for k, v in STACK.items() if "cell_1" not in k}),
        "weights: cell_1 of one direction is missing; there are rnn/multi_rnn_cell/cel",
    ),
    "one direction alone": (
        lambda: tf1.from_tf1({k: v for k, v in BOTH.items() if "bw" not in k}),
        "weights: expected cells below fw and below bw, got one direction alone, "
        "bidirectional_rnn/fw/lstm_cell. With path as far as fw or bw",
    ),
    "a projection in one layer": (
        lambda: tf1.from_tf1(
            STACK
            | {
                "rnn/multi_rnn_cell/cell_2/lstm_cell/projection/kernel": np.ones(
                    (5, 5), np.float32
                )
            }
        ),
        "projection_kernel of cell_2 fw: expected none, as for the first layer, ",
    ),
    "stacks in each direction": (
        lambda: tf1.from_tf1(
            named(
                make_cells(2, True, {}),
                [
                    f"bidirectional_rnn/{way}/multi_rnn_cell/cell_{n}"
                    for n in range(2)
                    for way in ("fw", "bw")
                ],
            )
        ),
        "weights: 2 cells run in each direction by themselves (bidirectional_rnn/fw",
    ),
    "two LSTMs": (
        lambda: tf1.from_tf1(
            {
                f"{way}coder/{name}": value
                for way in ("en", "de")
                for name, value in variables().items()
            }
        ),
        "got those of decoder/rnn/lstm_cell, encoder/rnn/lstm_cell. Pass path="
        "'decoder/rnn' or 'encoder/rnn'.",
    ),
    "two activations": (
        lambda: tf1.to_tf1(
            *model_and_params(output_activation=jax.nn.relu),
        ),
        "output_activation: expected that of the candidate, since TensorFlow 1 has one",
    ),
    "a gate activation": (
        lambda: tf1.to_tf1(*model_and_params(gate_activation=jax.nn.relu)),
        "gate_activation: expected 'sigmoid', since TensorFlow 1 has none, got 'relu'",
    ),
    "another merge": (
        lambda: tf1.to_tf1(*model_and_params(bidirectional=True, merge="sum")),
        "merge: expected 'concat', which is all that TensorFlow 1 has, got 'sum'.",
    ),
    "peepholes of a basic cell": (
        lambda: tf1.to_tf1(*model_and_params(peephole=True), cell="basic_lstm_cell"),
        "cell: expected 'lstm_cell', since basic_lstm_cell has no peephole, which",
    ),
    "a state of one layer": (
        lambda: tf1_states.state_from_tf1(lj.LSTM(3, 5, 2), (np.ones((2, 5)),) * 2),
        "state[0]: expected LSTMStateTuple(c, h), got ndarray. With state_is_tuple",
    ),
    "a state of three layers": (
        lambda: tf1_states.state_from_tf1(
            lj.LSTM(3, 5, 2), ((np.ones((2, 5)),) * 2,) * 3
        ),
        "state: expected an LSTMStateTuple for each layer, 2 of them, got 3.",
    ),
    "one array": (
        lambda: tf1_states.state_from_tf1(lj.LSTM(3, 5), np.ones((2, 10))),
        "state: expected an LSTMStateTuple for each layer, 1 of them, got no tuple.",
    ),
    "h and c swapped": (
        lambda: tf1_states.state_from_tf1(
            lj.LSTM(3, 5, proj_size=2),
            (np.ones((4, 2), np.float32), np.ones((4, 5), np.float32)),
        ),
        "state.c: expected shape [*batch, H] = [4, 5], got [4, 2].",
    ),
    "an sLSTM's state": (
        lambda: tf1_states.state_to_tf1(lj.LSTM(3, 5, variant="sLSTM"), ()),
        "model: expected layers whose states are h and c, all that TensorFlow 1 has,",
    ),
}


def model_and_params(**options):
    model = lj.LSTM(I, H, **options)
    return model, model.init(jax.random.key(0))


@pytest.mark.filterwarnings("ignore:.*64-bit types are off")
@pytest.mark.parametrize(("call", "words"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


class Reader:
    def get_tensor(self, name):
        return name


WRONG_TYPES = {
    "a reader": (
        lambda: tf1.from_tf1(Reader()),
        "weights: expected a dict of arrays by name, got Reader. Pass {name: reader.",
    ),
    "a path": (
        lambda: tf1.from_tf1("model.ckpt"),
        "got str. Read the checkpoint first",
    ),
    "a list": (lambda: tf1.from_tf1([1]), "got list. Pass {variable.name: value for"),
    "integers": (
        lambda: tf1.from_tf1(variables(bias=np.ones(20, np.int32))),
        "rnn/lstm_cell/bias: expected a floating dtype, got int32.",
    ),
    "a cell": (
        lambda: tf1.to_tf1(lj.LSTMCell(3, 5), ()),
        "model: expected a stack such as lstm_jax.LSTM, got LSTMCell.",
    ),
}


@pytest.mark.parametrize(("call", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_wrong_types_are_refused(call, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        call()
