"""Parameters on disk, in the safetensors format."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.checks import border
from lstm_jax.types import PyTree

_INSTALL = 'needs safetensors: pip install "lstm_jax[examples]"'


def save_weights(path: str | os.PathLike[str], params: PyTree) -> None:
    """Writes a pytree of arrays; other frameworks can read the file too.

    Args:
        path: the file; one that is there is replaced in one move.
        params: the pytree. A leaf's name is its path, such as
            ``['lstm'][0].forward.kernel``.

    Raises:
        ImportError: if safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(f"save_weights {_INSTALL}") from error
    partial = f"{os.fspath(path)}.partial"
    arrays = {name: border.give(leaf) for name, leaf in _named(params).items()}
    save_file(arrays, partial)
    os.replace(partial, path)


def load_weights(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads what :func:`save_weights` wrote.

    Args:
        path: the file.
        like: a pytree of the same structure and shapes, such as
            ``jax.eval_shape(model.init, key)``.

    Returns:
        The parameters, in the structure of ``like``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or holds other names, shapes or dtypes
            than ``like``.
        ImportError: if safetensors is not installed.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"load_weights {_INSTALL}") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file.")
    try:
        with safe_open(path, framework="flax") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)}: no safetensors file: {error}") from error
    expected = _named(like)
    if set(arrays) != set(expected):
        raise ValueError(
            f"{os.fspath(path)}: expected other weights; missing "
            f"{sorted(set(expected) - set(arrays))}, unknown "
            f"{sorted(set(arrays) - set(expected))}."
        )
    for name, leaf in expected.items():
        got = arrays[name]
        if (got.shape, got.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{os.fspath(path)}: {name}: expected {leaf.dtype} {list(leaf.shape)}, "
                f"got {got.dtype} {list(got.shape)}."
            )
    leaves = [jnp.asarray(arrays[name]) for name in expected]
    return jax.tree.structure(like).unflatten(leaves)


def _named(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
