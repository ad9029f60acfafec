"""Files of PyTorch's two exporters, through ``from_onnx``."""

import importlib.util
import io

import numpy as np
import onnx
import pytest
import torch

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx
from tests.common import assert_close
from tests.peers.test_onnx_reading import H, I, quietly


class Net(torch.nn.Module):
    """An LSTM among other layers, as people export it."""

    def __init__(self, *, readout=True, **options):
        super().__init__()
        self.lstm = torch.nn.LSTM(I, H, **options)
        size = H * (1 + self.lstm.bidirectional)
        self.readout = torch.nn.Linear(size, 2) if readout else torch.nn.Identity()

    def forward(self, x, h=None, c=None):
        ys, (h, c) = self.lstm(x, None if h is None else (h, c))
        return self.readout(ys), ys, h, c


NETS = {
    "one": dict(),
    "two": dict(num_layers=2, batch_first=True),
    "both_ways": dict(num_layers=2, bidirectional=True, batch_first=True),
    "no_bias": dict(num_layers=3, bias=False, readout=False),
}
needs_onnxscript = pytest.mark.skipif(
    importlib.util.find_spec("onnxscript") is None,
    reason="PyTorch's exporter by torch.export needs onnxscript",
)
EXPORTERS = [
    pytest.param(False, id="torchscript"),
    pytest.param(True, id="dynamo", marks=needs_onnxscript),
]


def export(net, args, dynamo, **options):
    if dynamo:
        options = {"external_data": False, "verbose": False, **options}
    buffer = io.BytesIO()
    quietly(torch.onnx.export, net, args, buffer, dynamo=dynamo, **options)
    return buffer.getvalue()


def compare(net, taken, batch=5, length=7, start=None):
    """PyTorch's outputs and states with those of a file's only model."""
    (pair,) = taken.values()
    model, params = pair
    first = net.lstm.batch_first
    shape = (batch, length, I) if first else (length, batch, I)
    xs = np.random.default_rng(9).standard_normal(shape).astype(np.float32)
    state = None
    if start is not None:
        start = [np.repeat(one, batch, 1) for one in start]
        state = lj.convert.state_from_torch(model, *start)
        start = list(map(torch.from_numpy, start))
    with torch.no_grad():
        _, ys, h, c = net(torch.from_numpy(xs), *(start or ()))
    after, ours = model.apply(params, xs, state, time_major=not first)
    assert_close(ours, ys.numpy())
    actual = lj.convert.state_to_torch(model, after)
    assert_close(actual, (h.numpy(), c.numpy()))


# The newer exporter takes many seconds a file.
EXPORTS = [(name, batch, False) for name in NETS for batch in (1, 2)]
EXPORTS += [
    pytest.param(*case, True, marks=needs_onnxscript)
    for case in (("two", 1), ("both_ways", 2), ("no_bias", 2))
]


@pytest.mark.parametrize("name, batch, dynamo", EXPORTS)
def test_export_of_torch(name, batch, dynamo):
    """Without a start, whose zeros have the batch of the example in some files."""
    torch.manual_seed(0)
    net = Net(**NETS[name]).eval()
    shape = (batch, 3, I) if net.lstm.batch_first else (3, batch, I)
    taken = from_onnx(export(net, (torch.ones(shape),), dynamo))
    compare(net, taken)


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_export_of_torch_with_states(dynamo):
    torch.manual_seed(1)
    net = Net(**NETS["both_ways"]).eval()
    rng = np.random.default_rng(1)
    h, c = (rng.standard_normal((4, 1, H)).astype(np.float32) for _ in "hc")
    args = torch.ones(1, 3, I), torch.from_numpy(h), torch.from_numpy(c)
    compare(net, from_onnx(export(net, args, dynamo)), start=(h, c))


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_export_of_torch_of_any_size(dynamo):
    """Shapes are computed by the graph, and so is how outputs are put together."""
    torch.manual_seed(2)
    net = Net(**NETS["both_ways"]).eval()
    options = dict(input_names=["x"], dynamic_axes={"x": {0: "b", 1: "t"}})
    if dynamo:
        options = dict(dynamic_shapes=({0: "b"},))
    compare(net, from_onnx(export(net, (torch.ones(2, 3, I),), dynamo, **options)))


def test_export_of_torch_without_folding():
    """Weights are then slices, put together in another order."""
    torch.manual_seed(3)
    net = Net(**NETS["both_ways"]).eval()
    file = export(net, (torch.ones(2, 3, I),), False, do_constant_folding=False)
    kinds = {node.op_type for node in onnx.load_from_string(file).graph.node}
    assert {"Slice", "Concat", "Unsqueeze"} <= kinds
    compare(net, from_onnx(file))


class Packed(Net):
    def forward(self, x, lengths):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        ys, (h, c) = self.lstm(packed)
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(ys, batch_first=True)
        return ys, h, c


def test_export_of_torch_of_packed_sequences():
    torch.manual_seed(4)
    net = Packed(**NETS["both_ways"]).eval()
    args = torch.randn(3, 5, I), torch.tensor([5, 4, 1])
    (pair,) = from_onnx(export(net, args, False)).values()
    model, params = pair
    after, ours = model.apply(params, args[0].numpy(), lengths=args[1].numpy())
    with torch.no_grad():
        ys, h, c = net(*args)
    assert_close(ours, ys.numpy())
    assert_close(lj.convert.state_to_torch(model, after), (h.numpy(), c.numpy()))
