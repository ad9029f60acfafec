"""Parity with the package ``xlstm``, its plain backend: values and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lstm_jax.convert import xlstm
from tests.common import assert_close, value_and_pullback
from tests.peers.test_torch import to_jax

pytest.importorskip("xlstm.blocks.slstm.layer", reason="the package xlstm")
from xlstm.blocks.slstm.cell import sLSTMCell, sLSTMCellConfig  # noqa: E402
from xlstm.blocks.slstm.layer import sLSTMLayer, sLSTMLayerConfig  # noqa: E402

H, B, T = 6, 3, 5
PLAIN = dict(
    dtype="float32",
    num_heads=2,
    output_shape="BSH",
    enable_automatic_mixed_precision=False,
)


def randomise(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.6)
    return module


def make_cell(backend="vanilla", **options):
    config = sLSTMCellConfig(hidden_size=H, backend=backend, **PLAIN | options)
    return randomise(sLSTMCell(config, skip_backend_init=True))


def make_state(batch=B):
    state = torch.randn(4, batch, H)
    state[2] = state[2].abs() + 0.1
    return state.requires_grad_()


@pytest.mark.parametrize(("batch", "length"), [(B, T), (1, 1)])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_cell_agrees(heads, batch, length):
    cell = make_cell(num_heads=heads)
    gates = torch.randn(batch, length, 4 * H, requires_grad=True)
    state = make_state(batch)
    outs = cell(gates, state)
    cotangents = [torch.randn_like(out) for out in outs]
    torch.autograd.backward(outs, cotangents)

    def run(weights, gates, state):
        model, params = xlstm.from_xlstm(weights)
        start = xlstm.state_from_xlstm(model, state)
        last, ys = model.apply(params, gates, start)
        return ys, xlstm.state_to_xlstm(model, last)

    weights = {name: to_jax(one) for name, one in cell.state_dict().items()}
    args = weights, to_jax(gates), to_jax(state)
    out, pulled = value_and_pullback(run, args, tuple(map(to_jax, cotangents)))
    assert_close(out, tuple(map(to_jax, outs)))
    grads = {name: to_jax(one.grad) for name, one in cell.named_parameters()}
    assert_close(pulled, (grads, to_jax(gates.grad), to_jax(state.grad)))


@pytest.mark.parametrize("kernel_size", [0, 4])
def test_a_layer_agrees(kernel_size):
    config = sLSTMLayerConfig(
        embedding_dim=H, conv1d_kernel_size=kernel_size, backend="vanilla", **PLAIN
    )
    # The layer itself reads its cell's outputs as [B, N, T, D].
    config.output_shape = "BNSH"
    layer = randomise(sLSTMLayer(config))
    x = torch.randn(B, T, H)
    with torch.no_grad():
        expected = layer(x)
        feeding = layer.conv_act_fn(layer.conv1d(x)) if kernel_size else None
    leave_out = ("group_norm", "conv1d") if kernel_size else ("group_norm",)
    whole = {f"blocks.0.xlstm.{k}": v for k, v in layer.state_dict().items()}
    model, params = xlstm.from_xlstm(whole, path="blocks.0.xlstm", leave_out=leave_out)
    xs = x if feeding is None else torch.cat([feeding, x], -1)
    _, ys = model.apply(params, to_jax(xs))
    with torch.no_grad():
        heads = torch.from_numpy(np.array(ys)).view(B, T, 2, H // 2).transpose(1, 2)
        found = layer.group_norm(heads).transpose(1, 2).reshape(B, T, H)
    # The normalisation divides by a standard deviation, and rounding with it.
    assert_close(to_jax(found), to_jax(expected))


def test_weights_are_loaded_strictly_but_for_what_is_around():
    config = sLSTMLayerConfig(
        embedding_dim=H, conv1d_kernel_size=0, backend="vanilla", **PLAIN
    )
    layer = randomise(sLSTMLayer(config))
    source = layer.state_dict()
    model, params = xlstm.from_xlstm(source, leave_out="group_norm")
    weights = xlstm.to_xlstm(model, params, backend="vanilla")
    tensors = {name: torch.from_numpy(one) for name, one in weights.items()}
    found = sLSTMLayer(config).load_state_dict(tensors, strict=False)
    assert found.missing_keys == ["group_norm.weight"] and not found.unexpected_keys
    for name, one in tensors.items():
        assert torch.equal(one, source[name]), name


def test_both_backends_keep_the_same_weights():
    plain, cuda = make_cell("vanilla"), make_cell("cuda")
    with torch.no_grad():
        for name in ("recurrent_kernel", "bias"):
            proxy = getattr(plain, name)
            getattr(cuda, name)[:] = proxy.clone()
    one, other = (xlstm.from_xlstm(each.state_dict()) for each in (plain, cuda))
    assert one[0] == other[0]
    assert plain._recurrent_kernel_.shape != cuda._recurrent_kernel_.shape
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])
    for name in ("recurrent_kernel", "bias"):
        given = xlstm.to_xlstm(*one, backend="cuda", inputs="gates")
        there = getattr(cuda, f"_{name}_").detach().numpy()
        np.testing.assert_array_equal(given[f"_{name}_"], there)
        assert jnp.asarray(there).size
