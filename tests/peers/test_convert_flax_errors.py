"""What the converters of Flax refuse, in which words, and where there is no Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import lstm_jax as lj
from lstm_jax.convert import linen as linen_converter
from lstm_jax.convert.linen import from_linen, to_linen
from lstm_jax.convert.nnx import from_nnx, to_nnx
from tests.common import random_like
from tests.peers import converted
from tests.peers.converted import SIZES, I, assert_equal
from tests.peers.test_convert_flax import (
    KINDS,
    linen_layers,
    linen_variables,
    nnx_layers,
)

H = SIZES[0]


def changed(tree, path, change):
    """Dicts with one leaf changed, or without it where ``change`` is None."""
    key, *rest = path.split("/")
    if rest:
        return {**tree, key: changed(tree[key], "/".join(rest), change)}
    if change is None:
        return {name: value for name, value in tree.items() if name != key}
    return {**tree, key: change(tree.get(key))}


def one_linen(**layer):
    (module,) = linen_layers("LSTMCell", 1, layer.get("directions", 1))
    return random_like(1, linen_variables([module], layer.get("directions", 1)))


def other_linen(name, inputs=(2, 1, I), **options):
    module = nn.RNN(getattr(nn, name)(H, **options))
    return module.init(jax.random.key(0), jnp.ones(inputs))


LINEN_ERRORS = {
    "missing kernel": (
        lambda: changed(one_linen(), "params/cell/hf/kernel", None),
        r"^cell/hf/kernel: expected shape \[H, H\] = \[5, 5\], got none",
    ),
    "missing bias": (
        lambda: changed(one_linen(), "params/cell/ho/bias", None),
        r"^cell/ho/bias: expected shape \[H\] = \[5\], got none",
    ),
    "missing direction": (
        lambda: changed(one_linen(directions=2), "params/backward_rnn", None),
        "^the tree: expected forward_rnn and backward_rnn and nothing else, got",
    ),
    "unknown name": (
        lambda: changed(
            one_linen(), "params/cell/hx", lambda _: {"kernel": jnp.ones(2)}
        ),
        r"^cell/hx/kernel: expected nothing but ii/kernel, .*of shape \[2\]",
    ),
    "transposed inputs": (
        lambda: changed(one_linen(), "params/cell/ii/kernel", jnp.transpose),
        r"^cell/ii/kernel: expected shape \[I, H\] = \[3, 5\], got \[5, 3\]\. It is",
    ),
    "all inputs transposed": (
        lambda: jax.tree.map(lambda a: a.T, one_linen()),
        r"^cell/ii/kernel: expected shape \[I, H\] = \[3, 5\], got \[5, 3\]\. It is",
    ),
    "another size": (
        lambda: changed(one_linen(), "params/cell/hg/bias", lambda _: jnp.ones(4)),
        r"^cell/hg/bias: expected shape \[H\] = \[5\], got \[4\]",
    ),
    "an axis of layers": (
        lambda: jax.tree.map(lambda a: jnp.stack([a, a]), one_linen()),
        r"^cell/ii/kernel: expected shape \[I, H\] = \[3, 5\], got \[2, 3, 5\]. An a",
    ),
    "no matrices": (
        lambda: jax.tree.map(jnp.ravel, one_linen()),
        r"^cell/ii/kernel: expected shape \[I, H\], got \[15\]",
    ),
    "two dtypes": (
        lambda: changed(one_linen(), "params/cell/ig/kernel", lambda a: a.astype("f2")),
        "^cell/ig/kernel: expected the dtype of ii/kernel, float32, got float16",
    ),
    "GRU": (lambda: other_linen("GRUCell"), "^cell: .* look like those of a GRUCell"),
    "MGU": (lambda: other_linen("MGUCell"), "^cell: .* look like those of an MGUCell"),
    "RNN": (lambda: other_linen("SimpleCell"), "^cell: .* like those of a SimpleCell"),
    "convolutional": (
        lambda: other_linen("ConvLSTMCell", (2, 1, 4, I), kernel_size=(3,)),
        "^cell: .* look like those of a ConvLSTMCell",
    ),
    "layers that do not fit": (
        lambda: [one_linen(), one_linen()],
        r"^variables\[1\]/cell/i\*/kernel: expected shape \[I, 4H\] = \[5, 20\], ",
    ),
    "layers of other directions": (
        lambda: [one_linen(directions=2), one_linen()],
        "^variables: expected as many directions in each layer as in the first, 2, g",
    ),
    "no layer": (list, "^variables: expected at least one layer, got none"),
    "three directions": (
        lambda: (one_linen(),) * 3,
        r"^variables: expected two directions in a tuple, \(forward, backward\), got 3",
    ),
    "another model": (
        lambda: {"params": {"Dense_0": {"kernel": jnp.ones((2, 2))}}},
        "^ii/kernel: expected an array, got none. There is Dense_0",
    ),
}


@pytest.mark.parametrize(("make", "words"), LINEN_ERRORS.values(), ids=LINEN_ERRORS)
def test_wrong_linen_weights_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        from_linen(make())


def one_nnx(kind, directions=1):
    (module,) = nnx_layers(kind, 1, directions)
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def other_nnx(kind):
    return nnx.to_pure_dict(nnx.state(nnx_cell(kind)))


def nnx_cell(kind):
    return nnx.RNN(getattr(nnx, kind)(I, H, rngs=nnx.Rngs(0)))


NNX_ERRORS = {
    "missing kernel": (
        lambda: changed(one_nnx(KINDS[0]), "cell/if_/kernel", None),
        r"^cell/if_/kernel: expected shape \[I, H\] = \[3, 5\], got none",
    ),
    "missing joined bias": (
        lambda: changed(one_nnx(KINDS[1]), "cell/dense_h/bias", None),
        r"^cell/dense_h/bias: expected shape \[4H\], got none",
    ),
    "transposed": (
        lambda: changed(one_nnx(KINDS[0]), "cell/io/kernel", jnp.transpose),
        r"^cell/io/kernel: expected shape \[I, H\] = \[3, 5\], got \[5, 3\]\. It is",
    ),
    "transposed joined": (
        lambda: changed(one_nnx(KINDS[1]), "cell/dense_h/kernel", jnp.transpose),
        r"^cell/dense_h/kernel: expected shape \[H, 4H\].* got \[20, 5\]\. It is trans",
    ),
    "GRU": (
        lambda: other_nnx("GRUCell"),
        r"^cell/dense_i/bias: .* of shape \[5, 15\]\. .* the weights of a GRUCell",
    ),
    "RNN": (
        lambda: other_nnx("SimpleCell"),
        r"^cell/dense_i/bias: .* of shape \[5, 5\]\. .* the weights of a SimpleCell",
    ),
    "GRU module": (
        lambda: nnx_cell("GRUCell"),
        "^weights: expected an LSTMCell, an Optimized.*, got GRUCell",
    ),
    "layers that do not fit": (
        lambda: [one_nnx(KINDS[1]), one_nnx(KINDS[1])],
        r"^weights\[1\]/cell/dense_i/kernel: expected shape \[I, 4H\] = \[5, 20\], got",
    ),
}


@pytest.mark.parametrize(("make", "words"), NNX_ERRORS.values(), ids=NNX_ERRORS)
def test_wrong_nnx_weights_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        from_nnx(make())


class Subclass(nnx.LSTMCell):
    """A cell with defaults of its own."""


class Other(nnx.LSTMCell):
    """A cell that computes something else with an LSTM's weights."""

    def __call__(self, carry, inputs):
        return carry, inputs


def test_nnx_cells_that_compute_something_else_are_refused():
    assert from_nnx(Subclass(I, H, rngs=nnx.Rngs(0)))[0] == lj.LSTM(I, H)
    with pytest.raises(ValueError, match="^weights: expected an LSTMCell.*, got Other"):
        from_nnx(Other(I, H, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: from_linen(jnp.ones(3)), "^variables: expected a dict of arrays, got"),
        (lambda: from_linen(one_linen(), path=3), "^path: expected a string such as"),
        (
            lambda: from_linen(changed(one_linen(), "params/cell/ii/kernel", np.int32)),
            "^cell/ii/kernel: expected a floating dtype, got int32",
        ),
        (
            lambda: from_nnx(nnx.split(nnx_cell("LSTMCell"))),
            "^weights.0.: expected a di",
        ),
        (lambda: to_linen(lj.LSTMCell(I, H), ()), "^model: expected a stack such as"),
        (
            lambda: from_linen(one_linen(), activation=1),
            "^activation: from_linen takes",
        ),
    ],
)
def test_wrong_types_are_named(call, words):
    with pytest.raises(TypeError, match=words):
        call()


@pytest.mark.parametrize("to", [to_linen, to_nnx])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        (dict(proj_size=2), "proj_size"),
        (dict(variant="CIFG"), "variant"),
        (dict(peephole=True), "peephole"),
        (dict(cell_clip=1.0), "cell_clip"),
        (dict(candidate_activation=jax.nn.relu), "output_activation"),
        (dict(num_layers=2, residual=True), "residual"),
        (dict(zoneout_h=0.1), "zoneout_h"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_flax_lacks_is_refused_by_name(to, options, name):
    model = lj.LSTM(I, H, **options)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        to(model, params)


def test_states_are_checked_against_the_model():
    take, model = linen_converter.state_from_linen, lj.LSTM(I, H)
    carry = jnp.ones((4, H)), jnp.zeros((4, H))
    assert_equal(take(model, [carry]), take(model, carry))
    both = lj.LSTM(I, H, 2, bidirectional=True)
    state = take(both, [(carry, carry)] * 2)
    assert_equal(linen_converter.state_to_linen(both, state), [(carry, carry)] * 2)
    with pytest.raises(
        ValueError, match=r"^state: expected a list of L = 2 layers.* 1 o"
    ):
        take(lj.LSTM(I, H, 2), [carry])
    with pytest.raises(ValueError, match=r"^state\[0\]\.forward\.h: expected shape"):
        take(lj.LSTM(I, 6), carry)
    with pytest.raises(
        TypeError, match=r"^state\[0\]: expected a pair of \(c, h\) for"
    ):
        take(both, [carry[0], carry])
    with pytest.raises(TypeError, match=r"^state\[0\]: expected a pair \(c, h\), got"):
        take(model, carry[0])
    with pytest.raises(
        ValueError, match="^model: expected layers whose states are h an"
    ):
        take(lj.LSTM(I, H, variant="sLSTM"), carry)


def test_plain_dicts_are_converted_where_there_is_no_flax():
    out = converted.run_without(
        "flax",
        """
        import numpy as np
        import lstm_jax as lj
        from lstm_jax.convert import linen, nnx
        kernel, square = np.ones((3, 5), "f4"), np.ones((5, 5), "f4")
        inputs = {f"i{gate}": {"kernel": kernel} for gate in "ifgo"}
        hidden = {
            f"h{gate}": {"kernel": square, "bias": kernel[0]} for gate in "ifgo"
        }
        model, params = linen.from_linen({"params": {"cell": inputs | hidden}})
        assert model == lj.LSTM(3, 5)
        again = linen.from_linen(linen.to_linen(model, params))
        inputs["if_"] = inputs.pop("if")
        assert nnx.from_nnx({"cell": inputs | hidden})[0] == model
        try:
            nnx.to_nnx(model, params)
        except ImportError as error:
            print(error)
        """,
    )
    assert out == 'to_nnx needs Flax: pip install "lstm_jax".\n'
