"""What the inputs of a node are: weights behind operators, starts, lengths."""

import jax
import numpy as np
import pytest
from onnx import helper, numpy_helper

from lstm_jax.convert.onnx import from_onnx
from tests.peers.test_onnx_reading import (
    WEIGHTS,
    H,
    I,
    assert_same,
    behind,
    expand_of,
    file_of,
    lstm,
    plain_params,
    weights_of,
)

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


def test_each_node_has_a_name_of_its_own():
    """None is lost where one's name is that of another, or of another's output."""
    outputs = ("n", "Y2", "b")
    for names in (("", "n", "b"), ("n", "", "n"), ("a", "n", ""), ("", "", "Y2")):
        nodes = [
            lstm(outputs=(output,), name=name)
            for output, name in zip(outputs, names, strict=True)
        ]
        taken = from_onnx(file_of(nodes, WEIGHTS, outputs=outputs))
        assert len(taken) == 3
        assert all(key and key in (*names, *outputs) for key in taken)


TWICE = {
    "two tensors": ([], [numpy_helper.from_array(WEIGHTS["W"] + 1, "W")]),
    "a tensor and a node": ([behind("Identity", "V", "W")], []),
    "two nodes": ([behind("Identity", "V", "Z"), behind("Identity", "W", "Z")], []),
}


@pytest.mark.parametrize(("nodes", "tensors"), TWICE.values(), ids=TWICE)
def test_a_value_that_is_made_twice_is_refused(nodes, tensors):
    file = file_of([*nodes, lstm()], {**WEIGHTS, "V": WEIGHTS["W"]})
    file.graph.initializer.extend(tensors)
    with pytest.raises(ValueError, match="makes a value, got several for '[WZ]'"):
        from_onnx(file)


@pytest.mark.parametrize("inputs", [("", *"WRB"), ("X", *"WRB", *[""] * 4, "W")])
def test_inputs_that_no_lstm_has_are_refused(inputs):
    with pytest.raises(ValueError, match="node 'n' .*expected the inputs X, W, R, B"):
        from_onnx(file_of([lstm(inputs)], WEIGHTS))


def test_an_operator_of_others_is_named_with_its_domain():
    node = lstm()
    node.domain = "com.microsoft"
    with pytest.raises(ValueError, match="Its operators are: com.microsoft.LSTM"):
        from_onnx(file_of([node], WEIGHTS))


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


def test_a_start_that_is_no_number_is_the_same_for_each_row():
    start = np.full((1, 2, H), np.nan, np.float32)
    file = file_of([lstm(STARTED)], {**WEIGHTS, "h": start})
    assert np.isnan(from_onnx(file)["n"][1][0].forward.initial_h).all()


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
