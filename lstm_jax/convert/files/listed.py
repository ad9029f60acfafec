"""Arrays as Keras 1 and 2 store them, and Keras 3 in ``.h5``.

A layer is a group that lists its arrays by the names of their variables, such as
``bidirectional_1/backward_lstm_1/kernel:0``. The order of the list is that of training,
where what is frozen comes last: so the names are read, never the order.
"""

from __future__ import annotations

import itertools
import re

from lstm_jax.convert.files.configs import Spec
from lstm_jax.convert.files.found import FIELDS, LEFT, SIDES, Found, Names
from lstm_jax.convert.files.hdf5 import HDF5

_ROOTS = ("model_weights", "")
_GATES = "ifco"
_KERAS1 = dict(zip("WUb", FIELDS, strict=True))
# TensorFlow 1 adds a number to a name that is taken.
_END = r"(?:_\d+)?(?::\d+)?"
_VARIABLE = re.compile(rf"(kernel|recurrent_kernel|bias){_END}")
_VARIABLE_OF_1 = re.compile(rf"(.+)_([WUb])(?:_([ifco]))?{_END}")
_CELL = re.compile(r"(lstm_)?cell(_\d+)?")


def root_of(file: HDF5) -> str | None:
    """The group of the layers; None if the file is of the other kind."""
    for root in _ROOTS:
        if _list(file, root, "layer_names") is not None:
            return root
    return None


def _list(file: HDF5, group: str, name: str) -> list[str] | None:
    """A list among the attributes, which Keras cuts into parts where it is long."""
    told = file.groups.get(group, {})
    parts = [told[name]] if name in told else []
    while f"{name}{len(parts)}" in told:
        parts.append(told[f"{name}{len(parts)}"])
    if not parts:
        return None
    return [one for part in parts for one in part]


def find(file: HDF5, spec: Spec) -> tuple[Names, ...]:
    """The arrays of each direction of a layer of the configuration.

    Raises:
        ValueError: if arrays are listed that are no LSTM's, or not there.
    """
    taken = _members(file, spec.places[0][0])
    names = [(half.name,) for half in spec.halves]
    if len(names) == 2:
        names = [
            (f"{side}_{name.removeprefix(f'{side}_')}", name)
            for side, (name,) in zip(SIDES, names, strict=True)
        ]
    if len(spec.places) > 1:
        own, listed = spec.places[-1][0], taken
        taken = _of(taken, own) or _of(taken, *itertools.chain(*names))
        if listed and not taken:
            raise ValueError(
                f"{file.path}: expected names with {own}, a layer of "
                f"{spec.places[0][0]}, got {', '.join(listed)}: in .h5 Keras 3.0 wrote "
                "no scopes. Save it as .keras."
            )
    if len(spec.halves) == 1:
        return (_fields(file, taken),)
    sides = [_of(taken, *one[:1]) or _of(taken, *one) for one in names]
    left = set(taken) - {name for side in sides for name in side}
    if not all(sides) or not all(LEFT.search(name) for name in left):
        raise ValueError(
            f"{file.path}: {spec.name}: expected arrays of "
            f"{' and of '.join(half.name for half in spec.halves)}, got "
            f"{', '.join(taken) or 'none'}."
        )
    return tuple(_fields(file, side) for side in sides)


def _members(file: HDF5, layer: str) -> dict[str, str]:
    """The arrays that a layer lists: their names there, and in the file."""
    group = f"{root_of(file)}/{layer}".lstrip("/")
    listed = _list(file, group, "weight_names") or []
    for name in listed:
        if f"{group}/{name}" not in file.datasets:
            raise ValueError(f"{file.path}: {group} lists {name}, which is not there.")
    if len(set(listed)) < len(listed):
        raise ValueError(
            f"{file.path}: {group} lists names twice, {', '.join(listed)}: in .h5 "
            "Keras 3.0 lost one of two arrays. Save it as .keras."
        )
    return {name: f"{group}/{name}" for name in listed}


def _of(taken: dict[str, str], *scopes: str) -> dict[str, str]:
    """Those in one of some scopes, or in ones that TensorFlow has numbered."""
    wanted = "|".join(map(re.escape, scopes))
    for pattern in (wanted, rf"({wanted})_\d+"):
        found = {
            name: there
            for name, there in taken.items()
            if any(re.fullmatch(pattern, scope) for scope in _scopes(name))
        }
        if found:
            return found
    return {}


def _scopes(name: str) -> tuple[str, ...]:
    """The scopes that a variable is in; Keras 1 has them in its name."""
    *scopes, last = name.split("/")
    old = _VARIABLE_OF_1.fullmatch(last)
    return (*scopes, old[1]) if old else tuple(scopes)


def _fields(file: HDF5, taken: dict[str, str]) -> Names:
    """The arrays of one direction by what they are."""
    found: dict[tuple[str, str], str] = {}
    for name, there in taken.items():
        if LEFT.search(name):
            continue
        key = _field(name)
        if key is None:
            raise ValueError(
                f"{file.path}: {there}: expected no such array in an LSTM."
            )
        if key in found:
            raise ValueError(
                f"{file.path}: {there}: expected one {key[0]}, got {found[key]} too."
            )
        found[key] = there
    names: Names = {}
    for field in FIELDS:
        here = [found[field, gate] for gate in ("", *_GATES) if (field, gate) in found]
        if len(here) == 4 or (len(here) == 1 and (field, "") in found):
            names[field] = tuple(here)
        elif here:
            raise ValueError(
                f"{file.path}: {', '.join(here)}: expected one array, or those of the "
                "gates i, f, c and o."
            )
    return names


def _field(name: str) -> tuple[str, str] | None:
    """Which array of an LSTM a variable is, and of which gate in Keras 1."""
    last = name.rsplit("/", 1)[-1]
    if new := _VARIABLE.fullmatch(last):
        return new[1], ""
    if old := _VARIABLE_OF_1.fullmatch(last):
        return _KERAS1[old[2]], old[3] or ""
    return None


def guess(file: HDF5) -> list[Found]:
    """The recurrent layers of a file without a configuration, by names and shapes."""
    found = []
    for layer in _list(file, root_of(file) or "", "layer_names") or []:
        owners: dict[tuple[str, ...], dict[str, str]] = {}
        for name, there in _members(file, layer).items():
            owners.setdefault(_scopes(name), {})[name] = there
        halves = {
            owner: taken
            for owner, taken in owners.items()
            if any((_field(name) or "-")[0] == FIELDS[1] for name in taken)
        }
        found += _paired(file, layer, halves)
    return found


def _paired(
    file: HDF5, layer: str, halves: dict[tuple[str, ...], dict[str, str]]
) -> list[Found]:
    """Layers of one direction, and pairs whose scopes begin with forward, backward."""
    layers: dict[str, dict[str, dict[str, str]]] = {}
    for owner, taken in halves.items():
        side = ""
        for scope in owner:
            match = re.match("(forward|backward)_", scope)
            side = match[1] if match else side
        name = layer
        if len(halves) > (2 if side else 1):
            inner = [scope for scope in owner if not _CELL.fullmatch(scope)]
            name = f"{layer}/{(inner or [layer])[-1].removeprefix(f'{side}_')}"
        layers.setdefault(name, {})[side] = taken
    found = []
    for name, sides in layers.items():
        if set(sides) in ({""}, set(SIDES)):
            ordered = [sides[side] for side in ("", *SIDES) if side in sides]
            found.append(Found(name, tuple(_fields(file, one) for one in ordered)))
        else:
            words = f"has of two directions {', '.join(sides)}"
            found.append(Found(name, (), refusal=words))
    return found


def recurrent_kernels(file: HDF5) -> list[str]:
    """All that may be an LSTM's, by their names."""
    root = root_of(file) or ""
    return [
        name
        for name in file.datasets
        if name.startswith(root) and (_field(name) or "-")[0] == FIELDS[1]
    ]
