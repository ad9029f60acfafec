"""Models that Keras has saved, read without it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, overload

import jax
import numpy as np

from lstm_jax.checks import border
from lstm_jax.checks.options import check_flag
from lstm_jax.convert import keras as arrays
from lstm_jax.convert import layers as records
from lstm_jax.convert.files import configs, listed, objects
from lstm_jax.convert.files.activations import as_function
from lstm_jax.convert.files.found import FIELDS, Found, Names, is_lstm, refused
from lstm_jax.convert.files.hdf5 import HDF5
from lstm_jax.layers import LSTM, Params
from lstm_jax.types import Array, LSTMParams

Activation = str | Callable[[Array], Array] | None
Path = str | os.PathLike[str]


@overload
def load_keras(
    path: Path,
    *,
    activation: Activation = ...,
    recurrent_activation: Activation = ...,
    merge_mode: str | None = ...,
    go_backwards: bool = ...,
) -> dict[str, tuple[LSTM, Params]]: ...


@overload
def load_keras(
    path: Path,
    layer: str,
    /,
    *layers: str,
    activation: Activation = ...,
    recurrent_activation: Activation = ...,
    merge_mode: str | None = ...,
    go_backwards: bool = ...,
) -> tuple[LSTM, Params]: ...


def load_keras(
    path: Path,
    *layers: str,
    activation: Activation = None,
    recurrent_activation: Activation = None,
    merge_mode: str | None = None,
    go_backwards: bool = False,
) -> Any:
    """Reads the LSTM layers of a model that Keras has saved; Keras is not needed.

    Layers are ``LSTM``, ``CuDNNLSTM``, ``RNN(LSTMCell)`` and ``Bidirectional`` of them,
    alone, in a ``TimeDistributed`` (which here is one more batch axis) or in models
    inside the model. All others are left alone. What only training or a call reads is
    not taken over: dropout, ``return_sequences``, ``stateful``, ``time_major``.

    The file is read by h5py in a process of its own, within limits on memory and time.
    Links, arrays that lie in other files and pickles are refused.

    Args:
        path: a ``.keras`` file, a ``.weights.h5``, or an ``.h5`` of Keras 1, 2 or 3,
            which may hold a whole model or weights alone.
        *layers: names of layers that feed each other, first to last: one model is made
            of them. A layer in a model inside is ``"model/layer"``. Without names the
            result has every LSTM of the file.
        activation: that of the layers, as Keras names it or as a function of an array.
            A file of weights alone does not say it, so it must be passed; Keras's own
            default is "tanh".
        recurrent_activation: the same, of the gates. The default is "sigmoid", and was
            "hard_sigmoid" before Keras 2.3 and in TensorFlow 1: a hard sigmoid is Keras
            2's or Keras 3's by the version that the file tells.
        merge_mode: the same, of ``Bidirectional``: "concat" is the default.
        go_backwards: True takes layers with ``go_backwards=True``. The model itself
            runs forwards: give it ``jnp.flip(xs, 1)``, and outputs are as Keras's.

    Returns:
        ``(model, params)`` of the named layers, or a dict of that by the names of the
        file's layers.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, is damaged or hostile; if a layer is not
            there, is no LSTM, or has arrays that an LSTM has not; if layers do not fit
            together; if something must be told that the file does not say, or is told
            otherwise than it says.
        TypeError: if a name is no text, or ``go_backwards`` no bool.
        ImportError: if h5py is not installed.

    Warns:
        UserWarning: if the file is in float64 and 64-bit types are off: the arrays
            become float32.

    Example:
        >>> import pathlib, tempfile, h5py, numpy as np, lstm_jax as lj
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.weights.h5"
        >>> with h5py.File(path, "w") as file:  # as model.save_weights(path) does
        ...     cell = file.create_group("layers/lstm/cell/vars")
        ...     for number, shape in enumerate([(3, 20), (5, 20), (20,)]):
        ...         cell[str(number)] = np.ones(shape, np.float32)
        >>> model, params = lj.convert.load_keras(
        ...     path, "lstm", activation="tanh", recurrent_activation="sigmoid"
        ... )
        >>> model.input_size, model.hidden_size
        (3, 5)
    """
    check_flag("go_backwards", go_backwards)
    for name in layers:
        if not isinstance(name, str):
            raise TypeError(
                "layers: expected names, each an argument by itself, got "
                f"{type(name).__name__}."
            )
    told = {
        "activation": activation,
        "recurrent_activation": recurrent_activation,
        "merge_mode": merge_mode,
        "go_backwards": go_backwards,
    }
    with HDF5(path) as file:
        found = _found(file)
        if layers:
            return _joined(file, [_named(file, found, name) for name in layers], told)
        there = [_located(file, one) for one in found.values() if not one.refusal]
        _check_all_used(file, there, found)
        return {one.name: _joined(file, [one], told) for one in there}


def _found(file: HDF5) -> dict[str, Found]:
    """All layers by name; their arrays too, where there is no configuration."""
    config, specs = file.config, []
    if config is None:
        config = file.groups.get("", {}).get("model_config")
    if isinstance(config, str):
        try:
            specs = configs.parse(config)
        except ValueError as error:
            raise ValueError(f"{file.path}: {error}") from error
    found = [Found(spec.name, (), spec, spec.refusal) for spec in specs]
    if not found:
        found = [refused(file, one) for one in _way(file).guess(file)]
    layers = {one.name: one for one in found}
    if len(layers) < len(found):
        names = [one.name for one in found]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"{file.path}: expected a name for each layer, got {', '.join(twice)} "
            "twice."
        )
    return layers


def _way(file: HDF5) -> Any:
    """The module that knows how the weights of this file are stored."""
    return objects if listed.root_of(file) is None else listed


def _named(file: HDF5, found: dict[str, Found], name: str) -> Found:
    """The layer of a name, with its arrays."""
    if name not in found:
        there = [repr(one.name) for one in found.values() if not one.refusal]
        raise ValueError(
            f"layers: expected names of LSTM layers in {file.path}, "
            f"{', '.join(there) or 'of which there are none'}, got {name!r}."
        )
    if found[name].refusal:
        raise ValueError(f"{file.path}: {name!r} {found[name].refusal}.")
    return _located(file, found[name])


def _located(file: HDF5, found: Found) -> Found:
    """A layer with its arrays, which are all that an LSTM has."""
    spec, halves = found.spec, found.halves
    if spec is not None:
        halves = _way(file).find(file, spec)
    for index, names in enumerate(halves):
        fields = set(FIELDS)
        if not (spec.halves[index].use_bias if spec else "bias" in names):
            fields.remove("bias")
        if set(names) != fields:
            raise ValueError(
                f"{file.path}: {found.name}: expected {', '.join(sorted(fields))}, got "
                f"{', '.join(sorted(names)) or 'no arrays'}."
            )
    return found._replace(halves=halves)


def _check_all_used(file: HDF5, there: list[Found], found: dict[str, Found]) -> None:
    """Checks that no LSTM is in what a whole file's result leaves out."""
    used = {
        name
        for one in there
        for names in one.halves
        for field in names.values()
        for name in field
    }
    for name in _way(file).recurrent_kernels(file):
        if name not in used and is_lstm(file.datasets[name].shape or ()):
            reasons = [
                f"{one.name!r} {one.refusal}" for one in found.values() if one.refusal
            ]
            read = ", ".join(repr(one.name) for one in there) or "none"
            raise ValueError(
                f"{file.path}: {name} looks like an LSTM's, and is in none of the "
                f"layers that can be read, which are {read}: name those to load. Of "
                f"the others {'; '.join(reasons[:9]) or 'nothing is known'}."
            )


def _joined(
    file: HDF5, there: list[Found], told: dict[str, Any]
) -> tuple[LSTM, Params]:
    """The model of layers that feed each other."""
    each = [_options(file, one, told) for one in there]
    for one, options in zip(there, each, strict=True):
        if options != each[0] or len(one.halves) != len(there[0].halves):
            raise ValueError(
                f"layers: expected layers alike, which one model can be made of, got "
                f"{one.name} unlike {there[0].name} in {file.path}. Load each alone."
            )
    layers = [[_record(file, names) for names in one.halves] for one in there]

    def name_of(index, direction, field):
        names = there[index].halves[direction].get(field, (field,))
        return f"{file.path}: {', '.join(names)}"

    return records.build(layers, name_of, **each[0])


def _options(file: HDF5, one: Found, told: dict[str, Any]) -> dict[str, Any]:
    """What its weights do not show of a layer, as options of our model."""
    said = _said(file, one)
    if said["go_backwards"] and not told["go_backwards"]:
        raise ValueError(
            f"{file.path}: {one.name} has go_backwards=True. Pass go_backwards=True to "
            "take its weights, and give the model jnp.flip(xs, 1)."
        )
    activation = _activation(file, one, "activation", said, told)
    options = {
        "gate_activation": _activation(file, one, "recurrent_activation", said, told),
        "candidate_activation": activation,
        "output_activation": activation,
    }
    if len(one.halves) == 2:
        mode = _agreed(file, one, "merge_mode", said["merge_mode"], told["merge_mode"])
        options["merge"] = arrays.merge_of(mode)
    return options


def _said(file: HDF5, one: Found) -> dict[str, Any]:
    """What the configuration says; None where there is none."""
    if one.spec is None:
        names = ("activation", "recurrent_activation", "merge_mode", "go_backwards")
        return dict.fromkeys(names)
    half = one.spec.halves[0]
    return {
        "activation": half.activation,
        "recurrent_activation": half.recurrent_activation,
        "merge_mode": one.spec.merge_mode,
        "go_backwards": half.go_backwards,
    }


def _activation(
    file: HDF5, one: Found, name: str, said: dict[str, Any], told: dict[str, Any]
) -> Any:
    """The function that a configuration names; one that it can't name may be told."""
    known, given = said[name], told[name]
    if given is not None:
        given = as_function(name, given, _version(file))
    if known is not None:
        try:
            known = as_function(name, known, _version(file))
        except (TypeError, ValueError) as error:
            if given is None:
                raise ValueError(
                    f"{file.path}: {one.name}: {error} Pass {name}= as a function."
                ) from error
            known = None
    return _agreed(file, one, name, known, given)


def _agreed(file: HDF5, one: Found, name: str, said: Any, told: Any) -> Any:
    """What the file says or the caller tells, which must not differ."""
    if said is None and told is None:
        default = {"activation": "tanh", "recurrent_activation": "sigmoid"}
        # Outputs that are kept apart are those of "concat", cut in two.
        words = "does not say it" if one.spec is None else "says None"
        raise ValueError(
            f"{name}: expected to be told, since {file.path} {words} of "
            f"{one.name!r}. Keras's default is {name}={default.get(name, 'concat')!r}."
        )
    if said is not None and told is not None and told != said:
        shown = [getattr(value, "__name__", value) for value in (said, told)]
        raise ValueError(
            f"{name}: expected {shown[0]!r}, as {file.path} says of {one.name!r}, got "
            f"{shown[1]!r}."
        )
    return told if said is None else said


def _version(file: HDF5) -> str | None:
    """That of the Keras that wrote the file; Keras 1.0 did not tell it."""
    try:
        if file.metadata is not None:
            return configs.version_in(file.metadata)
        root = listed.root_of(file)
        if root is None:
            return None
        told = [file.groups.get(group, {}).get("keras_version") for group in ("", root)]
        return configs.checked_version(next(filter(None, told), "1"))
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def _record(file: HDF5, names: Names) -> LSTMParams:
    """One direction, in our layout."""
    read = file.read([name for field in names.values() for name in field])
    _warn_of_float64(file, read)
    fields = {}
    for field, parts in names.items():
        some = [read[name] for name in parts]
        if len({one.shape for one in some}) > 1 or some[0].ndim == 0:
            shapes = [list(one.shape) for one in some]
            raise ValueError(
                f"{file.path}: {', '.join(parts)}: expected arrays of one shape, got "
                f"{shapes}."
            )
        value = np.concatenate(some, axis=-1)
        fields[field] = border.take(f"{file.path}: {', '.join(parts)}", value)
    return arrays.from_cudnn_layout(LSTMParams(**fields))


def _warn_of_float64(file: HDF5, read: dict[str, np.ndarray]) -> None:
    for name, array in read.items():
        if array.dtype == np.float64 != jax.dtypes.canonicalize_dtype(array.dtype):
            warnings.warn(
                f"{file.path}: {name} is float64 and becomes float32, since 64-bit "
                "types are off: jax.enable_x64 turns them on.",
                stacklevel=4,
            )
            return
