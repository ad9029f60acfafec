"""Single LSTM nodes: ONNX's own tests, and random ones that onnxruntime runs."""

import warnings

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx
from tests.common import assert_close

WEIGHTS = ("W", "R", "B", "P")


def quietly(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def through_us(file, feed, node):
    """Y, Y_h and Y_c of a file's only node, as ``from_onnx`` takes it."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    backward, first = given.get("direction") == b"reverse", given.get("layout", 0)
    (pair,) = quietly(from_onnx, file).values()
    model, params = pair
    assert model.reverse == backward
    xs, lengths = feed["X"], feed.get("sequence_lens")
    state = None
    if "initial_h" in feed:
        start = [feed["initial_h"], feed["initial_c"]]
        start = [one.swapaxes(0, 1) if first else one for one in start]
        state = lj.convert.state_from_torch(model, *start)
    with jax.disable_jit():
        state, ys = model.apply(
            params, xs, state, lengths=lengths, time_major=not first
        )
    ys = np.asarray(ys)
    ys = np.stack(np.split(ys, 1 + model.bidirectional, -1), 2 if first else 1)
    last = lj.convert.state_to_torch(model, state)
    return [ys, *(one.swapaxes(0, 1) if first else one for one in last)]


def own_cases():
    """ONNX's own tests of the operator LSTM."""
    from onnx.backend.test.loader import load_model_tests

    cases = quietly(load_model_tests, kind="node")
    return {case.name: case for case in cases if case.name.startswith("test_lstm")}


def test_the_cases_of_onnx_itself():
    cases = own_cases()
    assert len(cases) > 3
    for case in cases.values():
        (inputs, outputs), *_ = case.data_sets
        (node,) = case.model.graph.node
        names = [one.name for one in case.model.graph.input]
        feed = dict(zip(names, map(as_array, inputs), strict=True))
        file = onnx.ModelProto.FromString(case.model.SerializeToString())
        for name in WEIGHTS:
            if name in feed:
                tensor = numpy_helper.from_array(feed.pop(name), name)
                file.graph.initializer.append(tensor)
        actual = dict(
            zip(("Y", "Y_h", "Y_c"), through_us(file, feed, node), strict=True)
        )
        wanted = [one.name for one in case.model.graph.output]
        for name, value in zip(wanted, outputs, strict=True):
            assert_close(actual[name], as_array(value), name=f"{case.name}: {name}")


def as_array(value):
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value)


B, T, I, H = 3, 4, 2, 3
ACTIVATIONS = {
    "Affine": ("alpha", "beta"),
    "Relu": (),
    "LeakyRelu": ("alpha",),
    "ThresholdedRelu": ("alpha",),
    "Tanh": (),
    "ScaledTanh": ("alpha", "beta"),
    "Sigmoid": (),
    "HardSigmoid": ("alpha", "beta"),
    "Elu": ("alpha",),
    "Softsign": (),
    "Softplus": (),
}
# Those that a list of numbers may be too short for.
WITH_DEFAULTS = ("LeakyRelu", "HardSigmoid", "Elu")


def random_attributes(rng, directions):
    """What may be said of a node, each at random there or not."""
    given = {}
    if directions == 2:
        given["direction"] = "bidirectional"
    elif rng.random() < 0.3:
        given["direction"] = "reverse"
    if rng.random() < 0.3:
        given["clip"] = float(rng.uniform(0.3, 1.5))
    if rng.random() < 0.3:
        given["input_forget"] = 1
    if rng.random() < 0.7:
        given |= random_activations(rng, directions)
    return given


def random_activations(rng, directions):
    """Three activations, in any letters, with lists of numbers that may end early."""
    names = [str(name) for name in rng.choice(list(ACTIVATIONS), 3)]
    numbers = {"alpha": [], "beta": []}
    # The other direction's numbers would come after those that are missing.
    early = directions == 1 and rng.random() < 0.5 and names[-1] in WITH_DEFAULTS
    for name in names[:-1] if early else names:
        for key in ACTIVATIONS[name]:
            numbers[key].append(float(np.float32(rng.uniform(0.1, 0.9))))
    given = {f"activation_{k}": list(v) * directions for k, v in numbers.items() if v}
    given["activations"] = [random_case(rng, name) for name in names] * directions
    return given


def random_case(rng, name):
    return str(rng.choice([name, name.lower(), name.upper()]))


def random_node(seed):
    """A file of one node, what it is fed, and its node."""
    rng = np.random.default_rng(seed)
    # Small, since activations without bounds would make rounding grow.
    normal = lambda *shape: (0.4 * rng.standard_normal(shape)).astype(np.float32)
    directions = int(rng.integers(1, 3))
    weights = {
        "W": normal(directions, 4 * H, I),
        "R": normal(directions, 4 * H, H),
        "B": normal(directions, 8 * H),
        "P": normal(directions, 3 * H),
    }
    feed = {"X": normal(T, B, I)}
    feed["sequence_lens"] = rng.integers(1, T + 1, B).astype(np.int32)
    feed["initial_h"], feed["initial_c"] = normal(2, directions, B, H)
    for name, store in (("B", weights), ("P", weights), ("sequence_lens", feed)):
        if rng.random() < 0.4:
            del store[name]
    if rng.random() < 0.4:
        del feed["initial_h"], feed["initial_c"]
    there = {*weights, *feed}
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    node = helper.make_node(
        "LSTM",
        [name if name in there else "" for name in order],
        ["Y", "Y_h", "Y_c"],
        hidden_size=H,
        **random_attributes(rng, directions),
    )
    return file_of(node, weights, feed), feed, node


def file_of(node, weights, feed):
    kinds = {"sequence_lens": TensorProto.INT32}
    describe = lambda name, shape: helper.make_tensor_value_info(
        name, kinds.get(name, TensorProto.FLOAT), shape
    )
    graph = helper.make_graph(
        [node],
        "node",
        [describe(name, value.shape) for name, value in feed.items()],
        [describe(name, None) for name in node.output],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def by_runtime(file, feed):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def batch_first(file, feed, outputs):
    """The same in layout 1, which the specification has and onnxruntime not."""
    file = onnx.ModelProto.FromString(file.SerializeToString())
    (node,) = file.graph.node
    node.attribute.append(helper.make_attribute("layout", 1))
    swapped = {
        name: value if value.ndim == 1 else value.swapaxes(0, 1)
        for name, value in feed.items()
    }
    ys, h, c = outputs
    ys = ys.transpose(2, 0, 1, 3)
    return file, swapped, [ys, h.swapaxes(0, 1), c.swapaxes(0, 1)], node


@pytest.mark.parametrize("part", range(8))
def test_random_nodes_agree_with_onnxruntime(part):
    for seed in range(25 * part, 25 * part + 25):
        file, feed, node = random_node(seed)
        outputs = by_runtime(file, feed)
        if seed % 4 == 3:
            file, feed, outputs, node = batch_first(file, feed, outputs)
        ours = through_us(file, feed, node)
        # h carries the rounding of c, which may be many times larger.
        flat = [
            np.concatenate([np.ravel(one) for one in all]) for all in (ours, outputs)
        ]
        assert_close(*flat, name=f"seed {seed}")
        assert [one.shape for one in ours] == [one.shape for one in outputs]
