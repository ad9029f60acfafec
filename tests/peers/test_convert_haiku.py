"""Weights and states of Haiku's cores, beside Haiku itself."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert import haiku as converter
from lstm_jax.convert.haiku import from_haiku, to_haiku
from tests.common import assert_close, random_like
from tests.peers import converted
from tests.peers.converted import SHAPES, SIZES, STACKS, I, assert_equal

H = SIZES[0]


def shapes_of(build, *args):
    """The shapes of the params that a function makes."""
    init = hk.transform(build).init
    return jax.eval_shape(init, jax.random.PRNGKey(0), *args)


def core_shapes(inputs, size):
    def build(x):
        core = hk.LSTM(size)
        return core(x, core.initial_state(None))

    return shapes_of(build, jax.ShapeDtypeStruct((inputs,), jnp.float32))


def run_core(params, xs, state, reverse):
    def build(xs, state):
        core = hk.LSTM(state.hidden.shape[-1])
        return hk.dynamic_unroll(core, xs, state, time_major=False, reverse=reverse)

    return hk.without_apply_rng(hk.transform(build)).apply(params, xs, state)


def run_layers(directions, params, xs, states):
    """Layers of cores, whose two directions are merged by hand."""
    last = []
    params = params if isinstance(params, list) else [params]
    states = [states] if len(params) == 1 else states
    for layer, state in zip(params, states, strict=True):
        pairs = [(layer, state)]
        if directions == 2:
            pairs = list(zip(layer, state, strict=True))
        found = [run_core(p, xs, s, bool(n)) for n, (p, s) in enumerate(pairs)]
        xs = jnp.concatenate([ys for ys, _ in found], -1)
        made = tuple(state for _, state in found)
        last.append(made if directions == 2 else made[0])
    return xs, last[0] if len(last) == 1 else tuple(last)


def add_one(tree):
    """What the way out takes off a gradient, which is no bias."""

    def change(path, leaf):
        if path[-1].key != "b":
            return leaf
        size = leaf.shape[0] // 4
        return leaf.at[2 * size : 3 * size].add(1)

    return jax.tree.map_with_path(change, tree)


def peer(run, **given):
    give = functools.partial(to_haiku, **given)
    return converted.Peer(
        from_haiku,
        give,
        converter.state_from_haiku,
        converter.state_to_haiku,
        run,
        lambda model, gradient: add_one(give(model, gradient)),
    )


def assert_rounded_once(actual, expected):
    """Compares params; the forget gate's bias to one rounding of b + 1."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree.leaves_with_path(expected)
    for (path, e), a in zip(leaves, jax.tree.leaves(actual), strict=True):
        assert a.dtype == e.dtype
        a, e = np.asarray(a), np.asarray(e)
        if path[-1].key == "b":
            size = e.shape[0] // 4
            gate = slice(2 * size, 3 * size)
            rounded = (e[gate] + e.dtype.type(1)) - e.dtype.type(1)
            np.testing.assert_array_equal(a[gate], rounded)
            step = np.spacing(np.abs(e[gate]) + e.dtype.type(1))
            assert (np.abs(a[gate] - e[gate]) <= step / 2).all()
            a, e = np.delete(a, gate), np.delete(e, gate)
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_cores_run_the_same(shape, stack):
    layers, directions = stack
    sizes = zip(converted.inputs_of(*stack), SIZES, strict=False)
    found = [core_shapes(*pair) for pair in sizes]
    found = [(one, one) if directions == 2 else one for one in found]
    states = converted.states(*stack, shape[:1], lambda one: hk.LSTMState(one, one))
    weights, model, params = peer(functools.partial(run_layers, directions)).check(
        found[0] if layers == 1 else found,
        shape,
        tuple(states) if layers == 2 else states,
    )
    assert_rounded_once(to_haiku(model, params), weights)
    sizes = SIZES if layers == 2 else SIZES[0]
    assert model == lj.LSTM(I, sizes, layers, bidirectional=directions == 2)


def deep(xs, state=None, *, make=hk.DeepRNN):
    core = make([hk.LSTM(size) for size in SIZES])
    state = core.initial_state(xs.shape[0]) if state is None else state
    return hk.dynamic_unroll(core, xs, state, time_major=False)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_deep_cores_run_the_same(shape, skip):
    make = hk.deep_rnn_with_skip_connections if skip else hk.DeepRNN
    build = functools.partial(deep, make=make)
    run = hk.without_apply_rng(hk.transform(build)).apply
    weights = shapes_of(build, jnp.ones((1, 1, I)))
    assert set(weights) == {"lstm/linear", "lstm_1/linear"}
    states = converted.states(2, 1, shape[:1], lambda one: hk.LSTMState(one, one))
    weights, model, params = peer(run, module="DeepRNN").check(
        weights, shape, tuple(states)
    )
    assert model == lj.LSTM(I, SIZES, skip=skip)
    assert_rounded_once(to_haiku(model, params, module="DeepRNN"), weights)
    apart = to_haiku(model, params)
    assert [list(one) for one in apart] == [["lstm/linear"]] * 2
    again, back = from_haiku(apart)
    assert again == model
    assert_close(back, params)


@pytest.mark.parametrize("merge", ["concat", "sum"])
def test_skips_of_two_directions_come_back(merge):
    model = lj.LSTM(I, SIZES, bidirectional=True, merge=merge, skip=True)
    params = random_like(1, model.init(jax.random.key(0)))
    given = to_haiku(model, params)[1]
    below = params[1].forward.kernel.shape[0] - I
    first_gate = slice(0, SIZES[1])
    expected = params[1].forward.kernel[below:, first_gate]
    assert_equal(given[0]["lstm/linear"]["w"][:I, first_gate], expected)
    again, back = from_haiku(to_haiku(model, params), merge=merge)
    assert again == model
    assert_close(back, params)


def test_later_layers_are_in_the_order_of_their_numbers():
    def build(xs):
        core = hk.DeepRNN([hk.LSTM(size) for size in range(2, 14)])
        return hk.dynamic_unroll(core, xs, core.initial_state(1), time_major=False)[0]

    xs = random_like(1, jnp.ones((1, 3, I)))
    weights = random_like(2, shapes_of(build, xs))
    model, params = from_haiku(dict(sorted(weights.items())))
    assert model.hidden_size == tuple(range(2, 14))
    expected = hk.without_apply_rng(hk.transform(build)).apply(weights, xs)
    assert_close(model.apply(params, xs)[1], expected)


class Agent(hk.Module):
    """Cores in a larger model, by every kind of name that Haiku makes."""

    def __init__(self):
        super().__init__()
        self.core = hk.DeepRNN([hk.LSTM(5), jax.nn.relu, hk.LSTM(4)])
        self.named = hk.ResetCore(hk.LSTM(4, name="memory"))

    def __call__(self, x):
        y, _ = self.core(x, self.core.initial_state(None))
        state = self.named.initial_state(None)
        y, _ = self.named((y, jnp.zeros((), bool)), state)
        inner = hk.LSTM(2)
        y, _ = inner(y, inner.initial_state(None))
        gru = hk.GRU(3)
        return hk.Linear(2)(gru(y, gru.initial_state(None))[0])


@pytest.fixture
def agent():
    return random_like(1, shapes_of(lambda x: Agent()(x), jnp.ones(I)))


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("agent/~/lstm", ["agent/~/lstm"]),
        ("agent/lstm", ["agent/lstm"]),
        (["agent/~/lstm", "agent/~/lstm_1"], ["agent/~/lstm", "agent/~/lstm_1"]),
        ([("agent", "~", "lstm_1"), "agent/~/memory"], ["agent/~/lstm_1", "agent/~/m"]),
    ],
)
def test_cores_are_found_in_a_larger_model(agent, path, names):
    model, params = from_haiku(agent, path=path)
    sizes = {"agent/~/lstm": 5, "agent/lstm": 2}
    assert [cell.hidden_size for cell in model.cells] == [
        sizes.get(name, 4) for name in names
    ]
    first = agent[f"{names[0]}/linear"]
    assert_rounded_once(
        to_haiku(*from_haiku(agent, path=names[0]), name=names[0]),
        {f"{names[0]}/linear": first},
    )
    inputs = model.input_size
    assert_equal(params[0].forward.recurrent_kernel[:, 0], first["w"][inputs:, 0])


def test_a_larger_model_needs_a_path(agent):
    with pytest.raises(ValueError, match="LSTM layers are at 'agent/lstm', 'agent/~/l"):
        from_haiku(agent)
    with pytest.raises(ValueError, match="LSTM layers are at 'lstm', 'lstm_1', 'mem"):
        from_haiku(agent, path="agent/~")
    with pytest.raises(ValueError, match=r"^agent/gru/w_h: .* \[3, 9\]\. .* of a GRU"):
        from_haiku(agent, path="agent/gru")
    with pytest.raises(ValueError, match=r"^path: expected what is in agent, .*'core'"):
        from_haiku(agent, path="agent/core")


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(dtype == "float64"):
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), core_shapes(I, H)
        )
        weights = random_like(1, template)
        model, params = from_haiku(weights)
        assert model.param_dtype == jnp.dtype(dtype)
        given = to_haiku(model, params)
        assert_equal(given["lstm/linear"]["w"], weights["lstm/linear"]["w"])
        assert given["lstm/linear"]["b"].dtype == jnp.dtype(dtype)
    if dtype == "float64":
        assert_rounded_once(given, weights)
        with pytest.warns(UserWarning, match=r"float64 becomes float32, .*enable_x64"):
            from_haiku(jax.tree.map(np.asarray, weights))


def test_a_model_without_bias_runs_the_same():
    model = lj.LSTM(I, H, use_bias=False)
    params = random_like(1, model.init(jax.random.key(0)))
    xs, state = random_like(2, jnp.ones((2, 7, I))), model.zero_state((2,))
    expected, _ = run_core(
        to_haiku(model, params), xs, converter.state_to_haiku(model, state), False
    )
    assert_close(model.apply(params, xs, state)[1], expected)


def weights(w=(8, 20), b=(20,), name="lstm"):
    shapes = {"w": w, "b": b}
    arrays = {key: jnp.ones(shape) for key, shape in shapes.items() if shape}
    return {f"{name}/linear": arrays}


def core_of(make, inputs):
    def build(x):
        core = make()
        return core(x, core.initial_state(None))

    return random_like(1, shapes_of(build, jnp.ones(inputs)))


ERRORS = {
    "missing": (
        lambda: weights(b=None),
        r"^lstm/linear/b: expected shape \[4H\], got none",
    ),
    "transposed": (
        lambda: weights((20, 8)),
        r"^lstm/linear/w: expected shape \[I\+H, 4H\], got \[20, 8\]\. It is transp",
    ),
    "too few rows": (
        lambda: weights((5, 20)),
        r"^lstm/linear/w: expected shape \[I\+H, 4H\], got \[5, 20\]",
    ),
    "another bias": (
        lambda: weights(b=(16,)),
        r"^lstm/linear/b: expected shape \[4H\] = \[20\], got \[16\]",
    ),
    "GRU": (
        lambda: core_of(lambda: hk.GRU(H), (I,)),
        r"^gru/w_h: expected .*, got one of shape \[5, 15\]\. .* the weights of a GRU",
    ),
    "RNN": (
        lambda: core_of(lambda: hk.VanillaRNN(H), (I,)),
        r"^vanilla_rnn/linear_1/w: expected .* the weights of a VanillaRNN",
    ),
    "convolutional": (
        lambda: core_of(lambda: hk.Conv1DLSTM((4,), 2, 3), (4, 2)),
        "^conv1_dlstm/hidden_to_hidden/w: .* the weights of a convolutional LSTM",
    ),
    "layers that do not fit": (
        lambda: weights() | weights(name="lstm_1"),
        r"^lstm_1/linear/w: expected shape \[I\+H, 4H\] = \[10, 20\], .*got \[8, 20\]",
    ),
    "a layer is missing": (
        lambda: weights() | weights(name="lstm_2"),
        "^the tree: .* nothing else, got lstm, lstm_2. LSTM layers are at 'lstm', 'l",
    ),
    "cores in one layer": (
        lambda: [weights() | weights(name="lstm_1"), weights()],
        r"^params: .* got params\[0\]/lstm, params\[0\]/lstm_1 for one",
    ),
    "nothing": (dict, "^the tree: expected a core"),
}


@pytest.mark.parametrize(("make", "words"), ERRORS.values(), ids=ERRORS)
def test_wrong_weights_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        from_haiku(make())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(gate_activation=jax.nn.hard_sigmoid), "gate_activation"),
        (dict(proj_size=2), "proj_size"),
        (dict(variant="CIFG"), "variant"),
        (dict(num_layers=2, residual=True), "residual"),
    ],
)
def test_what_haiku_lacks_is_refused_by_name(options, name):
    model = lj.LSTM(I, H, **options)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        to_haiku(model, model.init(jax.random.key(0)))
    both = lj.LSTM(I, H, bidirectional=True)
    with pytest.raises(ValueError, match="^bidirectional: expected False"):
        to_haiku(both, both.init(jax.random.key(0)), module="DeepRNN")


def test_states_are_checked_against_the_model():
    take, model = converter.state_from_haiku, lj.LSTM(I, H)
    one = hk.LSTMState(jnp.zeros((4, H)), jnp.ones((4, H)))
    for form in (one, (one,), [one], one._asdict()):
        assert take(model, form)[0].forward.c.sum() == 4 * H
    with pytest.raises(TypeError, match=r"^state\[0\]: expected an LSTMState of hid"):
        take(model, tuple(one))
    with pytest.raises(ValueError, match="^state: expected a list of L = 2 layers"):
        take(lj.LSTM(I, H, 2), (one,))
    with pytest.raises(ValueError, match=r"^state\[0\]\.forward\.h: expected shape"):
        take(lj.LSTM(I, 6), one)


def test_plain_dicts_are_converted_where_there_is_no_haiku():
    out = converted.run_without(
        "haiku",
        """
        import numpy as np
        import lstm_jax as lj
        from lstm_jax.convert import haiku
        core = {"w": np.ones((8, 20), "f4"), "b": np.ones(20, "f4")}
        model, params = haiku.from_haiku({"lstm/linear": core})
        assert model == lj.LSTM(3, 5)
        given = haiku.to_haiku(model, params)
        np.testing.assert_array_equal(given["lstm/linear"]["w"], core["w"])
        try:
            haiku.state_to_haiku(model, model.zero_state((2,)))
        except ImportError as error:
            print(error)
        """,
    )
    assert out == 'state_to_haiku needs Haiku: pip install "lstm_jax[peers]".\n'


def test_the_example_runs():
    converted.run_example(converter.state_to_haiku)
