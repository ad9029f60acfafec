"""Tensors of PyTorch as arguments."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lstm_jax.checks.border import take


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int32", "bool", "float16"])
@pytest.mark.parametrize("learned", [False, True])
def test_tensors_are_taken(kind, learned):
    tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, kind)).T
    expected = tensor.to(torch.float64).numpy()
    if learned and tensor.is_floating_point():
        tensor.requires_grad_(True)
    taken = take("xs", tensor)
    assert taken.dtype == jnp.dtype(kind)
    np.testing.assert_array_equal(np.asarray(taken, np.float64), expected)
    with torch.no_grad():
        tensor.zero_()
    np.testing.assert_array_equal(np.asarray(taken, np.float64), expected)


@pytest.mark.parametrize(
    "value",
    [torch.ones(2, device="meta"), torch.eye(2).to_sparse()],
    ids=["meta", "sparse"],
)
def test_tensors_that_numpy_cannot_read_are_refused(value):
    with pytest.raises(TypeError, match=r"^xs: .*tensor\.detach\(\)\.cpu\(\)\.numpy"):
        take("xs", value)


def test_modules_are_refused():
    with pytest.raises(TypeError, match="xs: expected an array, got LSTM"):
        take("xs", torch.nn.LSTM(3, 5))
