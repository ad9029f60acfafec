"""Damaged and hostile ONNX files: ValueError, little memory, no file elsewhere."""

import os
import resource
import time
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lstm_jax as lj
from lstm_jax.convert.onnx import from_onnx, to_onnx
from tests.peers.test_onnx_reading import (
    WEIGHTS,
    assert_same,
    behind,
    expand_of,
    file_of,
    lstm,
    plain_params,
    two_layers,
)
from tests.peers.test_onnx_writing import MODELS, params_of

I, H = 3, 4
MUTATIONS = int(os.environ.get("ONNX_MUTATIONS", "300"))


def external(file, **entries):
    """The file with W's data said to be elsewhere."""
    (tensor,) = [one for one in file.graph.initializer if one.name == "W"]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return file


def saved(file, folder):
    path = folder / "model.onnx"
    path.write_bytes(file.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with W's data in a file, of which there is another one outside."""
    inside = tmp_path / "inside"
    inside.mkdir()
    for place in (tmp_path, inside):
        (place / "data").write_bytes(b"1234" + WEIGHTS["W"].tobytes())
    (inside / "link").symlink_to(tmp_path / "data")
    (inside / "folder").mkdir()
    os.mkfifo(inside / "pipe")
    return inside


SIZE = str(WEIGHTS["W"].nbytes)


@pytest.mark.parametrize("length", [{}, {"length": SIZE}], ids=["rest", "length"])
def test_external_data_beside_the_file(folder, length):
    file = external(file_of([lstm()], WEIGHTS), location="data", offset="4", **length)
    assert_same(from_onnx(saved(file, folder))["n"][1], plain_params())
    with pytest.raises(ValueError, match="'W'.*external data.*Pass the path"):
        from_onnx(file)


def test_external_data_that_onnx_wrote(tmp_path):
    path = tmp_path / "model.onnx"
    options = dict(save_as_external_data=True, location="weights", size_threshold=0)
    onnx.save_model(file_of([lstm()], WEIGHTS), path, **options)
    assert_same(from_onnx(path)["n"][1], plain_params())


ELSEWHERE = {
    "above": (dict(location="../data"), "beside the model's, got '../data'"),
    "absolute": (dict(location="/etc/passwd"), "beside the model's, got '/etc/passwd'"),
    "folder_in": (dict(location="./data"), "beside the model's"),
    "windows": (dict(location="..\\data"), "beside the model's"),
    "dots": (dict(location=".."), "beside the model's"),
    "nothing": (dict(location=""), "beside the model's"),
    "link": (dict(location="link"), "'link', which is a link"),
    "folder": (dict(location="folder"), "a plain file"),
    "pipe": (dict(location="pipe"), "a plain file"),
    "missing": (dict(location="none"), "the file 'none' beside"),
    "none": (dict(offset="0"), "one location"),
    "key": (dict(location="data", other="1"), "one location.*'other'"),
    "past": (dict(location="data", offset="8"), "of 'data', got"),
    "far": (dict(location="data", offset="9" * 18), "of 'data', got"),
    "negative": (dict(location="data", offset="-4"), "offset: expected a natural"),
    "huge": (dict(location="data", offset="9" * 99), "offset: expected a natural"),
    "word": (dict(location="data", length="all"), "length: expected a natural"),
    "short": (dict(location="data", length="4"), "bytes of external data"),
}


@pytest.mark.parametrize("entries, message", ELSEWHERE.values(), ids=ELSEWHERE)
def test_external_data_elsewhere_is_refused(folder, entries, message):
    file = external(file_of([lstm()], WEIGHTS), **entries)
    with pytest.raises(ValueError, match=f"'W'.*external data.*{message}|{message}"):
        from_onnx(saved(file, folder))


def test_external_data_said_twice(folder):
    file = external(file_of([lstm()], WEIGHTS), location="data", offset="4")
    file.graph.initializer[0].external_data.add(key="location", value="data")
    with pytest.raises(ValueError, match="expected one location"):
        from_onnx(saved(file, folder))


def tensor_of(**changes):
    """W as a tensor that lies about itself."""
    tensor = numpy_helper.from_array(WEIGHTS["W"], "W")
    for name, value in changes.items():
        if name == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


LIES = {
    "huge": (dict(dims=[1, 16, 2**40]), "expected 70368744177664 bytes.*got 192"),
    "overflow": (dict(dims=[2**62, 2**62, 3]), "bytes.*got 192"),
    "negative": (dict(dims=[1, -16, 3]), "sizes of its axes"),
    "axes": (dict(dims=[1] * 100), "sizes of its axes"),
    "cut": (dict(raw_data=b"123"), "expected 192 bytes.*got 3.*cut off"),
    "strings": (dict(data_type=TensorProto.STRING), "expected one of the dtypes"),
    "quantized": (dict(data_type=TensorProto.INT8), "quantized"),
    "unknown": (dict(data_type=99), "expected one of the dtypes"),
    "integers": (dict(data_type=TensorProto.INT32), "W: expected a floating dtype"),
    "wide": (dict(data_type=TensorProto.DOUBLE), "expected 384 bytes"),
    "empty": (dict(dims=[1, 0, 3], raw_data=b""), "W: expected shape"),
    "empty_huge": (dict(dims=[0, 2**60, 3], raw_data=b""), "W"),
}


@pytest.mark.parametrize("changes, message", LIES.values(), ids=LIES)
def test_tensors_that_lie_about_themselves(changes, message):
    rest = {key: value for key, value in WEIGHTS.items() if key != "W"}
    file = file_of([lstm()], rest)
    file.graph.initializer.append(tensor_of(**changes))
    with pytest.raises(ValueError, match=message):
        from_onnx(file)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_numbers_instead_of_bytes(dtype):
    """The typed fields, which old files have; half precision as bits in integers."""
    import jax

    values = np.asarray(
        jax.numpy.asarray(WEIGHTS["W"], dtype if dtype != "float64" else None)
    )
    values = values.astype(np.float64) if dtype == "float64" else values
    tensor = numpy_helper.from_array(values, "W")
    tensor.ClearField("raw_data")
    field = dict(float32="float_data", float64="double_data").get(dtype, "int32_data")
    numbers = values.view(np.uint16) if field == "int32_data" else values
    getattr(tensor, field).extend(numbers.reshape(-1).tolist())
    rest = {k: v.astype(values.dtype) for k, v in WEIGHTS.items() if k != "W"}
    file = file_of([lstm()], rest)
    file.graph.initializer.append(tensor)
    same = file_of([lstm()], {**rest, "W": values})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(from_onnx(file)["n"][1], from_onnx(same)["n"][1])
    del getattr(tensor, field)[-1:]
    file.graph.initializer[-1].CopyFrom(tensor)
    with pytest.raises(ValueError, match="expected 48 numbers in .*got 47"):
        from_onnx(file)


def test_constants_that_grow_are_refused():
    """Each doubles the one before: 2**40 rows, of a file of some kilobytes."""
    nodes = [
        helper.make_node("Concat", [f"V{n}", f"V{n}"], [f"V{n + 1}"], axis=1)
        for n in range(40)
    ]
    rest = {key: value for key, value in WEIGHTS.items() if key != "W"}
    names = ("X", "V40", "R", "B")
    file = file_of([*nodes, lstm(names)], {**rest, "V0": WEIGHTS["W"]})
    with pytest.raises(ValueError, match="W: .*many times larger"):
        from_onnx(file)


def test_a_start_that_grows_is_refused():
    expand = behind("Expand", "start", "h", "whole")
    start = np.ones((1, 1, H), np.float32)
    constants = {"start": start, "whole": np.array([1, 2**40, H])}
    names = ("X", "W", "R", "B", "", "h", "h")
    with pytest.raises(ValueError, match="initial_h: .*many times larger"):
        from_onnx(file_of([expand, lstm(names)], {**WEIGHTS, **constants}))


def test_a_long_chain_ends():
    nodes = [
        helper.make_node("Identity", [f"V{n}"], [f"V{n + 1}"]) for n in range(5000)
    ]
    rest = {key: value for key, value in WEIGHTS.items() if key != "W"}
    for name in ("W", "initial_h"):
        names = ["X", "W", "R", "B", "", "", ""]
        names[5 if name == "initial_h" else 1] = "V5000"
        weights = WEIGHTS if name == "initial_h" else rest
        file = file_of([*nodes, lstm(names)], {**weights, "V0": WEIGHTS["W"]})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises((ValueError, UserWarning), match=f"{name}.*100 operat"):
                from_onnx(file)


def test_a_circle_ends():
    nodes = [
        helper.make_node("Identity", ["V"], ["W"]),
        helper.make_node("Identity", ["W"], ["V"]),
    ]
    rest = {key: value for key, value in WEIGHTS.items() if key != "W"}
    with pytest.raises(ValueError, match="W: .*more than 100 operators"):
        from_onnx(file_of([*nodes, lstm()], rest))


def test_an_attribute_said_twice():
    node = lstm(hidden_size=H)
    node.attribute.append(helper.make_attribute("hidden_size", H))
    with pytest.raises(ValueError, match="'n'.*each attribute once"):
        from_onnx(file_of([node], WEIGHTS))


def test_sparse_weights_are_named():
    rest = {key: value for key, value in WEIGHTS.items() if key != "W"}
    file = file_of([lstm()], rest)
    values = numpy_helper.from_array(np.ones(1, np.float32), "W")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    sparse = helper.make_sparse_tensor(values, indices, [1, 4 * H, I])
    file.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match="W: .*'W', a sparse tensor"):
        from_onnx(file)


def test_what_is_no_file():
    for data in (
        b"",
        b"PK\x03\x04",
        b"\x08",
        os.urandom(100),
        b"\x0a\xff\xff\xff\xff\x0f",
    ):
        with pytest.raises(ValueError, match=r"^model: expected"):
            from_onnx(data)


def test_a_name_that_is_no_text():
    data = file_of([lstm(name="abcdef")], WEIGHTS).SerializeToString()
    with pytest.raises(ValueError, match="expected names that are text"):
        from_onnx(data.replace(b"abcdef", b"\xff\xfe\xff\xfe\xff\xfe"))


def mutated(data, rng):
    """The file with some of its bytes changed, cut out, or put in twice."""
    data = bytearray(data)
    # Where bytes move, lengths that are said are wrong, and little more is read.
    kinds = 3 if rng.random() < 0.7 else 5
    for _ in range(rng.integers(1, kinds)):
        at, kind = int(rng.integers(len(data))), rng.integers(kinds)
        end = at + int(rng.integers(1, 9))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            data[at] = (data[at] + int(rng.integers(-2, 3))) % 256
        elif kind == 3:
            del data[at:end]
        else:
            data[at:at] = data[at:end]
        if not data:
            return b""
    return bytes(data[: int(rng.integers(len(data)))] if rng.random() < 0.1 else data)


KINDS = (
    *("LSTM", "Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Transpose"),
    *("Expand", "Gather", "Add", "Mul", "Div", "Mean", "Split", "Shape", "Cast"),
    *("Identity", "Constant", "ConstantOfShape", "Where", "Tile"),
)
NUMBERS = (-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 100, 2**31, 2**63 - 1)


def rearranged(file, rng):
    """The file with operators, names, sizes and attributes changed, but well formed."""
    file = onnx.ModelProto.FromString(file.SerializeToString())
    graph = file.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    number = lambda: int(rng.choice(NUMBERS))
    for _ in range(rng.integers(1, 6)):
        node = graph.node[rng.integers(len(graph.node))]
        tensor = graph.initializer[rng.integers(len(graph.initializer))]
        kind = rng.integers(8)
        if kind == 0:
            node.op_type = str(rng.choice(KINDS))
        elif kind == 1 and node.input:
            node.input[rng.integers(len(node.input))] = str(rng.choice(names))
        elif kind == 2 and node.output:
            node.output[rng.integers(len(node.output))] = str(rng.choice(names))
        elif kind == 3:
            del node.input[rng.integers(len(node.input) + 1) :]
        elif kind == 4:
            tensor.dims[:] = [number() for _ in range(rng.integers(4))]
        elif kind == 5:
            tensor.data_type = int(rng.integers(20))
        elif kind == 6 and node.attribute:
            one = node.attribute[rng.integers(len(node.attribute))]
            one.CopyFrom(helper.make_attribute(one.name, [number(), number()]))
        else:
            name = str(rng.choice(["axis", "axes", "perm", "to", "start", "layout"]))
            value = number() if rng.random() < 0.5 else [number()]
            node.attribute.append(helper.make_attribute(name, value))
    return file.SerializeToString()


def sources():
    """Files whose bytes are names and structure rather than weights."""
    model = lj.LSTM(1, 1, 2, bidirectional=True, learn_initial_state=True, clip=0.5)
    start = np.ones((1, 1, H), np.float32)
    sizes = {"one": np.array([1]), "size": np.array([H]), "start": start}
    names = ("X", "V", "R", "B", "", "h", "h")
    folded = file_of(
        [
            *expand_of("start"),
            behind("Slice", "W", "U", "one", "end", "one"),
            behind("Concat", "first", "V", "U", axis=1),
            lstm(names, activations=["affine", "elu", "Tanh"]),
        ],
        {
            **WEIGHTS,
            **sizes,
            "end": np.array([99]),
            "first": WEIGHTS["W"][:, :1],
        },
    )
    node = folded.graph.node[-1]
    node.attribute.append(helper.make_attribute("activation_alpha", [0.5]))
    node.attribute.append(helper.make_attribute("activation_beta", [0.5]))
    between = [helper.make_node("Squeeze", ["Y1", "one"], ["fed"])]
    return [
        to_onnx(model, params_of(model), states=True, lengths=True),
        to_onnx(MODELS["residual_skip"], params_of(MODELS["residual_skip"])),
        folded,
        two_layers(between=between, fed="fed", constants={"one": np.array([1])}),
    ]


@pytest.mark.parametrize("how", [mutated, rearranged])
def test_mutations_raise_or_are_read(how, folder):
    """Nothing but ValueError, in little time and memory; whole files are all read."""
    files = sources()
    files.append(external(file_of([lstm()], WEIGHTS), location="data", offset="4"))
    path, read = folder / "model.onnx", 0
    if how is mutated:
        files = [file.SerializeToString() for file in files]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            path.write_bytes(file if how is mutated else file.SerializeToString())
            assert from_onnx(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in range(MUTATIONS):
            rng = np.random.default_rng(seed)
            path.write_bytes(how(files[seed % len(files)], rng))
            began = time.process_time()
            try:
                read += bool(from_onnx(path))
            except ValueError:
                pass
            assert time.process_time() - began < 5, seed
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) / 1024 < 200
    assert 0 < read < MUTATIONS
