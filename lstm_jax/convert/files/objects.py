"""Arrays as Keras stores them since 2.12, in ``.keras`` and ``.weights.h5``.

A group is an object of the model, and holds groups for its parts, down to the
numbered variables: ``layers/bidirectional/forward_layer/cell/vars/0``. Layers are under
the names of their classes, counted. 2.12 and 2.13 write
``_layer_checkpoint_dependencies`` in place of ``layers``.
"""

from __future__ import annotations

import re

from lstm_jax.convert.files import configs
from lstm_jax.convert.files.configs import Spec
from lstm_jax.convert.files.found import FIELDS, LEFT, SIDES, Found, Names, is_lstm
from lstm_jax.convert.files.hdf5 import HDF5

_LISTS = ("layers", "_layer_checkpoint_dependencies")


def find(file: HDF5, spec: Spec) -> tuple[Names, ...]:
    """The arrays of each direction of a layer of the configuration.

    Raises:
        ValueError: if the group has the name of another layer, or holds more.
    """
    place = _place(file, spec)
    places = [place]
    if len(spec.halves) == 2:
        places = [f"{place}/{side}_layer" for side in SIDES]
    return tuple(
        _variables(file, one, half.cudnn)
        for one, half in zip(places, spec.halves, strict=True)
    )


def _place(file: HDF5, spec: Spec) -> str:
    """The group of a layer."""
    path = ""
    for name, kind, count in spec.places:
        stem = configs.stem(kind)
        inside = [f"{path}/{one}".lstrip("/") for one in _LISTS]
        if inside[0] in file.groups or inside[1] not in file.groups:
            path = f"{inside[0]}/{stem}" + (f"_{count}" if count else "")
        else:
            # There a layer with weights is counted twice, so that the second LSTM is
            # lstm_2; but every layer has a group.
            there = _numbered(file, inside[1], stem)
            path = there[count] if count < len(there) else f"{inside[1]}/{stem}"
        told = file.groups.get(f"{path}/vars", {}).get("name", name)
        if told != name:
            raise ValueError(
                f"{file.path}: {path}: expected the weights of {name!r}, as the "
                f"configuration says, got those of {told!r}."
            )
    return "/".join([path, *spec.wrapped])


def _numbered(file: HDF5, inside: str, stem: str) -> list[str]:
    """The groups of one class, in order."""
    found = {}
    for group in file.groups:
        match = re.fullmatch(rf"{re.escape(inside)}/{stem}(?:_(\d{{1,9}}))?", group)
        if match:
            found[int(match[1] or 0)] = group
    return [found[number] for number in sorted(found)]


def _variables(file: HDF5, place: str, cudnn: bool) -> Names:
    """The numbered variables of one direction."""
    variables = f"{place}/vars" if cudnn else f"{place}/cell/vars"
    names: Names = {}
    for name in file.datasets:
        if not name.startswith(f"{place}/"):
            continue
        number = name.removeprefix(f"{variables}/")
        if number in ("0", "1", "2"):
            names[FIELDS[int(number)]] = (name,)
        elif name not in (f"{place}/vars/0", f"{place}/vars/1") and not LEFT.search(
            name
        ):
            raise ValueError(f"{file.path}: {name}: expected no such array in an LSTM.")
    return names


def guess(file: HDF5) -> list[Found]:
    """The recurrent layers of a file without a configuration, by names and shapes."""
    halves: dict[str, Names] = {}
    for name in file.datasets:
        for end in ("/cell/vars/1", "/vars/1"):
            place = name.removesuffix(end)
            if place != name and (end[1] == "c" or _is_cudnn(file, place)):
                halves[place] = _variables(file, place, end[1] != "c")
                break
    found = []
    for place, names in halves.items():
        whole, side = place, ""
        for end in SIDES:
            if place.endswith(f"/{end}_layer"):
                whole, side = place.removesuffix(f"/{end}_layer"), end
        if side == "":
            found.append(Found(_called(file, whole), (names,)))
        elif f"{whole}/{SIDES[side == 'forward']}_layer" not in halves:
            words = f"has a {side} layer alone"
            found.append(Found(_called(file, whole), (), refusal=words))
        elif side == "forward":
            other = halves[f"{whole}/backward_layer"]
            found.append(Found(_called(file, whole), (names, other)))
    return found


def _is_cudnn(file: HDF5, place: str) -> bool:
    """Whether three variables without a cell are a ``CuDNNLSTM``'s."""
    shapes: list[tuple[int, ...]] = [
        file.datasets[name].shape or (0,)
        for name in (f"{place}/vars/{number}" for number in range(4))
        if name in file.datasets
    ]
    if [len(shape) for shape in shapes] != [2, 2, 1]:
        return False
    kernel, recurrent, bias = shapes
    return is_lstm(recurrent) and kernel[1] * 2 == recurrent[1] * 2 == bias[0]


def _called(file: HDF5, place: str) -> str:
    """The name of a layer, where the file has it, or of its group."""
    names, path = [], ""
    for part in place.split("/"):
        path = f"{path}/{part}".lstrip("/")
        if part not in _LISTS and part != "layer":
            names.append(file.groups.get(f"{path}/vars", {}).get("name", part))
    return "/".join(names)


def recurrent_kernels(file: HDF5) -> list[str]:
    """All that may be an LSTM's, by their names."""
    return [name for name in file.datasets if re.search(r"/cell(s/\w+)?/vars/1$", name)]
