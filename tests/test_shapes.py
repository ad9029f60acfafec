"""Arrays of every broken contract are refused, in words that tell what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.calls import (
    CELL,
    MODEL,
    MODEL_PARAMS,
    PARAMS,
    XS,
    B,
    H,
    I,
    T,
    apply,
    layers,
    scan,
    state,
)

CASES = {
    "xs has no time axis": (
        lambda: scan(xs=jnp.ones(I)),
        ValueError,
        "xs: expected shape [*batch, T, I], got [3], which has no time axis. For one "
        "step call cell(params, state, x) or model.step(params, state, x).",
    ),
    "xs has other features": (
        lambda: scan(xs=jnp.ones((B, T, 7))),
        ValueError,
        "xs: expected shape [*batch, T, I] = [4, 6, 3], got [4, 6, 7].",
    ),
    "xs has its features elsewhere": (
        lambda: scan(xs=jnp.ones((B, I, T))),
        ValueError,
        "xs: expected shape [*batch, T, I] = [4, 3, 3], got [4, 3, 6]. The features, "
        "I = 3, belong on the last axis.",
    ),
    "xs is tokens": (
        lambda: scan(xs=jnp.ones((B, T, I), jnp.int32)),
        TypeError,
        "xs: expected a floating dtype, got int32. Embed or one-hot encode tokens "
        "first",
    ),
    "xs is a list": (
        lambda: scan(xs=[[1.0, 2.0, 3.0]]),
        TypeError,
        "xs: expected an array, got list. Convert it with jnp.asarray.",
    ),
    "state is a pair": (
        lambda: scan(state=(jnp.zeros((B, H)), jnp.zeros((B, H)))),
        TypeError,
        "state: expected an LSTMState, got tuple. A bare pair could be (h, c), as in "
        "PyTorch and Keras, or (c, h), as in Flax: write lstm_jax.LSTMState(h=..., "
        "c=...).",
    ),
    "state is of another batch": (
        lambda: scan(state=state((3, H), (3, H))),
        ValueError,
        "state.h: expected shape [B, H] = [4, 5], got [3, 5]. The batch is 4 in xs and "
        "3 here. If this is the last, partial batch of an epoch, drop it, pad it "
        "(lengths=0 for the rows that are not there), or take as many rows of the "
        "state.",
    ),
    "state is PyTorch's": (
        lambda: scan(state=state((1, B, H), (1, B, H))),
        ValueError,
        "state.h: expected shape [B, H] = [4, 5], got [1, 4, 5]. This looks like "
        "PyTorch's [L*D, B, H] state: lstm_jax.convert.state_from_torch(model, h, c) "
        "converts it.",
    ),
    "state has batch and time swapped": (
        lambda: scan(state=state((T, H), (T, H))),
        ValueError,
        "state.h: expected shape [B, H] = [4, 5], got [6, 5]. The batch is 4 in xs "
        "and 6 here. Batch and time look swapped: xs is [*batch, T, I], and [T, "
        "*batch, I] only with time_major=True.",
    ),
    "state is of one row": (
        lambda: scan(state=state((H,), (H,))),
        ValueError,
        "state.h: expected shape [B, H] = [4, 5], got [5]. Nothing is broadcast: "
        "jnp.broadcast_to gives every row the same state.",
    ),
    "state's c alone is wrong": (
        lambda: scan(state=state((B, H), (B, 7))),
        ValueError,
        "state.c: expected shape [B, H] = [4, 5], got [4, 7].",
    ),
    "state is of integers": (
        lambda: scan(state=state(dtype=jnp.int32)),
        TypeError,
        "state.h: expected a floating dtype, got int32.",
    ),
    "state is a layer's": (
        lambda: scan(state=layers(1)[0]),
        TypeError,
        "state: expected an LSTMState, got Directions. This is one layer of a stack's "
        "state: take its .forward.",
    ),
    "lengths are of the time axis": (
        lambda: scan(lengths=jnp.ones(T, jnp.int32)),
        ValueError,
        "lengths: expected shape [B] = [4], got [6]. Batch and time look swapped: xs "
        "is [*batch, T, I], and [T, *batch, I] only with time_major=True.",
    ),
    "lengths are floats": (
        lambda: scan(lengths=jnp.ones(B)),
        TypeError,
        "lengths: expected an integer dtype, got float32.",
    ),
    "lengths are too long": (
        lambda: scan(lengths=jnp.array([1, 2, 3, 7])),
        ValueError,
        "lengths: expected values from 0 to T = 6, the steps of each row that are "
        "valid, got 1 to 7.",
    ),
    "lengths are negative": (
        lambda: scan(lengths=np.array([-1, 2, 3, 4])),
        ValueError,
        "lengths: expected values from 0 to T = 6, the steps of each row that are "
        "valid, got -1 to 4.",
    ),
    "mask is of numbers": (
        lambda: scan(mask=jnp.ones((B, T))),
        TypeError,
        "mask: expected a bool dtype, got float32. Write mask != 0",
    ),
    "mask is swapped": (
        lambda: scan(mask=jnp.ones((T, B), bool)),
        ValueError,
        "mask: expected shape [B, T] = [4, 6], got [6, 4]. Batch and time look swapped",
    ),
    "mask is swapped in time-major": (
        lambda: scan(xs=jnp.ones((T, B, I)), mask=XS[..., 0] > 0, time_major=True),
        ValueError,
        "mask: expected shape [T, B] = [6, 4], got [4, 6]. Batch and time look swapped",
    ),
    "reset is of one row": (
        lambda: scan(reset=jnp.ones(T, bool)),
        ValueError,
        "reset: expected shape [B, T] = [4, 6], got [6].",
    ),
    "reset_state without reset": (
        lambda: scan(reset_state=state()),
        ValueError,
        "reset_state: expected None without reset, got a state.",
    ),
    "reset_state is of another batch": (
        lambda: scan(reset=jnp.ones((B, T), bool), reset_state=state((3, H), (3, H))),
        ValueError,
        "reset_state.h: expected shape [B, H] = [4, 5], got [3, 5].",
    ),
    "params are a stack's": (
        lambda: scan(params=MODEL_PARAMS),
        TypeError,
        "params: expected an LSTMParams, got tuple. cell.init(key) makes one; a "
        "stack's parameters go to model.apply.",
    ),
    "params lack a bias": (
        lambda: scan(params=PARAMS._replace(bias=None)),
        ValueError,
        "params: expected the fields kernel, recurrent_kernel, bias, got kernel, "
        "recurrent_kernel. Were they made by a cell with other options (use_bias, "
        "proj_size)?",
    ),
    "params are PyTorch's": (
        lambda: scan(params=PARAMS._replace(kernel=PARAMS.kernel.T)),
        ValueError,
        "params.kernel: expected shape [I, 4H] = [3, 20], got [20, 3]. It is "
        "transposed, as PyTorch keeps its weights: lstm_jax.convert.from_torch "
        "converts them.",
    ),
    "params of no LSTM": (
        lambda: lj.lstm(PARAMS._replace(kernel=jnp.ones((3, 15))), XS),
        ValueError,
        "params.kernel: expected a matrix with 4H columns, got [3, 15].",
    ),
    "params that do not fit together": (
        lambda: lj.lstm(PARAMS._replace(recurrent_kernel=jnp.ones((4, 20))), XS),
        ValueError,
        "params.recurrent_kernel: expected shape [H, 4H] = [5, 20], got [4, 20].",
    ),
    "stack is given a layer's params": (
        lambda: apply(params=PARAMS),
        TypeError,
        "params: expected a tuple of L = 2 Directions of LSTMParams, as from "
        "model.init(key), got LSTMParams.",
    ),
    "stack is given too few layers": (
        lambda: apply(params=MODEL_PARAMS[:1]),
        ValueError,
        "params: expected a tuple of L = 2 Directions of LSTMParams, as from "
        "model.init(key), got 1 layers.",
    ),
    "stack is given one direction": (
        lambda: apply(state=layers(2, both=False)),
        ValueError,
        "state[0].backward: expected one, the model is bidirectional, got None.",
    ),
    "one-directional stack is given two": (
        lambda: lj.LSTM(I, H).apply(MODEL_PARAMS[:1], XS),
        ValueError,
        "params[0].backward: expected None, the model is one-directional, got one.",
    ),
    "stack is given a pair": (
        lambda: apply(state=(jnp.zeros((4, B, H)), jnp.zeros((4, B, H)))),
        TypeError,
        "A bare pair could be (h, c), as in PyTorch and Keras, or (c, h), as in Flax",
    ),
    "stack is given PyTorch's state": (
        lambda: apply(state=state((4, B, H), (4, B, H))),
        TypeError,
        "state: expected a tuple of L = 2 Directions of LSTMState, as from "
        "model.zero_state(batch_shape), got LSTMState. This looks like PyTorch's "
        "[L*D, B, H] state: lstm_jax.convert.state_from_torch(model, h, c)",
    ),
    "one layer is given a bare state": (
        lambda: lj.LSTM(I, H).apply(lj.LSTM(I, H).init(jax.random.key(0)), XS, state()),
        TypeError,
        "got LSTMState. Write (lstm_jax.Directions(state),).",
    ),
    "stack's state is of another batch": (
        lambda: apply(state=layers(2, (3, H), (3, H))),
        ValueError,
        "state[0].forward.h: expected shape [B, H] = [4, 5], got [3, 5]. The batch is "
        "4",
    ),
    "stack's params have a wrong shape": (
        lambda: apply(
            params=(
                MODEL_PARAMS[0],
                MODEL_PARAMS[1]._replace(backward=MODEL_PARAMS[0].backward),
            )
        ),
        ValueError,
        "params[1].backward.kernel: expected shape [I, 4H] = [10, 20], got [3, 20].",
    ),
    "a state of integers": (
        lambda: scan(state=state(dtype=jnp.int32)),
        TypeError,
        "state.h: expected a floating dtype, got int32. Cast numbers: value.astype(",
    ),
    "a reset of integers": (
        lambda: scan(reset=np.zeros((B, T), int)),
        TypeError,
        "reset: expected a bool dtype, got int32. Write reset != 0 to make bools of ",
    ),
    "step through two directions": (
        lambda: MODEL.step(MODEL_PARAMS, None, XS[:, 0]),
        ValueError,
        "step: expected a one-directional model, got bidirectional=True. Its backward "
        "half needs the whole sequence: use apply.",
    ),
    "step with other features": (
        lambda: CELL(PARAMS, CELL.zero_state((B,)), jnp.ones((B, 7))),
        ValueError,
        "x: expected shape [*batch, I] = [4, 3], got [4, 7].",
    ),
    "step with a pair": (
        lambda: CELL(PARAMS, (jnp.ones((B, H)), jnp.ones((B, H))), XS[:, 0]),
        TypeError,
        "state: expected an LSTMState, got tuple. A bare pair could be",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), CASES.values(), ids=CASES)
def test_broken_contract_is_refused(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


@pytest.mark.parametrize(
    "name",
    ["xs has other features", "state is of another batch", "state is a pair"],
)
def test_broken_contract_is_refused_under_jit(name):
    call, error, words = CASES[name]
    with pytest.raises(error, match=re.escape(words)):
        jax.jit(lambda: jax.tree.leaves(call()))()


def test_unhashable_cell_is_refused():
    class Cell(lj.LSTMCell):
        __hash__ = None

    with pytest.raises(TypeError, match="cell: expected a hashable description"):
        lj.scan(Cell(I, H), PARAMS, XS)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
def test_lengths_of_any_integer_dtype_agree(dtype):
    values = [0, 6, 3, 1]
    expected = scan(lengths=jnp.array(values, jnp.int32))
    actual = scan(lengths=jnp.array(values, dtype))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_lengths_of_a_small_dtype_reach_far():
    xs = jnp.ones((2, 300, I))
    _, ys = scan(xs=xs, lengths=jnp.array([100, 127], jnp.int8))
    np.testing.assert_array_equal((ys != 0).all(-1).sum(-1), [100, 127])
