"""Safetensors files between PyTorch and this library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch

import lstm_jax as lj
from lstm_jax.convert.files.safetensors import opened
from lstm_jax.convert.files.torch import save_torch
from tests.common import assert_close, random_like

I, H = 3, 5


class Tagger(torch.nn.Module):
    """An LSTM in a larger module; another name for it is one that a file drops."""

    def __init__(self):
        super().__init__()
        self.a_rnn = torch.nn.LSTM(I, H, 2, bidirectional=True, batch_first=True)
        self.count = torch.nn.Buffer(torch.tensor(3))
        self.rnn = self.a_rnn


@pytest.mark.parametrize("prefix", ["a_rnn.", "rnn."])
def test_a_file_of_pytorch_agrees(tmp_path, prefix):
    torch.manual_seed(0)
    module, path = Tagger(), tmp_path / "m.safetensors"
    safetensors.torch.save_model(module, str(path))
    assert len(opened(path)) == 2 * len(safetensors.torch.load_file(path)) - 1
    model, params = lj.convert.from_torch(opened(path), prefix=prefix)
    xs = torch.randn(2, 7, I)
    expected = module.rnn(xs)[0].detach().numpy()
    ys = model.apply(params, jnp.asarray(xs.numpy()))[1]
    assert_close(ys, jnp.asarray(expected))


def test_bfloat16_of_pytorch_comes_bit_for_bit(tmp_path):
    module, path = torch.nn.LSTM(I, H).bfloat16(), tmp_path / "m.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    _, params = lj.convert.from_torch(opened(path))
    kernel = np.asarray(params[0].forward.kernel).view(np.uint16)
    theirs = module.weight_ih_l0.detach().view(torch.uint16).numpy()
    np.testing.assert_array_equal(kernel, theirs.T)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_loads_what_is_saved_for_it(tmp_path, dtype):
    model = lj.LSTM(I, H, 2, bidirectional=True, param_dtype=getattr(jnp, dtype))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params, path = random_like(0, shapes), tmp_path / "m.safetensors"
    save_torch(path, model, params)
    module = torch.nn.LSTM(I, H, 2, bidirectional=True, batch_first=True)
    module = module.to(getattr(torch, dtype))
    weights = safetensors.torch.load_file(path)
    module.load_state_dict(weights)
    for name, value in lj.convert.to_torch(model, params).items():
        assert weights[name].dtype == getattr(torch, dtype)
        ours = np.asarray(value, np.float32)
        np.testing.assert_array_equal(weights[name].float().numpy(), ours)
