"""How far a model in 8 bits is from its float32, over time and over scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import normal


def relative(actual, expected, axis=None):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    size = np.linalg.norm(expected, axis=axis)
    return np.linalg.norm(actual - expected, axis=axis) / size


LATE = (9, 99, 999, 9_999)


def remembering(mean):
    """A memory of thousands of steps: c runs far out of what 8 bits could hold."""
    plain = lj.LSTMCell(8, 32)
    params = plain.init(jax.random.key(0))
    bias = params.bias.at[32:64].set(normal(3, 32) * np.float32(0.5) + 7.0)
    recurrent = params.recurrent_kernel * np.float32(0.3)
    params = params._replace(bias=bias, recurrent_kernel=recurrent)
    xs = normal(1, (4, 10_000, 8)) + np.float32(mean)
    cell, small = lj.quantize(plain, params)
    return plain, params, small, xs, lj.scan_states(cell, small, xs)[1]


def test_the_error_does_not_grow_with_time():
    plain, params, _, xs, ours = remembering(0.5)
    exact = lj.scan_states(plain, params, xs)[1]
    assert np.abs(exact.c).max() > 500
    for t in LATE:
        assert relative(ours.h[:, t], exact.h[:, t]) < 0.01, t
        assert relative(ours.c[:, t], exact.c[:, t]) < 0.01, t


def test_rounding_what_enters_products_adds_up_to_little():
    """Where c has no drift, against the same weights in float32."""
    plain, _, small, xs, ours = remembering(0.0)
    as_floats = lj.LSTMParams(
        small.kernel.astype(jnp.float32) * small.kernel_scale[None],
        small.recurrent_kernel.astype(jnp.float32) * small.recurrent_scale[None],
        small.bias,
    )
    exact = lj.scan_states(plain, as_floats, xs)[1]
    assert np.abs(exact.c).max() > 100
    for t in LATE:
        assert relative(ours.h[:, t], exact.h[:, t]) < 0.06, t
        assert relative(ours.c[:, t], exact.c[:, t]) < 0.06, t


# For each the scale of kernel, recurrent kernel and inputs, and which columns of the
# matrices are not divided by 100.
UNEQUAL = {
    "small kernel": (0.01, 1, 100, slice(None)),
    "large kernel": (100, 1, 0.01, slice(None)),
    "small recurrent kernel": (1, 0.01, 1, slice(None)),
    "one gate": (1, 1, 1, slice(48, 96)),
    "one unit": (1, 1, 1, slice(5, None, 48)),
}


@pytest.mark.parametrize("name", UNEQUAL)
def test_matrices_and_columns_have_scales_of_their_own(name):
    of_kernel, of_recurrent, of_inputs, columns = UNEQUAL[name]
    plain = lj.LSTMCell(24, 48)
    params = plain.init(jax.random.key(0))
    scale = np.full((1, 192), 0.01, np.float32)
    scale[:, columns] = 1
    params = params._replace(
        kernel=params.kernel * scale * np.float32(of_kernel),
        recurrent_kernel=params.recurrent_kernel * scale * np.float32(of_recurrent),
    )
    xs = normal(4, (4, 20, 24), scale=of_inputs)
    cell, small = lj.quantize(plain, params)
    exact, ys = lj.scan(plain, params, xs)[1], lj.scan(cell, small, xs)[1]
    assert relative(ys, exact) < 0.01


def test_a_projection_whose_columns_are_unequal():
    plain = lj.LSTMCell(24, 48, proj_size=20)
    params = plain.init(jax.random.key(0))
    projection = params.projection_kernel.at[:, 3].multiply(10.0)
    params = params._replace(projection_kernel=projection)
    xs = normal(4, (4, 20, 24))
    cell, small = lj.quantize(plain, params)
    ys = lj.scan(cell, small, xs)[1]
    assert np.abs(ys).max() > 1
    assert relative(ys, lj.scan(plain, params, xs)[1]) < 0.03
