"""What comes from other libraries' habits is answered with what is meant here."""

import copy
import dataclasses
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstm_jax as lj
from lstm_jax import convert, data, decoding, distributed, training
from lstm_jax.checks import names

MODEL = lj.LSTM(3, 5)
PARAMS = MODEL.init(jax.random.key(0))
XS = jnp.ones((2, 7, 3))
MODULES = {
    module.__name__: module
    for module in (lj, convert, data, decoding, distributed, training)
}
TABLE = [(owner, name) for owner, table in names._WORD.items() for name in table]


@dataclasses.dataclass(frozen=True)
class Sum(lj.Cell):
    """A cell whose state is a bare array, of no size that it tells."""

    size: int

    def init(self, key):
        return {"scale": jnp.ones(())}

    def zero_state(self, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, self.size), dtype)

    def project(self, params, xs):
        return xs * params["scale"]

    def recur(self, params, state):
        return state

    def update(self, params, state, z, r):
        return z + r, z + r


class NoDataclass(Sum):
    """One more level changes nothing: it is a frozen dataclass by inheritance."""


class Bare(lj.Cell):
    """No dataclass."""


@dataclasses.dataclass
class Thawed(lj.Cell):
    """A dataclass that may change."""


@dataclasses.dataclass(frozen=True)
class Empty(lj.Cell):
    """No method."""


@dataclasses.dataclass(frozen=True)
class Wider(Sum):
    """Its state has another size after a step."""

    def update(self, params, state, z, r):
        return jnp.concatenate([z, r], -1), z


@dataclasses.dataclass(frozen=True)
class Swapped(Sum):
    """Its state is a pair after a step."""

    def update(self, params, state, z, r):
        return (z, r), z


@dataclasses.dataclass(frozen=True)
class Alone(Sum):
    """It returns no state."""

    def update(self, params, state, z, r):
        return z + r


@pytest.mark.parametrize("owner, name", TABLE)
def test_a_name_that_is_not_here_is_answered_with_a_word(owner, name):
    asked = MODEL if owner == "model" else MODULES[owner]
    with pytest.raises(AttributeError, match=re.escape(names._WORD[owner][name])) as e:
        getattr(asked, name)
    assert (e.value.name, e.value.obj) == (name, asked)
    assert not hasattr(asked, name)


@pytest.mark.parametrize(
    "words", sorted({w for t in names._WORD.values() for w in t.values()})
)
def test_words_name_what_is_there(words):
    """Each dotted name of this package in the words can be had."""
    for found in re.findall(r"lstm_jax((?:\.\w+)+)", words):
        value = lj
        for part in found[1:].split("."):
            value = getattr(value, part)
    for found in re.findall(r"model\.(\w+)", words):
        assert hasattr(MODEL, found)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_another_name_is_an_error_as_ever(module):
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_it'$"):
        _ = module.nothing_like_it
    with pytest.raises(
        AttributeError, match="'LSTM' object has no attribute 'nothing'"
    ):
        _ = MODEL.nothing


def test_a_model_that_is_called_says_how_it_is_run():
    for args in ((XS,), (PARAMS, XS)):
        with pytest.raises(TypeError, match=r"LSTM: .* model.apply\(params, xs\)"):
            MODEL(*args)
    assert copy.deepcopy(MODEL) == MODEL == pickle.loads(pickle.dumps(MODEL))


def loss_fn(params, carry, xs, key):
    return jnp.mean(MODEL.apply(params, xs)[1] ** 2), (carry, {})


def streaming_loss(params, carry, xs, key):
    carry, ys = MODEL.apply(params, xs, carry)
    return jnp.mean(ys**2), (carry, {})


def fit(loss_fn=loss_fn, tx=None, batches=(XS,), **options):
    tx = optax.sgd(1e-3) if tx is None else tx
    options = {"steps": 1, "show": False} | options
    return training.fit(loss_fn, tx, PARAMS, batches, **options)


SLIPS = {
    "step without a state": (
        lambda: MODEL.step(PARAMS, XS[:, 0]),
        TypeError,
        "x: expected by LSTM.step. The state comes before it",
    ),
    "a cell without a state": (
        lambda: MODEL.cells[0](PARAMS[0].forward, XS[:, 0]),
        TypeError,
        "x: expected by LSTMCell.__call__. The state comes before it",
    ),
    "all that a call returns": (
        lambda: MODEL.last(MODEL.apply(PARAMS, XS)),
        TypeError,
        "got tuple. A call returns both: state, ys = model.apply(params, xs).",
    ),
    "no carry where one is needed": (
        lambda: fit(streaming_loss),
        ValueError,
        "got 0 layers. Is it the carry of a run that was given none?",
    ),
    "fit, by Keras's name": (
        lambda: fit(early_stopping=True),
        TypeError,
        "early_stopping: fit takes no such argument. patience says",
    ),
    "fit, misspelt": (
        lambda: fit(clip_nrom=1.0),
        TypeError,
        "clip_nrom: fit takes no such argument. Is clip_norm meant?",
    ),
    "an optimizer that is not made yet": (
        lambda: fit(tx=optax.adam),
        TypeError,
        "tx: expected an Optax transformation such as optax.adam(1e-3), got function. "
        "adam is a function that makes one: adam(1e-3).",
    ),
    "the same for a state": (
        lambda: training.create(PARAMS, None, ()),
        TypeError,
        "tx: expected an Optax transformation such as optax.adam(1e-3), got NoneType.",
    ),
    "one array for batches": (
        lambda: fit(batches=np.ones((4, 7, 3), np.float32)),
        TypeError,
        "batches: expected batches, such as a list of them, got one array.",
    ),
    "one array for held-out batches": (
        lambda: fit(valid=np.ones((4, 7, 3), np.float32)),
        TypeError,
        "valid: expected batches, such as a list of them, got one array.",
    ),
    "a path for export": (
        lambda: lj.export(MODEL, PARAMS, "model.zip"),
        TypeError,
        "got 1 more. It returns the bytes of a file",
    ),
    "padding by Keras's name": (
        lambda: data.pad_sequences([[1]], maxlen=3),
        TypeError,
        "maxlen: pad_sequences takes no such argument. length is its name",
    ),
    "windows without a horizon": (
        lambda: data.sliding_windows(np.ones((9, 1)), 3),
        TypeError,
        "horizon: expected by sliding_windows.",
    ),
    "a series of one axis": (
        lambda: data.sliding_windows(np.ones(9), 3, 1),
        ValueError,
        "series: expected shape [T, F], or several of them, got [9]. One feature is "
        "series[:, None].",
    ),
    "sequences of two dtypes": (
        lambda: data.pad_sequences([[1.0, 2.0], [3]]),
        ValueError,
        "sequences[1]: expected shape [T] and dtype float64, as sequences[0] has",
    ),
    "layers of no size": (
        lambda: lj.Stack((Sum(3), Sum(3))),
        TypeError,
        "cells[0].output_size: expected the size that layers fit by, got None from "
        "Sum(3).",
    ),
    "a state without h": (
        lambda: lj.Stack((Sum(3),)).last(lj.Stack((Sum(3),)).zero_state((2,))),
        TypeError,
        "state: expected one with an h, what a step puts out, got ArrayImpl.",
    ),
    "a cell that is no dataclass": (
        lambda: lj.scan(Bare(), {}, XS),
        TypeError,
        "cell: expected a frozen dataclass, got Bare.",
    ),
    "a cell that may change": (
        lambda: lj.scan(Thawed(), {}, XS),
        TypeError,
        "cell: expected a frozen dataclass, got Thawed.",
    ),
    "a state of another size after a step": (
        lambda: lj.scan(Wider(3), {"scale": jnp.ones(())}, XS),
        ValueError,
        "update: expected (state, y) from Wider(3), with state of shape [2, 3], as it "
        "was given, got [2, 6].",
    ),
    "a state of another structure after a step": (
        lambda: lj.scan(Swapped(3), {"scale": jnp.ones(())}, XS),
        ValueError,
        "update: expected (state, y) from Swapped(3), with a state of the structure ",
    ),
    "no state after a step": (
        lambda: lj.scan(Alone(3), {"scale": jnp.ones(())}, XS),
        TypeError,
        "update: expected (state, y) from Alone(3), got ShapeDtypeStruct.",
    ),
    "a cell without methods": (
        lambda: lj.Stack((Empty(),)),
        TypeError,
        "got Empty, which lacks zero_state, project, recur, update.",
    ),
}


@pytest.mark.parametrize("call, error, words", SLIPS.values(), ids=SLIPS)
def test_a_slip_is_told(call, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call()


def test_one_layer_needs_no_size():
    cell = NoDataclass(3)
    model = lj.Stack((cell,))
    _, ys = model.apply(model.init(jax.random.key(0)), XS)
    np.testing.assert_array_equal(ys, np.cumsum(XS, 1))


BATCHES = {
    "buckets": lambda seed: data.bucket_batches(
        [np.ones(n) for n in (3, 1, 2)], batch_size=2, seed=seed
    ),
    "shuffled": lambda seed: data.shuffled_batches(np.arange(5), 2, seed=seed),
    "prefetched": lambda seed: data.prefetch(
        data.shuffled_batches(np.arange(5), 2, seed=seed)
    ),
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("seed", [None, 0])
def test_predictions_in_another_order_are_not_handed_out(kind, seed):
    batches = BATCHES[kind](seed)
    if kind != "buckets" and seed is None:
        assert batches.in_order
        found = training.predict(lambda params, batch: 2 * batch, {}, batches)
        assert [int(one) for one in found] == [0, 2, 4, 6, 8]
        return
    assert not batches.in_order
    with pytest.raises(ValueError, match="^index: .* another order than the input"):
        training.predict(lambda params, batch: batch, {}, batches)
