"""xLSTM's sLSTM, against its equations in float64, head by head; the package, where it
is installed, is asked in ``tests/peers/test_xlstm.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert import xlstm
from tests.common import (
    assert_close,
    normal,
    quick_jit,
    random_like,
    value_and_pullback,
)

N, D, T, B = 2, 3, 3, 2
H = N * D
GATES = ("fgate", "igate", "zgate", "ogate")  # for the slots i, f, z, o


def make_layer(seed, backend="cuda", size=D, inputs=D):
    """A layer's weights, drawn as [N, from, gate, to], in the layout of a backend."""
    recurrent = np.asarray(normal([seed, 1], (N, size, 4, size), scale=0.6))
    bias = np.asarray(normal([seed, 2], (N, 4, size), scale=0.6))
    if backend == "cuda":
        cell = recurrent.reshape(N, size, 4 * size), bias.reshape(-1)
    else:
        kernel = recurrent.transpose(0, 2, 3, 1).reshape(N, 4 * size, size)
        cell = kernel, bias.transpose(1, 0, 2).reshape(-1)
    weights = {
        f"{gate}.weight": np.asarray(normal([seed, 3, n], (N, size, inputs)))
        for n, gate in enumerate(GATES)
    }
    names = ("slstm_cell._recurrent_kernel_", "slstm_cell._bias_")
    return weights | {
        name: np.array(one) for name, one in zip(names, cell, strict=True)
    }


def gates_of(weights, x, x_conv):
    """What the layer hands its cell, for each slot and head: [4, N, B, D]."""
    columns = []
    for slot, gate in enumerate(GATES):
        heads = jnp.split(x_conv if slot < 2 else x, N, -1)
        matrices = weights[f"{gate}.weight"]
        columns.append(
            [one @ matrix.T for one, matrix in zip(heads, matrices, strict=True)]
        )
    return columns


def step(weights, backend, z, state):
    """The package's equations for one step, head by head."""
    kernel, bias = (
        weights[f"slstm_cell.{name}"] for name in ("_recurrent_kernel_", "_bias_")
    )
    size = min(kernel.shape[1:])
    after = []
    for n in range(N):
        y, c, n_, m = (one[:, n * size : (n + 1) * size] for one in state)
        raw = []
        for slot in range(4):
            rows = slice(slot * size, (slot + 1) * size)
            if backend == "cuda":
                matrix, own = kernel[n][:, rows], bias.reshape(N, 4, size)[n, slot]
            else:
                matrix, own = kernel[n][rows].T, bias.reshape(4, N, size)[slot, n]
            raw.append(z[slot][n] + y @ matrix + own)
        log_f = m - jnp.logaddexp(0, -raw[1])
        new_m = jnp.where(n_ == 0, raw[0], jnp.maximum(raw[0], log_f))
        i, f = jnp.exp(raw[0] - new_m), jnp.exp(jnp.minimum(log_f - new_m, 0))
        f = jnp.where(n_ == 0, 0, f)
        c, n_ = f * c + i * jnp.tanh(raw[2]), f * n_ + i
        after.append((c / n_ / (1 + jnp.exp(-raw[3])), c, n_, new_m))
    return [jnp.concatenate(parts, -1) for parts in zip(*after, strict=True)]


def run(weights, backend, xs, state, xs_conv=None, reverse=False):
    ys, times = {}, range(xs.shape[1])
    for t in reversed(times) if reverse else times:
        x = xs[:, t]
        x_conv = x if xs_conv is None else xs_conv[:, t]
        state = step(weights, backend, gates_of(weights, x, x_conv), state)
        ys[t] = state[0]
    return jnp.stack([ys[t] for t in times], 1), jnp.stack(state)


def make_state(seed, size=H, batch=B):
    state = np.array(normal(seed, (4, batch, size)))
    state[2] = np.abs(state[2]) + 0.1
    return state


def in_float64(function, *args):
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), args)
        return jax.tree.map(np.asarray, quick_jit(function)(*wide))


@pytest.mark.parametrize(
    ("backend", "inputs", "start"),
    [("cuda", D, "given"), ("vanilla", 2, "given"), ("cuda", 2, "zeros")],
)
def test_values_and_gradients_agree(backend, inputs, start):
    weights = make_layer(0, backend, inputs=inputs)
    xs = np.asarray(normal(1, (B, T, N * inputs)))
    state = make_state(2) if start == "given" else np.zeros((4, B, H), np.float32)

    def ours(weights, xs):
        model, params = xlstm.from_xlstm(weights)
        assert (model.input_size, model.hidden_size) == (N * inputs, H)
        start = xlstm.state_from_xlstm(model, jnp.asarray(state))
        last, ys = model.apply(params, xs, start)
        return ys, xlstm.state_to_xlstm(model, last)

    def theirs(weights, xs):
        return run(weights, backend, xs, state.astype(xs.dtype))

    args = jax.tree.map(jnp.asarray, (weights, xs))
    expected = in_float64(theirs, *args)
    cotangents = random_like(3, jax.tree.map(jnp.float32, expected))
    found, pulled = value_and_pullback(ours, args, cotangents)
    assert_close(found, expected)

    def gradients(weights, xs, cotangents):
        return jax.vjp(theirs, weights, xs)[1](cotangents)

    assert_close(pulled, in_float64(gradients, *args, cotangents))


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 5), (3, 1)])
def test_one_row_and_one_step(batch, length):
    weights, state = make_layer(4), make_state(5, batch=batch)
    xs = np.asarray(normal(6, (batch, length, H)))
    model, params = xlstm.from_xlstm(weights)
    start = xlstm.state_from_xlstm(model, state)
    last, ys = model.apply(params, jnp.asarray(xs), start)
    expected = in_float64(
        lambda *args: run(args[0], "cuda", *args[1:]), weights, xs, state
    )
    assert_close((ys, jnp.asarray(xlstm.state_to_xlstm(model, last))), expected)


def test_i_and_f_have_inputs_of_their_own_behind_a_convolution():
    weights = make_layer(7)
    around = {
        "conv1d.conv.weight": np.ones((H, 1, 4), np.float32),
        "conv1d.conv.bias": np.ones(H, np.float32),
        "group_norm.weight": np.ones(H, np.float32),
    }
    whole = {f"blocks.1.xlstm.{k}": v for k, v in (weights | around).items()}
    for path in ("blocks.1.xlstm", "blocks/1/xlstm", ("blocks", "1", "xlstm")):
        model, params = xlstm.from_xlstm(
            whole | {"lm_head.weight": np.ones(3)},
            path=path,
            leave_out=("conv1d", "group_norm"),
        )
    assert model.input_size == 2 * H
    xs, xs_conv = normal(8, (B, T, H)), normal(9, (B, T, H))
    state = make_state(10)
    both = jnp.concatenate([xs_conv, xs], -1)
    _, ys = model.apply(params, both, xlstm.state_from_xlstm(model, state))
    theirs = lambda *args: run(args[0], "cuda", *args[1:])
    assert_close(ys, in_float64(theirs, weights, xs, state, xs_conv)[0])
    back = xlstm.to_xlstm(model, params, inputs="conv1d")
    assert back.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, back, weights)


@pytest.mark.parametrize("backend", ["cuda", "vanilla"])
def test_a_cell_takes_what_its_layer_makes(backend):
    weights = make_layer(11, backend)
    xs, state = normal(12, (B, T, H)), make_state(13)
    cell = {k.removeprefix("slstm_cell."): v for k, v in weights.items() if "cell" in k}
    model, params = xlstm.from_xlstm(cell)
    assert (model.input_size, model.hidden_size) == (4 * H, H)
    gates = jnp.stack(
        [
            jnp.concatenate(heads, -1)
            for heads in zip(
                *[[jnp.concatenate(slot, -1)] for slot in gates_of(weights, xs, xs)],
                strict=True,
            )
        ]
    )[0]
    _, ys = model.apply(params, gates, xlstm.state_from_xlstm(model, state))
    theirs = lambda *args: run(args[0], backend, *args[1:])
    assert_close(ys, in_float64(theirs, weights, xs, state)[0])
    back = xlstm.to_xlstm(model, params, backend=backend, inputs="gates")
    assert back.keys() == cell.keys()
    jax.tree.map(np.testing.assert_array_equal, back, cell)
    # Its weights with the name of the layer's are half a layer's, and no cell's.
    inside = {k: v for k, v in weights.items() if "cell" in k}
    with pytest.raises(
        ValueError, match=r"weights: fgate.weight is missing; there are"
    ):
        xlstm.from_xlstm(inside)


@pytest.mark.parametrize("backend", ["cuda", "vanilla"])
def test_layers_and_directions(backend):
    first = tuple(make_layer([14, n], backend, inputs=2) for n in range(2))
    second = tuple(make_layer([15, n], backend, size=2, inputs=2 * D) for n in range(2))
    model, params = xlstm.from_xlstm([first, second])
    assert (model.input_size, model.hidden_size) == (N * 2, (H, N * 2))
    assert model.bidirectional
    xs = normal(16, (B, T, N * 2))
    states = [tuple(make_state([17, n], size) for n in range(2)) for size in (H, N * 2)]

    def theirs(first, second, xs, states):
        lasts = []
        for layer, starts in zip((first, second), states, strict=True):
            pairs = [
                run(one, backend, xs, start, reverse=bool(n))
                for n, (one, start) in enumerate(zip(layer, starts, strict=True))
            ]
            xs = jnp.concatenate([ys for ys, _ in pairs], -1)
            lasts.append(tuple(last for _, last in pairs))
        return xs, lasts

    last, ys = model.apply(params, xs, xlstm.state_from_xlstm(model, states))
    found = ys, jax.tree.map(jnp.asarray, xlstm.state_to_xlstm(model, last))
    assert_close(found, in_float64(theirs, first, second, xs, states))
    back = xlstm.to_xlstm(model, params, backend=backend)
    jax.tree.map(np.testing.assert_array_equal, back, [first, second])


@pytest.mark.parametrize("backend", ["cuda", "vanilla"])
@pytest.mark.parametrize("heads", [1, 3])
def test_round_trip_of_a_model(heads, backend):
    model = lj.LSTM(6, 9, 2, variant="sLSTM", num_heads=heads)
    params = random_like(18, model.init(jax.random.key(0)))
    if heads > 1:  # inputs feed units of their own head alone
        block = lambda rows: np.kron(np.eye(3), np.ones((rows, 3)))
        masks = [np.tile(block(rows), (1, 4)) for rows in (2, 3)]
        params = tuple(
            lj.Directions(
                layer.forward._replace(
                    kernel=layer.forward.kernel * jnp.asarray(mask, jnp.float32)
                )
            )
            for layer, mask in zip(params, masks, strict=True)
        )
    weights = xlstm.to_xlstm(model, params, backend=backend)
    for one in weights:
        assert all(type(v) is np.ndarray and v.flags.c_contiguous for v in one.values())
    again, back = xlstm.from_xlstm(weights)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, back, params)
    state = random_like(19, model.zero_state((B,)))
    there = xlstm.state_to_xlstm(model, state)
    jax.tree.map(
        np.testing.assert_array_equal, xlstm.state_from_xlstm(model, there), state
    )


def test_a_model_without_bias_has_zeros():
    model = lj.LSTM(4, 6, variant="sLSTM", use_bias=False)
    params = random_like(20, model.init(jax.random.key(0)))
    weights = xlstm.to_xlstm(model, params)
    again, back = xlstm.from_xlstm(weights)
    xs = normal(21, (B, T, 4))
    assert_close(again.apply(back, xs)[1], model.apply(params, xs)[1])


def test_dtypes_are_kept():
    half = {name: value.astype(jnp.bfloat16) for name, value in make_layer(22).items()}
    model, params = xlstm.from_xlstm(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(np.testing.assert_array_equal, xlstm.to_xlstm(model, params), half)
