"""Files as Keras 1 wrote them, and of halves of which one is frozen."""

import numpy as np
import pytest

from lstm_jax.convert.files.keras import load_keras
from tests.test_convert_files import (
    PLAIN,
    H,
    agrees,
    has,
    lstm_config,
    scoped,
    sequential,
    weights,
    write_listed,
)


def hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def keras1(name, arrays, gates="icfo"):
    """The twelve arrays of Keras 1, in its order."""
    parts = {
        (kind, gate): part
        for kind, array in zip("WUb", arrays, strict=True)
        for gate, part in zip("ifco", np.split(array, 4, -1), strict=True)
    }
    return {f"{name}_{k}_{g}": parts[k, g] for g in gates for k in "WUb"}


@pytest.mark.parametrize("gates", ["icfo", "ofci"])
def test_keras_1_has_twelve_arrays_and_a_hard_sigmoid(tmp_path, gates):
    arrays = weights()
    layer = {
        "class_name": "LSTM",
        "config": {
            "name": "lstm_1",
            "activation": "tanh",
            "inner_activation": "hard_sigmoid",
            "output_dim": H,
        },
    }
    path = write_listed(
        tmp_path / "old.h5",
        {"lstm_1": keras1("lstm_1", arrays, gates)},
        config={"class_name": "Sequential", "config": [layer]},
        version=None,
    )
    loaded = load_keras(path, "lstm_1")
    assert agrees(loaded, arrays, gate=hard_sigmoid)
    assert not agrees(loaded, arrays)


def test_keras_1_in_three_arrays(tmp_path):
    arrays = weights()
    names = [f"lstm_1_{kind}:0" for kind in "WUb"]
    variables = dict(zip(names, arrays, strict=True))
    path = write_listed(tmp_path / "old.h5", {"lstm_1": variables}, root="")
    assert has(load_keras(path, "lstm_1", **PLAIN), arrays)


def test_keras_1_without_a_gate_is_refused(tmp_path):
    variables = keras1("lstm_1", weights())
    del variables["lstm_1_U_f"]
    path = write_listed(tmp_path / "old.h5", {"lstm_1": variables})
    with pytest.raises(
        ValueError, match="lstm_1_U_i.*those of the gates i, f, c and o"
    ):
        load_keras(path, **PLAIN)


SCOPES = {
    "Keras 2.0": ("bi/{}", ":0"),
    "TensorFlow 1": ("{}", "_1:0"),
    "loaded twice": ("bi/{}_1", ":0"),
    "tf.keras": ("bi/{}/lstm_cell_4", ":0"),
    "Keras 3": ("m/bi/{}/lstm_cell", ""),
}


@pytest.mark.parametrize(("scope", "end"), SCOPES.values(), ids=SCOPES)
@pytest.mark.parametrize("config", [True, False], ids=["config", "weights"])
def test_halves_are_told_by_name_where_the_first_is_frozen(
    tmp_path, scope, end, config
):
    forward, backward = weights(1), weights(2)
    variables = scoped(scope.format("backward_lstm_1"), backward, end)
    variables |= scoped(scope.format("forward_lstm_1"), forward, end)
    layer = {
        "class_name": "Bidirectional",
        "config": {
            "name": "bi",
            "merge_mode": "sum",
            "layer": lstm_config("lstm_1"),
        },
    }
    told = dict(config=sequential(layer)) if config else dict(root="")
    path = write_listed(tmp_path / "m.h5", {"bi": variables}, **told)
    told = {} if config else dict(PLAIN, merge_mode="sum")
    loaded = load_keras(path, "bi", **told)
    assert has(loaded, forward, backward) and loaded[0].merge == "sum"
