"""cuDNN's flat vector, against what JAX itself reads from it and computes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

import lstm_jax as lj
from lstm_jax.convert import cudnn
from tests.common import (
    assert_close,
    normal,
    random_like,
    relative_error,
    value_and_pullback,
)
from tests.oracles import cells as oracle

I, H, T, B = 3, 5, 6, 4
LENGTHS = np.array([6, 1, 4, 3], np.int32)
STACKS = [(layers, both) for layers in (1, 2, 3) for both in (False, True)]


def sizes(layers=1, both=False, **others):
    return dict(
        input_size=I, hidden_size=H, num_layers=layers, bidirectional=both, **others
    )


def vector_for(layers=1, both=False, seed=0):
    count = rnn.get_num_params_in_lstm(I, H, layers, both)
    return normal([seed, layers, both], (count,), scale=0.5)


def reference(vector, xs, h, c, layers, both, lengths):
    """JAX's own LSTM, whose weights JAX cuts out of the vector."""
    weights = rnn.unpack_lstm_weights(vector, I, H, layers, both)
    return rnn.lstm_ref(xs, h, c, *weights, lengths, I, H, layers, 0.0, both)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize(("layers", "both"), STACKS)
def test_values_and_gradients_agree(layers, both, lengths):
    vector = vector_for(layers, both)
    xs = normal(1, (B, T, I))
    h, c = normal(2, (2, layers * (1 + both), B, H))
    steps = np.full(B, T, np.int32) if lengths is None else lengths
    options = sizes(layers, both)

    def ours(vector, xs, h, c):
        model, params = cudnn.from_cudnn(vector, **options)
        state = cudnn.state_from_cudnn(model, h, c)
        state, ys = model.apply(params, xs, state, lengths=lengths)
        return ys, *cudnn.state_to_cudnn(model, state)

    def theirs(vector, xs, h, c):
        return reference(vector, xs, h, c, layers, both, steps)

    args = vector, xs, h, c
    cotangents = random_like(3, jax.eval_shape(theirs, *args))
    expected = value_and_pullback(theirs, args, cotangents)
    assert_close(value_and_pullback(ours, args, cotangents), expected)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 5), (3, 1)])
def test_one_row_and_one_step(batch, length):
    vector, xs = vector_for(2, True), normal(4, (batch, length, I))
    h, c = normal(5, (2, 4, batch, H))
    model, params = cudnn.from_cudnn(vector, **sizes(2, True))
    state, ys = model.apply(params, xs, cudnn.state_from_cudnn(model, h, c))
    lengths = np.full(batch, length, np.int32)
    expected = reference(vector, xs, h, c, 2, True, lengths)
    last = tuple(jnp.asarray(each) for each in cudnn.state_to_cudnn(model, state))
    assert_close((ys, *last), tuple(expected))


@pytest.mark.parametrize("biases", [0, 1, 2])
@pytest.mark.parametrize("proj_size", [None, 2])
@pytest.mark.parametrize(("layers", "both"), STACKS)
def test_round_trip(layers, both, proj_size, biases):
    model = lj.LSTM(
        I,
        H,
        layers,
        bidirectional=both,
        proj_size=proj_size,
        use_bias=bool(biases),
    )
    params = random_like(6, model.init(jax.random.key(0)))
    vector = cudnn.to_cudnn(model, params, biases=biases)
    assert type(vector) is np.ndarray and vector.flags.writeable
    options = sizes(layers, both, proj_size=proj_size, biases=biases)
    again, back = cudnn.from_cudnn(vector, **options)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, back, params)
    # Two biases come back as their sum, so that one vector is like every other.
    other = np.array(cudnn.to_cudnn(again, back, biases=biases))
    np.testing.assert_array_equal(other, vector)


def test_two_biases_come_back_as_their_sum():
    vector = vector_for(2, True)
    model, params = cudnn.from_cudnn(vector, **sizes(2, True))
    back = cudnn.to_cudnn(model, params)
    W_ih, W_hh, b_ih, b_hh = rnn.unpack_lstm_weights(back, I, H, 2, True)
    expected = rnn.unpack_lstm_weights(vector, I, H, 2, True)
    for index in range(4):
        np.testing.assert_array_equal(W_ih[index], expected[0][index])
        np.testing.assert_array_equal(W_hh[index], expected[1][index])
        total = expected[2][index] + expected[3][index]
        np.testing.assert_array_equal(b_ih[index], total)
        np.testing.assert_array_equal(b_hh[index], np.zeros(4 * H))


def test_a_model_without_bias_has_zeros_for_two():
    model = lj.LSTM(I, H, use_bias=False)
    params = random_like(7, model.init(jax.random.key(0)))
    vector = cudnn.to_cudnn(model, params)
    assert vector.shape == (rnn.get_num_params_in_lstm(I, H, 1, False),)
    np.testing.assert_array_equal(vector[-8 * H :], np.zeros(8 * H))
    xs, h = normal(8, (B, T, I)), jnp.zeros((1, B, H))
    expected, *_ = reference(vector, xs, h, h, 1, False, np.full(B, T, np.int32))
    assert_close(model.apply(params, xs)[1], expected)


@pytest.mark.parametrize("proj_size", [None, 2])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_every_value_is_read_once(layers, both, proj_size):
    options = sizes(layers, both, proj_size=proj_size)
    model = lj.LSTM(
        I, H, layers, bidirectional=both, proj_size=proj_size, use_bias=True
    )
    count = cudnn.to_cudnn(model, model.init(jax.random.key(0))).size
    leaves = lambda vector: jax.tree.leaves(cudnn.from_cudnn(vector, **options)[1])
    total = lambda vector: sum(leaf.sum() for leaf in leaves(vector))
    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(count)), np.ones(count))
    # What is not a number shows wherever it stood.
    for place in range(0, count, 7):
        vector = np.zeros(count, np.float32)
        vector[place] = np.nan
        assert sum(int(jnp.isnan(leaf).sum()) for leaf in leaves(vector)) == 1


def test_a_projection_runs_as_its_equations():
    model = lj.LSTM(I, H, 2, proj_size=2)
    count = cudnn.to_cudnn(model, model.init(jax.random.key(0))).size
    vector = np.asarray(normal(9, (count,), scale=0.5))
    _, params = cudnn.from_cudnn(vector, **sizes(2, proj_size=2))
    # Cut by hand: 4H I, 4H P, P H; 4H P, 4H P, P H; then four biases of 4H.
    ends = np.cumsum([60, 40, 10, 40, 40, 10, 20, 20, 20, 20])
    assert ends[-1] == count
    W, R, P, W1, R1, P1, *biases = np.split(vector.astype(np.float64), ends[:-1])
    rows = np.asarray(normal(10, (T, I)), np.float64)
    xs, ys = rows, []
    for cut, inputs, pair in (
        ((W, R, P), 3, biases[:2]),
        ((W1, R1, P1), 2, biases[2:]),
    ):
        record = dict(
            kernel=cut[0].reshape(20, inputs).T,
            recurrent_kernel=cut[1].reshape(20, 2).T,
            projection_kernel=cut[2].reshape(2, 5).T,
            bias=sum(pair),
        )
        state, ys = {"h": np.zeros(2), "c": np.zeros(5)}, []
        for x in xs:
            state, y = oracle.lstm_step(record, state, x)
            ys.append(y)
        xs = np.stack(ys)
    _, found = model.apply(params, jnp.asarray(rows, jnp.float32))
    assert relative_error(found, np.stack(ys)) < 1e-5


def test_dtypes_are_kept():
    vector = vector_for().astype(jnp.bfloat16)
    model, params = cudnn.from_cudnn(vector, **sizes())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert model.param_dtype == jnp.bfloat16
    assert cudnn.to_cudnn(model, params).dtype == jnp.bfloat16
    with pytest.warns(UserWarning, match="vector: float64 becomes float32, since 64-b"):
        cudnn.from_cudnn(np.ones(200), **sizes())
    with jax.enable_x64(True):
        _, params = cudnn.from_cudnn(np.ones(200), **sizes())
        assert params[0].forward.bias.dtype == np.float64


FULL = rnn.get_num_params_in_lstm(I, H, 2, True)
WRONG_LENGTHS = {
    "one layer fewer": (
        rnn.get_num_params_in_lstm(I, H, 1, True),
        "got 400. That many are those of num_layers=1.",
    ),
    "one layer more": (
        rnn.get_num_params_in_lstm(I, H, 3, True),
        "That many are those of num_layers=3.",
    ),
    "half a bidirectional vector": (
        rnn.get_num_params_in_lstm(I, H, 2, False),
        "got 440. That many are those of bidirectional=False.",
    ),
    "one bias": (FULL - 4 * 4 * H, "That many are those of biases=1."),
    "no bias": (FULL - 8 * 4 * H, "That many are those of biases=0."),
    "a projection": (
        2 * (60 + 40 + 10) + 2 * (80 + 40 + 10) + 160,
        "That many are those of proj_size=2.",
    ),
    "one layer and one direction": (
        rnn.get_num_params_in_lstm(I, H, 1, False),
        "got 200. That many are those of num_layers=1, bidirectional=False.",
    ),
    "other inputs": (
        rnn.get_num_params_in_lstm(4, H, 2, True),
        "That many are those of input_size=4.",
    ),
    "other units": (
        rnn.get_num_params_in_lstm(I, 17, 2, True),
        "That many are those of hidden_size=17.",
    ),
    "twice": (2 * FULL, f"got {2 * FULL}. "),
    "one more": (FULL + 1, "No one of these sizes accounts for that many."),
    "nothing": (0, "got 0. No one of these sizes accounts for that many."),
}


@pytest.mark.parametrize(("length", "words"), WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_another_length_is_refused_with_the_sizes_it_has(length, words):
    expected = (
        f"vector: expected {FULL} values, as many as input_size=3, hidden_size=5, "
        "num_layers=2, bidirectional=True, proj_size=None, biases=2 have, got "
        f"{length}. "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}") as caught:
        cudnn.from_cudnn(np.ones(length, np.float32), **sizes(2, True))
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["num_layers", "hidden_size", "input_size"])
def test_sizes_of_any_order_are_refused_at_once(name):
    options = sizes() | {name: 10**12}
    with pytest.raises(ValueError, match=r"vector: expected \d{13,} values, as many"):
        cudnn.from_cudnn(np.ones(FULL, np.float32), **options)


def model_and_params(**options):
    model = lj.LSTM(I, H, **options)
    return model, model.init(jax.random.key(0))


ERRORS = {
    "a matrix": (
        lambda: cudnn.from_cudnn(np.ones((200, 1), np.float32), **sizes()),
        ValueError,
        "vector: expected one axis, as cuDNN's weights have it, got shape [200, 1].",
    ),
    "integers": (
        lambda: cudnn.from_cudnn(np.ones(200, int), **sizes()),
        TypeError,
        "vector: expected a floating dtype, got int",
    ),
    "a wide projection": (
        lambda: cudnn.from_cudnn(np.ones(225, np.float32), **sizes(proj_size=5)),
        ValueError,
        "proj_size: expected less than hidden_size = 5, got 5.",
    ),
    "no layers": (
        lambda: cudnn.from_cudnn(np.ones(200), **sizes(0)),
        ValueError,
        "num_layers: expected at least 1, got 0.",
    ),
    "a direction by name": (
        lambda: cudnn.from_cudnn(np.ones(200), **sizes(1, "reverse")),
        TypeError,
        "bidirectional: expected True or False, got 'reverse'",
    ),
    "biases": (
        lambda: cudnn.from_cudnn(np.ones(200), **sizes(biases=3)),
        ValueError,
        "biases: expected one of 0, 1, 2, got 3.",
    ),
    "biases or none": (
        lambda: cudnn.from_cudnn(np.ones(200), **sizes(biases=True)),
        TypeError,
        "biases: expected how many, 0, 1 or 2, got True.",
    ),
    "no room for the bias": (
        lambda: cudnn.to_cudnn(*model_and_params(), biases=0),
        ValueError,
        "biases: expected 1 or 2, since the model has a bias, got 0.",
    ),
    "peepholes": (
        lambda: cudnn.to_cudnn(*model_and_params(peephole=True)),
        ValueError,
        "peephole: expected False, since cuDNN has none, got True in layer 0.",
    ),
    "per-layer sizes": (
        lambda: cudnn.to_cudnn(lj.LSTM(3, (4, 5)), ()),
        ValueError,
        "hidden_size: expected one size for all layers, as cuDNN has, got (4, 5).",
    ),
    "another merge": (
        lambda: cudnn.to_cudnn(lj.LSTM(3, 4, bidirectional=True, merge="sum"), ()),
        ValueError,
        "merge: expected 'concat', which is all that cuDNN has, got 'sum'.",
    ),
    "a state of one layer": (
        lambda: cudnn.state_from_cudnn(
            lj.LSTM(3, 5, 2), *np.ones((2, 1, 4, 5), np.float32)
        ),
        ValueError,
        "h: expected shape [L*D, *batch, P] with L*D = 2 * 1 and P = 5, got [1, 4, 5].",
    ),
    "an sLSTM's state": (
        lambda: cudnn.state_to_cudnn(lj.LSTM(3, 5, variant="sLSTM"), ()),
        ValueError,
        "model: expected layers whose states are h and c, all that cuDNN has, got",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_what_does_not_fit_is_refused(call, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        call()
