"""Files of Keras's that are refused, in words that say what is in them."""

import pathlib

import h5py
import numpy as np
import pytest

from lstm_jax.convert.files.keras import load_keras
from tests.test_convert_files import (
    PLAIN,
    H,
    lstm_config,
    numbered,
    scoped,
    sequential,
    weights,
    write_listed,
    write_objects,
)

OTHERS = {
    "GRU": ("GRU", {}, "'a' is a GRU, no LSTM"),
    "own": ("LSTM", {"registered_name": "mine>LSTM"}, "not Keras's own"),
    "own module": ("LSTM", {"module": "mine.layers"}, "not Keras's own"),
}


@pytest.mark.parametrize(("kind", "changes", "words"), OTHERS.values(), ids=OTHERS)
def test_other_layers_are_left_alone_and_refused_by_name(
    tmp_path, kind, changes, words
):
    other = {**lstm_config("a"), "class_name": kind, **changes}
    gates = 3 if kind == "GRU" else 4
    arrays = numbered("layers/lstm/cell/vars", weights())
    if kind == "GRU":
        arrays |= numbered("layers/gru/cell/vars", weights(1, gates=gates))
    else:
        arrays |= numbered("layers/lstm_1/cell/vars", weights(1))
    config = sequential(lstm_config("b"), other)
    path = write_objects(tmp_path / "m.keras", arrays, config=config)
    assert load_keras(path, "b")[0].hidden_size == H
    with pytest.raises(ValueError, match=words):
        load_keras(path, "a")
    if kind == "GRU":
        assert list(load_keras(path)) == ["b"]
    else:
        match = "lstm_1.*looks like an LSTM's.* 'b': .*Of the others 'a' is a LSTM, .*"
        with pytest.raises(ValueError, match=match):
            load_keras(path)


def test_a_gru_among_weights_alone_is_refused_by_its_shape(tmp_path):
    arrays = numbered("layers/gru/cell/vars", weights(gates=3))
    path = write_objects(tmp_path / "m.weights.h5", arrays)
    assert load_keras(path) == {}
    with pytest.raises(ValueError, match="'gru' looks like a GRU, no LSTM"):
        load_keras(path, "gru", **PLAIN)
    with pytest.raises(ValueError, match="of which there are none, got 'lstm'"):
        load_keras(path, "lstm", **PLAIN)


@pytest.mark.parametrize("way", ["listed", "objects"])
def test_an_array_that_an_lstm_has_not_is_refused(tmp_path, way):
    config = sequential(lstm_config("a"))
    more = np.ones(3, np.float32)
    if way == "listed":
        arrays = scoped("a/lstm_cell", weights()) | {"a/lstm_cell/extra:0": more}
        path = write_listed(tmp_path / "m.h5", {"a": arrays}, config=config)
    else:
        arrays = numbered("layers/lstm/cell/vars", [*weights(), more])
        path = write_objects(tmp_path / "m.keras", arrays, config=config)
    with pytest.raises(ValueError, match="expected no such array in an LSTM"):
        load_keras(path)


def test_an_array_that_is_missing_is_named(tmp_path):
    config = sequential(lstm_config("a"))
    arrays = numbered("layers/lstm/cell/vars", weights()[:2])
    path = write_objects(tmp_path / "m.keras", arrays, config=config)
    with pytest.raises(ValueError, match="a: expected bias, kernel, recurrent_kernel"):
        load_keras(path)
    config = sequential(lstm_config("a", use_bias=False))
    path = write_objects(tmp_path / "n.keras", arrays, config=config)
    assert not load_keras(path, "a")[0].use_bias


def test_names_that_keras_3_0_lost_are_said(tmp_path):
    path = write_listed(tmp_path / "m.h5", {"bi": {"kernel": np.ones(3)}})
    with h5py.File(path, "a") as file:
        file["model_weights/bi"].attrs["weight_names"] = [b"kernel", b"kernel"]
    with pytest.raises(ValueError, match="names twice, kernel, kernel"):
        load_keras(path, **PLAIN)


def test_a_group_of_another_name_is_refused(tmp_path):
    path = write_objects(
        tmp_path / "m.keras",
        numbered("layers/lstm/cell/vars", weights()),
        config=sequential(lstm_config("a")),
        names={"layers/lstm": "b"},
    )
    with pytest.raises(ValueError, match="expected the weights of 'a'.* those of 'b'"):
        load_keras(path)


def test_layers_unlike_each_other_are_not_joined(tmp_path):
    arrays = numbered("layers/lstm/cell/vars", weights())
    arrays |= numbered("layers/lstm_1/cell/vars", weights(1, H))
    config = sequential(lstm_config("a"), lstm_config("b", activation="relu"))
    path = write_objects(tmp_path / "m.keras", arrays, config=config)
    with pytest.raises(ValueError, match="expected layers alike.*b unlike a"):
        load_keras(path, "a", "b")
    config = sequential(lstm_config("a"), lstm_config("b"))
    path = write_objects(tmp_path / "n.keras", arrays, config=config)
    with pytest.raises(ValueError, match=r"lstm/cell/vars/0.*kernel|vars/0: expected"):
        load_keras(path, "b", "a")


def test_a_path_that_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.h5"):
        with pytest.raises(FileNotFoundError, match="path: expected a file"):
            load_keras(path)


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    path = pathlib.Path(tmp_path / "m.h5")
    path.write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "lstm_jax\[keras\]"'):
        load_keras(path)
