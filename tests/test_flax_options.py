"""The options of the Flax modules: one list of them, seen by all, and helpful words."""

import copy
import dataclasses
import inspect
import pickle
import pydoc
import typing

import jax
import jax.numpy as jnp
import pytest
from flax import linen as flax_linen
from flax import nnx as flax_nnx

import lstm_jax as lj
from lstm_jax import layers, linen, nnx
from lstm_jax.checks import slips
from tests.common import assert_close, normal

KEY = jax.random.key(0)
XS = normal(1, (2, 7, 3))
BY_NAME = [field.name for field in dataclasses.fields(lj.LSTM) if field.kw_only]


def rngs():
    return flax_nnx.Rngs(0)


def make_nnx(*args, **options):
    return nnx.LSTM(*args, rngs=rngs(), **options)


MAKERS = pytest.mark.parametrize("make", [make_nnx, linen.LSTM])


def test_the_list_of_options_is_the_dataclass_s():
    hints = typing.get_type_hints(lj.LSTM)
    expected = {name: hints[name] for name in BY_NAME}
    assert typing.get_type_hints(layers.LSTMOptions) == expected
    assert list(layers.LSTMOptions.__annotations__) == BY_NAME
    assert not layers.LSTMOptions.__required_keys__


@pytest.mark.parametrize("make", [nnx.LSTM, nnx.LSTM.__init__, linen.LSTM])
def test_signatures_show_every_option_and_its_default(make):
    parameters = dict(inspect.signature(make).parameters)
    for own in ("self", "rngs", "parent", "name"):
        parameters.pop(own, None)
    summary = [(p.name, p.kind, p.default) for p in parameters.values()]
    stack = inspect.signature(lj.LSTM).parameters.values()
    assert summary == [(p.name, p.kind, p.default) for p in stack]


def test_signatures_of_other_classes_and_of_calls_are_their_own():
    class Small(nnx.LSTM):
        def __init__(self, size, *, rngs):
            super().__init__(size, 5, rngs=rngs)

    assert list(inspect.signature(Small).parameters) == ["size", "rngs"]
    assert list(inspect.signature(nnx.Stack).parameters) == ["model", "rngs"]
    module = Small(3, rngs=rngs())
    assert list(inspect.signature(module).parameters)[:2] == ["xs", "state"]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_option_is_handed_on(name):
    other = {
        "merge": "sum",
        "param_dtype": jnp.bfloat16,
        "dtype": jnp.bfloat16,
        "variant": "CIFG",
        "layer_norm": "ba",
        "num_heads": 2,
        "proj_size": 2,
    }
    default = inspect.signature(lj.LSTM).parameters[name].default
    value = other.get(name)
    if value is None and callable(default):
        value = jax.nn.initializers.ones if "init" in name else jax.nn.relu
    elif value is None:
        value = 0.25 if default is None else not default
        value = 0.25 if isinstance(default, float) else value
    expected = lj.LSTM(3, 4, 2, **{name: value})
    assert expected != lj.LSTM(3, 4, 2)
    assert make_nnx(3, 4, 2, **{name: value}).model == expected
    module = linen.LSTM(3, 4, 2, **{name: value})
    assert module.model == expected and getattr(module, name) == value


def test_linen_is_a_module_like_any_other():
    module = linen.LSTM(3, [5, 6], bidirectional=True, name="x")
    again = linen.LSTM(3, (5, 6), 2, bidirectional=True, name="x")
    assert module == again and hash(module) == hash(again)
    assert module != linen.LSTM(3, (5, 6), name="x")
    assert module.clone(dropout=0.5) == linen.LSTM(
        3, (5, 6), bidirectional=True, dropout=0.5, name="x"
    )
    assert "bidirectional = True" in repr(module) and "hidden_size = (5, 6)" in repr(
        module
    )
    assert "layer_1" in module.tabulate(KEY, XS)
    fields = {field.name: field for field in dataclasses.fields(linen.LSTM)}
    assert [*fields][:3] == ["input_size", "hidden_size", "num_layers"]
    assert typing.get_type_hints(linen.LSTM)["dropout"] is float
    assert fields["kernel_init"].default is lj.LSTM(3, 5).kernel_init

    class Longer(linen.LSTM):
        extra: int = 1

    longer = Longer(3, 5, 2, dropout=0.5, extra=4)
    assert (longer.extra, longer.model) == (4, lj.LSTM(3, 5, 2, dropout=0.5))


def test_linen_in_compact_and_in_setup():
    class Compact(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, xs):
            return linen.LSTM(3, 5, bidirectional=True)(xs)[1]

    class Setup(flax_linen.Module):
        def setup(self):
            self.lstm = linen.LSTM(3, 5, bidirectional=True)

        def __call__(self, xs):
            return self.lstm(xs)[1]

    for made, name in ((Compact(), "LSTM_0"), (Setup(), "lstm")):
        variables = made.init(KEY, XS)
        params = linen.params_of({"params": variables["params"][name]})
        expected = lj.LSTM(3, 5, bidirectional=True).apply(params, XS)[1]
        assert_close(made.apply(variables, XS), expected)


def test_linen_under_lifted_transforms():
    """Layers by ``nn.scan``, several models by ``nn.vmap``, and ``nn.remat``."""

    class Block(flax_linen.Module):
        @flax_linen.compact
        def __call__(self, xs, _):
            return flax_linen.remat(linen.LSTM)(3, 3, name="lstm")(xs)[1], None

    model = flax_linen.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    variables = model.init(KEY, XS, None)
    layers = variables["params"]["lstm"]
    expected = XS
    for n in range(2):
        params = linen.params_of({"params": jax.tree.map(lambda p: p[n], layers)})
        _, expected = lj.LSTM(3, 3).apply(params, expected)
    assert_close(model.apply(variables, XS, None)[0], expected)

    many = flax_linen.vmap(
        linen.LSTM, variable_axes={"params": 0}, split_rngs={"params": True}
    )(3, 5)
    variables = many.init(KEY, XS)
    _, ys = many.apply(variables, XS)
    for n in range(2):
        one = linen.params_of(jax.tree.map(lambda p: p[n], variables))
        assert_close(ys[n], lj.LSTM(3, 5).apply(one, XS[n])[1])
    first, second = variables["params"]["layer_0"]["forward"]["kernel"]
    assert not jnp.allclose(first, second, atol=1e-3)


SLIPS = {
    "batch_first": "Batch is first already",
    "return_sequences": "always returns both",
    "return_state": "state, ys = ",
    "units": "hidden_size is the number of units",
    "num_features": "input_size is the number of features",
    "activation": "candidate_activation is that of g and output_activation",
    "recurrent_activation": "gate_activation is its name",
    "go_backwards": "bidirectional=True runs both ways",
    "stateful": "Hand the state that a call returns to the next",
    "time_major": "given to the call",
    "bidirektional": "Is bidirectional meant?",
    "droput": "Is dropout meant?",
    "gizmo": "It takes input_size, hidden_size, num_layers, bidirectional",
}


@MAKERS
@pytest.mark.parametrize("name", SLIPS)
def test_an_unknown_option_is_named_with_a_word(make, name):
    message = f"^{name}: LSTM takes no such argument.*{SLIPS[name]}"
    with pytest.raises(TypeError, match=message):
        make(3, 5, **{name: True})


@MAKERS
def test_arguments_missing_or_too_many(make):
    with pytest.raises(TypeError, match="^hidden_size: expected by LSTM. The size of "):
        make(64)
    with pytest.raises(TypeError, match="^input_size, hidden_size: expected by LSTM"):
        make()
    with pytest.raises(TypeError, match="input_size, hidden_size, num_layers, got 1"):
        make(3, 5, 2, True)
    with pytest.raises(TypeError, match="units: .* return_state|return_state: .*units"):
        make(units=5, return_state=True)


def test_rngs_missing():
    with pytest.raises(TypeError, match=r"^rngs: expected by LSTM. .*rngs=nnx.Rngs"):
        nnx.LSTM(3, 5)
    with pytest.raises(TypeError, match="^rngs: expected by Stack"):
        nnx.Stack(lj.LSTM(3, 5))
    with pytest.raises(TypeError, match="^rngs: LSTM takes no such argument"):
        linen.LSTM(3, 5, rngs=rngs())


@pytest.mark.parametrize("name", ["training", "batch_first", "initial_state"])
def test_an_unknown_argument_of_a_call_is_named_with_a_word(name):
    message = f"^{name}: LSTM.__call__ takes no such argument"
    with pytest.raises(TypeError, match=message):
        make_nnx(3, 5)(XS, **{name: None})
    with pytest.raises(TypeError, match=message):
        linen.LSTM(3, 5).init(KEY, XS, **{name: None})


def test_deterministic_is_no_word():
    message = "deterministic: expected True or False, got 'no' of type str"
    with pytest.raises(TypeError, match=message):
        make_nnx(3, 5)(XS, deterministic="no")
    with pytest.raises(TypeError, match=message):
        linen.LSTM(3, 5).init(KEY, XS, deterministic="no")


@pytest.mark.parametrize("make", [nnx.Stack, linen.Stack])
def test_a_stack_is_made_from_a_stack(make):
    own = {"rngs": rngs()} if make is nnx.Stack else {}
    with pytest.raises(TypeError, match=r"got LSTMCell. Of one cell: lstm_jax.Stack"):
        make(lj.LSTMCell(3, 5), **own)
    with pytest.raises(TypeError, match="^model: expected an lstm_jax.Stack .* int.$"):
        make(3, **own)


def test_what_a_call_returns_is_not_what_it_takes():
    module = make_nnx(3, 3)
    with pytest.raises(TypeError, match="got a state and outputs, what a call returns"):
        module(module(XS))
    with pytest.raises(TypeError, match="got a state, .*Sequential hands on as two"):
        flax_nnx.Sequential(module, module)(XS)
    plain = linen.LSTM(3, 3)
    with pytest.raises(TypeError, match="got a state, .*Sequential hands on as two"):
        flax_linen.Sequential([plain, linen.LSTM(3, 3)]).init(KEY, XS)
    with pytest.raises(TypeError, match="xs: expected an array, got tuple"):
        module((XS, XS))


@slips.explained
@dataclasses.dataclass(frozen=True)
class Described:
    size: int
    _: dataclasses.KW_ONLY
    scale: float = 1.0


def test_a_dataclass_with_words_is_still_one():
    one = Described(3, scale=2.0)
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one)
    assert dataclasses.replace(one, size=4) == Described(4, scale=2.0)
    assert list(inspect.signature(Described).parameters) == ["size", "scale"]
    assert hash(one) == hash(Described(3, scale=2.0))
    with pytest.raises(TypeError, match="^bias: Described takes no such argument"):
        Described(3, bias=True)


@pytest.mark.parametrize("make", [nnx.LSTM, linen.LSTM])
def test_help_is_about_the_module(make):
    text = pydoc.render_doc(make, renderer=pydoc.plaintext)
    assert "bidirectional: " in text
    assert "It takes what :class:`lstm_jax.LSTM` takes" in text
    assert "Sigmoid activation function" not in text, "help of a default"
