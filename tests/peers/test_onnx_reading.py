"""Files of ``to_onnx`` and of no one, through ``from_onnx``, and how layers join."""

import dataclasses
import os
import warnings

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx, to_onnx
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


def expand_of(start):
    return [
        helper.make_node("Shape", ["X"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["batch"]),
        helper.make_node("Concat", ["one", "batch", "size"], ["whole"], axis=0),
        helper.make_node("Expand", [start, "whole"], ["h"]),
    ]


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
