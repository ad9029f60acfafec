"""Initializers of an LSTM's own, against the equations of their papers."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.initializers import chrono, chrono_bias


@pytest.mark.parametrize("t_max", [2, 2.5, 7, 784.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chrono_biases_are_those_of_the_paper(t_max, dtype):
    """b_f is the logarithm of U(1, T_max - 1), b_i its negative, the others 0."""
    H = 2000
    bias = chrono(t_max)(jax.random.key(3), (4 * H,), dtype)
    assert bias.dtype == dtype
    i, f, g, o = np.asarray(bias, np.float64).reshape(4, H)
    np.testing.assert_array_equal(i, -f)
    assert not g.any() and not o.any()
    step = 2.0 ** (-8 if dtype == "bfloat16" else -23)
    assert f.min() >= 0 and f.max() <= np.log(t_max - 1) * (1 + step)
    keeps, even = np.sort(np.exp(f)), (np.arange(H) + 0.5) / H
    # Kolmogorov and Smirnov's distance is above this in 1 of 1,000 draws.
    width = t_max - 2 + 4 * step * t_max
    assert np.abs((keeps - 1) - even * (t_max - 2)).max() <= 1.95 / H**0.5 * width


@pytest.mark.parametrize("forget_bias", [0.0, 0.5])
def test_chrono_is_the_bias_of_new_cells_before_the_forget_bias(forget_bias):
    options = {"bias_init": chrono(50), "forget_bias": forget_bias}
    model = lj.LSTM(3, 6, 2, bidirectional=True, param_dtype=jnp.bfloat16, **options)
    params = model.init(jax.random.key(0))
    drawn = [
        one.bias.astype("float32").reshape(4, 6) for layer in params for one in layer
    ]
    assert len({float(bias[1, 0]) for bias in drawn}) == 4
    for i, f, g, o in drawn:
        np.testing.assert_allclose(f - forget_bias, -i, atol=0.02)
        assert np.log(49) + 0.02 >= -i.min() > 0 and not g.any() and not o.any()


def test_chrono_is_written_pickled_and_equal_by_its_number():
    model = lj.LSTM(3, 5, bias_init=chrono(100))
    config = json.loads(json.dumps(model.to_config()))
    assert config["bias_init"] == {
        "function": "lstm_jax.initializers.chrono_bias",
        "args": [],
        "keywords": {"t_max": 100.0},
    }
    for other in (
        lj.from_config(config),
        pickle.loads(pickle.dumps(model)),
        lj.LSTM(3, 5, bias_init=chrono(np.float32(100))),
        lj.LSTM(3, 5, bias_init=functools.partial(chrono_bias, t_max=100.0)),
    ):
        assert other == model and hash(other) == hash(model)
    assert lj.LSTM(3, 5, bias_init=chrono(101)) != model


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: chrono(1.9), ValueError, "t_max: expected at least 2 steps, got 1.9"),
        (lambda: chrono(np.inf), ValueError, "t_max: expected a finite number"),
        (lambda: chrono("9"), TypeError, "t_max: expected a number"),
        (
            lambda: chrono(9)(jax.random.key(0), (5, 20)),
            ValueError,
            r"shape: expected \[4H\], .* got \[5, 20\]",
        ),
        (
            lambda: lj.LSTM(3, 4, bias_init=chrono(9), variant="CIFG"),
            ValueError,
            "bias_init: expected another than chrono, .* variant='CIFG'.* i, g, o",
        ),
    ],
)
def test_chrono_refuses_what_it_has_no_equation_for(make, error, words):
    with pytest.raises(error, match=words):
        make()
    assert lj.LSTM(3, 4, bias_init=chrono(9), variant="NIAF").variant == "NIAF"
