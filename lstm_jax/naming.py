"""A cell's parameters by name: how Flax modules keep a pytree of any kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import traverse_util

from lstm_jax.types import LSTMParams, PyTree

Names = tuple[str, ...]
IsLeaf = Callable[[Any], bool] | None

# Parameters that are one array have no path, and so no name of their own.
_ARRAY = ("array",)


@functools.lru_cache(maxsize=256)
def layout(cell: Any) -> tuple[list[Names], Any]:
    """The names of a cell's parameters, and the structure that takes them in order."""
    params = jax.eval_shape(cell.init, jax.eval_shape(jax.random.key, 0))
    return names_of(params), jax.tree.structure(params)


def names_of(params: PyTree, is_leaf: IsLeaf = None) -> list[Names]:
    """The names on the path to each leaf: fields, keys of dicts, or positions.

    Raises:
        ValueError: if two leaves have the same, as under the keys 1 and "1".
    """
    leaves, _ = jax.tree.flatten_with_path(params, is_leaf)
    found = [
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or _ARRAY
        for path, _ in leaves
    ]
    for index, names in enumerate(found):
        if names in found[:index]:
            raise ValueError(
                f"params: expected a name for each array, got {'/'.join(names)} twice."
            )
    return found


def nest(params: PyTree, is_leaf: IsLeaf = None) -> dict[str, Any]:
    """Parameters as dicts in dicts, by name."""
    leaves = jax.tree.leaves(params, is_leaf)
    named = zip(names_of(params, is_leaf), leaves, strict=True)
    return traverse_util.unflatten_dict(dict(named))


def unnest(tree: Any, where: str, cell: Any = None) -> PyTree:
    """Parameters as the cell has them, from what :func:`nest` returns.

    Args:
        tree: dicts in dicts, by name.
        where: what messages begin with.
        cell: the cell; None for any whose parameters are ``LSTMParams``.

    Raises:
        ValueError: if the names are not those of the cell's parameters.
    """
    found: dict[Any, Any] = {}
    if isinstance(tree, Mapping):
        found = dict(traverse_util.flatten_dict(tree))
    if cell is None:
        known = {(name,) for name in LSTMParams._fields}
        if not {("kernel",), ("recurrent_kernel",)} <= set(found) <= known:
            raise ValueError(
                f"{where}: expected fields of LSTMParams, got {_list(found)}. Those of "
                "other cells need the model: params_of(variables, model)."
            )
        return LSTMParams(**{name: found[(name,)] for (name,) in found})
    expected, structure = layout(cell)
    if set(found) != set(expected):
        raise ValueError(
            f"{where}: expected the parameters {_list(expected)}, got {_list(found)}. "
            "Were they made by a model with other options (use_bias, proj_size)?"
        )
    return structure.unflatten(found[names] for names in expected)


def _list(names: Any) -> str:
    return ", ".join(sorted("/".join(map(str, one)) for one in names)) or "none"
