"""Descriptions are values: pickled, copied, compared, shown and counted."""

import copy
import dataclasses
import functools
import multiprocessing
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.descriptions import base
from tests.descriptions import (
    DESCRIPTIONS,
    UNCOPIED,
    Derived,
    Scaled,
    assert_same,
    cells_of,
    choices,
    each_description,
    each_kind,
    small,
)


@each_description
def test_a_pickled_description_is_equal(name):
    model = DESCRIPTIONS[name]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        made = pickle.loads(pickle.dumps(model, protocol))
        assert made is not model
        assert_same(made, model)


@each_description
def test_a_pickled_description_keeps_no_caches(name):
    model = DESCRIPTIONS[name]
    before = pickle.dumps(dataclasses.replace(model))
    hash(model), model.for_program(), cells_of(model)
    assert pickle.dumps(model) == before


@each_description
def test_copies_are_equal(name):
    model = DESCRIPTIONS[name]
    assert copy.copy(model) is model
    assert copy.deepcopy(model) is model
    assert copy.deepcopy({"model": [model]})["model"][0] is model
    assert_same(dataclasses.replace(model), model)


@pytest.mark.parametrize("name", [n for n in DESCRIPTIONS if n not in UNCOPIED])
def test_a_description_made_of_its_dict_is_equal(name, monkeypatch):
    # Other modules have classes with the same fields, which a dict could be of too.
    monkeypatch.setattr(base, "_seen_inside", {Scaled})
    model = DESCRIPTIONS[name]
    fields = dataclasses.asdict(model)
    assert_same(type(model)(**fields), model)
    assert_same(type(model)(**copy.deepcopy(fields)), model)


def test_replace_changes_what_is_named():
    model = dataclasses.replace(lj.LSTM(3, 5, clip=1.0), hidden_size=7)
    assert model == lj.LSTM(3, 7, clip=1.0) != lj.LSTM(3, 5, clip=1.0)
    with pytest.raises(ValueError, match="hidden_size"):
        dataclasses.replace(model, hidden_size=0)


def seen_by_a_child(models):
    """What another process says of descriptions that it makes itself too."""
    pairs = [(models[name], model) for name, model in DESCRIPTIONS.items()]
    return (
        [one == other and hash(one) == hash(other) for one, other in pairs],
        [repr(model) for model in models.values()],
        [choices(model) for model in models.values()],
        models,
    )


def test_descriptions_go_to_a_spawned_process_and_back():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        equal, shown, chosen, back = pool.apply(seen_by_a_child, (DESCRIPTIONS,))
    assert len(equal) == len(DESCRIPTIONS) and all(equal)
    assert shown == [repr(model) for model in DESCRIPTIONS.values()]
    assert chosen == [choices(model) for model in DESCRIPTIONS.values()]
    assert back == DESCRIPTIONS


def test_a_pair_of_description_and_parameters_is_pickled():
    model = lj.LSTM(3, 5)
    params = model.init(jax.random.key(0))
    made, again = pickle.loads(pickle.dumps((model, params)))
    assert made == model
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))


def test_hash_and_equality_by_class_and_compared_fields():
    @dataclasses.dataclass(frozen=True)
    class Noted(lj.LSTMCell):
        note: Any = dataclasses.field(default=None, compare=False)

    assert Noted(3, 5) != lj.LSTMCell(3, 5)
    assert Noted(3, 5, note=[1]) == Noted(3, 5, note={})
    assert hash(Noted(3, 5, note=[1])) == hash(Noted(3, 5, note={}))
    assert Noted(3, 5) != Noted(3, 6)
    assert lj.LSTM(3, 5) != lj.Stack((lj.LSTMCell(3, 5),))
    assert lj.LSTMCell(3, 5) != (3, 5) and (lj.LSTMCell(3, 5) == 1) is False
    assert {lj.LSTM(3, 5): 1}[lj.LSTM(3, 5, param_dtype="float32")] == 1


def test_a_field_that_the_constructor_makes_is_made_again():
    made = Derived(3, 5, kernel_init=small)
    assert made.doubled == 10 and "doubled" not in repr(made)
    assert pickle.loads(pickle.dumps(made)) == dataclasses.replace(made) == made
    assert lj.Stack((made,)).for_program().cells == (Derived(3, 5),)


def test_repr_says_what_differs_from_the_defaults():
    assert repr(lj.LSTM(3, 5)) == "LSTM(3, 5)"
    model = lj.LSTM(
        3, 5, num_layers=2, gate_activation=jax.nn.hard_sigmoid, dtype=jnp.bfloat16
    )
    assert repr(model) == (
        "LSTM(3, 5, num_layers=2, dtype='bfloat16', "
        "gate_activation=jax.nn.hard_sigmoid)"
    )
    stack = lj.Stack((lj.Regularized(lj.LSTMCell(3, 8), zoneout_h=0.5),))
    assert repr(stack) == "Stack((Regularized(LSTMCell(3, 8), zoneout_h=0.5),))"
    assert repr(lj.LSTMCell(3, 5, forget_bias=np.float32(0.5))) == (
        "LSTMCell(3, 5, forget_bias=0.5)"
    )
    assert repr(Scaled(3, 5, scale=2.0)) == "Scaled(3, 5, scale=2.0)"
    unnamed = lj.LSTMCell(3, 5, gate_activation=lambda x: x)
    assert "gate_activation=<function test_repr" in repr(unnamed)


@each_description
def test_repr_is_what_makes_it(name):
    import lstm_jax
    import tests

    model = DESCRIPTIONS[name]
    names = vars(lj) | {"jax": jax, "functools": functools, "Scaled": Scaled}
    made = eval(repr(model), names | {"lstm_jax": lstm_jax, "tests": tests})
    assert_same(made, model)


@each_kind
def test_count_params_is_what_init_makes(name):
    model = DESCRIPTIONS[name]
    made = model.init(jax.random.key(0))
    assert model.count_params() == sum(leaf.size for leaf in jax.tree.leaves(made))


def test_linen_and_nnx_modules_hold_descriptions():
    from flax import nnx

    from lstm_jax import linen
    from lstm_jax.nnx import LSTM

    module = LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0))
    assert copy.deepcopy(module).model == module.model
    assert linen.LSTM(3, [4, 5]).model == lj.LSTM(3, (4, 5))


def test_float64_is_not_the_default():
    """NumPy holds that ``np.dtype("float64") == None``."""
    for make in (lj.LSTMCell, lj.SLSTMCell, lj.LSTM):
        wide, plain = make(3, 5, dtype="float64"), make(3, 5)
        assert wide != plain and hash(wide) != hash(plain)
        assert repr(wide) == f"{make.__name__}(3, 5, dtype='float64')"
        assert lj.Stack((wide,)) != lj.Stack((plain,)) if make is not lj.LSTM else True
    with jax.enable_x64(True):
        for variant in (None, "CIFG", "sLSTM"):
            model = lj.LSTM(3, 5, dtype="float64", variant=variant)
            params = model.init(jax.random.key(0))
            ys = model.apply(params, np.ones((2, 3, 3), np.float32))[1]
            assert ys.dtype == model.cells[0].dtype == np.float64
