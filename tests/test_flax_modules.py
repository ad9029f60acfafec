"""The Flax modules are the stack: same options and numbers, Flax's conventions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

import lstm_jax as lj
from lstm_jax import linen, nnx
from tests.common import assert_close, normal, random_controls, random_like

OPTIONS = {
    "bidirectional": dict(num_layers=2, bidirectional=True, merge="sum"),
    "projection": dict(proj_size=2, use_bias=False),
    "sizes": dict(hidden_size=(4, 6)),
}
XS = normal(1, (2, 7, 3))


class Nnx:
    """An nnx module behind the calls that both kinds have."""

    def __init__(self, params, **options):
        zeros = jax.nn.initializers.zeros  # The orthogonal ones are slow to compile.
        self.module = nnx.LSTM(
            3, recurrent_init=zeros, rngs=flax_nnx.Rngs(0, dropout=1), **options
        )
        self.module.load(params)

    def __call__(self, xs, state=None, *, key=None, **options):
        return self.module(xs, state, deterministic=key is None, rngs=key, **options)

    def step(self, state, x):
        return self.module.step(state, x)

    def params(self):
        return self.module.params()

    def grads(self, loss):
        """Gradients with respect to the parameters, by path."""
        grads = flax_nnx.grad(lambda module: loss(module(XS)))(self.module)
        return {
            path[1:]: value.get_value()
            for path, value in flax_nnx.to_flat_state(grads)
            if path[0] == "layers"
        }


class Linen:
    """A linen module behind the same."""

    def __init__(self, params, **options):
        self.module = linen.LSTM(3, **options)
        self.variables = linen.variables_of(params)

    def __call__(self, xs, state=None, *, key=None, **options):
        rngs = None if key is None else {"dropout": key}
        return self.module.apply(
            self.variables, xs, state, rngs=rngs, deterministic=key is None, **options
        )

    def step(self, state, x):
        return self.module.apply(self.variables, state, x, method="step")

    def params(self):
        return linen.params_of(self.variables)

    def grads(self, loss):
        grads = jax.grad(lambda v: loss(self.module.apply(v, XS)))(self.variables)
        return {
            (int(layer.removeprefix("layer_")), direction, name): value
            for layer, directions in grads["params"].items()
            for direction, values in directions.items()
            for name, value in values.items()
        }


KINDS = pytest.mark.parametrize("kind", [Nnx, Linen])


def assert_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def build(kind, options):
    options = {"hidden_size": 5} | options
    model = lj.LSTM(3, **options)
    params = random_like(2, jax.eval_shape(model.init, jax.random.key(0)))
    return model, params, kind(params, **options)


@KINDS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_module_agrees_with_the_stack(kind, options):
    model, params, module = build(kind, options)
    controls = random_controls(3, (2,), 7, ("lengths", "mask", "reset"))
    state, ys = model.apply(params, XS, **controls)
    assert_equal(module(XS, **controls), (state, ys))
    front = jnp.moveaxis(XS, 1, 0)
    some = dict(state=state, lengths=controls["lengths"])
    later, ys = model.apply(params, XS, **some)
    options = dict(time_major=True, checkpoint_every=3, implementation="xla")
    assert_close(module(front, **some, **options), (later, jnp.moveaxis(ys, 1, 0)))
    assert_equal(module.params(), params)
    assert_equal(module.module.zero_state((2,)), model.zero_state((2,)))


@KINDS
def test_steps_agree_with_the_sequence(kind):
    _, _, module = build(kind, dict(num_layers=2))
    state, ys = module.module.zero_state((2,)), []
    for t in range(7):
        state, y = module.step(state, XS[:, t])
        ys.append(y)
    assert_close((state, jnp.stack(ys, 1)), module(XS))


@KINDS
def test_gradients_are_the_stack_s(kind):
    model, params, module = build(kind, dict(num_layers=2, bidirectional=True))
    weights = normal(4, (2, 7, 10))
    loss = lambda out: jnp.sum(weights * out[1])
    expected = jax.grad(lambda p: loss(model.apply(p, XS)))(params)
    grads = module.grads(loss)
    assert len(grads) == 2 * 2 * 3
    for (layer, direction, name), value in grads.items():
        assert_close(value, getattr(getattr(expected[layer], direction), name))


@KINDS
def test_dropout_is_on_with_a_key_only(kind):
    model, params, module = build(kind, dict(num_layers=2, dropout=0.5))
    assert_close(module(XS), model.apply(params, XS))
    on = [module(XS, key=jax.random.key(n))[1] for n in (0, 0, 1)]
    np.testing.assert_array_equal(on[0], on[1])
    assert not np.allclose(on[0], on[2], atol=1e-3)
    assert not np.allclose(on[0], module(XS)[1], atol=1e-3)


def test_nnx_takes_the_key_of_the_stack():
    model, params, module = build(Nnx, dict(num_layers=2, dropout=0.5))
    key = jax.random.key(3)
    assert_equal(module(XS, key=key), model.apply(params, XS, key=key))
    stream = flax_nnx.Rngs(dropout=7).dropout
    expected = model.apply(params, XS, key=flax_nnx.Rngs(dropout=7).dropout())
    assert_equal(module.module(XS, rngs=stream), expected)
    assert_equal(module.module(XS, rngs=flax_nnx.Rngs(dropout=7)), expected)


@KINDS
def test_errors_of_the_core_pass_through(kind):
    _, _, module = build(kind, {})
    with pytest.raises(ValueError, match=r"xs: expected shape .* got \[2, 7, 4\]"):
        module(jnp.ones((2, 7, 4)))
    with pytest.raises(TypeError, match="A bare pair could be"):
        module(XS, (jnp.ones((2, 5)), jnp.ones((2, 5))))
    with pytest.raises(ValueError, match="merge: expected one of 'concat'"):
        kind(module.params(), hidden_size=5, merge="average")


def test_parameters_of_another_model_are_refused():
    module = nnx.LSTM(3, 5, rngs=flax_nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"kernel: expected shape .* got \[3, 24\]"):
        module.load(lj.LSTM(3, 6).init(jax.random.key(0)))
    with pytest.raises(TypeError, match="rngs: expected an nnx.Rngs"):
        nnx.LSTM(3, 5, rngs=jax.random.key(0))
    with pytest.raises(TypeError, match="params: expected a tuple of Directions"):
        linen.variables_of(lj.LSTMCell(3, 5).init(jax.random.key(0)))
    with pytest.raises(ValueError, match="expected {'params': {'layer_0'"):
        linen.params_of({"params": {"lstm": {}}})


def test_nnx_follows_train_and_eval():
    module = nnx.LSTM(3, 5, 2, dropout=0.5, rngs=flax_nnx.Rngs(0))
    first, second = module(XS)[1], module(XS)[1]
    assert not np.allclose(first, second, atol=1e-3)
    module.eval()
    np.testing.assert_array_equal(module(XS)[1], module(XS)[1])
    again = module(XS, deterministic=False)[1]
    assert not np.allclose(again, module(XS)[1], atol=1e-3)
    module.train()
    assert not np.allclose(module(XS)[1], module(XS)[1], atol=1e-3)
    still = flax_nnx.view(module, deterministic=True)
    np.testing.assert_array_equal(still(XS)[1], still(XS)[1])
    assert not module.deterministic


def test_nnx_loads_in_place():
    module = nnx.LSTM(3, 5, 2, rngs=flax_nnx.Rngs(0))
    kernel = module.layers[1].forward.kernel
    params = random_like(6, module.params())
    module.load(jax.tree.map(np.asarray, params))
    assert module.layers[1].forward.kernel is kernel
    assert_equal(kernel.get_value(), params[1].forward.kernel)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(module.params()))


def test_nnx_parameters_are_found_by_name():
    module = nnx.LSTM(3, 5, 2, bidirectional=True, rngs=flax_nnx.Rngs(0))
    state = flax_nnx.state(module, flax_nnx.Param)
    paths = {"/".join(map(str, path)) for path in flax_nnx.to_flat_state(state).paths}
    assert "layers/1/backward/recurrent_kernel" in paths
    assert len(paths) == 12
    graph, state = flax_nnx.split(module)
    assert_close(flax_nnx.merge(graph, state)(XS), module(XS))


def test_nnx_trains():
    module = nnx.LSTM(3, 5, 2, dropout=0.1, rngs=flax_nnx.Rngs(0))
    optimizer = flax_nnx.Optimizer(module, optax.sgd(0.5), wrt=flax_nnx.Param)

    @flax_nnx.jit
    def train(module, optimizer):
        loss = lambda module: jnp.mean((module(XS)[1] - 0.5) ** 2)
        value, grads = flax_nnx.value_and_grad(loss)(module)
        optimizer.update(module, grads)
        return value

    losses = [float(train(module, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_linen_is_found_in_a_larger_model():
    class Classifier(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, xs):
            _, ys = linen.LSTM(3, [5, 5], name="lstm")(xs)
            return flax_linen.Dense(2)(ys[:, -1]), ys

    variables = Classifier().init(jax.random.key(0), XS)
    params = linen.params_of({"params": variables["params"]["lstm"]})
    _, ys = Classifier().apply(variables, XS)
    assert_close(ys, lj.LSTM(3, 5, 2).apply(params, XS)[1])


def test_linen_trains():
    module = linen.LSTM(3, 5, 2, dropout=0.1)
    variables = module.init(jax.random.key(0), XS)
    tx = optax.sgd(0.5)
    opt_state = tx.init(variables)

    @jax.jit
    def train(variables, opt_state, key):
        def loss(variables):
            _, ys = module.apply(
                variables, XS, deterministic=False, rngs={"dropout": key}
            )
            return jnp.mean((ys - 0.5) ** 2)

        value, grads = jax.value_and_grad(loss)(variables)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(variables, updates), opt_state, value

    losses = []
    for key in jax.random.split(jax.random.key(1), 30):
        variables, opt_state, value = train(variables, opt_state, key)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]


def test_nnx_initial_values_are_the_stack_s():
    module = nnx.LSTM(3, (4, 6), bidirectional=True, rngs=flax_nnx.Rngs(0))
    assert_equal(module.params(), module.model.init(flax_nnx.Rngs(0).params()))


def test_linen_initial_values_are_the_stack_s():
    options = dict(hidden_size=20, num_layers=2)
    expected = lj.LSTM(3, **options).init(jax.random.key(0))
    variables = linen.LSTM(3, **options).init(jax.random.key(0), XS)
    params = linen.params_of(variables)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, expected)
    for (one, _), (like, _) in zip(params, expected, strict=True):
        np.testing.assert_array_equal(one.bias, like.bias)
        recurrent = np.asarray(one.recurrent_kernel)
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(20), atol=1e-5)
        np.testing.assert_allclose(one.kernel.std(), like.kernel.std(), rtol=0.1)
    first, second = (layer.forward.recurrent_kernel for layer in params)
    assert not np.allclose(first, second, atol=1e-3)


def test_importing_the_library_imports_neither_flax_nor_optax():
    code = "import sys, lstm_jax; print(sorted({'flax', 'optax'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
