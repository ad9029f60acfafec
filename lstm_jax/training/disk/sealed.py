"""One checkpoint: arrays written by Orbax, a record, and digests of all of it."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pathlib
import struct
from typing import Any

import jax
import numpy as np

from lstm_jax.training.disk import weights
from lstm_jax.types import PyTree

_ARRAYS, _RECORD, _MANIFEST = "arrays", "record.json", "manifest.json"
_SEAL = "manifest.sha256"  # of the manifest, as sha256sum writes it and checks it
# In a record, a number that JSON has not: the 64 bits of an infinity or a NaN.
_BITS = "__float64__"
# What an error of the operating system says of the checkpoint, not of the machine.
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}


class Damaged(Exception):
    """A checkpoint is not as it was written."""


def copied(state: PyTree) -> dict[str, np.ndarray]:
    """The leaves by name, each in memory of its own.

    Raises:
        TypeError: if a leaf is neither an array nor a number.
        ValueError: if it has a dtype that is not written.
    """
    leaves = weights.named("state", state)
    for leaf in leaves.values():
        # All transfers from a device begin before the first one is waited for.
        here = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
        if here and not weights.is_key(leaf):
            leaf.copy_to_host_async()
    return {name: weights.stored(f"state{name}", leaf) for name, leaf in leaves.items()}


def fill(
    folder: pathlib.Path,
    step: int,
    arrays: dict[str, np.ndarray],
    record: str,
    best: int | None,
) -> None:
    """Writes all of a checkpoint into an empty folder, down to the disk."""
    leaves = {
        name: {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "sha256": _digest(array),
        }
        for name, array in arrays.items()
    }
    numbered = _numbered(arrays)
    if numbered:
        with _checkpointer() as orbax:
            orbax.save(folder / _ARRAYS, numbered)
    (folder / _RECORD).write_text(record, encoding="ascii")
    files = {name: _digest_of_file(folder / name) for name in _files(folder)}
    content = {
        "format": 1,
        "step": step,
        "best": best,
        "leaves": leaves,
        "files": files,
    }
    text = json.dumps(content, indent=1).encode("ascii")
    (folder / _MANIFEST).write_bytes(text)
    (folder / _SEAL).write_bytes(_seal(text))
    for path in (*folder.rglob("*"), folder):
        sync(path)


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint says it holds.

    Raises:
        Damaged: if this is not what was written.
    """
    text, seal = _bytes(folder, _MANIFEST), _bytes(folder, _SEAL)
    if seal != _seal(text):
        raise Damaged(f"{_MANIFEST} and {_SEAL} do not agree")
    content = json.loads(text)
    if content["format"] != 1:
        raise ValueError(
            f"{folder}: expected a checkpoint of format 1, got {content['format']}, "
            "which a newer lstm_jax writes."
        )
    if folder.name != f"step_{content['step']}":
        raise Damaged(f"{_MANIFEST} is of step {content['step']}")
    return content


def read(
    folder: pathlib.Path, like: dict[str, Any]
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a checkpoint by the names of ``like``, and its record as JSON.

    Raises:
        Damaged: if a file or a leaf is not what was written.
        ValueError: if it does not fit ``like``.
        TypeError: if a leaf of ``like`` has no shape and is no number.
    """
    content = manifest(folder)
    _check_files(folder, content["files"])
    leaves = content["leaves"]
    _check_fit(folder, leaves, like)
    arrays = _arrays(folder, leaves)
    for name, leaf in leaves.items():
        array = arrays[name]
        written = array.dtype.name, list(array.shape), _digest(array)
        if written != (leaf["dtype"], leaf["shape"], leaf["sha256"]):
            raise Damaged(f"leaf {name} is not what was saved")
    return {name: arrays[name] for name in like}, _bytes(folder, _RECORD).decode()


def placed(where: str, arrays: dict[str, np.ndarray], like: dict[str, Any]) -> list:
    """Arrays that were read, as the leaves of ``like`` are."""
    return [
        weights.restored(f"{where}: {name}", arrays[name], leaf, _device(leaf))
        for name, leaf in like.items()
    ]


def read_record(text: str) -> Any:
    """A record from what :func:`written_record` made of it."""
    return json.loads(text, object_hook=_decoded)


def written_record(record: Any) -> str:
    """A record as JSON, whose floats come back bit for bit.

    Raises:
        TypeError: if a value is none of JSON's, or a key no string.
        ValueError: if a dict has the key that marks a float that JSON has not.
    """
    return json.dumps(_encoded("record", record), allow_nan=False, indent=1)


def _encoded(where: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return (
            value if math.isfinite(value) else {_BITS: struct.pack(">d", value).hex()}
        )
    if isinstance(value, list):
        return [_encoded(f"{where}[{i}]", item) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        raise TypeError(
            f"{where}: expected None, a bool, int, float, str, list or dict, got "
            f"{type(value).__name__}. Arrays have .tolist(), tuples become lists."
        )
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{where}: expected keys of type str, got {key!r}.")
        if key == _BITS:
            raise ValueError(f"{where}: expected another key than {_BITS!r}.")
    return {key: _encoded(f"{where}[{key!r}]", item) for key, item in value.items()}


def _decoded(value: dict[str, Any]) -> Any:
    if _BITS in value:
        return struct.unpack(">d", bytes.fromhex(value[_BITS]))[0]
    return value


def _checkpointer() -> Any:
    # Loaded when it is first needed: it takes longer than all else here.
    import orbax.checkpoint as ocp

    # Of several processes the first alone writes and reads.
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    handler = ocp.PyTreeCheckpointHandler(use_zarr3=True, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _numbered(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves that Orbax is given, which refuses empty ones, by number.

    Their names would not do: it loses one of ``a`` and ``a/``.
    """
    return {
        str(number): leaf
        for number, leaf in enumerate(leaves.values())
        if 0 not in (leaf.shape if isinstance(leaf, np.ndarray) else leaf["shape"])
    }


def _arrays(folder: pathlib.Path, leaves: dict[str, Any]) -> dict[str, np.ndarray]:
    """What Orbax reads, by name, and the empty arrays, which it has not."""
    there = {}
    if _numbered(leaves):
        try:
            with _checkpointer() as orbax:
                there = orbax.restore(folder / _ARRAYS)
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise Damaged(f"Orbax can't read {_ARRAYS}: {error!r}") from error
    arrays = {}
    for number, (name, leaf) in enumerate(leaves.items()):
        if 0 in leaf["shape"]:
            arrays[name] = np.empty(leaf["shape"], jax.numpy.dtype(leaf["dtype"]))
        elif str(number) not in there:
            raise Damaged(f"leaf {name} is missing from {_ARRAYS}")
        else:
            arrays[name] = np.asarray(there[str(number)])
    return arrays


def _files(folder: pathlib.Path) -> list[str]:
    """The files of a checkpoint but those that are written last."""
    there = (path for path in folder.rglob("*") if not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in there)
    return sorted(name for name in names if name not in (_MANIFEST, _SEAL))


def _check_files(folder: pathlib.Path, digests: dict[str, str]) -> None:
    there = set(_files(folder))
    for name in sorted(there ^ set(digests)):
        raise Damaged(f"{name} is {'not its own' if name in there else 'missing'}")
    for name, digest in digests.items():
        try:
            same = _digest_of_file(folder / name) == digest
        except OSError as error:
            raise _damaged(name, error) from error
        if not same:
            raise Damaged(f"{name} is not what was written")


def _check_fit(
    folder: pathlib.Path, leaves: dict[str, Any], like: dict[str, Any]
) -> None:
    """Checks that a good checkpoint holds what is expected, leaf by leaf."""
    wrong = []
    kinds = {name.partition("<key<")[0]: name for name in leaves}
    for name, leaf in like.items():
        spec = weights.spec_of(name, leaf)
        expected = f"{spec.dtype} {list(spec.shape)}"
        if name in leaves:
            got = f"{leaves[name]['dtype']} {leaves[name]['shape']}"
            if got != expected:
                wrong.append(f"{name}: expected {expected}, got {got}")
        elif name.partition("<key<")[0] in kinds:
            wrong.append(f"expected {name}, got {kinds[name.partition('<key<')[0]]}")
        else:
            wrong.append(f"{name}: expected {expected}, got no such leaf")
    known = {name.partition("<key<")[0] for name in like}
    wrong += [
        f"{name}: an unknown leaf" for base, name in kinds.items() if base not in known
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{folder}: does not fit like: {'; '.join(wrong[:5])}{more}. Was it saved "
            "with other options, or by another optimizer?"
        )


def _device(leaf: Any) -> Any:
    """Where ``like`` wants a leaf: a sharding, or None for the default device."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    sharding: Any = getattr(leaf, "sharding", None)
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        # Of a shape that was traced: the devices are those of the mesh that is set.
        return None if jax.sharding.get_mesh().empty else sharding.spec
    return sharding


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _digest_of_file(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(text: bytes) -> bytes:
    return f"{hashlib.sha256(text).hexdigest()}  {_MANIFEST}\n".encode("ascii")


def _bytes(folder: pathlib.Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: OSError) -> Exception:
    """What an error says: that the file is bad, or that the machine is."""
    if error.errno in _OF_THE_FILE:
        return Damaged(f"{name} can't be read: {error.strerror}")
    return error
