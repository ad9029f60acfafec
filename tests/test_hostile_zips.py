"""Tricks of zip files, which .keras is."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from tests.test_hostile_files import MEGABYTES, load, peak, write_hdf5, write_keras


def a_bomb(path):
    inner = write_hdf5(io.BytesIO()).getvalue() + bytes(2**26)
    write_keras(path, inner, deflate=True)


def pickles(path):
    data = io.BytesIO()
    np.savez(data, np.array({"a": 1}, dtype=object))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.npz", data.getvalue())


def two_of_one_name(path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_keras(path, more={"model.weights.h5": b""})


def no_weights(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


def a_liar(path):
    """Says that a member is small that is not."""
    a_bomb(path)
    data = bytearray(path.read_bytes())
    size = struct.pack("<I", len(write_hdf5(io.BytesIO()).getvalue()) + 2**26)
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = struct.pack("<I", 5000)
    path.write_bytes(data)


def lzma(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("model.weights.h5", write_hdf5(io.BytesIO()).getvalue())


def encrypted(path):
    write_keras(path)
    data = bytearray(path.read_bytes())
    for begins, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = -1
        while (place := data.find(begins, place + 1)) >= 0:
            data[place + at] |= 1
    path.write_bytes(data)


def deep_json(path):
    write_keras(path, config="[" * 100_000)


def deep_models(path):
    config = {"class_name": "LSTM", "config": {"name": "a"}}
    for _ in range(200):
        config = {"class_name": "Model", "config": {"name": "m", "layers": [config]}}
    write_keras(path, config=json.dumps(config))


def long_json(path):
    write_keras(path, config="[" + "[]," * 2**21 + "[]]")


def odd_layers(path):
    write_keras(path, config='{"config": {"layers": [{"class_name": 1, "config": 2}]}}')


ZIPS = {
    a_bomb: "becomes 6711.* bytes, more than the",
    pickles: "an .npz, which holds pickles: they are never read",
    two_of_one_name: "two members named model.weights.h5",
    no_weights: "there is no model.weights.h5 in it, only config.json",
    a_liar: "can't be read",
    lzma: "compressed otherwise than by deflate",
    encrypted: "can't be read: RuntimeError.* encrypted",
    deep_json: "configuration can't be read: RecursionError",
    deep_models: "more than 30 models are inside each other",
    long_json: "config.json becomes",
    odd_layers: "configuration can't be read",
}


@pytest.mark.parametrize("trick", ZIPS, ids=lambda trick: trick.__name__)
def test_tricks_of_zip_files(trick, tmp_path):
    path = tmp_path / "m.keras"
    trick(path)
    before = peak()
    with pytest.raises(ValueError, match=ZIPS[trick]) as refusal:
        load(path)
    assert str(path) in str(refusal.value)
    assert peak() - before < MEGABYTES


def test_names_that_lead_out_of_a_zip_file_are_nothing_to_it(tmp_path):
    path = tmp_path / "inside" / "m.keras"
    path.parent.mkdir()
    write_keras(path, more={"../out.txt": b"out", "/etc/lstm": b"out"})
    assert list(load(path)) == ["a"]
    assert [one.name for one in tmp_path.rglob("*")] == ["inside", "m.keras"]
