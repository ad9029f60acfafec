"""Every broken contract is refused, in words that tell what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj

B, T, I, H = 4, 6, 3, 5
CELL = lj.LSTMCell(I, H)
PARAMS = CELL.init(jax.random.key(0))
XS = jnp.ones((B, T, I))
MODEL = lj.LSTM(I, H, num_layers=2, bidirectional=True)
MODEL_PARAMS = MODEL.init(jax.random.key(0))


def state(h=(B, H), c=(B, H), dtype=jnp.float32):
    return lj.LSTMState(jnp.zeros(h, dtype), jnp.zeros(c, dtype))


def scan(params=PARAMS, xs=XS, state=None, **options):
    return lj.scan(CELL, params, xs, state, **options)


def apply(params=MODEL_PARAMS, xs=XS, state=None, **options):
    return MODEL.apply(params, xs, state, **options)


def layers(count, h=(B, H), c=(B, H), both=True):
    one = state(h, c)
    return (lj.Directions(one, one if both else None),) * count


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
    "checkpoint_every is 0": (
        lambda: scan(checkpoint_every=0),
        ValueError,
        "checkpoint_every: expected at least 1, got 0.",
    ),
    "checkpoint_every is a float": (
        lambda: scan(checkpoint_every=2.0),
        TypeError,
        "checkpoint_every: expected an integer, got 2.0 of type float.",
    ),
    "implementation is unknown": (
        lambda: scan(implementation="cudnnn"),
        ValueError,
        "implementation: expected one of 'cpu', 'xla', got 'cudnnn'.",
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
    "reverse is a word": (
        lambda: scan(reverse="no"),
        TypeError,
        "reverse: expected True or False, got 'no' of type str.",
    ),
    "states in reverse, by a number": (
        lambda: lj.scan_states(CELL, PARAMS, XS, reverse=1),
        TypeError,
        "reverse: expected True or False, got 1 of type int.",
    ),
    "resolved in reverse, by a word": (
        lambda: lj.resolve_implementation(CELL, PARAMS, XS, reverse="no"),
        TypeError,
        "reverse: expected True or False, got 'no' of type str.",
    ),
    "parallel in reverse, by a word": (
        lambda: lj.parallel_scan(CELL, PARAMS, XS, reverse="no"),
        TypeError,
        "reverse: expected True or False, got 'no' of type str.",
    ),
    "time_major is a word": (
        lambda: apply(time_major="no"),
        TypeError,
        "time_major: expected True or False, got 'no' of type str.",
    ),
    "time_major of a stream is a word": (
        lambda: lj.stream(CELL, PARAMS, [XS], time_major="no"),
        TypeError,
        "time_major: expected True or False, got 'no' of type str.",
    ),
    "time_major is traced": (
        lambda: jax.jit(MODEL.apply)(MODEL_PARAMS, XS, time_major=False),
        TypeError,
        "time_major: expected True or False, got a traced value, since jax.jit traces "
        "all arguments. Bind it before, functools.partial(function, name=value), or",
    ),
    "checkpoint_every is traced": (
        lambda: jax.jit(MODEL.apply)(MODEL_PARAMS, XS, checkpoint_every=2),
        TypeError,
        "checkpoint_every: expected an integer, got a traced value",
    ),
    "init with inputs": (
        lambda: MODEL.init(jax.random.key(0), XS),
        TypeError,
        "LSTM.init: expected no arguments without a name but key, got 1 more. Sizes "
        "are options, so that it needs no inputs: init(key).",
    ),
    "a call's name is that of the model": (
        lambda: lj.Stack((CELL,)).apply(PARAMS, XS, batch_first=True),
        TypeError,
        "batch_first: Stack.apply takes no such argument.",
    ),
    "an option is an array": (
        lambda: lj.LSTM(3, 5, forget_bias=jnp.float32(1)),
        TypeError,
        "forget_bias: expected a plain value, got an array of float32 []: write "
        "forget_bias=value.item().",
    ),
    "an option is several arrays": (
        lambda: lj.LSTM(3, 5, 2, zoneout_h=(0.1, np.ones(2))),
        TypeError,
        "zoneout_h: expected a plain value, got an array of float64 [2].",
    ),
    "key is a number": (
        lambda: apply(key=0),
        TypeError,
        "key: expected a key such as jax.random.key(0), got int.",
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
    "batch_shape is a number": (
        lambda: CELL.zero_state(4),
        TypeError,
        "batch_shape: expected a tuple such as (4,), got the number 4.",
    ),
    "size is 0": (
        lambda: lj.LSTMCell(3, 0),
        ValueError,
        "hidden_size: expected at least 1, got 0.",
    ),
    "size is a float": (
        lambda: lj.LSTM(3.0, 4),
        TypeError,
        "input_size: expected an integer, got 3.0 of type float.",
    ),
    "num_layers is 0": (
        lambda: lj.LSTM(3, 4, num_layers=0),
        ValueError,
        "num_layers: expected at least 1, got 0.",
    ),
    "sizes do not match num_layers": (
        lambda: lj.LSTM(3, (4, 5), num_layers=3),
        ValueError,
        "hidden_size: expected one size or L = 3 of them, got 2: (4, 5).",
    ),
    "projection is too wide": (
        lambda: lj.LSTMCell(3, 4, proj_size=4),
        ValueError,
        "proj_size: expected less than hidden_size = 4, got 4.",
    ),
    "dropout is 1": (
        lambda: lj.LSTM(3, 4, dropout=1.0),
        ValueError,
        "dropout: expected a rate in [0, 1), got 1.0.",
    ),
    "dropout is no number": (
        lambda: lj.LSTM(3, 4, dropout="0.5"),
        TypeError,
        "dropout: expected a number, got '0.5' of type str.",
    ),
    "merge is unknown": (
        lambda: lj.LSTM(3, 4, merge="ave"),
        ValueError,
        "merge: expected one of 'concat', 'sum', 'mean', 'mul', got 'ave'.",
    ),
    "dtype is integer": (
        lambda: lj.LSTMCell(3, 4, dtype=jnp.int32),
        TypeError,
        "dtype: expected a floating dtype such as jnp.bfloat16, got int32.",
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
