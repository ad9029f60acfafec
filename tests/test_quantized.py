"""Models in 8 bits: to the bit what a loop over whole numbers gives, for each row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.recurrence import choice
from tests.common import normal, quick_jit, random_controls, random_params, random_state
from tests.oracles import quantized as oracle
from tests.serving import run as serve
from tests.serving import stream_whole

RUNNERS = [
    one.name
    for one in choice.IMPLEMENTATIONS
    if one.unavailable() is None
    and one.why_not(lj.QuantizedLSTMCell(1, 1), "float32") is None
]
ALL = ("lengths", "mask", "reset")


def same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def random_cell(seed, *sizes, **options):
    """A cell in 8 bits and its parameters, of which none is 0."""
    plain = lj.LSTMCell(*sizes, **options)
    return lj.quantize(plain, random_params(plain, seed))


# (B, T, I, H, P): one of everything, and ends of blocks and panels.
SHAPES = [
    (1, 1, 1, 1, None),
    (2, 3, 1, 7, None),
    (3, 4, 5, 16, None),
    (5, 7, 33, 19, None),
    (3, 6, 9, 40, 13),
    (7, 5, 4, 21, 1),
    (1, 40, 17, 65, None),
    (20, 3, 30, 66, None),
    (70, 3, 20, 33, None),
]
NAMES = [(), ALL, ("mask",), ("reset",), ("lengths",)]


@pytest.mark.parametrize("implementation", RUNNERS)
@pytest.mark.parametrize("index", range(2 * len(SHAPES)))
def test_is_to_the_bit_what_the_loop_gives(index, implementation):
    B, T, I, H, P = SHAPES[index // 2]
    cell, params = random_cell(index, I, H, proj_size=P, use_bias=index % 3 != 0)
    names = NAMES[index % len(NAMES)] if index % 2 else ()
    controls = random_controls(index, (B,), T, names)
    xs = normal([index, 1], (B, T, I))
    state = random_state(cell, index, (B,))
    reset_state = random_state(cell, index + 1, (B,))
    reverse = index % 4 > 1
    expected = oracle.forward(
        params._asdict(), xs, state, reset_state, controls, reverse=reverse
    )
    last, ys = lj.scan(
        cell,
        params,
        xs,
        state,
        reset_state=reset_state if "reset" in names else None,
        reverse=reverse,
        implementation=implementation,
        **controls,
    )
    same((ys, last.h, last.c), expected)


@pytest.mark.parametrize("implementation", RUNNERS)
@pytest.mark.parametrize("reverse", [False, True])
def test_states_of_every_step(reverse, implementation):
    cell, params = random_cell(1, 5, 21, proj_size=3)
    xs, state = normal(1, (2, 6, 5)), random_state(cell, 2, (2,))
    options = {"reverse": reverse, "implementation": implementation}
    last, states = lj.scan_states(cell, params, xs, state, **options)
    edge = 0 if reverse else -1
    same((states.h[:, edge], states.c[:, edge]), tuple(last))
    for t in range(1, 6):
        start = 6 - t if reverse else 0
        part = oracle.forward(
            params._asdict(),
            xs[:, start : start + t],
            state,
            state,
            {},
            reverse=reverse,
        )
        at = start if reverse else t - 1
        same((states.h[:, at], states.c[:, at]), part[1:])


@pytest.mark.parametrize("options", [{"clip": 0.4}, {"cell_clip": 0.3}], ids=str)
def test_clips(options):
    cell, params = random_cell(3, 4, 9, proj_size=5, **options)
    xs, state = normal(1, (2, 6, 4)), random_state(cell, 2, (2,))
    last, ys = lj.scan(cell, params, xs, state)
    expected = oracle.forward(params._asdict(), xs, state, state, {}, **options)
    same((ys, last.h, last.c), expected)
    plain = oracle.forward(params._asdict(), xs, state, state, {})
    assert (plain[0] != expected[0]).any()


def test_weights_have_a_scale_for_each_column():
    plain = lj.LSTMCell(5, 7, proj_size=3)
    params = random_params(plain, 0)
    kernel = params.kernel.at[:, 2].multiply(1e4).at[:, 3].set(0.0)
    params = params._replace(kernel=kernel)
    _, made = lj.quantize(plain, params)
    for name in ("kernel", "recurrent_kernel", "projection_kernel"):
        values, scales = oracle.columns(getattr(params, name))
        same(getattr(made, name), values)
        scale = name if name == "kernel" else name.removesuffix("_kernel")
        same(getattr(made, f"{scale}_scale"), scales)
    assert made.kernel.dtype == jnp.int8 and np.abs(made.kernel).max() == 127
    same(made.bias, params.bias)


def saturating(depth, units):
    """Weights of 127 and -127 in equal pairs, and their scales."""
    params = lj.LSTMCell(depth, units).init(jax.random.key(0))
    signs = np.where(np.arange(4 * units) % 3 == 0, -127, 127).astype(np.int8)
    kernel = np.broadcast_to(signs, (depth, 4 * units))
    recurrent = np.broadcast_to(signs, (units, 4 * units))
    scale = np.full(4 * units, 1e-6, np.float32)
    return lj.QuantizedParams(kernel, scale, recurrent, scale, params.bias)


@pytest.mark.parametrize("implementation", RUNNERS)
@pytest.mark.parametrize("depth, units", [(2, 2), (130, 70), (5000, 3)])
def test_sums_do_not_saturate(depth, units, implementation):
    check_saturating(depth, units, implementation)


def check_saturating(depth, units, implementation):
    cell, params = lj.QuantizedLSTMCell(depth, units), saturating(depth, units)
    signs = np.array([1, 1, -1, 1], np.float32)[:, None, None]
    xs = np.ones((4, 3, depth), np.float32) * signs
    xs[2, :, ::2] = 1  # sums of equal numbers that cancel
    xs[3, 1] = np.linspace(-1, 1, depth)
    state = lj.LSTMState(np.full((4, units), -0.9), np.ones((4, units)))
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), state)
    last, ys = lj.scan(cell, params, xs, state, implementation=implementation)
    expected = oracle.forward(params._asdict(), xs, state, state, {})
    same((ys, last.h, last.c), expected)


PLAIN = lj.LSTM(6, 19, 2, proj_size=11)
MODEL, PARAMS = lj.quantize(PLAIN, random_params(PLAIN, 1))
XS = normal(5, (3, 40, 6))


def bits(model, params, xs, **options):
    return np.asarray(
        quick_jit(functools.partial(model.apply, **options))(params, xs)[1]
    )


def test_a_row_does_not_see_the_others():
    whole = bits(MODEL, PARAMS, XS)
    same(bits(MODEL, PARAMS, XS[1:2]), whole[1:2])
    same(MODEL.apply(PARAMS, XS[2])[1], whole[2])
    loud = XS.at[1].multiply(1000.0)
    same(bits(MODEL, PARAMS, loud)[[0, 2]], whole[[0, 2]])
    broken = XS.at[1, 3, 2].set(jnp.nan).at[2, 5, 1].set(jnp.inf)
    ys = bits(MODEL, PARAMS, broken)
    same(ys[0], whole[0])
    same(ys[1:, :3], whole[1:, :3])
    assert np.isnan(ys[1, 3:]).all() and np.isnan(ys[2, 5:]).all()


@pytest.mark.parametrize("filler", [1e6, np.nan, -np.inf])
def test_a_row_does_not_see_padding(filler):
    whole = bits(MODEL, PARAMS, XS[:, :29])
    lengths = np.array([29, 7, 0])
    padded = np.where(np.arange(40)[:, None] < lengths[:, None, None], XS, filler)
    state, ys = MODEL.apply(PARAMS, padded, lengths=lengths)
    same(ys[0, :29], whole[0])
    same(ys[1, :7], whole[1, :7])
    assert not np.asarray(ys[1, 7:]).any() and not np.asarray(ys[2]).any()
    same(state[1].forward.h[1], whole[1, 6])
    mask = np.arange(40) % 3 != 1
    masked = np.where(mask[:, None], XS, filler)
    ys = MODEL.apply(PARAMS, masked, mask=np.broadcast_to(mask, (3, 40)))[1]
    same(ys[:, mask], MODEL.apply(PARAMS, XS[:, mask])[1])


def test_chunks_and_steps_are_the_whole():
    whole = bits(MODEL, PARAMS, XS)
    chunks = lj.stream(MODEL, PARAMS, [XS[:, :13], XS[:, 13:]], chunk_size=7)
    same(np.concatenate([ys for _, ys in chunks], 1), whole)
    for implementation in RUNNERS:
        same(MODEL.apply(PARAMS, XS, implementation=implementation)[1], whole)
    state, steps = None, []
    for x in jnp.moveaxis(XS, 1, 0):
        state, y = MODEL.step(PARAMS, state, x)
        steps.append(y)
    same(np.stack(steps, 1), whole)
    same(MODEL.apply(PARAMS, XS, checkpoint_every=7)[1], whole)
    same(
        MODEL.apply(PARAMS, jnp.moveaxis(XS, 1, 0), time_major=True)[1],
        whole.swapaxes(0, 1),
    )


def test_a_server_gives_each_stream_its_own():
    async def main(server):
        first, loud = await server.open(), await server.open()
        ys, xs = [], np.asarray(XS[0])
        for number, start in enumerate(range(0, 40, 4)):
            size = 1 if number == 3 else 4
            await server.push(loud, number, xs[:4] * 1e6)
            ys.append((await server.push(first, number, xs[start : start + size])).ys)
            if number == 3:
                break
        return np.concatenate(ys)

    options = {"model": MODEL, "params": PARAMS, "chunk_sizes": (1, 4)}
    whole = bits(MODEL, PARAMS, XS[:1])[0]
    same(serve(main, **options), whole[:13])
    same(serve(stream_whole, np.asarray(XS[0]), (4, 1, 3, 1, 2), **options), whole[:11])


def test_vmap_over_rows_and_over_weights():
    whole = bits(MODEL, PARAMS, XS)
    run = lambda params, xs: MODEL.apply(params, xs)[1]
    same(jax.vmap(run, (None, 0))(PARAMS, XS), whole)
    other = lj.quantize(PLAIN, random_params(PLAIN, 7))[1]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), PARAMS, other)
    ys = jax.vmap(run, (0, None))(both, XS)
    same(ys[0], whole)
    same(ys[1], run(other, XS))


def test_over_devices_the_bits_are_the_same():
    xs = normal(6, (4, 5, 6))
    whole = bits(MODEL, PARAMS, xs)
    mesh = jax.make_mesh((4,), ("rows",))
    cut = jax.device_put(xs, jax.NamedSharding(mesh, jax.P("rows")))
    for implementation in RUNNERS:
        run = lambda params, xs: MODEL.apply(params, xs, implementation=implementation)
        same(jax.jit(run)(PARAMS, cut)[1], whole)


def test_other_dtypes_of_inputs():
    narrow = XS.astype(jnp.bfloat16)
    ys = MODEL.apply(PARAMS, narrow)[1]
    assert ys.dtype == jnp.float32
    same(ys, MODEL.apply(PARAMS, narrow.astype(jnp.float32))[1])
    with jax.enable_x64(True):
        for call in (
            lambda xs: MODEL.apply(PARAMS, xs),
            lambda xs: MODEL.step(PARAMS, None, xs[:, 0]),
        ):
            with pytest.raises(
                TypeError, match=r"expected float32, bfloat16 or float16"
            ):
                call(np.ones((1, 2, 6)))


def test_there_is_no_gradient_and_it_says_so():
    said = "quantized LSTM has no gradient"
    loss = lambda xs: MODEL.apply(PARAMS, xs)[1].sum()
    for transform in (jax.grad, jax.hessian, lambda f: jax.jit(jax.grad(f))):
        with pytest.raises(NotImplementedError, match=said):
            transform(loss)(XS)
    with pytest.raises(NotImplementedError, match=said):
        jax.jvp(loss, (XS,), (XS,))
    with pytest.raises(NotImplementedError, match=said):
        jax.grad(lambda x: MODEL.step(PARAMS, None, x)[1].sum())(XS[:, 0])
    bias = lambda bias: MODEL.step(
        (PARAMS[0]._replace(forward=PARAMS[0].forward._replace(bias=bias)), PARAMS[1]),
        None,
        XS[:, 0],
    )[1].sum()
    with pytest.raises(NotImplementedError, match=said):
        jax.grad(bias)(PARAMS[0].forward.bias)
    with jax.disable_jit():
        with pytest.raises(NotImplementedError, match=said):
            jax.grad(lambda xs: MODEL.apply(PARAMS, xs, implementation="xla")[1].sum())(
                XS[:, :2]
            )


def test_what_follows_can_be_trained():
    def loss(readout, xs):
        return (MODEL.apply(PARAMS, jax.lax.stop_gradient(xs))[1] @ readout).sum()

    expected = MODEL.apply(PARAMS, XS)[1].sum((0, 1))
    grads = jax.grad(loss, (0, 1))(jnp.ones(11), XS)
    np.testing.assert_allclose(grads[0], expected, rtol=1e-5)
    assert not np.asarray(grads[1]).any()


@pytest.mark.parametrize("merge", ["concat", "sum", "mean", "mul"])
def test_stacks_of_two_directions(merge):
    plain = lj.LSTM(
        4, 9, 2, bidirectional=True, merge=merge, residual=merge != "concat"
    )
    params = random_params(plain, 2)
    model, params = lj.quantize(plain, params)
    xs, lengths = normal(3, (3, 8, 4)), np.array([8, 0, 5])
    ys = xs
    for index, layer in enumerate(params):
        zero = lj.LSTMState(*np.zeros((2, 3, 9), np.float32))
        both = [
            oracle.forward(
                one._asdict(), ys, zero, zero, {"lengths": lengths}, reverse=reverse
            )[0]
            for one, reverse in zip(layer, (False, True), strict=True)
        ]
        joined = {
            "concat": lambda a, b: np.concatenate([a, b], -1),
            "sum": np.add,
            "mean": lambda a, b: (a + b) / np.float32(2),
            "mul": np.multiply,
        }[merge](*both)
        ys = joined + ys if model.residual and index else joined
    for implementation in RUNNERS:
        state, actual = model.apply(
            params, xs, lengths=lengths, implementation=implementation
        )
        same(actual, ys)
        same(state[1].backward.h[0], both[1][0, 0])


@pytest.mark.parametrize("reverse", [(False, True), (True, False), True])
def test_layers_that_run_backward_still_do(reverse):
    plain = lj.LSTM(4, 9, 2, reverse=reverse)
    model, params = lj.quantize(plain, random_params(plain, 2))
    xs, lengths = normal(3, (3, 8, 4)), np.array([8, 0, 5])
    ys, zero = xs, lj.LSTMState(*np.zeros((2, 3, 9), np.float32))
    each = (True, True) if reverse is True else reverse
    for layer, backward in zip(params, each, strict=True):
        controls = {"lengths": lengths}
        one = layer.forward._asdict()
        ys = oracle.forward(one, ys, zero, zero, controls, reverse=backward)[0]
    for implementation in RUNNERS:
        _, actual = model.apply(
            params, xs, lengths=lengths, implementation=implementation
        )
        same(actual, ys)


def test_a_learned_start():
    plain = lj.LSTM(4, 9, learn_initial_state=True)
    made, params = lj.quantize(plain, random_params(plain, 2))
    start = lj.LSTMState(params[0].forward.initial_h, params[0].forward.initial_c)
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (2, 9)), start)
    xs, reset = normal(3, (2, 8, 4)), np.arange(8) % 3 == 2
    reset = np.broadcast_to(reset, (2, 8))
    expected = oracle.forward(
        params[0].forward._asdict(), xs, start, start, {"reset": reset}
    )
    same(made.apply(params, xs, reset=reset)[1], expected[0])
