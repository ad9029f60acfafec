"""Files of ``to_onnx``, run by onnxruntime and checked by ONNX's own checker."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest

import lstm_jax as lj
from lstm_jax import activations
from lstm_jax.convert.onnx import to_onnx
from tests.common import assert_close, normal, random_params

I, H = 3, 4
partial = functools.partial
MODELS = {
    "one": lj.LSTM(I, H),
    "three": lj.LSTM(I, H, 3),
    "sizes": lj.LSTM(I, (5, 2, 4)),
    "no_bias": lj.LSTM(I, H, 2, use_bias=False),
    "both_ways": lj.LSTM(I, H, 2, bidirectional=True),
    "sum": lj.LSTM(I, H, 2, bidirectional=True, merge="sum"),
    "mean": lj.LSTM(I, H, 2, bidirectional=True, merge="mean"),
    "mul": lj.LSTM(I, H, 2, bidirectional=True, merge="mul"),
    "alternating": lj.LSTM(I, H, 3, reverse=(True, False, True)),
    "backwards": lj.LSTM(I, H, 2, reverse=True, residual=True, use_bias=False),
    "residual": lj.LSTM(I, H, 3, residual=True),
    "skip": lj.LSTM(I, H, 3, skip=True, bidirectional=True),
    "residual_skip": lj.LSTM(I, H, 3, residual=True, skip=True),
    "peephole": lj.LSTM(I, H, 2, peephole=True, bidirectional=True),
    "CIFG": lj.LSTM(I, H, variant="CIFG"),
    "CIFG_peephole": lj.LSTM(I, H, variant="CIFG", peephole=True, bidirectional=True),
    "some_CIFG": lj.LSTM(I, H, 3, variant=(None, "CIFG", "NIAF")),
    "NOAF": lj.LSTM(I, H, variant="NOAF"),
    "clip": lj.LSTM(I, H, 2, clip=0.6, peephole=True),
    "learned": lj.LSTM(I, H, 2, learn_initial_state=True, bidirectional=True),
    "dropped": lj.LSTM(I, H, 2, dropout=0.5, recurrent_dropout=0.5),
    "stack": lj.Stack(
        (
            lj.LSTMCell(I, H, clip=0.5),
            lj.LSTMCell(H, 2, use_bias=False, learn_initial_state=True),
        )
    ),
}
FUNCTIONS = {
    "hard_sigmoid": (jax.nn.hard_sigmoid, jnp.tanh, jnp.tanh),
    "old_hard_sigmoid": (activations.hard_sigmoid, jnp.tanh, jax.nn.sigmoid),
    "relu": (jax.nn.sigmoid, jax.nn.relu, jax.nn.relu),
    "leaky": (
        jax.nn.sigmoid,
        jax.nn.leaky_relu,
        partial(jax.nn.leaky_relu, negative_slope=0.3),
    ),
    "elu": (jax.nn.sigmoid, partial(jax.nn.elu, alpha=0.5), jax.nn.elu),
    "soft": (jax.nn.sigmoid, jax.nn.soft_sign, jax.nn.softplus),
    "identity": (jax.nn.sigmoid, jax.nn.identity, jnp.tanh),
    "scaled": (
        partial(activations.hard_sigmoid, alpha=0.3, beta=0.4),
        partial(activations.scaled_tanh, alpha=1.2, beta=0.7),
        partial(activations.affine, alpha=0.8, beta=0.1),
    ),
    "thresholded": (
        jax.nn.sigmoid,
        partial(activations.thresholded_relu, alpha=0.1),
        jnp.tanh,
    ),
}
OPTIONS = ("gate_activation", "candidate_activation", "output_activation")
for _name, _functions in FUNCTIONS.items():
    MODELS[_name] = lj.LSTM(
        I, H, bidirectional=True, **dict(zip(OPTIONS, _functions, strict=True))
    )


@functools.cache
def params_of(model, dtype="float32"):
    return random_params(model, 0, dtype)


def session_of(file):
    onnx.checker.check_model(file, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        file.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def outputs_of(session, feed):
    names = [one.name for one in session.get_outputs()]
    feed = {name: np.asarray(value) for name, value in feed.items()}
    return dict(zip(names, session.run(None, feed), strict=True))


def named(state, letters):
    """The leaves of a state by their names in a file."""
    return {
        f"{key}_{letters}_l{index}{suffix}": getattr(one, key)
        for index, layer in enumerate(state)
        for suffix, one in zip(("", "_reverse"), layer, strict=True)
        if one is not None
        for key in "hc"
    }


def random_state(model, seed, batch):
    template = model.zero_state((batch,))
    leaves, structure = jax.tree.flatten(template)
    made = [normal([seed, n], leaf.shape, scale=0.5) for n, leaf in enumerate(leaves)]
    return structure.unflatten(made)


def expected_of(model, state, xs, lengths=None, **options):
    """What the model itself gives; step by step, which compiles least."""
    with jax.disable_jit():
        state, ys = model.apply(params_of(model), xs, state, lengths=lengths, **options)
    return {"ys": ys, **named(state, "n")}


B, T = 7, 9


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_file_agrees_at_every_size(model):
    """One file for all: batches, steps, lengths, states fed or not.

    Rows do not see each other, nor steps those after them, so that the largest batch
    has in it what all smaller ones give.
    """
    file = to_onnx(model, params_of(model), states=True, lengths=True)
    session = session_of(file)
    xs, lengths = normal(1, (B, T, I)), np.array([3, 0, T, 1, 5, 8, T], np.int32)
    fed = random_state(model, 2, B)
    for state in (fed, model.initial_state(params_of(model), (B,))):
        for steps in (T, 1):
            shorter = np.minimum(lengths, steps)
            expected = expected_of(model, state, xs, shorter)
            expected["ys"] = expected["ys"][:, :steps]
            for rows in (slice(0, 1), slice(1, 3), slice(B)):
                feed = {"xs": xs[rows, :steps], "lengths": shorter[rows]}
                if state is fed:
                    feed |= {k: leaf[rows] for k, leaf in named(state, "0").items()}
                some = {k: leaf[rows] for k, leaf in expected.items()}
                assert_close(outputs_of(session, feed), some)


@pytest.mark.parametrize("name", ["both_ways", "learned", "residual_skip", "sum"])
def test_file_without_states_and_lengths(name):
    model = MODELS[name]
    session = session_of(to_onnx(model, params_of(model), time_major=True))
    assert [one.name for one in session.get_inputs()] == ["xs"]
    for batch, length in [(1, 9), (2, 1), (7, 9)]:
        xs = normal([batch, length], (length, batch, I))
        expected = model.apply(params_of(model), xs, time_major=True)[1]
        assert_close(outputs_of(session, {"xs": xs}), {"ys": expected})


def test_lengths_of_zero_alone_hand_the_state_on():
    model = MODELS["both_ways"]
    session = session_of(to_onnx(model, params_of(model), states=True, lengths=True))
    state, xs = random_state(model, 3, 2), normal(4, (2, 9, I))
    feed = {"xs": xs, "lengths": np.zeros(2, np.int32), **named(state, "0")}
    actual = outputs_of(session, feed)
    assert not actual.pop("ys").any()
    assert_close(actual, named(state, "n"))


def test_lengths_without_states():
    model = MODELS["both_ways"]
    session = session_of(to_onnx(model, params_of(model), lengths=True))
    xs, lengths = normal(5, (3, 9, I)), np.array([4, 0, 9], np.int32)
    expected = model.apply(params_of(model), xs, lengths=lengths)[1]
    feed = {"xs": xs, "lengths": lengths}
    assert_close(outputs_of(session, feed), {"ys": expected})


@pytest.mark.parametrize("name", ["three", "residual_skip", "learned_one", "some_CIFG"])
def test_steps_serve_a_stream(name):
    """A file of one step, fed what it puts out, is the whole sequence."""
    model = MODELS.get(name, lj.LSTM(I, H, learn_initial_state=True))
    session = session_of(to_onnx(model, params_of(model), step=True))
    for batch in (1, 2, 7):
        xs, feed, ys = normal([6, batch], (batch, 5, I)), {}, []
        for n in range(5):
            after = outputs_of(session, {"x": xs[:, n], **feed})
            ys.append(after.pop("y"))
            feed = {name.replace("_n_", "_0_"): v for name, v in after.items()}
        actual = {"ys": np.stack(ys, 1), **after}
        assert_close(actual, expected_of(model, None, xs))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("step", [True, False])
def test_embedding_and_readout(with_bias, step):
    model = MODELS["three"]
    table, kernel, bias = normal(7, (11, I)), normal(8, (H, 6)), normal(9, (6,))
    readout = (kernel, bias) if with_bias else kernel
    file = to_onnx(model, params_of(model), table, readout, step=step)
    ids = np.random.default_rng(0).integers(0, 11, (2, 1 if step else 5), np.int32)
    expected = model.apply(params_of(model), table[ids])[1] @ kernel
    if with_bias:
        expected = expected + bias
    feed, name = {"ids": ids}, "ys"
    if step:
        feed, name, expected = {"id": ids[:, 0]}, "y", expected[:, 0]
    assert_close(outputs_of(session_of(file), feed)[name], expected)


def test_a_readout_of_padding_is_its_bias():
    model, bias = MODELS["one"], normal(1, (6,))
    file = to_onnx(
        model, params_of(model), readout=(normal(0, (H, 6)), bias), lengths=True
    )
    feed = {"xs": normal(2, (2, 9, I)), "lengths": np.array([0, 3], np.int32)}
    ys = outputs_of(session_of(file), feed)["ys"]
    assert_close(ys[0], jnp.broadcast_to(bias, (9, 6)))
    assert_close(ys[1, 3:], jnp.broadcast_to(bias, (6, 6)))


def test_the_reference_evaluator_agrees_on_standard_cells():
    """It ignores activations, clip and input_forget, and lengths too."""
    for name in ("three", "peephole", "learned"):
        model = MODELS[name]
        file = to_onnx(model, params_of(model), states=True)
        state, xs = random_state(model, 1, 2), normal(2, (2, 5, I))
        feed = {"xs": xs, **named(state, "0")}
        feed = {name: np.asarray(value) for name, value in feed.items()}
        values = onnx.reference.ReferenceEvaluator(file).run(None, feed)
        names = [one.name for one in file.graph.output]
        actual = dict(zip(names, values, strict=True))
        assert_close(actual, expected_of(model, state, xs))


@pytest.mark.parametrize("opset", [14, 17, 22, 24])
def test_versions_of_operators(opset):
    model = MODELS["skip"]
    file = to_onnx(model, params_of(model), states=True, lengths=True, opset=opset)
    assert file.opset_import[0].version == opset
    xs, lengths = normal(1, (2, 5, I)), np.array([0, 4], np.int32)
    actual = outputs_of(session_of(file), {"xs": xs, "lengths": lengths})
    assert_close(actual, expected_of(model, None, xs, lengths))


def nodes_of(file):
    return [node for node in file.graph.node if node.op_type == "LSTM"]


def attributes_of(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_what_is_default_is_left_out():
    file = to_onnx(MODELS["one"], params_of(MODELS["one"]))
    (node,) = nodes_of(file)
    assert attributes_of(node) == {"hidden_size": H}
    assert len(node.input) == 4 and list(node.output) == ["Y_l0"]
    assert file.producer_name == "lstm_jax" and file.producer_version == lj.__version__
    assert "LSTM(" in file.doc_string
    assert not any(tensor.external_data for tensor in file.graph.initializer)
    both = to_onnx(MODELS["both_ways"], params_of(MODELS["both_ways"]))
    assert "activations" not in attributes_of(nodes_of(both)[0])


@pytest.mark.parametrize(
    "name", ["CIFG", "clip", "NOAF", "hard_sigmoid", "scaled", "both_ways", "elu"]
)
def test_each_attribute_changes_what_comes_out(name):
    """So that none of them is written for nothing."""
    model = MODELS[name]
    file = to_onnx(model, params_of(model))
    feed = {"xs": normal(1, (2, 5, I))}
    before = outputs_of(session_of(file), feed)["ys"]
    given = attributes_of(nodes_of(file)[0])
    changes = {
        "input_forget": 0,
        "clip": 100.0,
        "activations": [b"Sigmoid", b"Tanh", b"Tanh"] * (1 + model.bidirectional),
        "activation_alpha": [0.9] * 6,
        "activation_beta": [0.7] * 6,
    }
    tried = [key for key in changes if given.get(key, changes[key]) != changes[key]]
    if model.bidirectional and name == "both_ways":
        return check_direction(file, before, feed)
    assert tried
    for key in tried:
        other = onnx.ModelProto.FromString(file.SerializeToString())
        (found,) = [a for a in nodes_of(other)[0].attribute if a.name == key]
        found.CopyFrom(onnx.helper.make_attribute(key, changes[key]))
        after = outputs_of(session_of(other), feed)["ys"]
        assert np.abs(after - before).max() > 1e-4, key


def check_direction(file, before, feed):
    other = onnx.ModelProto.FromString(file.SerializeToString())
    for tensor in other.graph.initializer:
        if tensor.name == "W_l0":
            array = onnx.numpy_helper.to_array(tensor)[::-1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.copy(), "W_l0"))
    after = outputs_of(session_of(other), feed)["ys"]
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_widened(dtype):
    model = MODELS["one"]
    params = params_of(model, dtype)
    file = to_onnx(model, params)
    assert {t.data_type for t in file.graph.initializer if t.name[1] == "_"} == {1}
    xs = normal(1, (2, 5, I))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = model.apply(wide, xs)[1]
    assert_close(outputs_of(session_of(file), {"xs": xs})["ys"], expected)


def test_float64_stays_and_warns():
    with jax.enable_x64(True):
        model = MODELS["three"]
        params, xs = random_params(model, 0, "float64"), normal(1, (2, 5, I), "float64")
        with pytest.warns(UserWarning, match="float64.*onnxruntime"):
            file = to_onnx(model, params)
        onnx.checker.check_model(file, full_check=True)
        expected = model.apply(params, xs)[1]
        evaluator = onnx.reference.ReferenceEvaluator(file)
        (ys,) = evaluator.run(None, {"xs": np.asarray(xs)})
        assert ys.dtype == np.float64
        assert_close(ys, expected, "float64")
