"""Layers of Flax in larger models: where they are found, and where they are not."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from lstm_jax.convert.linen import from_linen, to_linen
from lstm_jax.convert.nnx import from_nnx
from tests.common import assert_close, random_like
from tests.peers.converted import SIZES, I, assert_equal
from tests.peers.test_convert_flax import linen_layers, nnx_layers, random_nnx

H = SIZES[0]


class Net(nn.Module):
    """Layers in every way that Linen names them."""

    def setup(self):
        self.rnns = [nn.RNN(nn.LSTMCell(n)) for n in (5, 4)]
        self.both = nn.Bidirectional(
            nn.RNN(nn.LSTMCell(2)), nn.RNN(nn.OptimizedLSTMCell(2))
        )
        self.compact = Compact()
        self.out = nn.Dense(3)

    def __call__(self, xs):
        for rnn in self.rnns:
            xs = rnn(xs)
        return self.out(self.compact(self.both(xs)))


class Compact(nn.Module):
    @nn.compact
    def __call__(self, xs):
        rnn = lambda: nn.RNN(nn.LSTMCell(2))
        return nn.Bidirectional(rnn(), rnn())(xs)


@pytest.fixture(scope="module")
def net():
    shapes = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((1, 2, I)))
    return random_like(3, shapes)


def test_linen_layers_are_found_in_a_larger_model(net):
    inner = net["params"]
    for tree in (net, inner):
        for path in (
            ["rnns_0", "rnns_1"],
            [("rnns_0", "cell"), "rnns_1/cell"],
            ["params/rnns_0", ("params", "rnns_1")],
        ):
            model, params = from_linen(tree, path=path)
            assert (model.input_size, model.hidden_size) == (I, (5, 4))
            one = to_linen(model, params)
            assert_equal(
                [layer["params"] for layer in one],
                [inner["rnns_0"], inner["rnns_1"]],
            )
    model, params = from_linen(net, path="both")
    assert_equal(to_linen(model, params)["params"], inner["both"])
    names = "LSTMCell_0", "LSTMCell_1"
    pair = tuple(inner["compact"][name] for name in names)
    model, params = from_linen(pair)
    assert model.bidirectional
    given = to_linen(model, params, module="cell")
    assert_equal(tuple(one["params"] for one in given), pair)
    with pytest.raises(ValueError, match=r"at 'both', 'compact/LSTMCell_0', 'compact/"):
        from_linen(net)
    with pytest.raises(ValueError, match=r"at 'LSTMCell_0', 'LSTMCell_1': pass the"):
        from_linen(net, path="compact")
    with pytest.raises(ValueError, match=r"^path: expected what is in the tree, both"):
        from_linen(net, path="lstm")


def test_a_linen_sequence_is_a_stack():
    layers = linen_layers("LSTMCell", 2, 1)
    xs = random_like(1, jnp.ones((2, 7, I)))
    module = nn.Sequential(layers)
    variables = random_like(2, jax.eval_shape(module.init, jax.random.key(0), xs))
    model, params = from_linen(variables)
    assert_close(model.apply(params, xs)[1], module.apply(variables, xs))
    apart = nn.Sequential([layers[0], nn.Dense(H), layers[1]])
    shapes = jax.eval_shape(apart.init, jax.random.key(0), xs)
    with pytest.raises(
        ValueError, match="layers_1/ii/kernel: expected an array, got n"
    ):
        from_linen(random_like(2, shapes))
    apart = nn.Sequential([layers[0], nn.relu, layers[1]])
    shapes = jax.eval_shape(apart.init, jax.random.key(0), xs)
    with pytest.raises(
        ValueError, match="layers 0 to 2 without a gap, got layers_0, la"
    ):
        from_linen(random_like(2, shapes))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.rnns = nnx.List(nnx_layers("LSTMCell", 2, 1))
        self.sequence = nnx.Sequential(*nnx_layers("OptimizedLSTMCell", 2, 2))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(H, 2, rngs=rngs)


@pytest.mark.parametrize("kind", ["module", "state", "pure"])
def test_nnx_layers_are_found_in_a_larger_model(kind):
    net = NNXNet(nnx.Rngs(0))
    random_nnx(net)
    forms = {
        "module": net,
        "state": nnx.state(net),
        "pure": nnx.to_pure_dict(nnx.state(net)),
    }
    expected = from_nnx(list(net.rnns))
    for path in ("rnns", ["rnns.0", "rnns/1"], [("rnns", 0), ("rnns", "1", "cell")]):
        model, params = from_nnx(forms[kind], path=path)
        assert model == expected[0]
        assert_equal(params, expected[1])
    expected = from_nnx(list(net.sequence.layers))
    for path in ("sequence", ["sequence.layers.0", "sequence.layers.1"]):
        model, params = from_nnx(forms[kind], path=path)
        assert model == expected[0]
        assert_equal(params, expected[1])
    with pytest.raises(ValueError, match=r"LSTM layers are at .*rnns.0"):
        from_nnx(forms[kind])
    with pytest.raises(ValueError, match=r"^path: expected what is in .*, got 'lstm'"):
        from_nnx(forms[kind], path="lstm")
