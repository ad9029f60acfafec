"""Descriptions as plain data for JSON, and back.

A description becomes a dict with its class, the format's version and its fields: tuples
as lists, dtypes by name, functions as ``{"function": "jax.nn.sigmoid"}``, cells inside
as dicts of the same kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lstm_jax.descriptions import functions as names
from lstm_jax.descriptions.functions import canonical

FORMAT = 1
# The classes of this package by name. They enter by themselves, as they are made.
CLASSES: dict[str, type] = {}

Functions = Mapping[str, Callable[..., Any]] | None


def from_config(config: Mapping[str, Any], *, functions: Functions = None) -> Any:
    """Returns the description that ``to_config`` wrote, equal to the one before.

    Args:
        config: as from :meth:`LSTM.to_config`, through JSON or not.
        functions: the functions that are neither JAX's nor this package's, by the names
            that ``to_config`` was given.

    Raises:
        ValueError: if a class, a field or a function is not known, the format is newer
            than this version of the package, or an option is out of its range.
        TypeError: if ``config`` is no dict, or an option has the wrong type.

    Example:
        >>> import json, jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2, gate_activation=jax.nn.hard_sigmoid)
        >>> text = json.dumps(model.to_config())
        >>> lj.from_config(json.loads(text)) == model
        True
    """
    return _read_description(config, "config", _checked(functions))


def to_config(description: Any, functions: Functions = None) -> dict[str, Any]:
    """Returns a description as plain data; see :meth:`Description.to_config`."""
    return _write_description(description, "", _checked(functions))


def _checked(functions: Functions) -> dict[str, Callable[..., Any]]:
    """The user's functions by name, as descriptions hold them."""
    if functions is None:
        return {}
    if not isinstance(functions, Mapping):
        raise TypeError(
            "functions: expected a dict of functions by name, got "
            f"{type(functions).__name__}."
        )
    checked = {name: canonical(function) for name, function in functions.items()}
    for name, function in checked.items():
        if not isinstance(name, str) or not callable(function):
            raise TypeError(
                f"functions: expected functions by name, got {name!r}: {function!r}."
            )
        known = names.by_public_name(name)
        if known is not None and canonical(known) is not function:
            raise ValueError(
                f"functions: {name!r} is the name of another function, JAX's or this "
                "package's own. Choose another name."
            )
    return checked


def _write_description(value: Any, path: str, functions: dict) -> dict[str, Any]:
    cls = type(value)
    if CLASSES.get(cls.__name__) is not cls:
        raise ValueError(
            f"{path or 'to_config'}: expected one of {', '.join(sorted(_known()))}, or "
            "numbers, words and functions inside them, got "
            f"{cls.__module__}.{cls.__qualname__}. What is your own is yours to write "
            "and to read."
        )
    config: dict[str, Any] = {"class": cls.__name__, "format": FORMAT}
    for field in dataclasses.fields(value):
        where = f"{path}.{field.name}" if path else field.name
        config[field.name] = _write(getattr(value, field.name), where, functions)
    return config


def _write(value: Any, path: str, functions: dict) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, tuple):
        return [_write(v, f"{path}[{n}]", functions) for n, v in enumerate(value)]
    if isinstance(value, names.FUNCTION_TYPES):
        return _write_function(value, path, functions)
    return _write_description(value, path, functions)


def _write_function(value: Any, path: str, functions: dict) -> dict[str, Any]:
    for name, function in functions.items():
        if function == value:
            return {"function": name}
    if name := names.public_name(value):
        return {"function": name}
    if isinstance(value, names.Partial):
        config = _write_function(value.func, path, functions)
        config["args"] = _write(value.args, path, functions)
        config["keywords"] = {
            name: _write(given, f"{path}.{name}", functions)
            for name, given in value.keywords.items()
        }
        return config
    option = path.rpartition(".")[2]
    raise ValueError(
        f"{path}: expected a function with a public name in JAX or in this package, "
        f"such as jax.nn.sigmoid, got {names.describe(value)}"
        f"{_of_factory(value)}. Give it a name, here and in from_config: "
        f"functions={{{option!r}: the function}}."
    )


def _of_factory(function: Any) -> str:
    """Says of a function that a factory of JAX's initializers made that one did."""
    factory, local, _ = getattr(function, "__qualname__", "").partition(".<locals>")
    if not local or names.by_public_name(f"jax.nn.initializers.{factory}") is None:
        return ""
    return (
        ", made by a call of jax.nn.initializers, whose settings can't be read back "
        "from it"
    )


def _known() -> dict[str, type]:
    """The classes that a config can be of."""
    return {
        name: cls
        for name, cls in CLASSES.items()
        if "__dataclass_fields__" in vars(cls) and not name.startswith("_")
    }


def _read_description(config: Any, path: str, functions: dict) -> Any:
    cls, fields = _check_description(config, path)
    fields = {
        name: _read(value, f"{path}[{name!r}]", functions)
        for name, value in fields.items()
    }
    return cls(**fields)


def _check_description(config: Any, path: str) -> tuple[type, dict[str, Any]]:
    """The class of a config and its fields, as they are written."""
    if not isinstance(config, Mapping):
        raise TypeError(
            f"{path}: expected a dict as from to_config, got {type(config).__name__}."
        )
    name, version = config.get("class"), config.get("format")
    cls = _known().get(name) if isinstance(name, str) else None
    if cls is None:
        raise ValueError(
            f"{path}['class']: expected one of {', '.join(sorted(_known()))}, got "
            f"{name!r}."
        )
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise ValueError(
            f"{path}['format']: expected a version up to {FORMAT}, all that this "
            f"version of lstm_jax can read, got {version!r}."
        )
    fields = {k: v for k, v in config.items() if k not in ("class", "format")}
    known = {field.name: field for field in dataclasses.fields(cls)}
    unknown = [repr(field) for field in fields if field not in known]
    if unknown:
        raise ValueError(
            f"{path}: {name} has no field {', '.join(unknown)}. It has "
            f"{', '.join(known)}."
        )
    for field in known.values():
        if field.default is dataclasses.MISSING and field.name not in fields:
            raise ValueError(f"{path}: expected the field {field.name!r} of {name}.")
    return cls, fields


def _read(value: Any, path: str, functions: dict) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_read(v, f"{path}[{n}]", functions) for n, v in enumerate(value))
    if not isinstance(value, Mapping):
        return value
    if "function" in value:
        return _read_function(value, path, functions)
    return _read_description(value, path, functions)


def _read_function(config: Mapping[str, Any], path: str, functions: dict) -> Any:
    name, args, keywords = _check_function(config, path)
    function = functions.get(name) or names.by_public_name(name)
    if function is None:
        given = ", ".join(map(repr, functions)) or "none"
        raise ValueError(
            f"{path}: expected the name of a function of JAX or of this package, such "
            f"as 'jax.nn.sigmoid', or one of functions= ({given}), got {name!r}."
        )
    if not args and not keywords:
        return function
    args = _read(args, path, functions)
    keywords = {
        key: _read(value, f"{path}[{key!r}]", functions)
        for key, value in keywords.items()
    }
    return names.Partial(function, *args, **keywords)


def _check_function(config: Mapping[str, Any], path: str) -> tuple[str, Any, Any]:
    """The name of a function and the arguments it has got already."""
    parts = {"args": (), "keywords": {}} | dict(config)
    expected = {"function": str, "args": (list, tuple), "keywords": Mapping}
    if set(parts) != set(expected) or not all(
        isinstance(parts[key], kind) for key, kind in expected.items()
    ):
        raise ValueError(
            f"{path}: expected the name of a function, such as "
            "{'function': 'jax.nn.sigmoid'}, and 'args' and 'keywords' if there are "
            f"any, got {dict(config)}."
        )
    return parts["function"], parts["args"], parts["keywords"]
