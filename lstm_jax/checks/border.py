"""Where arrays enter and leave: one door in, one door out.

What enters becomes JAX's own before anything runs. JAX reads a NumPy buffer without a
copy where its address suits, and may do so after the call has come back, so that a
caller who fills the buffer again would change results that are not computed yet. What
leaves is NumPy's own in every respect, since writers of files take memory as it lies.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FROM_TORCH = "Convert it with tensor.detach().cpu().numpy()."


def give(array: Any) -> np.ndarray:
    """Returns an array for others: a copy that is C-ordered, writable and native.

    Args:
        array: a JAX or NumPy array, of any layout and byte order. bfloat16 stays
            ``ml_dtypes.bfloat16``, which is what JAX calls so.

    Example:
        >>> import numpy as np
        >>> from lstm_jax.checks.border import give
        >>> given = give(np.arange(6.0, dtype=">f4").reshape(2, 3).T)
        >>> given.flags.c_contiguous, given.flags.writeable, given.dtype.isnative
        (True, True, True)
    """
    array = np.asarray(array)
    return np.array(array, _native(array.dtype), order="C")


def take(name: str, value: Any, *, allow_lists: bool = False) -> Any:
    """Returns an argument as JAX's own array, whose memory no one else writes.

    JAX arrays, tracers and typed random keys come back as they are. Everything else
    that NumPy can read is copied: NumPy arrays of any layout and byte order, tensors of
    PyTorch on the CPU (bfloat16 too), and whatever has ``__array__``. Where 64-bit
    types are off, 64-bit numbers become 32-bit ones, as everywhere in JAX.

    Args:
        name: of the argument, for errors.
        value: the argument.
        allow_lists: whether Python numbers, lists and tuples of them are taken too.

    Raises:
        TypeError: if it is no array, or one of something else than numbers.
        ValueError: if an integer does not fit where 64-bit types are off.

    Example:
        >>> import numpy as np
        >>> from lstm_jax.checks.border import take
        >>> xs = np.ones(3, np.float32)
        >>> taken = take("xs", xs)
        >>> xs[:] = 0  # too late to matter
        >>> taken.tolist()
        [1.0, 1.0, 1.0]
    """
    if isinstance(value, jax.Array):
        return value
    if hasattr(value, "__jax_array__"):
        return value.__jax_array__()
    array = own(name, value, allow_lists=allow_lists)
    try:
        return jnp.asarray(array)
    except TypeError:
        raise TypeError(
            f"{name}: expected an array of numbers, got one of dtype {array.dtype}."
        ) from None


def own(name: str, value: Any, *, allow_lists: bool = False) -> np.ndarray:
    """A copy as NumPy's own, of a dtype that JAX has here; see :func:`take`."""
    array = read(name, value, allow_lists=allow_lists)
    dtype = jax.dtypes.canonicalize_dtype(_native(array.dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        own = np.array(array, dtype, order="C")
    if (
        own.dtype.kind in "iu"
        and own.itemsize < array.itemsize
        and (own != array).any()
    ):
        raise ValueError(
            f"{name}: expected integers that fit in {dtype}, got {array.min()} to "
            f"{array.max()}. jax.enable_x64 turns 64-bit types on."
        )
    return own


def take_leaves(name: str, tree: Any) -> Any:
    """Takes every array in a pytree; Python numbers and what has no leaves stay.

    So do shapes without values, as from ``jax.eval_shape``.

    Args:
        name: of the pytree, for errors, which add the path to the leaf.
        tree: the pytree.

    Raises:
        TypeError: if a leaf is neither an array nor a number.
        ValueError: as :func:`take` does.
    """
    staying = (bool, int, float, complex, jax.ShapeDtypeStruct)
    if all(isinstance(leaf, (jax.Array, *staying)) for leaf in jax.tree.leaves(tree)):
        return tree

    def own(path, leaf):
        if isinstance(leaf, staying):
            return leaf
        return take(f"{name}{jax.tree_util.keystr(path)}".lstrip("."), leaf)

    return jax.tree.map_with_path(own, tree)


def _native(dtype: np.dtype) -> np.dtype:
    """The dtype in this machine's byte order."""
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def read(name: str, value: Any, *, allow_lists: bool = False) -> np.ndarray:
    """Returns an argument as NumPy reads it, copied or not.

    Raises:
        TypeError: as :func:`take` does.
    """
    if hasattr(value, "__jax_array__"):
        value = value.__jax_array__()
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array, got {type(value).__name__}, whose mask would "
            "be lost. Pass its .data, and ~np.ma.getmaskarray(...) as a mask."
        )
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    if isinstance(value, (bool, int, float, complex, list, tuple)):
        return _read_numbers(name, value, allow_lists)
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return _read_tensor(name, value)
    if not hasattr(value, "__array__") or isinstance(value, type):
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}.")
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise TypeError(
            f"{name}: expected an array, got {type(value).__name__}, which NumPy can't "
            f"read: {error}"
        ) from error


def _read_numbers(name: str, value: Any, allow_lists: bool) -> np.ndarray:
    """Python numbers, and lists and tuples of them."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError, jax.errors.JAXTypeError):
        array = np.empty(1, object)
    numbers = array.dtype.kind in "biufc"
    if numbers and allow_lists:
        # An empty list says nothing of its dtype: NumPy's float64 is not meant.
        return array if array.size else array.astype(np.int32)
    hint = "Convert it with jnp.asarray."
    if not numbers:
        hint = "Its parts differ in shape, are traced (use jnp.stack) or no numbers."
    raise TypeError(f"{name}: expected an array, got {type(value).__name__}. {hint}")


def _read_tensor(name: str, tensor: Any) -> np.ndarray:
    """A tensor of PyTorch, which need not be installed."""
    kind = str(tensor.dtype).removeprefix("torch.")
    try:
        if kind == "bfloat16" or kind.startswith("float8"):
            # NumPy has none of these; float32 holds each number exactly.
            wide = tensor.detach().float().numpy()
            return wide.astype(getattr(jnp, kind))
        return tensor.detach().numpy()
    except (TypeError, RuntimeError, AttributeError) as error:
        raise TypeError(
            f"{name}: expected an array, got a tensor that NumPy can't read: {error} "
            f"{_FROM_TORCH}"
        ) from error
