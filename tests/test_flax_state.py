"""The Flax modules' state: copied, pickled, saved, vectorized; no buffer is shared."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx as flax_nnx

import lstm_jax as lj
from lstm_jax import nnx
from tests.common import assert_close, normal, random_like

KEY = jax.random.key(0)
XS = normal(1, (2, 7, 3))


def sigmoid(x):
    return jax.nn.sigmoid(x)


def tanh(x):
    return jnp.tanh(x)


def small(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / 4


# Functions that pickle by name.
NAMED = dict(
    gate_activation=sigmoid,
    candidate_activation=tanh,
    output_activation=tanh,
    kernel_init=small,
    recurrent_init=small,
)


def make(dropout=0.0, seed=0, **options):
    options = dict(num_layers=2, dropout=dropout) | options
    return nnx.LSTM(3, 5, **options, rngs=flax_nnx.Rngs(seed))


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_copies_are_equal_and_apart(copied):
    module = make(dropout=0.5, **NAMED)
    before, again = module.params(), copied(module)
    assert again.model == module.model and hash(again.model) == hash(module.model)
    assert_equal(again(XS, deterministic=True), module(XS, deterministic=True))
    assert_equal(again(XS), module(XS))  # The same noise, and then the next one.
    assert_equal(again(XS), module(XS))
    again.load(random_like(2, before))
    again.eval()
    assert_equal(module.params(), before)
    assert not module.deterministic


def make_many():
    @flax_nnx.split_rngs(splits=5)
    @flax_nnx.vmap
    def made(rngs):
        return nnx.LSTM(3, 5, 2, dropout=0.5, rngs=rngs)

    return made(flax_nnx.Rngs(3))


@flax_nnx.vmap(in_axes=(0, None))
def call(module, xs):
    return module(xs)


def test_modules_made_and_called_by_vmap_are_those_of_a_loop():
    many = make_many()
    assert many.layers[1].forward.kernel.shape == (5, 5, 20)
    graph, state = flax_nnx.split(many)
    row = lambda tree, n: jax.tree.map(lambda leaf: leaf[n], tree)
    each = [flax_nnx.merge(graph, row(state, n)) for n in range(5)]
    noisy = call(many, XS)
    for n, module in enumerate(each):
        assert_close(row(noisy, n), module(XS))
    many.eval()
    still = call(many, XS)
    for n, module in enumerate(each):
        assert_close(row(still, n), module.model.apply(module.params(), XS))


def test_modules_called_by_vmap_have_masks_of_their_own():
    many = make_many()
    weights = flax_nnx.state(many, flax_nnx.Param)
    same = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), weights)
    flax_nnx.update(many, same)
    _, ys = call(many, XS)
    for n in range(5):
        for other in range(n):
            assert not np.allclose(ys[n], ys[other], atol=1e-3)
    many.eval()
    _, ys = call(many, XS)
    assert_close(ys, jnp.broadcast_to(ys[:1], ys.shape))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_orbax_saves_and_restores(dropout, tmp_path):
    module = make(dropout)
    module(XS)  # So that the count of the noise is not 0.
    state = flax_nnx.state(module)
    paths = {path[0] for path in flax_nnx.to_flat_state(state).paths}
    assert paths == ({"layers", "rngs"} if dropout else {"layers"})
    other = make(dropout, seed=1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.save(tmp_path / "pure", flax_nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        abstract = flax_nnx.state(flax_nnx.eval_shape(lambda: make(dropout, seed=1)))
        restored = checkpointer.restore(tmp_path / "state", abstract)
        pure = checkpointer.restore(
            tmp_path / "pure", flax_nnx.to_pure_dict(flax_nnx.state(other))
        )
        plain = checkpointer.restore(tmp_path / "pure")
    expected = module.params(), module(XS, deterministic=True), module(XS)
    flax_nnx.update(other, restored)
    assert_equal((other.params(), other(XS, deterministic=True), other(XS)), expected)
    assert_equal(pure["layers"][1]["forward"]["kernel"], expected[0][1].forward.kernel)
    assert_equal(plain["layers"]["1"]["forward"]["bias"], expected[0][1].forward.bias)


def pointers(module):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(module.params())]


def test_loaded_parameters_are_the_module_s_own():
    module = make()
    params = random_like(2, module.params())
    bias = params[0].forward.bias
    shared = tuple(
        layer._replace(forward=layer.forward._replace(bias=bias)) for layer in params
    )
    expected = jax.tree.map(np.array, shared)
    module.load(shared)
    assert len(set(pointers(module))) == 6
    for leaf in jax.tree.leaves(params):
        leaf.delete()  # As a call does to what is donated to it.
    assert_equal(module.params(), expected)
    assert_close(module(XS), lj.LSTM(3, 5, 2).apply(expected, XS))


def test_loaded_arrays_may_be_changed():
    module = make()
    params = jax.tree.map(np.array, random_like(2, module.params()))
    expected = jax.tree.map(np.copy, params)
    module.load(params)
    for leaf in jax.tree.leaves(params):
        leaf[...] = 0
    assert_equal(module.params(), expected)


def test_new_parameters_share_no_buffer():
    once = jnp.ones((5, 20))
    options = dict(recurrent_init=lambda key, shape, dtype: once, num_layers=2)
    module = nnx.LSTM(3, 5, **options, rngs=flax_nnx.Rngs(0))
    assert len(set(pointers(module))) == 6
    cell = lj.SLSTMCell(3, 5, learn_initial_state=True)
    module = nnx.Stack(lj.Stack((cell,)), rngs=flax_nnx.Rngs(0))
    assert len(set(pointers(module))) == 5


def test_load_fills_an_abstract_module():
    module = flax_nnx.eval_shape(make)
    params = random_like(2, lj.LSTM(3, 5, 2).init(KEY))
    module.load(params)
    assert_equal(module.params(), params)
    assert_close(module(XS), lj.LSTM(3, 5, 2).apply(params, XS))
