"""What an export refuses, and what its loader does of a file that is no good."""

import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.test_exporting import written


def untouched(model=None, **options):
    model = model or lj.LSTM(3, 5)
    return lj.export(model, model.init(jax.random.key(0)), **options)


WRONG = {
    "no stack": (
        lambda: lj.export(lj.LSTMCell(3, 5), ()),
        TypeError,
        "model: expected a stack such as lstm_jax.LSTM, got LSTMCell.",
    ),
    "a step of two directions": (
        lambda: untouched(lj.LSTM(3, 5, bidirectional=True), step=True),
        ValueError,
        "step: expected False for a bidirectional model",
    ),
    "an embedding of another size": (
        lambda: untouched(embedding=jnp.ones((7, 4))),
        ValueError,
        r"embedding: expected shape \[V, I\] with I = \[3\], got \[7, 4\]",
    ),
    "a readout the other way round": (
        lambda: untouched(readout=jnp.ones((7, 5))),
        ValueError,
        r"readout: expected a kernel \[P, O\] with P = 5, got \[7, 5\]",
    ),
    "a bias of another size": (
        lambda: untouched(readout=(jnp.ones((5, 7)), jnp.ones(5))),
        ValueError,
        r"readout bias: expected shape \[O\] = \[7\], got \[5\]",
    ),
    "an integer dtype": (
        lambda: untouched(dtype=int),
        TypeError,
        "dtype: expected a floating dtype",
    ),
    "platforms in a string": (
        lambda: untouched(platforms="cpu"),
        ValueError,
        "platforms: expected some of cpu, cuda, tpu, rocm in a tuple, got 'cpu'",
    ),
    "a platform that there is not": (
        lambda: untouched(platforms=("cpu", "gpu")),
        ValueError,
        "platforms: expected one of 'cpu', 'cuda', 'tpu', 'rocm', got 'gpu'",
    ),
    "a negative order": (
        lambda: untouched(vjp_order=-1),
        ValueError,
        "vjp_order: expected an integer from 0, got -1",
    ),
    "no file": (
        lambda: lj.exporting.load("nowhere.zip"),
        FileNotFoundError,
        "nowhere.zip: no such file",
    ),
    "another file": (
        lambda: lj.exporting.load(__file__),
        ValueError,
        "no file of lstm_jax.export, or a damaged one",
    ),
}


@pytest.mark.parametrize("call, error, words", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_whatever_is_wrong_with_a_file_is_a_value_error(tmp_path):
    """Cut anywhere, with any byte of its frame changed, any part missing or junk."""
    model, rng = lj.LSTM(1, 1), np.random.default_rng(0)
    path = written(tmp_path, model, model.init(jax.random.key(0)), platforms=["cpu"])
    whole = path.read_bytes()
    frame = whole.index(b"PK\x01\x02")
    broken = [whole[:cut] for cut in rng.integers(len(whole), size=30)]
    for place in rng.integers(frame, len(whole), 60):
        data = bytearray(whole)
        data[place] = rng.integers(256)
        broken.append(bytes(data))
    for data in broken:
        path.write_bytes(data)
        for read in (lj.exporting.load, lj.exporting.read_model):
            try:
                read(path)
            except ValueError:
                pass
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    about = json.loads(members["about.json"])
    changes = [{name: None} for name in members]
    changes += [{"about.json": text} for text in (b"[]", b"{}", b"null", b'"a"', b"")]
    for name in about.keys() - {"date", "platforms"}:  # which nothing reads
        less = {key: value for key, value in about.items() if key != name}
        changes.append({"about.json": json.dumps(less).encode()})
    changes += [{"about.json": json.dumps(about | {"format": "1"}).encode()}]
    changes += [{"weights.safetensors": data} for data in (b"", b"\x02" + b"\0" * 7)]
    for change in changes:
        with zipfile.ZipFile(path, "w") as file:
            for name, content in (members | change).items():
                if content is not None:
                    file.writestr(name, content)
        with pytest.raises(ValueError, match="model.zip: "):
            lj.exporting.read_model(path)


def test_a_damaged_file_is_noticed(tmp_path):
    path = written(tmp_path, lj.LSTM(3, 5), lj.LSTM(3, 5).init(jax.random.key(0)))
    whole = path.read_bytes()
    start = whole.index(zipfile.ZipFile(path).read("program"))
    for place in (start + 40, start + 2000):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="program in it is damaged"):
            lj.exporting.load(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="or a damaged one"):
        lj.exporting.load(path)
