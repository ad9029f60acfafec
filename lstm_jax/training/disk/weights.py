"""Pytrees of arrays on disk, in the safetensors format."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np

from lstm_jax.checks import border
from lstm_jax.distributed import together
from lstm_jax.replacing import replacing
from lstm_jax.types import PyTree

_INSTALL = 'needs safetensors: pip install "lstm_jax[training]"'
_DTYPES = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64"),
}
# Python's numbers, and how they are written.
_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64}


def save_weights(path: str | os.PathLike[str], params: PyTree) -> None:
    """Writes a pytree of arrays; other frameworks can read the file too.

    Any pytree will do: parameters, or a whole :class:`TrainState`, so that training can
    go on from the file. Besides arrays of JAX and NumPy, and tensors of PyTorch on the
    CPU, its leaves may be Python's numbers, kept in 64 bits, and random keys, kept as
    the integers they are made of, under a name that tells their kind. Where there are
    several processes, all of them call it, and the first writes.

    Args:
        path: the file; one that is there is replaced in one move.
        params: the pytree. A leaf's name is its path, such as
            ``['lstm'][0].forward.kernel``.

    Raises:
        TypeError: if a leaf is something else, such as a string or a masked array.
        FileNotFoundError: if there is no such folder.
        IsADirectoryError: if the path is that of a folder.
        ValueError: if a leaf has a dtype that the format has not, or a number does not
            fit in 64 bits.
        ImportError: if safetensors is not installed.

    Example:
        >>> import pathlib, tempfile, jax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> params = lj.LSTM(3, 5).init(jax.random.key(0))
        >>> training.save_weights(path, {"params": params, "epoch": 3})
        >>> like = {"params": jax.eval_shape(lambda: params), "epoch": 0}
        >>> training.load_weights(path, like)["epoch"]
        3
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError(f"save_weights {_INSTALL}") from error
    if together.first():
        _check_place(path)
    leaves = named("params", params)
    arrays = {name: stored(f"params{name}", leaf) for name, leaf in leaves.items()}
    if together.first():
        with replacing(path) as partial:
            save_file(arrays, partial)


def load_weights(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads what :func:`save_weights` wrote.

    Args:
        path: the file.
        like: a pytree of the same structure and shapes, such as
            ``jax.eval_shape(model.init, key)``, or for a whole :class:`TrainState`
            ``jax.eval_shape(lambda: training.create(params, tx, carry))``.

    Returns:
        The pytree, in the structure of ``like``. Where that has a NumPy array or a
        Python number, so has this; everything else is JAX's, whole on the device, or on
        every one of a mesh that is set, however ``like`` is sharded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no safetensors file, or holds other names, shapes or dtypes
            than ``like``.
        TypeError: if a leaf of ``like`` has no shape and is no number.
        ImportError: if safetensors is not installed.

    Example:
        >>> import pathlib, tempfile, jax, lstm_jax as lj
        >>> from lstm_jax import training
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.safetensors"
        >>> model, key = lj.LSTM(3, 5), jax.random.key(0)
        >>> training.save_weights(path, model.init(key))
        >>> params = training.load_weights(path, jax.eval_shape(model.init, key))
        >>> params[0].forward.kernel.shape
        (3, 20)
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"load_weights {_INSTALL}") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file.")
    expected = named("like", like)
    try:
        with safe_open(path, framework="np") as file:
            _check_names(path, set(file.keys()), set(expected))
            arrays = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)}: no safetensors file: {error}") from error
    leaves = [
        restored(f"{os.fspath(path)}: {name}", arrays[name], leaf)
        for name, leaf in expected.items()
    ]
    return jax.tree.structure(like).unflatten(leaves)


def _check_place(path: str | os.PathLike[str]) -> None:
    """Checks that a file can be where one is to be written."""
    where, folder = os.fspath(path), os.path.dirname(os.fspath(path)) or os.curdir
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"path: expected a file in a folder that is there, got {where!r}: there is "
            f"no folder {folder!r}. os.makedirs makes it."
        )
    if os.path.isdir(where):
        raise IsADirectoryError(f"path: expected a file, got the folder {where!r}.")


def _check_names(path: Any, got: set[str], expected: set[str]) -> None:
    if got != expected:
        raise ValueError(
            f"{os.fspath(path)}: expected other weights; missing "
            f"{sorted(expected - got)}, unknown {sorted(got - expected)}."
        )


def named(argument: str, tree: PyTree) -> dict[str, Any]:
    """The leaves by name; those of keys tell their kind, which shapes do not."""
    leaves = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if is_key(leaf):
            name += f"<{leaf.dtype}>"
        if name in leaves:
            raise ValueError(f"{argument}: two leaves have the name {name!r}.")
        leaves[name] = leaf
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys, or the shape of one."""
    # A dtype may be another library's, of which jnp.issubdtype knows nothing.
    dtype = getattr(leaf, "dtype", None)
    return getattr(dtype, "type", None) is jax.dtypes.prng_key


def _key_impl(leaf: Any) -> Any:
    """The generator of a key, or of what stands for one in ``like``."""
    impls = []

    def ask(key):
        impls.append(jax.random.key_impl(key))
        return key

    jax.eval_shape(ask, leaf)
    return impls[0]


def stored(where: str, leaf: Any) -> np.ndarray:
    """What is written for a leaf."""
    if type(leaf) in _NUMBERS:
        try:
            return np.asarray(leaf, _NUMBERS[type(leaf)])
        except OverflowError:
            raise ValueError(
                f"{where}: expected an integer of 64 bits, got {leaf}."
            ) from None
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    elif not isinstance(leaf, jax.Array):
        leaf = border.read(where, leaf)
    array = border.give(together.whole(leaf))
    if array.dtype.name not in _DTYPES:
        raise ValueError(
            f"{where}: expected a dtype that the file format has, "
            f"{', '.join(sorted(_DTYPES))}, got {array.dtype}."
        )
    return array


def restored(where: str, array: np.ndarray, leaf: Any, device: Any = None) -> Any:
    """An array of the file as the kind of leaf that is there in ``like``.

    JAX's are put where ``device`` says: a device, or a sharding.
    """
    spec = spec_of(where, leaf)
    if (array.shape, array.dtype) != (spec.shape, spec.dtype):
        raise ValueError(
            f"{where}: expected {spec.dtype} {list(spec.shape)}, got {array.dtype} "
            f"{list(array.shape)}."
        )
    if type(leaf) in _NUMBERS:
        return array.item()
    if isinstance(leaf, (np.ndarray, np.generic)):
        return border.give(array)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{where}: is {array.dtype}, which JAX has not while 64-bit types are off: "
            "jax.enable_x64 turns them on."
        )
    if device is None:
        own = border.take(where, array)
    else:
        own = together.put(border.give(array), device)
    if not is_key(leaf):
        return own
    return jax.random.wrap_key_data(own, impl=_key_impl(leaf))


def spec_of(where: str, leaf: Any) -> Any:
    """The shape and dtype that are written for a leaf of ``like``."""
    if type(leaf) in _NUMBERS:
        return jax.ShapeDtypeStruct((), np.dtype(_NUMBERS[type(leaf)]))
    if is_key(leaf):
        return jax.eval_shape(jax.random.key_data, leaf)
    try:
        dtype = np.dtype(leaf.dtype).newbyteorder("=")
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    except (AttributeError, TypeError):  # PyTorch's dtypes are none of NumPy's.
        hint = "tensor.detach().cpu().numpy()" if hasattr(leaf, "detach") else ""
        raise TypeError(
            f"{where}: expected an array, its shape or a number in like, got "
            f"{type(leaf).__name__}. {hint}".rstrip()
        ) from None
