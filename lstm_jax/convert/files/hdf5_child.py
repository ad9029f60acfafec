"""Reads a file of Keras's, as a program of its own.

HDF5 is read by a library in C, which a broken file may crash, or make allocate and
loop. So that is done here, in a process with limits, and :mod:`hdf5` is its other end.
What comes in and goes out is lines of JSON, and after some of them an array's bytes.

The program must start fast: it imports neither JAX nor this package. What runs after
:func:`restrain` can open no file, so that whatever a link, an external or a virtual
dataset names stays unread, even where a check below had a hole.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import sys
import zipfile
from typing import Any

# What a small file may become in memory, and how many times its size a large one.
FLOOR = 2**20
EXPANSION = 20
# Of a model's configuration, and of the list of all arrays.
TEXT = 2**22
LISTING = 2**23
OBJECTS = 50_000
DEPTH = 64

WEIGHTS = "model.weights.h5"
_ZIP, _HDF5 = b"PK\x03\x04", b"\x89HDF\r\n\x1a\n"
# Deflate, shuffle, checksum and LZF: those that h5py writes.
_FILTERS = {1, 2, 3, 32000}
# What Keras says in attributes. Long lists are cut into names0, names1 and so on.
_ATTRIBUTES = {"layer_names", "weight_names", "model_config", "keras_version", "name"}


class Refused(Exception):
    """What is said of a file that is not read."""


def main() -> None:
    """Answers one process, on the standard streams."""
    asked = json.loads(sys.stdin.buffer.readline())
    sys.path[:] = asked["sys_path"]
    serve(asked["file"], asked["seconds"], sys.stdin.buffer, sys.stdout.buffer)


def serve(path: str, seconds: int, requests: Any, answers: Any) -> None:
    """Lists a file, then sends the arrays that are asked for, a name a line."""
    try:
        import h5py  # noqa: F401

        for encoding in ("ascii", "cp437"):  # loaded while files can be opened
            codecs.lookup(encoding)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            restrain(FLOOR + EXPANSION * size, seconds)
            _answer(file, size, requests, answers)
    except Refused as refusal:
        _say(answers, {"error": str(refusal)})
    except MemoryError:
        _say(answers, {"error": "it asks for more memory than a file of its size may."})
    # Whatever the libraries raise at a broken file is an answer.
    except Exception as error:
        words = f"it can't be read: {type(error).__name__}: {error}"
        _say(answers, {"error": words[:1000]})


def restrain(memory: int, seconds: int) -> None:
    """Limits this process, where the system can: no more files, so many bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return
    free = os.dup(0)
    os.close(free)
    limits = {"NOFILE": free, "CORE": 0, "CPU": seconds}
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        limits["AS"] = now + 2**26 + 3 * memory
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _answer(file: Any, size: int, requests: Any, answers: Any) -> None:
    import h5py

    allowed = FLOOR + EXPANSION * size
    source, texts = _unpacked(file, allowed)
    stored = source.seek(0, os.SEEK_END)
    with h5py.File(source, "r") as root:
        groups, datasets = _listing(root)
        described = {name: _described(one) for name, one in datasets.items()}
        texts.update(groups=groups, datasets=described)
        _say(answers, texts)
        asked = []
        for line in requests:
            names = json.loads(line)
            asked += [datasets[name] for name in names]
            _check_sizes(asked, stored, allowed)
            for name in names:
                data = datasets[name][()]
                data = data.astype(data.dtype.newbyteorder("<"), order="C", copy=False)
                _say(answers, {"bytes": data.nbytes})
                answers.write(data.tobytes())
                answers.flush()


def _say(answers: Any, value: Any) -> None:
    line = json.dumps(value).encode()
    if len(line) > LISTING:
        raise Refused(f"the list of what is in it is longer than {LISTING} bytes.")
    answers.write(line + b"\n")
    answers.flush()


def _unpacked(file: Any, allowed: int) -> tuple[Any, dict[str, Any]]:
    """The HDF5 file, which in a ``.keras`` is a member, and the members of text."""
    begins = file.read(8)
    if begins == _HDF5:
        return file, {}
    if begins[:4] != _ZIP:
        raise Refused(
            "it is neither a zip file, as .keras is, nor HDF5, as .weights.h5 and .h5 "
            "are."
        )
    with zipfile.ZipFile(file) as archive:
        members: dict[str, zipfile.ZipInfo] = {}
        for info in archive.infolist():
            if info.filename in members:
                raise Refused(f"it has two members named {info.filename}.")
            members[info.filename] = info
        if WEIGHTS not in members:
            raise Refused(_without_weights(members))
        texts = {
            name: _member(archive, members[f"{name}.json"], TEXT).decode()
            for name in ("config", "metadata")
            if f"{name}.json" in members
        }
        return io.BytesIO(_member(archive, members[WEIGHTS], allowed)), texts


def _without_weights(members: dict[str, Any]) -> str:
    if any(name.endswith(".npz") for name in members):
        return (
            f"its weights are an .npz, which holds pickles: they are never read. "
            f"Save it with Keras's default, {WEIGHTS}."
        )
    return f"there is no {WEIGHTS} in it, only {', '.join(sorted(members)[:9])}."


def _member(archive: Any, info: Any, allowed: int) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{info.filename} is compressed otherwise than by deflate.")
    if info.file_size > allowed:
        raise Refused(
            f"{info.filename} becomes {info.file_size} bytes, more than the {allowed} "
            "that a file of its size may. Pack it without compression."
        )
    with archive.open(info) as member:
        return member.read(info.file_size)


def _listing(root: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """All groups with what Keras says there, and all datasets, by their paths."""
    import h5py

    groups, datasets, seen, todo = {}, {}, {root["/"]}, [("", root)]
    while todo:
        path, here = todo.pop()
        groups[path] = _told(path, here)
        for key in here:
            key.encode()  # an error where it is no text, which Keras's all are
            name = f"{path}/{key}".removeprefix("/")
            _check_link(name, key, here)
            one = here[key]
            if one in seen:
                raise Refused(f"{name} is another name of what has one already.")
            seen.add(one)
            if len(seen) > OBJECTS or name.count("/") > DEPTH:
                raise Refused(
                    f"it has more than {OBJECTS} groups and arrays, or more than "
                    f"{DEPTH} inside each other."
                )
            if isinstance(one, h5py.Group):
                todo.append((name, one))
            elif isinstance(one, h5py.Dataset):
                datasets[name] = one
            else:
                raise Refused(f"{name} is neither a group nor an array.")
    return groups, datasets


def _check_link(name: str, key: str, group: Any) -> None:
    import h5py

    link = group.get(key, getlink=True)
    if not isinstance(link, h5py.HardLink) or "/" in key:
        raise Refused(
            f"{name} is a link ({type(link).__name__}), which is not followed."
        )


def _told(path: str, here: Any) -> dict[str, Any]:
    """The attributes that Keras writes."""
    told = {}
    for key in here.attrs:
        if key in _ATTRIBUTES or key.rstrip("0123456789") in _ATTRIBUTES:
            told[key] = _text(f"{path}@{key}", here, key)
    return told


def _text(name: str, here: Any, key: str) -> Any:
    """A text, or a list of them."""
    attribute = here.attrs.get_id(key)
    if math.prod(attribute.shape) * attribute.dtype.itemsize > TEXT:
        raise Refused(f"{name} is longer than {TEXT} bytes.")
    value = here.attrs[key]
    texts = [
        one.decode() if isinstance(one, bytes) else one
        for one in (value.ravel().tolist() if hasattr(value, "ravel") else [value])
    ]
    if not all(isinstance(one, str) for one in texts):
        raise Refused(f"{name} is no text.")
    "".join(texts).encode()
    return texts if getattr(value, "shape", ()) else "".join(texts)


def _described(dataset: Any) -> list[Any]:
    """Shape and dtype, of an array that lies in this file."""
    import h5py

    plan = dataset.id.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise Refused(f"{dataset.name} lies in other files, which are not read.")
    try:
        dtype = dataset.dtype
    except TypeError:  # a type that NumPy has not
        return [None, "unknown"]
    if dataset.shape is None or dtype.names or dtype.subdtype:
        return [None, str(dtype)[:100]]
    bfloat16 = dtype.str == "|V2" and "dtype" in dataset.attrs
    if bfloat16 and _text(f"{dataset.name}@dtype", dataset, "dtype") == "bfloat16":
        return [list(dataset.shape), "bfloat16"]
    return [list(dataset.shape), dtype.str]


def _check_sizes(datasets: list[Any], stored: int, allowed: int) -> None:
    """Checks what arrays will take against what there is, before any is read."""
    declared = sum(math.prod(one.shape) * one.dtype.itemsize for one in datasets)
    held = sum(one.id.get_storage_size() for one in datasets)
    if declared > allowed or held > stored:
        raise Refused(
            f"its arrays would take {declared} bytes, more than the {allowed} that a "
            f"file of its size may, or are said to lie in {held} of its {stored} bytes."
        )
    for one in datasets:
        plan, size = (
            one.id.get_create_plist(),
            math.prod(one.shape) * one.dtype.itemsize,
        )
        filters = {plan.get_filter(n)[0] for n in range(plan.get_nfilters())}
        if filters - _FILTERS:
            raise Refused(f"{one.name} has filters {sorted(filters - _FILTERS)}.")
        lies = one.id.get_storage_size()
        if (size and not lies) or (not filters and lies < size):
            raise Refused(f"{one.name} declares {size} bytes, and has {lies}.")
        if math.prod(one.chunks or ()) * one.dtype.itemsize > allowed:
            raise Refused(f"{one.name} is cut into pieces of {one.chunks} values.")


if __name__ == "__main__":
    main()
