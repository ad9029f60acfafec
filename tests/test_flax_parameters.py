"""Parameters of the Flax modules: of any cell, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

import lstm_jax as lj
from lstm_jax import linen, nnx
from tests.common import assert_close, normal, random_like

KEY = jax.random.key(0)
GLOROT = jax.nn.initializers.glorot_uniform()


class Pair(NamedTuple):
    kernel: Any
    load: Any  # The name of a method of the modules.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    inputs: Any
    state: Any


class Memory(NamedTuple):
    h: Any


# How the two matrices of the cell below are kept, and the names that they get.
KINDS = {
    "named_tuple": (Pair, tuple, {"kernel", "load"}),
    "dict": (
        lambda w, r: {"in": {"kernel": w}, "params": (r,)},
        lambda p: (p["in"]["kernel"], p["params"][0]),
        {"in/kernel", "params/0"},
    ),
    "dataclass": (Weights, lambda p: (p.inputs, p.state), {"inputs", "state"}),
    "array": (
        lambda w, r: jnp.concatenate([w, r]),
        lambda p: (p[: -p.shape[1]], p[-p.shape[1] :]),
        {"array"},
    ),
}


@dataclasses.dataclass(frozen=True)
class Plain:
    """A cell as a user may write it: ``h = tanh(x W + h R)``."""

    input_size: int
    output_size: int
    kind: str
    first_init: Callable[..., Any] = GLOROT
    second_init: Callable[..., Any] = GLOROT

    @property
    def input_shape(self):
        return (self.input_size,)

    def init(self, key):
        first, second = jax.random.split(key)
        w = self.first_init(first, (self.input_size, self.output_size), jnp.float32)
        r = self.second_init(second, (self.output_size,) * 2, jnp.float32)
        return KINDS[self.kind][0](w, r)

    def zero_state(self, batch_shape=(), dtype=jnp.float32):
        return Memory(jnp.zeros((*batch_shape, self.output_size), dtype))

    def project(self, params, xs):
        return xs @ KINDS[self.kind][1](params)[0]

    def recur(self, params, state):
        return state.h @ KINDS[self.kind][1](params)[1]

    def update(self, params, state, z, r):
        h = jnp.tanh(z + r)
        return Memory(h), h


def by_hand(kind, params, xs):
    """The outputs of the cell above, by a loop in NumPy."""
    w, r = (np.asarray(p, np.float64) for p in KINDS[kind][1](params))
    h, ys = np.zeros((xs.shape[0], r.shape[0])), []
    for x in np.moveaxis(np.asarray(xs, np.float64), 1, 0):
        h = np.tanh(x @ w + h @ r)
        ys.append(h)
    return np.stack(ys, 1)


def paths_of(tree):
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves}


def nnx_paths(module):
    flat = flax_nnx.to_flat_state(flax_nnx.state(module, flax_nnx.Param))
    return {"/".join(map(str, path)) for path in flat.paths}


XS = normal(1, (2, 7, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_of_a_user_s_own(kind):
    model = lj.Stack((Plain(3, 4, kind), Plain(4, 2, kind)))
    params = random_like(2, model.init(KEY))
    expected = by_hand(kind, params[0].forward, XS)
    expected = by_hand(kind, params[1].forward, expected)
    names = KINDS[kind][2]

    module = nnx.Stack(model, rngs=flax_nnx.Rngs(0))
    paths = {f"{n}/forward/{name}" for n in (0, 1) for name in names}
    assert nnx_paths(module) == {f"layers/{path}" for path in paths}
    assert_close(module.params(), model.init(flax_nnx.Rngs(0).params()))
    module.load(params)
    assert_close(module(XS)[1], jnp.asarray(expected, jnp.float32))
    assert_close(module.params(), params)

    plain = linen.Stack(model)
    variables = linen.variables_of(params)
    assert paths_of(variables) == {f"params/layer_{path}" for path in paths}
    assert paths_of(variables) == paths_of(plain.init(KEY, XS))
    assert_close(plain.apply(variables, XS)[1], jnp.asarray(expected, jnp.float32))
    for described in (model, plain):
        assert_close(linen.params_of(variables, described), params)
    state, y = plain.apply(variables, plain.zero_state((2,)), XS[:, 0], method="step")
    assert_close(y, jnp.asarray(expected[:, 0], jnp.float32))
    assert_close(module.step(module.zero_state((2,)), XS[:, 0]), (state, y))


def test_numpy_arrays_are_taken_before_they_can_be_overwritten():
    model = lj.LSTM(3, 5)
    params = jax.tree.map(np.array, model.init(KEY))
    expected = jax.tree.map(np.array, params)
    variables = linen.variables_of(params)
    weights = {
        name: getattr(params[0].forward, name)
        for name in ("kernel", "recurrent_kernel", "bias")
    }
    raw = linen.params_of({"params": {"layer_0": {"forward": weights}}})
    for leaf in jax.tree.leaves(params):
        leaf[...] = 0
    for taken in (linen.params_of(variables), raw):
        jax.tree.map(np.testing.assert_array_equal, taken, expected)
    shapes = jax.eval_shape(model.init, KEY)
    assert linen.params_of(linen.variables_of(shapes)) == shapes


CELLS = {
    "convolution": lj.ConvLSTMCell((4, 3, 2), 2, 3, peephole=True),
    "slstm": lj.SLSTMCell(3, 4, num_heads=2, learn_initial_state=True),
    "minlstm": lj.MinLSTMCell(3, 4),
    "regularized": lj.Regularized(lj.SLSTMCell(3, 4), recurrent_dropout=0.5),
    "user_s_own": lj.Regularized(Plain(3, 4, "dict"), zoneout_h=0.5),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_cells_of_every_kind(cell):
    model = lj.Stack((cell,), bidirectional=True)
    params = random_like(3, model.init(KEY))
    xs = normal(4, (2, 5, *cell.input_shape))
    expected = model.apply(params, xs)
    module = nnx.Stack(model, rngs=flax_nnx.Rngs(0))
    module.load(params)
    assert_close(module(xs, deterministic=True), expected)
    plain, variables = linen.Stack(model), linen.variables_of(params)
    assert_close(plain.apply(variables, xs), expected)
    assert_close(linen.params_of(variables, plain), params)
    if model.noisy:
        key = jax.random.key(7)
        assert_close(module(xs, rngs=key), model.apply(params, xs, key=key))


def test_named_tuples_keep_their_names_and_what_is_not_there():
    module = nnx.LSTM(3, 5, use_bias=False, rngs=flax_nnx.Rngs(0))
    forward = module.layers[0].forward
    assert forward.bias is None and module.layers[0].backward is None
    assert nnx_paths(module) == {
        "layers/0/forward/kernel",
        "layers/0/forward/recurrent_kernel",
    }


def test_params_of_needs_the_model_of_other_cells():
    cell = Plain(3, 4, "dict")
    variables = linen.Stack(lj.Stack((cell,))).init(KEY, XS)
    with pytest.raises(ValueError, match=r"in/kernel, params/0.* pass|need the model"):
        linen.params_of(variables)
    with pytest.raises(ValueError, match="expected the parameters inputs, state, got"):
        linen.params_of(variables, lj.Stack((Plain(3, 4, "dataclass"),)))
    with pytest.raises(ValueError, match=r"with 2 layers, .* 'params' \['layer_0'\]"):
        linen.params_of(variables, lj.LSTM(3, 5, 2))
    with pytest.raises(ValueError, match=r"forward, .* in layer_0, got \['kernel'"):
        linen.params_of({"params": {"layer_0": {"kernel": XS}}})


def test_linen_says_what_is_wrong_with_variables():
    variables = linen.LSTM(3, 5).init(KEY, XS)
    other = (
        "layer_0/forward: expected the parameters kernel, recurrent_kernel, got bias"
    )
    with pytest.raises(ValueError, match=other):
        linen.LSTM(3, 5, use_bias=False).apply(variables, XS)
    with pytest.raises(ValueError, match=r"kernel: expected shape .* got \[3, 20\]"):
        linen.LSTM(3, 6).apply(variables, XS)
    with pytest.raises(ValueError, match="backward: expected one, the model is bidir"):
        linen.LSTM(3, 5, bidirectional=True).apply(variables, XS)


def test_names_that_are_one_are_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Twice:
        def tree_flatten_with_keys(self):
            key = jax.tree_util.GetAttrKey("a")
            return ((key, jnp.ones(2)), (key, jnp.ones(2))), None

        @classmethod
        def tree_unflatten(cls, _, __):
            return cls()

    with pytest.raises(ValueError, match="expected a name for each array, got a twice"):
        linen.variables_of((lj.Directions(Twice()),))
