"""Files of ``to_onnx``, of PyTorch's exporters and of no one, through ``from_onnx``."""

import dataclasses
import functools
import importlib.util
import io
import os
import warnings

import jax
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx, to_onnx
from tests.common import assert_close
from tests.peers.test_onnx_writing import MODELS, params_of

I, H = 3, 4


def assert_same(actual, expected):
    """The same bits in the same places."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=1):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def quietly(function, *args, **options):
    """What a function returns, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


@pytest.mark.parametrize("options", [{}, {"states": True, "lengths": True}], ids=str)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "dropped"])
def test_round_trip_is_exact(name, options):
    model = MODELS[name]
    file = to_onnx(model, params_of(model), **options)
    taken = quietly(from_onnx, file.SerializeToString())
    assert list(taken) == ["lstm_l0"]
    read, params = taken["lstm_l0"]
    assert_same(params, params_of(model))
    assert as_computed(read) == as_computed(model)


def as_computed(model):
    """A model as the stack of what is computed."""
    option = {"NIAF": "candidate_activation", "NOAF": "output_activation"}
    cells = []
    for cell in model.cells:
        if cell.variant in option:
            given = {option[cell.variant]: jax.nn.identity}
            cell = dataclasses.replace(cell, variant=None, **given)
        cells.append(cell)
    connected = ("bidirectional", "merge", "residual", "skip")
    return lj.Stack(tuple(cells), **{name: getattr(model, name) for name in connected})


def test_a_description_comes_back_equal():
    for name in ("three", "both_ways", "peephole", "sizes", "elu", "learned", "scaled"):
        model = MODELS[name]
        taken = quietly(from_onnx, to_onnx(model, params_of(model)))
        assert taken["lstm_l0"][0] == model


def test_a_step_of_a_stream_comes_back():
    model = MODELS["residual_skip"]
    taken = from_onnx(to_onnx(model, params_of(model), step=True))
    assert_same(taken["lstm_l0"][1], params_of(model))
    assert taken["lstm_l0"][0] == model


def test_negative_zeros_of_a_bias_come_back():
    model = MODELS["one"]
    (layer,) = params_of(model)
    one = layer.forward._replace(bias=-0.0 * layer.forward.bias)
    file = to_onnx(model, (lj.Directions(one),))
    assert_same(from_onnx(file)["lstm_l0"][1], (lj.Directions(one),))


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


def weights_of(seed=0, directions=1, inputs=I, hidden=H):
    rng = np.random.default_rng(seed)
    shapes = {
        "W": (directions, 4 * hidden, inputs),
        "R": (directions, 4 * hidden, hidden),
        "B": (directions, 8 * hidden),
    }
    return {
        key: rng.standard_normal(shape).astype(np.float32)
        for key, shape in shapes.items()
    }


def file_of(nodes, constants, inputs=("X",), outputs=("Y",), **options):
    """A model of some nodes; its inputs and outputs have no declared shapes."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
        **options,
    )
    return helper.make_model(graph)


def lstm(inputs=("X", "W", "R", "B"), outputs=("Y", "Y_h", "Y_c"), name="n", **given):
    return helper.make_node("LSTM", list(inputs), list(outputs), name=name, **given)


def plain_params():
    return from_onnx(file_of([lstm()], weights_of()))["n"][1]


def behind(kind, source, made, *extra, **given):
    return helper.make_node(kind, [source, *extra], [made], name=f"{kind}_1", **given)


WEIGHTS = weights_of()
FOLDED = {
    "Identity": ([behind("Identity", "V", "W")], dict(V=WEIGHTS["W"])),
    "Cast": ([behind("Cast", "V", "W", to=1)], dict(V=WEIGHTS["W"].astype(np.float64))),
    "Transpose": (
        [behind("Transpose", "V", "W", perm=[0, 2, 1])],
        dict(V=WEIGHTS["W"].swapaxes(1, 2)),
    ),
    "Unsqueeze": (
        [behind("Unsqueeze", "V", "W", "axes")],
        dict(V=WEIGHTS["W"][0], axes=np.array([0])),
    ),
    "Unsqueeze_attribute": (
        [behind("Unsqueeze", "V", "W", axes=[0])],
        dict(V=WEIGHTS["W"][0]),
    ),
    "Squeeze": (
        [behind("Squeeze", "V", "W", "axes")],
        dict(V=WEIGHTS["W"][None], axes=np.array([0])),
    ),
    "Reshape": (
        [behind("Reshape", "V", "W", "shape")],
        dict(V=WEIGHTS["W"].reshape(2, -1, I), shape=np.array([1, -1, I])),
    ),
    "Slice": (
        [behind("Slice", "V", "W", "starts", "ends", "axes", "steps")],
        dict(
            V=np.pad(WEIGHTS["W"], [(0, 0), (2, 1), (0, 0)])[:, ::-1].copy(),
            **{
                key: np.array([value])
                for key, value in dict(starts=-3, ends=0, axes=1, steps=-1).items()
            },
        ),
    ),
    "Slice_attributes": (
        [behind("Slice", "V", "W", starts=[2], ends=[2**31], axes=[1])],
        dict(V=np.pad(WEIGHTS["W"], [(0, 0), (2, 0), (0, 0)])),
    ),
    "Concat": (
        [behind("Concat", "V", "W", "U", axis=1)],
        dict(V=WEIGHTS["W"][:, :5], U=WEIGHTS["W"][:, 5:]),
    ),
    "Constant": (
        [
            helper.make_node(
                "Constant", [], ["W"], value=numpy_helper.from_array(WEIGHTS["W"])
            )
        ],
        {},
    ),
    "Expand": (
        [behind("Expand", "V", "W", "shape")],
        dict(V=WEIGHTS["W"], shape=np.array([1, 1, I])),
    ),
}


@pytest.mark.parametrize("nodes, constants", FOLDED.values(), ids=FOLDED)
def test_weights_behind_operators(nodes, constants):
    weights = {key: value for key, value in WEIGHTS.items() if key != "W"}
    file = file_of([*nodes, lstm()], {**weights, **constants})
    assert_same(from_onnx(file)["n"][1], plain_params())


def test_weights_that_are_no_constants_name_node_and_chain():
    nodes = [
        helper.make_node("Mul", ["V", "scale"], ["U"], name="scaling"),
        behind("Transpose", "U", "W", perm=[0, 2, 1]),
        lstm(),
    ]
    weights = {**WEIGHTS, "V": WEIGHTS["W"], "scale": np.float32([2])}
    del weights["W"]
    with pytest.raises(ValueError, match=r"'n'.*W: .*Transpose_1' <- Mul 'scaling'"):
        from_onnx(file_of(nodes, weights))


def test_weights_that_the_graph_is_given():
    weights = {key: value for key, value in WEIGHTS.items() if key != "R"}
    with pytest.raises(ValueError, match=r"'n'.*R: .*'R', an input of the graph"):
        from_onnx(file_of([lstm()], weights, inputs=("X", "R")))


def test_optional_inputs_go_by_position():
    """An empty name is an input that is not there, and shifts none."""
    start = np.full((1, 2, H), 0.5, np.float32)
    names = ("X", "W", "R", "", "", "h")
    model, params = from_onnx(file_of([lstm(names)], {**WEIGHTS, "h": start}))["n"]
    assert not model.use_bias and model.learn_initial_state
    assert_same(params[0].forward.initial_h, jax.numpy.full(H, 0.5))
    assert not params[0].forward.initial_c.any()


def test_a_node_without_y_or_name():
    file = file_of([lstm(outputs=("", "last"), name="")], WEIGHTS, outputs=("last",))
    assert list(from_onnx(file)) == ["last"]


def expand_of(start):
    return [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["batch"]),
        helper.make_node("Concat", ["one", "batch", "size"], ["whole"], axis=0),
        helper.make_node("Expand", [start, "whole"], ["h"]),
    ]


SIZES = {"one": np.array([1]), "size": np.array([H])}
STARTED = ("X", "W", "R", "B", "", "h", "h")


@pytest.mark.parametrize("learned", [True, False])
def test_a_start_of_any_batch(learned):
    """Expanded to the batch of the inputs: learned, or zeros, which are none."""
    start = np.arange(H, dtype=np.float32).reshape(1, 1, H) * learned
    file = file_of(
        [*expand_of("start"), lstm(STARTED)], {**WEIGHTS, **SIZES, "start": start}
    )
    model, params = from_onnx(file)["n"]
    assert model.learn_initial_state == learned
    if learned:
        assert_same(params[0].forward.initial_c, jax.numpy.arange(float(H)))


def test_zeros_of_any_shape_are_no_start():
    made = helper.make_node("ConstantOfShape", ["whole"], ["h"])
    file = file_of(
        [*expand_of("start")[:-1], made, lstm(STARTED)], {**WEIGHTS, **SIZES}
    )
    assert not from_onnx(file)["n"][0].learn_initial_state


def test_a_start_of_layout_1_has_the_batch_first():
    start = np.arange(2.0 * H, dtype=np.float32).reshape(1, 2, H).repeat(3, 0)
    weights = {**weights_of(0, 2), "h": start}
    given = dict(direction="bidirectional", layout=1)
    params = from_onnx(file_of([lstm(STARTED, **given)], weights))["n"][1]
    assert_same(params[0].backward.initial_h, jax.numpy.arange(float(H), 2 * H))


def test_a_start_that_differs_by_row_is_refused():
    start = np.arange(2.0 * H, dtype=np.float32).reshape(1, 2, H)
    file = file_of([lstm(STARTED)], {**WEIGHTS, "h": start})
    with pytest.raises(ValueError, match="'n'.*initial_h: .*2 rows that differ"):
        from_onnx(file)


def test_a_start_half_in_the_file_is_refused():
    names = ("X", "W", "R", "B", "", "h", "c")
    start = np.ones((1, 1, H), np.float32)
    file = file_of([lstm(names)], {**WEIGHTS, "h": start}, inputs=("X", "c"))
    with pytest.raises(ValueError, match="'n'.*got only initial_h as a constant"):
        from_onnx(file)


def test_a_start_that_the_graph_computes_is_said():
    made = helper.make_node("Tanh", ["X"], ["h"], name="made")
    file = file_of([made, lstm(STARTED[:6])], WEIGHTS)
    with pytest.warns(UserWarning, match="'n'.*initial_h is computed.*Tanh 'made'"):
        model, _ = from_onnx(file)["n"]
    assert not model.learn_initial_state


def test_constant_lengths_are_said():
    names = ("X", "W", "R", "B", "lengths")
    weights = {**WEIGHTS, "lengths": np.array([3, 1], np.int32)}
    with pytest.warns(UserWarning, match=r"'n'.*sequence_lens is a constant, \[3, 1\]"):
        from_onnx(file_of([lstm(names)], weights))


def test_clip_is_said():
    with pytest.warns(UserWarning, match="'n'.*clip=0.6 is taken as onnxruntime does"):
        model, _ = from_onnx(file_of([lstm(clip=0.6)], WEIGHTS))["n"]
    assert model.clip == 0.6


def two_layers(first=None, second=None, between=(), fed="Y1", constants=None):
    """Two nodes, of which the first puts out ``Y1`` and the second takes ``fed``."""
    names = {key: f"{key}2" for key in "WRB"}
    weights = {**WEIGHTS, **(constants or {})}
    over = weights_of(1, inputs=H)
    weights |= {names[key]: value for key, value in over.items()}
    return file_of(
        [
            lstm(outputs=("Y1",), name="first", **(first or {})),
            *between,
            lstm((fed, *names.values()), ("Y",), name="second", **(second or {})),
        ],
        weights,
    )


AXES = {"one": np.array([1]), "zero": np.array([0])}
BETWEEN = {
    "Squeeze": [helper.make_node("Squeeze", ["Y1", "one"], ["fed"])],
    "Squeeze_attribute": [helper.make_node("Squeeze", ["Y1"], ["fed"], axes=[1])],
    "Transpose_Reshape": [
        helper.make_node("Transpose", ["Y1"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "copied"], ["fed"]),
    ],
    "twice_round": [
        helper.make_node("Squeeze", ["Y1", "one"], ["s"]),
        helper.make_node("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Dropout", ["t"], ["d"]),
        helper.make_node("Cast", ["d"], ["e"], to=1),
        helper.make_node("Transpose", ["e"], ["fed"], perm=[1, 0, 2]),
    ],
    "axes_of_one": [
        helper.make_node("Unsqueeze", ["Y1", "zero"], ["u"]),
        helper.make_node("Squeeze", ["u", "both"], ["fed"]),
    ],
}
SHAPES = {
    **AXES,
    "copied": np.array([0, 0, -1]),
    "both": np.array([0, 2]),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_layers_that_feed_each_other_are_one_stack(name):
    file = two_layers(between=BETWEEN[name], fed="fed", constants=SHAPES)
    taken = from_onnx(file)
    assert list(taken) == ["first"]
    model, params = taken["first"]
    assert model == lj.LSTM(I, H, 2)
    assert_same(params[0].forward, plain_params()[0].forward)


NOT_JOINED = {
    "batch_and_time": [
        helper.make_node("Squeeze", ["Y1", "one"], ["s"]),
        helper.make_node("Transpose", ["s"], ["fed"], perm=[1, 0, 2]),
    ],
    "mixed": [helper.make_node("Reshape", ["Y1", "mixed"], ["fed"])],
    "Relu": [
        helper.make_node("Squeeze", ["Y1", "one"], ["s"]),
        helper.make_node("Relu", ["s"], ["fed"]),
    ],
    "other": [helper.make_node("Identity", ["X"], ["fed"])],
}


@pytest.mark.parametrize("name", NOT_JOINED)
def test_layers_with_something_else_between_are_two(name):
    """Each is right by itself, whatever is between."""
    constants = {**SHAPES, "mixed": np.array([5, 2, H])}
    file = two_layers(between=NOT_JOINED[name], fed="fed", constants=constants)
    assert list(from_onnx(file)) == ["first", "second"]


def test_layers_of_different_options_are_a_stack_of_cells():
    file = two_layers(
        second=dict(input_forget=1), between=BETWEEN["Squeeze"], fed="fed"
    )
    file.graph.initializer.append(numpy_helper.from_array(AXES["one"], "one"))
    model, _ = from_onnx(file)["first"]
    assert isinstance(model, lj.Stack)
    assert [cell.variant for cell in model.cells] == [None, "CIFG"]


def pair(merge, swapped=False):
    """A node of each direction, and what makes one output of both."""
    made = [
        lstm(outputs=("Yf",), name="forward"),
        lstm(("X", "W2", "R2", "B2"), ("Yb",), name="backward", direction="reverse"),
        helper.make_node("Squeeze", ["Yf", "one"], ["f"]),
        helper.make_node("Squeeze", ["Yb", "one"], ["b"]),
    ]
    both = ["b", "f"] if swapped else ["f", "b"]
    given = {"axis": -1} if merge == "Concat" else {}
    made.append(helper.make_node(merge, both, ["Y"], **given))
    other = {f"{key}2": value for key, value in weights_of(1).items()}
    return file_of(made, {**WEIGHTS, **other, **AXES})


@pytest.mark.parametrize(
    "kind, merge",
    [("Concat", "concat"), ("Add", "sum"), ("Mul", "mul"), ("Mean", "mean")],
)
def test_a_node_of_each_direction_is_one_layer(kind, merge):
    taken = from_onnx(pair(kind))
    assert list(taken) == ["forward"]
    model, params = taken["forward"]
    assert model == lj.LSTM(I, H, bidirectional=True, merge=merge)
    assert_same(params[0].forward, plain_params()[0].forward)


def test_backward_before_forward_is_no_layer_of_ours():
    taken = from_onnx(pair("Concat", swapped=True))
    models = {name: model for name, (model, _) in taken.items()}
    assert models == {"forward": lj.LSTM(I, H), "backward": lj.LSTM(I, H, reverse=True)}


def test_a_node_that_runs_backward_alone():
    file = file_of([lstm(direction="reverse")], WEIGHTS)
    for reverse in (False, True):
        model, params = from_onnx(file, reverse=reverse)["n"]
        assert model == lj.LSTM(I, H, reverse=not reverse)
        assert_same(params, plain_params())


def test_nodes_that_alternate_are_one_stack():
    file = two_layers(
        second=dict(direction="reverse"), between=BETWEEN["Squeeze"], fed="fed"
    )
    file.graph.initializer.append(numpy_helper.from_array(AXES["one"], "one"))
    for reverse in (False, True):
        model, _ = from_onnx(file, reverse=reverse)["first"]
        assert model == lj.LSTM(I, H, 2, reverse=(False, True))


ATTRIBUTES = [
    ("direction", dict(direction="sideways")),
    ("activations", dict(activations=["Sigmoid", "Tanh"])),
    ("activations", dict(activations=["Sigmoid", "Tanh", "Swish"])),
    ("activation_alpha", dict(activations=["Affine", "Tanh", "Tanh"])),
    (
        "activation_beta",
        dict(activations=["ScaledTanh"] * 3, activation_alpha=[1.0] * 3),
    ),
    ("hidden_size", dict(hidden_size="5")),
    ("clip", dict(clip=-1.0)),
    ("layout", dict(layout=2)),
    ("input_forget", dict(input_forget=3)),
    ("extra", dict(extra=1)),
    ("R", dict(hidden_size=H + 1)),
]


@pytest.mark.parametrize("name, given", ATTRIBUTES)
def test_attributes_that_are_not_known_are_refused(name, given):
    with pytest.raises(ValueError, match=rf"^node 'n' \(LSTM\): ({name}|W): "):
        from_onnx(file_of([lstm(**given)], WEIGHTS))


def test_directions_with_different_activations_are_refused():
    given = dict(direction="bidirectional", activations=["Sigmoid", "Tanh", "Tanh"] * 2)
    given["activations"][4] = "Relu"
    with pytest.raises(ValueError, match="'n'.*the same in both directions"):
        from_onnx(file_of([lstm(**given)], weights_of(0, 2)))


def test_numbers_that_no_activation_takes_are_said():
    given = dict(activations=["sigmoid", "TANH", "elu"], activation_alpha=[0.5, 7.0])
    with pytest.warns(UserWarning, match="activation_alpha has 1 more numbers"):
        model, _ = from_onnx(file_of([lstm(**given)], WEIGHTS))["n"]
    expected = lj.LSTM(I, H, output_activation=functools.partial(jax.nn.elu, alpha=0.5))
    assert model == expected


def test_other_cells_are_named():
    for kind in ("GRU", "RNN"):
        node = helper.make_node(kind, ["X", "W", "R"], ["Y"], name="cell")
        with pytest.raises(ValueError, match=rf"no.*'cell' \({kind}\)"):
            from_onnx(file_of([node], WEIGHTS))
    with pytest.raises(ValueError, match="got none. Its operators are: Relu"):
        from_onnx(file_of([helper.make_node("Relu", ["X"], ["Y"])], {}))


def test_nodes_in_branches_are_named():
    body = file_of([lstm(name="hidden")], WEIGHTS, inputs=()).graph
    node = helper.make_node("If", ["X"], ["Y"], then_branch=body, else_branch=body)
    with pytest.raises(ValueError, match="branches or functions alone: 'hidden'"):
        from_onnx(file_of([node], {}))


def test_float64_without_64_bits_is_said():
    weights = {key: value.astype(np.float64) for key, value in WEIGHTS.items()}
    with pytest.warns(UserWarning, match="float64 weights are rounded"):
        from_onnx(file_of([lstm()], weights))
    with jax.enable_x64(True):
        _, params = from_onnx(file_of([lstm()], weights))["n"]
        assert params[0].forward.kernel.dtype == np.float64


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays(dtype):
    weights = {k: np.asarray(jax.numpy.asarray(v, dtype)) for k, v in WEIGHTS.items()}
    model, params = from_onnx(file_of([lstm()], weights))["n"]
    assert params[0].forward.kernel.dtype == model.param_dtype == dtype
    expected = np.split(weights["W"][0], 4)[0].T
    assert_same(params[0].forward.kernel[:, :H], expected)


def test_a_path_may_be_anything_that_names_a_file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(file_of([lstm()], WEIGHTS), path)
    for given in (path, os.fspath(path), path.read_bytes()):
        assert_same(from_onnx(given)["n"][1], plain_params())
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "none.onnx")
    with pytest.raises(TypeError, match="expected the path of an ONNX file"):
        from_onnx(7)


def test_layers_of_layout_1_are_one_stack():
    """Their time and batch are the other way round, and so is what joins them."""
    given = dict(layout=1)
    squeeze = helper.make_node("Squeeze", ["Y1", "two"], ["fed"])
    options = dict(between=[squeeze], fed="fed", constants={"two": np.array([2])})
    model, _ = from_onnx(two_layers(given, given, **options))["first"]
    assert model == lj.LSTM(I, H, 2)
    assert list(from_onnx(two_layers(given, **options))) == ["first", "second"]


def test_pairs_of_nodes_on_top_of_each_other():
    """As Keras's converters write Bidirectional layers."""
    file = pair("Concat")
    for n, (side, direction) in enumerate([("f", "forward"), ("b", "reverse")], 3):
        weights = weights_of(n, inputs=2 * H)
        for key, value in weights.items():
            tensor = numpy_helper.from_array(value, f"{key}{n}")
            file.graph.initializer.append(tensor)
        inputs = ("Y", *(f"{key}{n}" for key in weights))
        node = lstm(inputs, (f"Y{n}",), name=f"{side}2", direction=direction)
        squeeze = helper.make_node("Squeeze", [f"Y{n}", "one"], [f"{side}2"])
        file.graph.node.extend([node, squeeze])
    concat = helper.make_node("Concat", ["f2", "b2"], ["out"], axis=2)
    file.graph.node.append(concat)
    taken = from_onnx(file)
    assert list(taken) == ["forward"]
    assert taken["forward"][0] == lj.LSTM(I, H, 2, bidirectional=True)


@pytest.mark.parametrize("kind, merge", [("Add", "sum"), ("Mul", "mul")])
def test_directions_that_are_split(kind, merge):
    """As one node of both directions, cut in two."""
    nodes = [
        lstm(direction="bidirectional"),
        helper.make_node("Split", ["Y", "halves"], ["f", "b"], axis=1),
        helper.make_node(kind, ["b", "f"], ["out"]),
    ]
    constants = {**weights_of(0, 2), "halves": np.array([1, 1])}
    model, _ = from_onnx(file_of(nodes, constants, outputs=("out",)))["n"]
    assert model == lj.LSTM(I, H, bidirectional=True, merge=merge)


def test_a_last_layer_to_which_nothing_is_added_is_by_itself():
    """A stack with residual=True would add something."""
    model = lj.LSTM(H, H, 3, residual=True)
    file = to_onnx(model, params_of(model))
    for node in file.graph.node:
        if node.op_type == "Add" and "ys_l2" in node.input:
            node.op_type = "Max"
    taken = from_onnx(file)
    assert list(taken) == ["lstm_l0", "lstm_l2"]
    assert taken["lstm_l0"][0] == lj.LSTM(H, H, 2, residual=True)


def test_an_output_that_two_layers_take_joins_neither():
    node = lstm(("fed", "W2", "R2", "B2"), ("Z",), name="third")
    file = two_layers(between=BETWEEN["Squeeze"], fed="fed", constants=SHAPES)
    file.graph.node.append(node)
    assert list(from_onnx(file)) == ["first", "second", "third"]
