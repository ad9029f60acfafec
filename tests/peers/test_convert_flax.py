"""Weights and states of Flax, Linen and NNX, beside Flax itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import lstm_jax as lj
from lstm_jax.convert import linen as linen_converter
from lstm_jax.convert import nnx as nnx_converter
from tests.common import assert_close, random_like
from tests.peers import converted
from tests.peers.converted import SHAPES, SIZES, STACKS, I, assert_equal

from_linen, to_linen = linen_converter.from_linen, linen_converter.to_linen
from_nnx, to_nnx = nnx_converter.from_nnx, nnx_converter.to_nnx
KINDS = ("LSTMCell", "OptimizedLSTMCell")
H = SIZES[0]


def listed(value):
    return value if isinstance(value, list) else [value]


# Every shape with one kind of cell, the other with one shape.
SHAPES_AND_KINDS = [
    pytest.param(shape, kind, id=f"{name}-{kind}")
    for name, shape in SHAPES.items()
    for kind in KINDS
    if kind == KINDS[0] or name == "B3-T7"
]


def linen_layers(kind, layers, directions, **options):
    def rnn(size):
        return nn.RNN(getattr(nn, kind)(size, **options))

    sizes = SIZES[:layers]
    if directions == 1:
        return [rnn(size) for size in sizes]
    return [nn.Bidirectional(rnn(size), rnn(size)) for size in sizes]


def linen_variables(modules, directions=1, dtype=jnp.float32):
    found = [
        jax.eval_shape(
            module.init, jax.random.key(0), jax.ShapeDtypeStruct((2, 1, size), dtype)
        )
        for module, size in zip(
            modules, converted.inputs_of(len(modules), directions), strict=True
        )
    ]
    return found[0] if len(found) == 1 else found


def run_linen(modules, variables, xs, carries):
    last = []
    for module, one, carry in zip(
        modules, listed(variables), listed(carries), strict=True
    ):
        carry, xs = module.apply(one, xs, initial_carry=carry, return_carry=True)
        last.append(carry)
    return xs, last[0] if len(last) == 1 else last


def linen_peer(modules):
    return converted.Peer(
        from_linen,
        to_linen,
        linen_converter.state_from_linen,
        linen_converter.state_to_linen,
        functools.partial(run_linen, modules),
    )


def carries(layers, directions, batch):
    return converted.states(layers, directions, (batch,), lambda one: (one, one))


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize(("shape", "kind"), SHAPES_AND_KINDS)
def test_linen_runs_the_same(shape, kind, stack):
    modules = linen_layers(kind, *stack)
    weights, model, params = linen_peer(modules).check(
        linen_variables(modules, stack[1]), shape, carries(*stack, shape[0])
    )
    assert_equal(to_linen(model, params), weights)
    assert (model.num_layers, model.bidirectional) == (stack[0], stack[1] == 2)
    assert model == lj.LSTM(
        I,
        SIZES if stack[0] == 2 else SIZES[0],
        stack[0],
        bidirectional=stack[1] == 2,
    )


def nnx_layers(kind, layers, directions, **options):
    rngs = nnx.Rngs(0)

    def rnn(inputs, size):
        return nnx.RNN(getattr(nnx, kind)(inputs, size, rngs=rngs, **options))

    pairs = list(zip(converted.inputs_of(layers, directions), SIZES, strict=False))
    if directions == 1:
        return [rnn(*pair) for pair in pairs]
    return [nnx.Bidirectional(rnn(*pair), rnn(*pair)) for pair in pairs]


def run_nnx(split, weights, xs, carries):
    last = []
    for (graph, _, rest), one, carry in zip(
        split, listed(weights), listed(carries), strict=True
    ):
        module = nnx.merge(graph, one, rest)
        carry, xs = module(xs, initial_carry=carry, return_carry=True)
        last.append(carry)
    return xs, last[0] if len(last) == 1 else last


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize(("shape", "kind"), SHAPES_AND_KINDS)
def test_nnx_runs_the_same(shape, kind, stack):
    modules = nnx_layers(kind, *stack)
    split = [nnx.split(module, nnx.Param, ...) for module in modules]
    states = [params for _, params, _ in split]
    peer = converted.Peer(
        from_nnx,
        functools.partial(to_nnx, cell=kind),
        nnx_converter.state_from_nnx,
        nnx_converter.state_to_nnx,
        functools.partial(run_nnx, split),
    )
    weights, model, params = peer.check(
        states[0] if len(states) == 1 else states, shape, carries(*stack, shape[0])
    )
    given = to_nnx(model, params, cell=kind)
    assert_equal(given, weights)
    for module, one, expected in zip(
        modules, listed(given), listed(weights), strict=True
    ):
        assert isinstance(one, nnx.State)
        nnx.update(module, one)
        assert_equal(nnx.state(module, nnx.Param), expected)


def random_nnx(module, seed=1):
    nnx.update(module, random_like(seed, nnx.state(module, nnx.Param)))
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_nnx_weights_is_taken(kind):
    (module,) = nnx_layers(kind, 1, 2)
    random_nnx(module)
    expected = from_nnx(module)
    state = nnx.state(module)
    pure = nnx.to_pure_dict(state)
    numpy = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    both = module.forward_rnn, module.backward_rnn
    cells = tuple(nnx.state(one.cell) for one in both)
    flat = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    for form in (state, pure, numpy, both, cells, [cells], flat):
        model, params = from_nnx(form)
        assert model == expected[0]
        assert_equal(params, expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_alone_and_what_it_shares_are_taken(kind):
    cell = random_nnx(getattr(nnx, kind)(I, H, rngs=nnx.Rngs(0)))
    _, (alone,) = from_nnx(cell)
    shared = nnx.Bidirectional(nnx.RNN(cell), nnx.RNN(cell))
    _, ((forward, backward),) = from_nnx(shared)
    assert_equal((forward, backward), (alone.forward, alone.forward))
    given = to_nnx(lj.LSTM(I, H), (alone,), module="cell", cell=kind)
    assert_equal(given, nnx.state(cell))


@pytest.mark.filterwarnings("ignore:keep_rngs argument is deprecated")
def test_streams_in_nnx_modules_are_no_weights():
    cell = nnx.LSTMCell(I, H, rngs=nnx.Rngs(0), keep_rngs=True)
    rnn = random_nnx(nnx.RNN(cell, rngs=nnx.Rngs(carry=3)))
    assert "rngs" in nnx.state(cell)
    assert_equal(from_nnx(nnx.state(rnn))[1], from_nnx(rnn)[1])


def test_nnx_modules_say_what_is_not_in_their_weights():
    options = dict(
        gate_fn=jax.nn.hard_sigmoid, activation_fn=jax.nn.soft_sign, dtype=jnp.bfloat16
    )
    (module,) = nnx_layers("LSTMCell", 1, 1, **options)
    model, _ = from_nnx(module)
    expected = lj.LSTM(
        I,
        H,
        gate_activation=jax.nn.hard_sigmoid,
        candidate_activation=jax.nn.soft_sign,
        output_activation=jax.nn.soft_sign,
        dtype=jnp.bfloat16,
    )
    assert model == expected
    assert from_nnx(module, gate_fn=jax.nn.sigmoid)[0].gate_activation is jax.nn.sigmoid
    assert from_nnx(nnx.state(module))[0] == lj.LSTM(I, H)
    plain = nnx.RNN(nnx.LSTMCell(H, H, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="^gate_fn: expected one for all layers, got"):
        from_nnx([module, plain])


def test_nnx_directions_are_merged_as_said():
    (module,) = nnx_layers("LSTMCell", 1, 2)
    random_nnx(module)
    module.merge_fn = jnp.multiply
    with pytest.raises(ValueError, match="^merge: expected what the .*'mul', got None"):
        from_nnx(module)
    model, params = from_nnx(module, merge="mul")
    xs = random_like(2, jnp.ones((2, 7, I)))
    assert_close(model.apply(params, xs)[1], module(xs))


def test_a_reversed_nnx_layer_is_refused_on_its_own():
    cell = nnx.LSTMCell(I, H, rngs=nnx.Rngs(0))
    back = nnx.RNN(cell, reverse=True, keep_order=True)
    with pytest.raises(ValueError, match=r"^weights: .* got reverse=True\. Pass its"):
        from_nnx(back)
    model, _ = from_nnx((nnx.RNN(cell), back))
    assert model.bidirectional
    # What is around it says how it runs.
    assert from_nnx(nnx.Bidirectional(back, back))[0].bidirectional


ACTIVATIONS = dict(gate_fn=jax.nn.hard_sigmoid, activation_fn=jax.nn.soft_sign)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_activations_are_arguments(library):
    xs = random_like(1, jnp.ones((2, 7, I)))
    if library == "linen":
        (module,) = linen_layers("LSTMCell", 1, 1, **ACTIVATIONS)
        weights = random_like(2, linen_variables([module]))
        expected = module.apply(weights, xs)
        model, params = from_linen(weights, **ACTIVATIONS)
        back = to_linen(model, params)
    else:
        (module,) = nnx_layers("LSTMCell", 1, 1, **ACTIVATIONS)
        weights, expected = nnx.state(random_nnx(module), nnx.Param), module(xs)
        model, params = from_nnx(weights, **ACTIVATIONS)
        back = to_nnx(model, params)
    assert_close(model.apply(params, xs)[1], expected)
    assert_equal(back, weights)


def test_the_width_of_a_linen_carry_counts_and_not_features():
    cell, xs = nn.LSTMCell(features=4), random_like(1, jnp.ones((2, I)))
    carry = random_like(2, (jnp.ones((2, H)),) * 2)
    shapes = jax.eval_shape(cell.init, jax.random.key(0), carry, xs)
    variables = random_like(3, shapes)
    model, params = from_linen(variables)
    assert model.hidden_size == H
    state = linen_converter.state_from_linen(model, carry)
    state, y = model.step(params, state, xs)
    expected, y_expected = cell.apply(variables, carry, xs)
    assert_close(y, y_expected)
    assert_close(linen_converter.state_to_linen(model, state), expected)
    assert_equal(to_linen(model, params, module="cell"), variables)


def test_boxed_linen_weights_are_taken():
    kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    (module,) = linen_layers("LSTMCell", 1, 1, kernel_init=kernel_init)
    variables = module.init(jax.random.key(0), jnp.ones((2, 1, I)))
    assert isinstance(variables["params"]["cell"]["ii"]["kernel"], nn.Partitioned)
    expected = from_linen(nn.meta.unbox(variables))
    assert from_linen(variables)[0] == expected[0]
    assert_equal(from_linen(variables)[1], expected[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(dtype == "float64"):
        (module,) = linen_layers("LSTMCell", 1, 2, param_dtype=jnp.dtype(dtype))
        variables = random_like(1, linen_variables([module], dtype=dtype))
        model, params = from_linen(variables)
        assert model.param_dtype == jnp.dtype(dtype)
        assert_equal(to_linen(model, params), variables)
        for kind in KINDS:
            state = to_nnx(model, params, cell=kind)
            assert_equal(from_nnx(state)[1], params)
    if dtype == "float64":
        wide = jax.tree.map(np.asarray, variables)
        with pytest.warns(UserWarning, match=r"float64 becomes float32, .*enable_x64"):
            from_linen(wide)


def test_what_is_taken_and_given_is_new():
    (module,) = nnx_layers("OptimizedLSTMCell", 1, 1)
    _, params = from_nnx(random_nnx(module))
    for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)):
        leaf.delete()
    assert jnp.isfinite(params[0].forward.bias).all()
    model = lj.LSTM(I, H)
    params = random_like(1, model.init(jax.random.key(0)))
    kept = jax.tree.map(np.array, params)
    for give in (to_linen, to_nnx, functools.partial(to_nnx, cell=KINDS[1])):
        for leaf in jax.tree.leaves(give(model, params)):
            leaf.delete()
    state = model.zero_state((2,))
    carry = linen_converter.state_to_linen(model, state)
    again = linen_converter.state_from_linen(model, carry)
    for leaf in jax.tree.leaves(carry):
        leaf.delete()
    assert_equal(again, state)
    assert_equal(params, kept)
    assert float(state[0].forward.c.sum()) == 0


def test_a_model_without_bias_has_one_of_zeros():
    model = lj.LSTM(I, H, use_bias=False)
    params = random_like(1, model.init(jax.random.key(0)))
    xs = random_like(2, jnp.ones((2, 7, I)))
    (module,) = linen_layers("LSTMCell", 1, 1)
    expected = module.apply(to_linen(model, params), xs)
    assert_close(model.apply(params, xs)[1], expected)


def test_weights_are_converted_in_traced_code():
    (module,) = linen_layers("LSTMCell", 1, 2)
    variables = random_like(1, linen_variables([module]))

    @jax.jit
    def there_and_back(variables):
        return to_linen(*from_linen(variables))

    assert_equal(there_and_back(variables), variables)
