"""Files of Keras's, and what is in them.

Those of old releases are made here as they wrote them; tests/peers has what the one
that is installed writes.
"""

import dataclasses
import json
import os
import zipfile

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.convert.files.keras import load_keras
from tests.common import normal, relative_error
from tests.oracles import cells as oracle

B, T, I, H = 2, 4, 3, 5
SIGMOID = dict(gate_activation=jax.nn.sigmoid)
PLAIN = dict(activation="tanh", recurrent_activation="sigmoid")


def weights(seed=0, inputs=I, size=H, gates=4):
    """What Keras keeps of a layer: kernel, recurrent kernel, bias."""
    shapes = (inputs, gates * size), (size, gates * size), (gates * size,)
    return [np.asarray(normal([seed, n], shape)) for n, shape in enumerate(shapes)]


def oracle_run(arrays, xs, *, gate=oracle.sigmoid, act=np.tanh):
    """All outputs of one layer, step by step in NumPy's float64."""
    kernel, recurrent, bias = (np.asarray(one, np.float64) for one in arrays)
    h = c = np.zeros((len(xs), recurrent.shape[0]))
    ys = []
    for x in np.moveaxis(np.asarray(xs, np.float64), 1, 0):
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, -1)
        c = gate(f) * c + gate(i) * act(g)
        h = gate(o) * act(c)
        ys.append(h)
    return np.stack(ys, 1)


def agrees(loaded, arrays, **options):
    """Whether a model that was loaded computes what the arrays say."""
    model, params = loaded
    xs = normal(9, (B, T, model.input_size))
    ys = model.apply(params, xs)[1]
    return relative_error(ys, oracle_run(arrays, xs, **options)) < 1e-5


def has(loaded, *halves):
    """Whether it has exactly these arrays, for each direction."""
    model, params = loaded
    (ours,) = lj.convert.to_keras(dataclasses.replace(model, **SIGMOID), params)
    theirs = [array for half in halves for array in half]
    return all(map(np.array_equal, ours, theirs)) and len(ours) == len(theirs)


def lstm_config(name, **options):
    """A layer's configuration, with what is read of it."""
    config = {"name": name, "activation": "tanh", "recurrent_activation": "sigmoid"}
    return {"class_name": "LSTM", "config": {**config, **options}}


def sequential(*layers, **options):
    return {"class_name": "Sequential", "config": {"name": "m", "layers": layers}}


def write_listed(path, layers, *, config=None, version="2.15.0", root="model_weights"):
    """An ``.h5``: for each layer its variables by name, in an order."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        group.attrs["layer_names"] = [name.encode() for name in layers]
        if version:
            group.attrs["keras_version"] = version
            file.attrs["keras_version"] = version
        if config is not None:
            file.attrs["model_config"] = json.dumps(config)
        for name, variables in layers.items():
            here = group.create_group(name)
            here.attrs["weight_names"] = [one.encode() for one in variables]
            for variable, array in variables.items():
                here[variable] = array
    return path


def write_objects(path, arrays, *, config=None, version="3.6.0", names=()):
    """A ``.weights.h5``, or with a configuration a ``.keras``."""
    inner = path if config is None else path.with_suffix(".inner")
    with h5py.File(inner, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for place, name in dict(names).items():
            file.require_group(f"{place}/vars").attrs["name"] = name
    if config is not None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", json.dumps({"keras_version": version}))
            archive.writestr("config.json", json.dumps(config))
            archive.write(inner, "model.weights.h5")
    return path


def numbered(place, arrays):
    return {f"{place}/{number}": array for number, array in enumerate(arrays)}


def scoped(scope, arrays, end=":0"):
    fields = ("kernel", "recurrent_kernel", "bias")
    return {f"{scope}/{f}{end}": a for f, a in zip(fields, arrays, strict=True)}


def test_halves_and_their_merge_compute_what_they_say(tmp_path):
    forward, backward = weights(1), weights(2)
    stored = numbered("layers/bidirectional/backward_layer/cell/vars", backward)
    stored |= numbered("layers/bidirectional/forward_layer/cell/vars", forward)
    half = lstm_config("a")
    layer = {
        "class_name": "Bidirectional",
        "config": {"name": "bi", "merge_mode": "sum", "layer": half},
    }
    path = write_objects(tmp_path / "m.keras", stored, config=sequential(layer))
    model, params = load_keras(path, "bi")
    xs = normal(9, (B, T, I))
    backwards = oracle_run(backward, xs[:, ::-1])[:, ::-1]
    ys = model.apply(params, xs)[1]
    assert relative_error(ys, oracle_run(forward, xs) + backwards) < 1e-5


@pytest.mark.parametrize("version", ["2.15.0", "3.6.0", "1.2.2"])
@pytest.mark.parametrize("way", ["h5", "keras"])
def test_a_hard_sigmoid_is_that_of_the_version(tmp_path, version, way):
    config = sequential(lstm_config("a", recurrent_activation="hard_sigmoid"))
    arrays = weights()
    if way == "h5":
        variables = {"a": scoped("a/lstm_cell", arrays)}
        path = write_listed(
            tmp_path / "m.h5", variables, config=config, version=version
        )
    else:
        path = write_objects(
            tmp_path / "m.keras",
            numbered("layers/lstm/cell/vars", arrays),
            config=config,
            version=version,
        )
    loaded = load_keras(path, "a")
    slope = 1 / 6 if version.startswith("3") else 0.2
    xs = np.linspace(-4, 4, 17, dtype=np.float32)
    right = np.clip(slope * xs + 0.5, 0, 1)
    np.testing.assert_allclose(loaded[0].gate_activation(xs), right, atol=1e-6)
    assert loaded[0].candidate_activation is jnp.tanh and has(loaded, arrays)


def test_a_function_that_a_configuration_names_by_a_dict(tmp_path):
    named = {
        "module": "builtins",
        "class_name": "function",
        "config": "softsign",
        "registered_name": "function",
    }
    arrays = weights()
    stored = numbered("layers/lstm/cell/vars", arrays)
    path = write_objects(
        tmp_path / "m.keras",
        stored,
        config=sequential(lstm_config("a", activation=named)),
    )
    loaded = load_keras(path, "a")
    assert agrees(loaded, arrays, act=lambda x: x / (1 + np.abs(x)))


def test_code_in_a_configuration_is_not_run_and_asked_for(tmp_path):
    code = {"class_name": "__lambda__", "config": {"value": "4wEAAAA="}}
    arrays = weights()
    path = write_objects(
        tmp_path / "m.keras",
        numbered("layers/lstm/cell/vars", arrays),
        config=sequential(lstm_config("a", activation=code)),
    )
    with pytest.raises(ValueError, match="a: activation: expected .* got dict"):
        load_keras(path)
    assert has(load_keras(path, "a", activation=jnp.tanh), arrays)


@pytest.mark.parametrize("list_", ["layers", "_layer_checkpoint_dependencies"])
def test_layers_of_2_13_are_counted_twice(tmp_path, list_):
    first, second, inner = weights(1), weights(2, H, 4), weights(3, 4, 2)
    count = 1 if list_ == "layers" else 2
    arrays = numbered(f"{list_}/lstm/cell/vars", first)
    arrays |= numbered(f"{list_}/lstm_{count}/cell/vars", second)
    arrays |= numbered(f"{list_}/sequential/{list_}/lstm/cell/vars", inner)
    arrays |= {f"{list_}/dense/vars/0": np.ones((2, 2), np.float32)}
    arrays |= {"optimizer/vars/0": np.ones(2, np.float32)}
    inside = sequential(lstm_config("c"))
    inside["config"]["name"] = "sub"
    config = sequential(lstm_config("a"), lstm_config("b"), inside)
    path = write_objects(tmp_path / "m.keras", arrays, config=config, version="2.13.1")
    loaded = load_keras(path)
    assert list(loaded) == ["a", "b", "sub/c"]
    assert all(map(has, loaded.values(), (first, second, inner)))
    joined = load_keras(path, "a", "b", "sub/c")
    assert joined[0].hidden_size == (H, 4, 2)
    xs = normal(9, (B, T, I))
    ys = oracle_run(inner, oracle_run(second, oracle_run(first, xs)))
    assert relative_error(joined[0].apply(joined[1], xs)[1], ys) < 1e-5


def test_a_file_of_weights_alone_is_told_what_it_does_not_say(tmp_path):
    arrays = weights()
    both = numbered("layers/bidirectional/forward_layer/cell/vars", arrays)
    both |= numbered("layers/bidirectional/backward_layer/cell/vars", weights(1))
    path = write_objects(
        tmp_path / "m.weights.h5",
        numbered("layers/lstm/cell/vars", arrays) | both,
        names={"layers/lstm": "enc"},
    )
    with pytest.raises(ValueError, match="recurrent_activation: expected to be told"):
        load_keras(path, "enc", activation="tanh")
    with pytest.raises(ValueError, match=r"'hard_sigmoid' is 0\.2 x"):
        load_keras(path, "enc", activation="tanh", recurrent_activation="hard_sigmoid")
    with pytest.raises(ValueError, match="merge_mode: expected to be told.*'concat'"):
        load_keras(path, "bidirectional", **PLAIN)
    assert has(load_keras(path, "enc", **PLAIN), arrays)
    assert set(load_keras(path, merge_mode="mul", **PLAIN)) == {"enc", "bidirectional"}
    told = dict(PLAIN, activation=lambda x: x * 2)
    assert agrees(load_keras(path, "enc", **told), arrays, act=lambda x: x * 2)


def test_what_is_told_must_be_what_the_file_says(tmp_path):
    path = write_objects(
        tmp_path / "m.keras",
        numbered("layers/lstm/cell/vars", weights()),
        config=sequential(lstm_config("a")),
    )
    assert load_keras(path, "a", **PLAIN)[0] == load_keras(path, "a")[0]
    with pytest.raises(ValueError, match="activation: expected 'tanh', as .* 'relu'"):
        load_keras(path, activation="relu")


def test_go_backwards_is_taken_where_it_is_asked_for(tmp_path):
    arrays = weights()
    path = write_objects(
        tmp_path / "m.keras",
        numbered("layers/lstm/cell/vars", arrays),
        config=sequential(lstm_config("a", go_backwards=True)),
    )
    with pytest.raises(ValueError, match=r"go_backwards=True.*jnp\.flip"):
        load_keras(path, "a")
    assert has(load_keras(path, "a", go_backwards=True), arrays)


def test_long_lists_of_names_are_cut_into_parts(tmp_path):
    path = write_listed(tmp_path / "m.h5", {"a": scoped("a", weights())}, root="")
    with h5py.File(path, "a") as file:
        names = file["a"].attrs["weight_names"]
        del file["a"].attrs["weight_names"], file.attrs["layer_names"]
        file["a"].attrs["weight_names0"] = names[:1]
        file["a"].attrs["weight_names1"] = names[1:]
        file.attrs["layer_names0"] = [b"a"]
    assert has(load_keras(path, "a", **PLAIN), weights())


@pytest.mark.parametrize("told", [True, False], ids=["bfloat16", "void"])
def test_bfloat16_is_read_where_the_file_says_it(tmp_path, told):
    arrays = [array.astype(ml_dtypes.bfloat16) for array in weights()]
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        for name, array in numbered("layers/lstm/cell/vars", arrays).items():
            file.create_dataset(name, data=array)
            if told:
                file[name].attrs["dtype"] = "bfloat16"
    if not told:
        with pytest.raises(ValueError, match=r"vars/0: expected floating .*\|V2"):
            load_keras(path, "lstm", **PLAIN)
        return
    model, params = load_keras(path, "lstm", **PLAIN)
    assert model.param_dtype == jnp.bfloat16
    (ours,) = lj.convert.to_keras(model, params)
    for one, array in zip(ours, arrays, strict=True):
        assert one.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [">f4", "<f2"])
def test_dtypes_are_kept(tmp_path, dtype):
    arrays = [array.astype(dtype) for array in weights()]
    stored = numbered("layers/lstm/cell/vars", arrays)
    path = write_objects(tmp_path / "m.weights.h5", stored)
    _, params = load_keras(path, "lstm", **PLAIN)
    kernel = params[0].forward.kernel
    assert kernel.dtype.itemsize == np.dtype(dtype).itemsize
    np.testing.assert_array_equal(kernel, arrays[0])


def test_float64_without_64_bit_types_is_warned_about(tmp_path):
    arrays = [array.astype(np.float64) for array in weights()]
    stored = numbered("layers/lstm/cell/vars", arrays)
    path = write_objects(tmp_path / "m.weights.h5", stored)
    with pytest.warns(UserWarning, match="float64 and becomes float32.*enable_x64"):
        load_keras(path, "lstm", **PLAIN)
    with jax.enable_x64(True):
        model, params = load_keras(path, "lstm", **PLAIN)
        np.testing.assert_array_equal(params[0].forward.kernel, arrays[0])


def test_compressed_arrays_are_read(tmp_path):
    path, arrays = tmp_path / "m.weights.h5", weights()
    with h5py.File(path, "w") as file:
        for name, array in numbered("layers/lstm/cell/vars", arrays).items():
            options = dict(compression="gzip", shuffle=True, fletcher32=True)
            file.create_dataset(name, data=array, **options)
    assert has(load_keras(path, "lstm", **PLAIN), arrays)


def test_cudnn_lstm_is_known_by_its_configuration_and_by_its_shapes(tmp_path):
    kernel, recurrent, bias = weights()
    gates = np.split(kernel, 4, -1)
    flat = np.concatenate([one.T.ravel() for one in gates]).reshape(4, H, I)
    flat = np.concatenate([one.reshape(I, H) for one in flat], -1)
    twisted = np.concatenate([one.T for one in np.split(recurrent, 4, -1)], -1)
    both = np.concatenate([bias / 4, bias * 3 / 4])
    arrays = numbered("layers/cu_dnnlstm/vars", [flat, twisted, both])
    layer = {"class_name": "CuDNNLSTM", "config": {"name": "a"}}
    path = write_objects(tmp_path / "m.keras", arrays, config=sequential(layer))
    assert agrees(load_keras(path, "a"), weights())
    path = write_objects(tmp_path / "m.weights.h5", arrays)
    params = load_keras(path, "cu_dnnlstm", **PLAIN)[1]
    np.testing.assert_array_equal(params[0].forward.kernel, kernel)


def test_classes_whose_groups_have_one_name_are_counted_together(tmp_path):
    """As Keras does: it stores an Lstm of someone's own as lstm, and the LSTM after."""
    own = {"class_name": "Lstm", "config": {"name": "a"}, "module": "mine"}
    dense = {"layers/lstm/vars/0": weights()[0]}
    arrays = dense | numbered("layers/lstm_1/cell/vars", weights(2))
    config = sequential(own, lstm_config("b"))
    path = write_objects(tmp_path / "m.keras", arrays, config=config)
    assert has(load_keras(path)["b"], weights(2))


def test_outputs_that_are_kept_apart_are_said(tmp_path):
    layer = {"class_name": "Bidirectional", "config": {"name": "bi"}}
    layer["config"] |= {"merge_mode": None, "layer": lstm_config("half")}
    variables = scoped("bi/forward_half", weights(1))
    variables |= scoped("bi/backward_half", weights(2))
    config = sequential(layer)
    path = write_listed(tmp_path / "m.h5", {"bi": variables}, config=config)
    with pytest.raises(ValueError, match="told, since .*m.h5 says None of 'bi'"):
        load_keras(path)
    assert load_keras(path, "bi", merge_mode="concat")[0].merge == "concat"


def test_arguments_of_other_types_are_refused(tmp_path):
    arrays = numbered("layers/lstm/cell/vars", weights())
    path = write_objects(tmp_path / "m.weights.h5", arrays)
    with pytest.raises(TypeError, match="layers: expected names, each an argument"):
        load_keras(path, ["lstm"], **PLAIN)
    with pytest.raises(TypeError, match="go_backwards: expected True or False"):
        load_keras(path, go_backwards="no", **PLAIN)
    assert has(load_keras(os.fsencode(path), "lstm", **PLAIN), weights())
