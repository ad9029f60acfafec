"""Weights and states of Equinox's cells, beside Equinox itself."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert import equinox as converter
from lstm_jax.convert.equinox import from_equinox, to_equinox
from tests.common import assert_close, random_like
from tests.peers import converted
from tests.peers.converted import SHAPES, SIZES, STACKS, I, assert_equal

H = SIZES[0]


def cell_shapes(inputs, size, use_bias=True, **options):
    return eqx.filter_eval_shape(
        eqx.nn.LSTMCell, inputs, size, use_bias, key=jax.random.key(0), **options
    )


def random_cell(seed=1, *args, **options):
    return random_like(seed, cell_shapes(*(args or (I, H)), **options))


def run_cell(cell, xs, state, reverse):
    def step(state, x):
        state = cell(x, state)
        return state, state[0]

    def run(xs, state):
        return jax.lax.scan(step, state, xs, reverse=reverse)

    return jax.vmap(run)(xs, state)


def run_layers(directions, cells, xs, states):
    """Layers of cells, whose two directions are merged by hand."""
    last, several = [], isinstance(cells, list)
    cells, states = (cells, states) if several else ([cells], [states])
    for layer, state in zip(cells, states, strict=True):
        pairs = [(layer, state)]
        if directions == 2:
            pairs = list(zip(layer, state, strict=True))
        found = [run_cell(c, xs, s, bool(n)) for n, (c, s) in enumerate(pairs)]
        xs = jnp.concatenate([ys for _, ys in found], -1)
        made = tuple(state for state, _ in found)
        last.append(made if directions == 2 else made[0])
    return xs, last if several else last[0]


# Every shape with a bias, one without.
SHAPES_AND_BIASES = [
    *(pytest.param(shape, True, id=name) for name, shape in SHAPES.items()),
    pytest.param(SHAPES["B3-T7"], False, id="B3-T7-no_bias"),
]


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize(("shape", "use_bias"), SHAPES_AND_BIASES)
def test_cells_run_the_same(shape, stack, use_bias):
    layers, directions = stack
    sizes = zip(converted.inputs_of(*stack), SIZES, strict=False)
    cells = [cell_shapes(*pair, use_bias) for pair in sizes]
    cells = [(cell, cell) if directions == 2 else cell for cell in cells]
    peer = converted.Peer(
        from_equinox,
        to_equinox,
        converter.state_from_equinox,
        converter.state_to_equinox,
        functools.partial(run_layers, directions),
    )
    weights, model, params = peer.check(
        cells[0] if layers == 1 else cells,
        shape,
        converted.states(*stack, shape[:1], lambda one: (one, one)),
    )
    assert_equal(to_equinox(model, params), weights)
    sizes = SIZES if layers == 2 else SIZES[0]
    expected = lj.LSTM(
        I, sizes, layers, bidirectional=directions == 2, use_bias=use_bias
    )
    assert model == expected


def test_a_cell_takes_the_same_step_without_a_batch():
    cell, x = random_cell(), random_like(2, jnp.ones(I))
    start = random_like(3, (jnp.ones(H), jnp.ones(H)))
    model, params = from_equinox(cell)
    state, y = model.step(params, converter.state_from_equinox(model, start), x)
    expected = cell(x, start)
    assert_close(converter.state_to_equinox(model, state), expected)
    assert_close(y, expected[0])


class Net(eqx.Module):
    """Cells in a larger module."""

    cells: list
    both: tuple
    out: eqx.nn.Linear

    def __init__(self):
        self.cells = [random_cell(1), random_cell(2, H, 4)]
        self.both = random_cell(3), random_cell(4)
        self.out = eqx.nn.Linear(H, 2, key=jax.random.key(0))


def test_cells_are_found_in_a_larger_module():
    net = Net()
    for path in ("cells", ["cells.0", ("cells", 1)]):
        model, params = from_equinox(net, path=path)
        assert model == lj.LSTM(I, (H, 4))
        assert_equal(to_equinox(model, params), net.cells)
    model, params = from_equinox(net, path="both/1")
    assert_equal(to_equinox(model, params), net.both[1])
    model, params = from_equinox(net.both, merge="sum")
    assert (model.bidirectional, model.merge) == (True, "sum")
    with pytest.raises(ValueError, match="^path: .* got that of a tuple of 2"):
        from_equinox(net, path="both")
    with pytest.raises(ValueError, match="^path: expected what is in cells.both, 0, "):
        from_equinox(net, path="both.2")
    with pytest.raises(TypeError, match="^cells: .* got Net, in which there is "):
        from_equinox(net)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(dtype == "float64"):
        cell = random_cell(dtype=jnp.dtype(dtype))
        model, params = from_equinox(cell)
        assert model.param_dtype == jnp.dtype(dtype)
        assert_equal(to_equinox(model, params), cell)
    if dtype == "float64":
        arrays = {name: np.asarray(getattr(cell, name)) for name in NAMES}
        with pytest.warns(UserWarning, match=r"float64 becomes float32, .*enable_x64"):
            from_equinox(arrays)


NAMES = ("weight_ih", "weight_hh", "bias")


def test_what_is_given_is_new_and_trains():
    model = lj.LSTM(I, H)
    params = random_like(1, model.init(jax.random.key(0)))
    cell = to_equinox(model, params)
    state = jnp.ones(H), jnp.ones(H)
    loss = lambda cell: cell(jnp.ones(I), state)[0].sum()
    gradient = eqx.filter_grad(loss)(cell)
    assert all(jnp.abs(getattr(gradient, name)).sum() > 0 for name in NAMES)
    kept = jax.tree.map(np.array, params)
    for leaf in jax.tree.leaves(cell):
        leaf.delete()
    assert_equal(params, kept)


def arrays(**changes):
    shapes = {"weight_ih": (20, 3), "weight_hh": (20, 5), "bias": (20,)} | changes
    return {name: jnp.ones(shape) for name, shape in shapes.items() if shape}


def gru(**options):
    cell = functools.partial(eqx.nn.GRUCell, I, H, **options)
    return random_like(1, eqx.filter_eval_shape(cell, key=jax.random.key(0)))


ERRORS = {
    "missing": (
        lambda: arrays(weight_hh=None),
        r"^weight_hh: expected shape \[4H, H\], got none",
    ),
    "unknown": (
        lambda: arrays(weight_hr=(5, 5)),
        r"^weight_hr: expected nothing but weight_ih, .* of shape \[5, 5\]",
    ),
    "transposed": (
        lambda: arrays(weight_hh=(5, 20)),
        r"^weight_hh: expected shape \[4H, H\] = .*, got \[5, 20\]\. It is transposed",
    ),
    "transposed inputs": (
        lambda: arrays(weight_ih=(3, 20)),
        r"^weight_ih: expected shape \[4H, I\] = \[20, 20\], got \[3, 20\]",
    ),
    "another bias": (
        lambda: arrays(bias=(5,)),
        r"^bias: expected shape \[4H\] = \[20\], got \[5\]",
    ),
    "GRU": (gru, r"^bias_n: .* beside \[15, 5\]\. .* like the weights of a GRUCell"),
    "GRU without bias": (
        lambda: gru(use_bias=False),
        r"^weight_hh: expected .* got \[15, 5\]\. These look like the weights of a GRU",
    ),
    "layers that do not fit": (
        lambda: [random_cell(), random_cell()],
        r"^cells\[1\]/weight_ih: expected shape \[4H, I\] = \[20, 5\], got \[20, 3\]",
    ),
    "layers of other directions": (
        lambda: [random_cell(), (random_cell(), random_cell())],
        "^cells: expected as many directions in each layer as in the first, 1, got 2",
    ),
    "only one has a bias": (
        lambda: [random_cell(), random_cell(1, H, H, use_bias=False)],
        r"^cells\[1\]/bias: expected one, as for the first layer, got none",
    ),
}


@pytest.mark.parametrize(("make", "words"), ERRORS.values(), ids=ERRORS)
def test_wrong_weights_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        from_equinox(make())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(gate_activation=jax.nn.hard_sigmoid), "gate_activation"),
        (dict(proj_size=2), "proj_size"),
        (dict(variant="NFG"), "variant"),
        (dict(num_layers=2, skip=True), "skip"),
    ],
)
def test_what_equinox_lacks_is_refused_by_name(options, name):
    model = lj.LSTM(I, H, **options)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        to_equinox(model, model.init(jax.random.key(0)))


def test_states_are_checked_against_the_model():
    take, pair = converter.state_from_equinox, (jnp.zeros(H), jnp.ones(H))
    assert take(lj.LSTM(I, H), [pair])[0].forward.c.sum() == H
    with pytest.raises(ValueError, match="^state: expected a list of L = 2 layers"):
        take(lj.LSTM(I, H, 2), [pair])
    with pytest.raises(ValueError, match=r"^state\[0\]\.forward\.h: expected shape"):
        take(lj.LSTM(I, 6), pair)
    with pytest.raises(TypeError, match=r"^state\[0\]: expected a pair \(h, c\), got"):
        take(lj.LSTM(I, H), pair[0])


def test_plain_dicts_are_converted_where_there_is_no_equinox():
    out = converted.run_without(
        "equinox",
        """
        import numpy as np
        import lstm_jax as lj
        from lstm_jax.convert import equinox
        shapes = dict(weight_ih=(20, 3), weight_hh=(20, 5), bias=(20,))
        cell = {name: np.ones(shape, "f4") for name, shape in shapes.items()}
        model, params = equinox.from_equinox(cell)
        assert model == lj.LSTM(3, 5)
        try:
            equinox.to_equinox(model, params)
        except ImportError as error:
            print(error)
        """,
    )
    assert out == 'to_equinox needs Equinox: pip install "lstm_jax[peers]".\n'


def test_the_example_runs():
    converted.run_example(converter.to_equinox)
