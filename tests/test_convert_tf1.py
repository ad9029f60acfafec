"""TensorFlow 1's cells, against its equations in float64; TensorFlow is not needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert import tf1, tf1_states
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_like,
    value_and_pullback,
)

I, H, P, T, B = 3, 5, 2, 3, 3
CELLS = {
    "basic": {},
    "peepholes": dict(peephole=True),
    "projection": dict(proj_size=P),
    "everything": dict(peephole=True, proj_size=P, cell_clip=0.3),
}
# What is around the cell's name: how many layers and directions, and the names.
AROUND = {
    "dynamic_rnn": (1, False, ["rnn"]),
    "no name": (1, False, [""]),
    "MultiRNNCell": (
        3,
        False,
        [f"rnn/multi_rnn_cell/cell_{n}" for n in range(3)],
    ),
    "bidirectional_dynamic_rnn": (
        1,
        True,
        [f"bidirectional_rnn/{way}" for way in ("fw", "bw")],
    ),
    "stack_bidirectional_dynamic_rnn": (
        2,
        True,
        [
            f"stack_bidirectional_rnn/cell_{n}/bidirectional_rnn/{way}"
            for n in range(2)
            for way in ("fw", "bw")
        ],
    ),
}


def sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def step(cell, x, c, h, *, forget_bias=1.0, act=jnp.tanh, cell_clip=None):
    """The equations of TensorFlow 1's ``LSTMCell``, as its documentation has them."""
    i, j, f, o = jnp.split(jnp.concatenate([x, h], -1) @ cell["kernel"], 4, axis=-1)
    bi, bj, bf, bo = jnp.split(cell["bias"], 4)
    see = lambda gate, c: cell[f"w_{gate}_diag"] * c if "w_i_diag" in cell else 0.0
    forget = sigmoid(f + bf + forget_bias + see("f", c)) * c
    c = forget + sigmoid(i + bi + see("i", c)) * act(j + bj)
    if cell_clip is not None:
        c = jnp.clip(c, -cell_clip, cell_clip)
    h = sigmoid(o + bo + see("o", c)) * act(c)
    if "projection/kernel" in cell:
        h = h @ cell["projection/kernel"]
    return c, h


def run(cells, xs, states, both, **options):
    """Layers of one or two cells, as ``dynamic_rnn`` and its like run them."""
    last = []
    for index in range(0, len(cells), 1 + both):
        outs = []
        for direction in range(1 + both):
            c, h = states[index + direction]
            times, ys = range(xs.shape[1]), {}
            for t in reversed(times) if direction else times:
                c, h = step(cells[index + direction], xs[:, t], c, h, **options)
                ys[t] = h
            outs.append(jnp.stack([ys[t] for t in times], 1))
            last.append((c, h))
        xs = jnp.concatenate(outs, -1)
    return xs, last


def make_cells(count, both, options, seed=0):
    """Random variables of some cells, in order, as float32."""
    cells, inputs = [], I
    output = options.get("proj_size", H)
    for n in range(count * (1 + both)):
        shapes = {"kernel": (inputs + output, 4 * H), "bias": (4 * H,)}
        if options.get("peephole"):
            shapes |= {f"w_{gate}_diag": (H,) for gate in "ifo"}
        if output != H:
            shapes["projection/kernel"] = (H, output)
        cells.append(
            {
                name: np.asarray(normal([seed, n, k], shape, scale=0.5))
                for k, (name, shape) in enumerate(shapes.items())
            }
        )
        if n % (1 + both) == both:
            inputs = output * (1 + both)
    return cells


def make_states(cells, both, batch=B, seed=1):
    pairs = []
    for n, cell in enumerate(cells):
        output = cell.get("projection/kernel", np.empty((H, H))).shape[1]
        c, h = normal([seed, n], (batch, H)), normal([seed, n, 1], (batch, output))
        pairs.append((np.asarray(c), np.asarray(h)))
    return pairs


def nested(pairs, both):
    """Pairs as TensorFlow returns them."""
    side = lambda some: some[0] if len(some) == 1 else tuple(some)
    return (side(pairs[::2]), side(pairs[1::2])) if both else side(pairs)


def named(cells, around, cell="lstm_cell", end=""):
    return {
        "/".join(filter(None, [scope, cell, name])) + end: value
        for scope, one in zip(around, cells, strict=True)
        for name, value in one.items()
    }


def in_float64(function, *args):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), args)
        return jax.tree.map(np.asarray, quick_jit(function)(*wide))


# Every cell, and everything that cells are run by.
CASES = [(cell, "stack_bidirectional_dynamic_rnn") for cell in CELLS]
CASES += [("everything", around) for around in list(AROUND)[:-1]]


@pytest.mark.parametrize(("cell", "around"), CASES)
def test_values_and_gradients_agree(cell, around):
    options, (layers, both, scopes) = CELLS[cell], AROUND[around]
    cells = make_cells(layers, both, options)
    states = make_states(cells, both)
    xs = np.asarray(normal(2, (B, T, I)))
    clip = {"cell_clip": options.get("cell_clip")}

    def theirs(cells, xs, states):
        ys, last = run(cells, xs, states, both, **clip)
        return ys, nested(last, both)

    def ours(cells, xs, states):
        model, params = tf1.from_tf1(named(cells, scopes), **clip)
        state = tf1_states.state_from_tf1(model, nested(states, both))
        state, ys = model.apply(params, xs, state)
        last = tf1_states.state_to_tf1(model, state)
        plain = lambda pair: tuple(pair) if hasattr(pair, "c") else None
        return ys, jax.tree.map(plain, last, is_leaf=lambda at: hasattr(at, "c"))

    args = jax.tree.map(jnp.asarray, (cells, xs, states))
    expected = in_float64(theirs, *args)
    cotangents = random_like(3, jax.tree.map(jnp.float32, expected))
    found, pulled = value_and_pullback(ours, args, cotangents)
    assert_close(found, expected)
    if "cell_clip" in options:  # it has been at work
        free = in_float64(lambda *some: run(*some, both)[0], *args)
        assert np.abs(free - expected[0]).max() > 1e-2

    def gradients(cells, xs, states, cotangents):
        return jax.vjp(theirs, cells, xs, states)[1](cotangents)

    assert_close(pulled, in_float64(gradients, *args, cotangents))


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 5), (3, 1)])
def test_one_row_and_one_step(batch, length):
    cells = make_cells(2, False, CELLS["everything"])
    states = make_states(cells, False, batch)
    xs = np.asarray(normal(4, (batch, length, I)))
    scopes = AROUND["MultiRNNCell"][2][:2]
    model, params = tf1.from_tf1(named(cells, scopes), cell_clip=0.3)
    state = tf1_states.state_from_tf1(model, tuple(states))
    _, ys = model.apply(params, jnp.asarray(xs), state)
    theirs = lambda *args: run(*args, False, cell_clip=0.3)[0]
    assert_close(ys, in_float64(theirs, cells, xs, states))


@pytest.mark.parametrize("forget_bias", [None, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu])
def test_options_that_are_not_in_the_variables(forget_bias, activation):
    cells = make_cells(1, False, {})
    states, xs = make_states(cells, False), np.asarray(normal(5, (B, T, I)))
    weights = named(cells, ["rnn"], "basic_lstm_cell", ":0")
    model, params = tf1.from_tf1(
        weights, forget_bias=forget_bias, activation=activation
    )
    added = 1.0 if forget_bias is None else forget_bias
    _, ys = model.apply(
        params, jnp.asarray(xs), tf1_states.state_from_tf1(model, *states)
    )
    theirs = lambda *args: run(*args, False, forget_bias=added, act=activation)[0]
    assert_close(ys, in_float64(theirs, cells, xs, states))
    back = tf1.to_tf1(model, params, forget_bias=forget_bias, cell="basic_lstm_cell")
    check_round_trip(back, named(cells, ["rnn"], "basic_lstm_cell"), added)


def check_round_trip(back, weights, added):
    """All bit for bit, but the forget bias, which was rounded where it was added."""
    assert list(back) == list(weights)
    for name, value in weights.items():
        assert type(back[name]) is np.ndarray and back[name].flags.c_contiguous
        assert back[name].dtype == value.dtype
        expected, rest = value, back[name]
        if name.endswith("bias"):
            expected, rest = np.split(value, 4), np.split(rest, 4)
            once = (expected[2] + np.float32(added)) - np.float32(added)
            np.testing.assert_array_equal(rest[2], once)
            assert np.abs(rest[2] - expected[2]).max() <= np.spacing(
                np.float32(np.abs(expected[2]).max() + abs(added))
            )
            del expected[2], rest[2]
        np.testing.assert_array_equal(np.array(rest), np.array(expected))


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("options", CELLS.values(), ids=CELLS)
def test_round_trip(options, around):
    layers, both, scopes = around
    cells = make_cells(layers, both, options)
    clip = options.get("cell_clip")
    weights = named(cells, scopes)
    model, params = tf1.from_tf1(weights, cell_clip=clip)
    assert (model.num_layers, model.bidirectional, model.cell_clip) == (
        layers,
        both,
        clip,
    )
    back = tf1.to_tf1(model, params)
    there = weights if scopes != [""] else named(cells, ["rnn"])
    check_round_trip(back, there, 1.0)
    again, params_again = tf1.from_tf1(back, cell_clip=clip)
    assert again == model
    assert_close(params_again, params)
    state = random_like(6, model.zero_state((B,)))
    nest = tf1_states.state_to_tf1(model, state)
    jax.tree.map(
        np.testing.assert_array_equal, tf1_states.state_from_tf1(model, nest), state
    )


def test_a_bias_of_the_other_way_round():
    model = lj.LSTM(I, H, use_bias=False)
    params = random_like(7, model.init(jax.random.key(0)))
    weights = tf1.to_tf1(model, params)
    again, back = tf1.from_tf1(weights)
    assert again.use_bias
    np.testing.assert_array_equal(back[0].forward.bias, np.zeros(4 * H))
    xs = normal(8, (B, T, I))
    assert_close(again.apply(back, xs)[1], model.apply(params, xs)[1])


def test_cells_of_different_sizes():
    model = lj.LSTM(I, (4, 6))
    params = random_like(9, model.init(jax.random.key(0)))
    again, back = tf1.from_tf1(tf1.to_tf1(model, params))
    assert again == model
    assert_close(back, params)
    state = model.zero_state((B,))
    nest = tf1_states.state_to_tf1(model, state)
    assert [pair.c.shape for pair in nest] == [(B, 4), (B, 6)]
    jax.tree.map(
        np.testing.assert_array_equal, tf1_states.state_from_tf1(model, nest), state
    )


def test_what_cudnn_lstm_is_saved_as_adds_nothing():
    cells = make_cells(2, True, {})
    scopes = [
        f"cudnn_lstm/{scope}" for scope in AROUND["stack_bidirectional_dynamic_rnn"][2]
    ]
    weights = named(cells, scopes, "cudnn_compatible_lstm_cell")
    model, params = tf1.from_tf1(weights)
    states, xs = make_states(cells, True), np.asarray(normal(10, (B, T, I)))
    state = tf1_states.state_from_tf1(model, nested(states, True))
    _, ys = model.apply(params, jnp.asarray(xs), state)
    theirs = lambda *args: run(*args, True, forget_bias=0.0)[0]
    assert_close(ys, in_float64(theirs, cells, xs, states))
    back = tf1.to_tf1(model, params, cell="cudnn_compatible_lstm_cell")
    for name, value in back.items():
        np.testing.assert_array_equal(value, weights[f"cudnn_lstm/{name}"])
    for call in (
        lambda: tf1.from_tf1(weights, forget_bias=1.0),
        lambda: tf1.to_tf1(
            model, params, cell="cudnn_compatible_lstm_cell", forget_bias=1.0
        ),
    ):
        with pytest.raises(ValueError, match=r"forget_bias: expected 0, which is what"):
            call()


def test_an_lstm_in_a_checkpoint_is_found_by_its_path():
    cells = make_cells(2, False, CELLS["peepholes"])
    scopes = [f"encoder/{scope}" for scope in AROUND["MultiRNNCell"][2][:2]]
    weights = named(cells, scopes)
    slots = {f"{name}/Adam": value for name, value in weights.items()}
    slots |= {f"{name}/ExponentialMovingAverage": v for name, v in weights.items()}
    others = {
        "global_step": np.int64(3),
        "dense/kernel": np.ones((5, 8)),
        "dense/bias": np.ones(8),
        "beta1_power": np.float32(0.9),
    }
    expected = tf1.from_tf1(weights)
    whole = weights | slots | others
    for path in ("encoder", "encoder/rnn", ("encoder", "rnn"), "encoder/rnn/"):
        model, params = tf1.from_tf1(whole, path=path)
        assert model == expected[0]
        jax.tree.map(np.testing.assert_array_equal, params, expected[1])
    layer = "encoder/rnn/multi_rnn_cell/cell_1"
    for path in (layer, f"{layer}/lstm_cell"):
        _, params = tf1.from_tf1(whole, path=path)
        jax.tree.map(np.testing.assert_array_equal, params, expected[1][1:])
    with pytest.raises(
        ValueError,
        match=r"unknown names beta1_power, global_step\. Pass path='encoder/rnn/multi_",
    ):
        tf1.from_tf1(whole)
    del whole["global_step"], whole["beta1_power"]
    with pytest.raises(
        ValueError, match=r"got those of dense, encoder/rnn/.*Pass path"
    ):
        tf1.from_tf1(whole)


def test_the_words_of_tensorflow_1_0():
    cells = make_cells(1, False, dict(proj_size=P))
    weights = named(cells, ["rnn"])
    renamed = {
        name.replace("kernel", "weights").replace("bias", "biases"): value
        for name, value in weights.items()
    }
    assert "rnn/lstm_cell/projection/weights" in renamed
    jax.tree.map(
        np.testing.assert_array_equal,
        tf1.from_tf1(renamed)[1],
        tf1.from_tf1(weights)[1],
    )


def test_dtypes_are_kept():
    cells = make_cells(1, False, CELLS["everything"])
    half = {
        name: value.astype(jnp.bfloat16)
        for name, value in named(cells, ["rnn"]).items()
    }
    model, params = tf1.from_tf1(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert {one.dtype for one in tf1.to_tf1(model, params).values()} == {
        jnp.dtype(jnp.bfloat16)
    }
    wide = {name: value.astype(np.float64) for name, value in half.items()}
    with pytest.warns(UserWarning, match="float64 becomes float32, since") as caught:
        tf1.from_tf1(wide)
    assert {str(one.message).split(":")[0] for one in caught} == set(wide)
    with jax.enable_x64(True):
        assert tf1.from_tf1(wide)[1][0].forward.bias.dtype == np.float64
