"""Safetensors files of PyTorch's LSTMs, read and written."""

import concurrent.futures
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

import lstm_jax as lj
from lstm_jax.convert.files.safetensors import StateDict, opened, write
from lstm_jax.convert.files.torch import save_torch
from tests.common import normal

I, H = 3, 5


def state_dict(seed=0, prefix=""):
    shapes = dict(weight_ih_l0=(4 * H, I), weight_hh_l0=(4 * H, H))
    shapes |= dict(bias_ih_l0=(4 * H,), bias_hh_l0=(4 * H,))
    return {
        prefix + name: np.asarray(normal([seed, n], shape))
        for n, (name, shape) in enumerate(shapes.items())
    }


def test_a_state_dict_is_read_from_a_file(tmp_path):
    path, arrays = tmp_path / "m.safetensors", state_dict(prefix="rnn.")
    write(path, arrays | {"out.weight": np.ones((2, 2), np.int32)}, format="pt")
    assert opened(arrays) is arrays
    model, params = lj.convert.from_torch(opened(path), prefix="rnn.")
    expected = lj.convert.from_torch(arrays, prefix="rnn.")
    assert model == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])


def test_aliases_lead_to_names_in_the_file_alone(tmp_path):
    path, arrays = tmp_path / "m.safetensors", state_dict()
    kept = {name: array for name, array in arrays.items() if name != "weight_hh_l0"}
    kept["other"] = arrays["weight_hh_l0"]
    write(path, kept, weight_hh_l0="other", format="pt", bias_ih_l0="other")
    names = {name: array for name, array in StateDict(path).items() if name != "other"}
    _, params = lj.convert.from_torch(names)
    expected = lj.convert.from_torch(arrays)[1]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    del kept["other"]
    write(path, kept, weight_hh_l0="../other.safetensors")
    with pytest.raises(ValueError, match="weight_hh_l0 is missing.*share memory"):
        lj.convert.from_torch(opened(path))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_what_is_saved_for_pytorch_comes_back(tmp_path, dtype):
    model = lj.LSTM(I, H, 2, bidirectional=True, proj_size=2, param_dtype=dtype)
    params = model.init(jax.random.key(0))
    path = tmp_path / "m.safetensors"
    save_torch(path, model, params, prefix="rnn.")
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    again, read = lj.convert.from_torch(opened(path), prefix="rnn.")
    assert again.param_dtype == model.param_dtype
    for one, other in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
    assert [name.name for name in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_file_that_can_not_be_written_leaves_the_error_of_the_system(tmp_path):
    model = lj.LSTM(I, H)
    params = model.init(jax.random.key(0))
    with pytest.raises(FileNotFoundError):
        save_torch(tmp_path / "none" / "m.safetensors", model, params)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        save_torch(folder, model, params)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_that_several_write_at_once_is_whole(tmp_path):
    path, arrays = tmp_path / "m.safetensors", state_dict()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: write(path, arrays), range(200)):
            pass
    assert list(tmp_path.iterdir()) == [path]
    assert all(np.array_equal(StateDict(path)[n], arrays[n]) for n in arrays)


def test_what_torch_save_writes_is_said(tmp_path):
    path = tmp_path / "m.pt"
    for begins in (b"PK\x03\x04" + b"\0" * 20, b"\x80\x02}q\0." + b"\0" * 20):
        path.write_bytes(begins)
        with pytest.raises(ValueError, match=r"m\.pt: no safetensors.*torch\.load"):
            opened(path)


def test_float64_without_64_bit_types_is_warned_about(tmp_path):
    path = tmp_path / "m.safetensors"
    write(path, {"a": np.ones(3)})
    with pytest.warns(UserWarning, match="a is float64 and becomes float32"):
        StateDict(path)["a"]
    with jax.enable_x64(True):
        assert StateDict(path)["a"].dtype == np.float64


def test_a_path_that_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            StateDict(path)


def test_an_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match="needs safetensors: pip install"):
        StateDict(tmp_path / "m.safetensors")
    with pytest.raises(ImportError, match="needs safetensors: pip install"):
        write(tmp_path / "m.safetensors", {})
