"""Files that are there whole, or as they were."""

import concurrent.futures
import pathlib

import numpy as np
import pytest

from lstm_jax import training
from lstm_jax.replacing import replacing


def test_two_who_write_at_once_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as one, replacing(path) as other:
        pathlib.Path(one).write_text("one")
        pathlib.Path(other).write_text("other")
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "one"  # which was ended last


def test_after_an_error_all_is_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        pathlib.Path(partial).write_text("half")
        raise ZeroDivisionError
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def test_weights_written_by_many_threads_are_those_of_one(tmp_path):
    path = tmp_path / "weights.safetensors"
    save = lambda n: training.save_weights(path, {"w": np.full(100_000, n)})
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(32)))
    weights = training.load_weights(path, {"w": np.zeros(100_000, np.int64)})["w"]
    assert len(set(weights.tolist())) == 1
    assert len(list(tmp_path.iterdir())) == 1
