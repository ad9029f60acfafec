"""The CPU kernels of other than the standard step, at sizes that do not divide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import assert_close
from tests.test_cpu import ALL, WHY, program

pytestmark = pytest.mark.skipif(WHY != "available", reason=f"CPU kernels: {WHY}")

# One thread and two, rows shared and units shared, a projection; (B, T, I, H, P).
SHAPES = [(1, 90, 5, 129, None), (20, 9, 30, 200, None), (70, 13, 20, 60, 33)]

OPTIONS = {
    "peephole": {"peephole": True},
    "CIFG": {"variant": "CIFG"},
    "NIG": {"variant": "NIG", "peephole": True},
    "NFG": {"variant": "NFG"},
    "NOG": {"variant": "NOG", "peephole": True},
    "NIAF": {"variant": "NIAF", "clip": 0.9},
    "NOAF": {"variant": "NOAF", "cell_clip": 0.5, "peephole": True},
    "diagonal": {"num_heads": "all", "variant": "CIFG", "peephole": True},
    "clips": {"clip": 0.6, "cell_clip": 0.3},
    "heads": {"num_heads": "some", "variant": "NIG"},
    "layer_norm": {"layer_norm": "haste"},
    "layer_norm_ba": {"layer_norm": "ba", "peephole": True, "use_bias": False},
    "layer_norm_heads": {"layer_norm": "haste", "num_heads": "some"},
    "layer_norm_CIFG": {"layer_norm": "ba", "variant": "CIFG", "cell_clip": 0.8},
}
NOISE = {
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "output_dropout": {"output_dropout": 0.4},
    "diagonal": {"recurrent_dropout": 0.3, "zoneout_h": 0.2},
    "zoneout": {"zoneout_h": 0.2, "zoneout_c": 0.4},
    "all": {
        "input_dropout": 0.2,
        "recurrent_dropout": 0.3,
        "output_dropout": 0.4,
        "drop_connect": 0.1,
        "zoneout_h": 0.2,
        "zoneout_c": 0.1,
    },
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_agree_with_the_reference(name, shape):
    B, T, I, H, P = shape
    options = dict(OPTIONS[name])
    if options.get("num_heads") == "all":
        options["num_heads"], P = H, None
    if options.get("num_heads") == "some":
        options["num_heads"] = 4 if H == 200 else 3
    cell = lj.LSTMCell(I, H, proj_size=P, **options)
    options = dict(names=ALL if T > 9 else (), shape=(B, T), reverse=B == 20)
    actual = program(cell, "cpu", **options)()
    assert_close(actual, program(cell, "xla", **options)())


@pytest.mark.parametrize("key", [None, 3], ids=["expected", "drawn"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NOISE)
def test_noise_agrees_with_the_reference(name, shape, key):
    B, T, I, H, P = shape
    inside = lj.LSTMCell(I, H, proj_size=P, peephole=B == 20)
    if name == "diagonal":
        inside = lj.LSTMCell(I, H, num_heads=H)
    cell = lj.Regularized(inside, **NOISE[name])
    options = dict(names=ALL if T > 9 else (), shape=(B, T), states=B == 70)
    if key is not None:
        options["key"] = jax.random.key(key)
    actual = program(cell, "cpu", **options)()
    assert_close(actual, program(cell, "xla", **options)())


def test_units_alone_are_normalised_together():
    cell = lj.LSTMCell(3, 6, layer_norm="ba", num_heads=6)
    actual = program(cell, "cpu", ALL, shape=(4, 7))()
    assert_close(actual, program(cell, "xla", ALL, shape=(4, 7))())


def test_results_are_the_same_for_any_thread_count(monkeypatch):
    inside = lj.LSTMCell(30, 100, peephole=True, variant="CIFG")
    cell = lj.Regularized(inside, recurrent_dropout=0.3, zoneout_c=0.2)
    run = program(cell, "cpu", ALL, shape=(10, 50), key=jax.random.key(0))
    results = []
    for threads in ("1", "2", "3"):
        monkeypatch.setenv("LSTM_JAX_NUM_THREADS", threads)
        results.append(jax.tree.leaves(run()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [*OPTIONS, *NOISE])
def test_they_are_chosen(name):
    if name in OPTIONS:
        heads = {"num_heads": 5} if "num_heads" in OPTIONS[name] else {}
        cell = lj.LSTMCell(3, 5, **OPTIONS[name] | heads)
    else:
        cell = lj.Regularized(lj.LSTMCell(3, 5), **NOISE[name])
    params, xs = cell.init(jax.random.key(0)), jnp.ones((2, 4, 3))
    assert lj.resolve_implementation(cell, params, xs) == "cpu"


def test_what_has_no_kernel_is_refused_by_name():
    others = [
        lj.LSTMCell(3, 6, variant="FGR"),
        lj.LSTMCell(3, 6, gate_activation=jax.nn.hard_sigmoid),
        lj.SLSTMCell(3, 6),
        lj.Regularized(lj.SLSTMCell(3, 6), recurrent_dropout=0.1),
        lj.Regularized(
            lj.Regularized(lj.LSTMCell(3, 6), zoneout_h=0.1), recurrent_dropout=0.1
        ),
        _Derived(3, 6, peephole=True),
    ]
    xs = jnp.ones((2, 4, 3))
    for cell in others:
        params = cell.init(jax.random.key(0))
        with pytest.raises(NotImplementedError, match='"cpu" runs LSTMCell without'):
            lj.scan(cell, params, xs, key=jax.random.key(1), implementation="cpu")


@dataclasses.dataclass(frozen=True, repr=False)
class _Derived(lj.LSTMCell):
    """A cell of a user's, whose steps may be others."""


def test_gradients_of_masks_are_those_of_the_reference():
    """Nobody asks for them by name, but a loop of one's own may hand masks on."""
    from lstm_jax.cells.regularized import Noise, Noisy
    from lstm_jax.recurrence import choice, primitive
    from lstm_jax.recurrence.contract import Call, Inputs

    cell = lj.LSTMCell(3, 5)
    noisy = Noisy(lj.Regularized(cell, recurrent_dropout=0.5))
    params, xs = cell.init(jax.random.key(0)), jnp.ones((4, 2, 3))
    state = cell.zero_state((2,))

    def loss(mask, names):
        able = tuple(one for one in choice.IMPLEMENTATIONS if one.name in names)
        inputs = (Inputs(Noise(params, None, mask, None), xs, state),)
        call = Call(noisy, (False,), False, able, jax.tree.structure(inputs))
        return primitive.run(inputs, call)[0].ys.sum()

    mask = jnp.linspace(0, 2, 10).reshape(2, 5)
    with_kernels = jax.grad(loss)(mask, ("cpu", "xla"))
    assert_close(with_kernels, jax.grad(loss)(mask, ("xla",)))
    assert float(jnp.abs(with_kernels).max()) > 0
