"""Arrays in tuples, lists, mappings and dataclasses, nested or not."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np

# What no one can write to.
_FIXED = (bool, int, float, complex, str, bytes, np.generic, type(None))


def each(examples: Any, function: Callable[[Any], Any]) -> Any:
    """A function of every leaf of a nest, whose parts keep their classes.

    Fields of a dataclass that are no data, as Flax marks them, stay as they are.
    """
    if isinstance(examples, Mapping):
        items = {name: each(one, function) for name, one in examples.items()}
        return _mapping(examples, items)
    if isinstance(examples, tuple) and hasattr(examples, "_fields"):
        return type(examples)(*(each(one, function) for one in examples))
    if isinstance(examples, (tuple, list)):
        return type(examples)(each(one, function) for one in examples)
    if dataclasses.is_dataclass(examples) and not isinstance(examples, type):
        made = copy.copy(examples)
        for field in dataclasses.fields(examples):
            if field.metadata.get("pytree_node", True):
                one = each(getattr(examples, field.name), function)
                object.__setattr__(made, field.name, one)
        return made
    return function(examples)


def _mapping(like: Mapping, items: dict) -> Mapping:
    if type(like) is dict:
        return items
    if not isinstance(like, MutableMapping):
        return type(like)(items)  # pyright: ignore[reportCallIssue]
    made = copy.copy(like)  # An order or a default is kept with it.
    for name, one in items.items():
        made[name] = one
    return made


def copied(batch: Any) -> Any:
    """A batch whose memory no one else writes.

    JAX's own arrays, numbers and strings stay as they are: no one can write to them.

    Raises:
        TypeError: if a part is something else, whose memory nothing tells of.
    """
    return each(batch, _copied)


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if isinstance(leaf, _FIXED) or hasattr(leaf, "is_fully_addressable"):
        return leaf
    if hasattr(leaf, "clone"):  # A tensor of PyTorch, on any device.
        return leaf.clone()
    if hasattr(leaf, "__array__"):
        return np.array(leaf)
    raise TypeError(
        "batches: expected arrays and numbers, in tuples, lists, dicts or dataclasses, "
        f"got {type(leaf).__name__}, whose memory can't be copied."
    )
