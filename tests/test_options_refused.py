"""Options that do not fit are refused, in words that tell what to do."""

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
    apply,
    scan,
)

CASES = {
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
def test_an_option_that_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()
