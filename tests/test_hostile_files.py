"""Files that are broken or made to do harm: each is refused in words, and costs little.

``HOSTILE_CASES=10000`` runs that many random mutations of each kind of file.
"""

import io
import json
import os
import pathlib
import random
import resource
import struct
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy

import lstm_jax as lj
from lstm_jax.convert.files import hdf5, hdf5_child
from lstm_jax.convert.files.keras import load_keras
from lstm_jax.convert.files.safetensors import opened
from tests import hostile
from tests.common import normal

CASES = int(os.environ.get("HOSTILE_CASES", 200))
MEGABYTES = 200
PLAIN = dict(activation="tanh", recurrent_activation="sigmoid")
PLACE = "layers/lstm/cell/vars"


def arrays():
    return [np.asarray(normal(n, s)) for n, s in enumerate([(3, 20), (5, 20), (20,)])]


def write_hdf5(target, **options):
    with h5py.File(target, "w") as file:
        for number, one in enumerate(arrays()):
            file.create_dataset(f"{PLACE}/{number}", data=one, **options)
        file[PLACE].attrs["name"] = "lstm_cell"
    return target


def write_keras(target, inner=None, *, config=None, deflate=False, more=()):
    if inner is None:
        inner = write_hdf5(io.BytesIO()).getvalue()
    layer = {"name": "a", "activation": "tanh", "recurrent_activation": "sigmoid"}
    layers = [{"class_name": "LSTM", "config": layer}]
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": layers}}
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w", kind) as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.6.0"}')
        archive.writestr("config.json", json.dumps(model) if config is None else config)
        archive.writestr("model.weights.h5", inner)
        for name, data in dict(more).items():
            archive.writestr(name, data)
    return target


def write_listed(target):
    with h5py.File(target, "w") as file:
        file.attrs["layer_names"] = [b"a"]
        file.attrs["keras_version"] = "2.15.0"
        layer = file.create_group("a")
        names = [f"a/lstm_cell/{n}:0" for n in ("kernel", "recurrent_kernel", "bias")]
        layer.attrs["weight_names"] = [name.encode() for name in names]
        for name, one in zip(names, arrays(), strict=True):
            layer[name] = one
    return target


def state_dict():
    shapes = dict(weight_ih_l0=(20, 3), weight_hh_l0=(20, 5))
    shapes |= dict(bias_ih_l0=(20,), bias_hh_l0=(20,))
    return {name: np.asarray(normal(1, shape)) for name, shape in shapes.items()}


def load(path):
    """Whatever kind of file it is, as a user loads it."""
    if path.suffix == ".safetensors":
        return lj.convert.from_torch(opened(path))
    return load_keras(path, **({} if path.suffix == ".keras" else PLAIN))


def peak():
    """The most memory that this process and those it has ended have held, in MB."""
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


# What a hostile file of each kind does.


def link_soft(file):
    del file[f"{PLACE}/0"]
    file["elsewhere"] = arrays()[0]
    file[f"{PLACE}/0"] = h5py.SoftLink("/elsewhere")


def link_external(file):
    del file[f"{PLACE}/0"]
    file[f"{PLACE}/0"] = h5py.ExternalLink("secret.h5", "/data")


def link_group_external(file):
    file["layers/gru"] = h5py.ExternalLink("secret.h5", "/")


def hard_link_in_a_circle(file):
    file["layers/lstm/again"] = file["layers"]


def hard_link_to_the_root(file):
    file["layers/lstm/again"] = file["/"]


def external_storage(file):
    del file[f"{PLACE}/0"]
    file.create_dataset(
        f"{PLACE}/0", (3, 20), "f4", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file):
    del file[f"{PLACE}/0"]
    layout = h5py.VirtualLayout((3, 20), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "data", (3, 20))
    file.create_virtual_dataset(f"{PLACE}/0", layout)


def declares_gigabytes(file):
    del file[f"{PLACE}/0"]
    file.create_dataset(
        f"{PLACE}/0", (2**20, 1000), "f4", chunks=(64, 100), compression="gzip"
    )


def declares_gigabytes_unwritten(file):
    del file[f"{PLACE}/0"]
    file.create_dataset(f"{PLACE}/0", (2**20, 1000), "f4")


def declares_a_little_unwritten(file):
    del file[f"{PLACE}/0"]
    file.create_dataset(f"{PLACE}/0", (3, 20), "f4")


def expands_in_a_chunk(file):
    del file[f"{PLACE}/0"]
    zeros = np.zeros((2**12, 2**12), "f4")
    options = dict(compression="gzip", compression_opts=9, chunks=zeros.shape)
    file.create_dataset(f"{PLACE}/0", data=zeros, **options)


def too_deep(file):
    file.require_group("/".join("abcdefgh" * 20))


def another_filter(file):
    del file[f"{PLACE}/0"]
    options = dict(chunks=(3, 20), scaleoffset=3)
    file.create_dataset(f"{PLACE}/0", data=arrays()[0], **options)


def compound(file):
    del file[f"{PLACE}/0"]
    file[f"{PLACE}/0"] = np.zeros((3, 20), [("a", "f4")])


def texts(file):
    del file[f"{PLACE}/0"]
    file[f"{PLACE}/0"] = np.array([["abc"] * 20] * 3, dtype=object)


TRICKS = {
    link_soft: "is a link .SoftLink., which is not followed",
    link_external: "is a link .ExternalLink.",
    link_group_external: "is a link .ExternalLink.",
    hard_link_in_a_circle: "again is another name",
    hard_link_to_the_root: "again is another name",
    external_storage: "lies in other files, which are not read",
    virtual: "lies in other files, which are not read",
    declares_gigabytes: "would take 4194304400 bytes|would take 41943",
    declares_gigabytes_unwritten: "would take 41943",
    declares_a_little_unwritten: "declares 240 bytes, and has 0",
    expands_in_a_chunk: "would take 671",
    too_deep: "inside each other",
    another_filter: "has filters",
    compound: "expected floating numbers, got",
    texts: "expected floating numbers, got",
}


@pytest.mark.parametrize("way", [".weights.h5", ".keras"])
@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick.__name__)
def test_tricks_of_hdf5(trick, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("secret.h5", "w") as file:
        file["data"] = arrays()[0]
    pathlib.Path("secret.bin").write_bytes(arrays()[0].tobytes())
    path = tmp_path / f"m{way}"
    inner = tmp_path / "inner.h5" if way == ".keras" else path
    write_hdf5(inner)
    with h5py.File(inner, "a") as file:
        trick(file)
    if way == ".keras":
        write_keras(path, inner.read_bytes())
    before = peak()
    with pytest.raises(ValueError, match=TRICKS[trick]) as refusal:
        load(path)
    assert str(path) in str(refusal.value)
    assert peak() - before < MEGABYTES


def test_forty_arrays_of_gigabytes_in_a_few_kilobytes(tmp_path):
    path = tmp_path / "m.weights.h5"
    with h5py.File(path, "w") as file:
        for layer in range(40):
            place = f"layers/lstm_{layer}/cell/vars"
            for number, shape in enumerate([(2**20, 1000), (250, 1000), (1000,)]):
                options = dict(chunks=(10,) * len(shape), compression="gzip")
                file.create_dataset(f"{place}/{number}", shape, "f4", **options)
    before = peak()
    with pytest.raises(ValueError, match="would take .* bytes, more than the"):
        load(path)
    assert peak() - before < MEGABYTES


def test_an_attribute_of_gigabytes(tmp_path):
    path = write_hdf5(tmp_path / "m.weights.h5")
    with h5py.File(path, "a") as file:
        del file[PLACE].attrs["name"]
        file[PLACE].attrs["name"] = np.full(30011, b"x")
    data, size = path.read_bytes(), struct.pack("<Q", 30011)
    assert data.count(size) == 2  # now and at most
    path.write_bytes(data.replace(size, struct.pack("<Q", 2**31)))
    before = peak()
    with pytest.raises(ValueError, match="can't be read|longer than"):
        load(path)
    assert peak() - before < MEGABYTES


def test_what_is_not_asked_for_is_not_read(tmp_path):
    path = write_hdf5(tmp_path / "m.weights.h5")
    with h5py.File(path, "a") as file:
        options = dict(chunks=(64, 100), compression="gzip")
        file.create_dataset("optimizer/vars/0", (2**20, 1000), "f4", **options)
    assert list(load(path)) == ["lstm"]


def test_no_file_can_be_opened_by_the_process_that_reads():
    program = (
        "import sys; sys.path[:0] = [{!r}]; import hdf5_child\n"
        "hdf5_child.restrain(2**20, 60)\n"
        "try: open('/dev/null')\n"
        "except OSError as error: print('no more', error.errno)\n"
        "try: bytearray(2**29)\n"
        "except MemoryError: print('no memory')\n"
    )
    place = os.path.dirname(hdf5_child.__file__)
    command = [sys.executable, "-I", "-S", "-c", program.format(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["no more 24", "no memory"]


def test_the_process_that_reads_imports_neither_jax_nor_this_package(tmp_path):
    path = write_hdf5(tmp_path / "m.weights.h5")
    program = (
        "import sys; sys.path[:] = {!r}; import hdf5_child, io\n"
        "hdf5_child.serve({!r}, 60, io.BytesIO(), io.BytesIO())\n"
        "print(sorted({{'jax', 'lstm_jax', 'keras', 'h5py'}} & set(sys.modules)))\n"
    )
    places = [os.path.dirname(hdf5_child.__file__), *filter(None, sys.path)]
    command = [sys.executable, "-I", "-S", "-c", program.format(places, str(path))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['h5py']"


def test_a_file_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "m.weights.h5")
    monkeypatch.setattr(hdf5, "SECONDS", 0.0)
    with pytest.raises(ValueError, match="not read within 0.0 seconds"):
        load(path)


def test_layers_that_are_too_large_together(tmp_path):
    path = tmp_path / "m.weights.h5"
    zeros = [np.zeros(shape, "f4") for shape in [(9, 800), (200, 800), (800,)]]
    with h5py.File(path, "w") as file:
        for layer in range(40):
            for number, one in enumerate(zeros):
                name = f"layers/lstm_{layer}/cell/vars/{number}"
                file.create_dataset(name, data=one, compression="gzip")
    assert load_keras(path, "lstm_7", **PLAIN)[0].hidden_size == 200
    with pytest.raises(ValueError, match="would take .* bytes, more than the"):
        load(path)


def test_a_crash_of_the_library_is_an_error(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "m.weights.h5")
    program = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(sys, "executable", tmp_path / "python")
    (tmp_path / "python").write_text(f"#!{sys._base_executable}\n{program}")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(ValueError, match="ended with -11; .* damaged"):
        load(path)


@pytest.fixture
def server(monkeypatch):
    server = hostile.Server()
    monkeypatch.setattr(hdf5, "start", server.start)
    monkeypatch.setattr(hdf5, "SECONDS", hostile.SECONDS)
    yield server
    server.close()


def sources():
    """A small file of each kind."""
    inner = write_hdf5(io.BytesIO()).getvalue()
    packed = write_hdf5(io.BytesIO(), compression="gzip", fletcher32=True).getvalue()
    return {
        "objects.weights.h5": [inner, packed],
        "listed.h5": [write_listed(io.BytesIO()).getvalue()],
        "model.keras": [
            write_keras(io.BytesIO()).getvalue(),
            write_keras(io.BytesIO(), deflate=True).getvalue(),
        ],
        "m.safetensors": [safetensors.numpy.save(state_dict(), {"format": "pt"})],
    }


@pytest.mark.filterwarnings("ignore:.* is float64 and becomes float32")
@pytest.mark.parametrize("name", sources())
def test_random_mutations(name, tmp_path, server):
    kinds, path = sources()[name], tmp_path / name
    rng = random.Random(name)
    path.write_bytes(kinds[0])
    load(path)
    before, loaded, words = peak(), 0, {}
    for case in range(CASES):
        data = kinds[case % len(kinds)]
        if name == "model.keras" and case % 4 < 2:
            # A zip file has checksums: what is in it is changed before it is packed.
            changed = hostile.mutated(sources()["objects.weights.h5"][0], rng)
            data = write_keras(io.BytesIO(), changed, deflate=case % 2 == 1).getvalue()
        else:
            data = hostile.mutated(data, rng)
        path.write_bytes(data)
        try:
            load(path)
            loaded += 1
        except (ValueError, OSError) as error:
            assert str(error)
            kind = str(error).partition(str(path))[2][:40]
            words[kind] = words.get(kind, 0) + 1
        except TypeError as error:  # what from_torch says of a dtype
            assert name == "m.safetensors" and "floating dtype" in str(error)
    assert 0 < loaded < CASES
    assert peak() - before < MEGABYTES and server.most - before < MEGABYTES
    late = sum(count for kind, count in words.items() if "not read within" in kind)
    print(f"{name}: {loaded} of {CASES} load, {late} late; {server.ends}; {words}")
