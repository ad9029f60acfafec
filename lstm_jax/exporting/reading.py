"""Models read from files of :func:`lstm_jax.export`."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import arrays, border
from lstm_jax.descriptions.config import from_config
from lstm_jax.exporting import loader
from lstm_jax.stack import Params
from lstm_jax.types import Array, PyTree

FORMAT = 1
ENDS = ("embedding", "kernel", "bias")
_DTYPES = {
    "BF16": jnp.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "I8": np.int8,
}
_MEMBERS = {"about.json", "load.py", "program", "weights.safetensors"}
_ABOUT = {
    *("age", "controls", "dtype", "format", "inputs", "jax", "lstm_jax", "model"),
    *("output", "sizes", "state"),
}
# What zipfile and json raise at files that are not whole.
_BROKEN = (
    *(zipfile.BadZipFile, EOFError, LookupError, OSError, RuntimeError, ValueError),
    *(struct.error, zlib.error),
)
INSTALL = 'pip install "lstm_jax[export]"'


class Exported(NamedTuple):
    """What a file holds beside its program.

    Attributes:
        model: the stack.
        params: its parameters.
        embedding: ``[V, I]``, or None.
        readout: ``(kernel, bias)``, ``[P, O]`` and ``[O]``, or None.
        about: what ``about.json`` says: versions, date, platforms and shapes.

    Example:
        >>> import pathlib, tempfile, jax, lstm_jax as lj
        >>> model, path = lj.LSTM(3, 5), pathlib.Path(tempfile.mkdtemp()) / "model.zip"
        >>> params = model.init(jax.random.key(0))
        >>> written = path.write_bytes(lj.export(model, params))
        >>> lj.exporting.read_model(path).about["platforms"]
        ['cpu', 'cuda', 'tpu']
    """

    model: Any
    params: Params
    embedding: Array | None
    readout: tuple[Array, Array | None] | None
    about: dict[str, Any]


def load(path: str | os.PathLike[str]) -> Callable[..., tuple[list[Array], Array]]:
    """Returns ``call(xs, state=None, *, lengths=None, reset=None) -> (state, ys)``.

    What ``load.py`` does, with checks and defaults: where no state is given sequences
    start from zeros, or from what the model has learned. A file of one step has
    ``call(x, state=None, *, reset=None)``. Every new size of batch or time compiles
    once more, so serve a few sizes alone, and pad.

    Args:
        path: a file of :func:`lstm_jax.export`. Take none from a stranger: JAX runs
            what it says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, its program is too old or too new for this
            version of JAX, or it computes in float64 and 64-bit types are off.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 5)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "step.zip"
        >>> params = model.init(jax.random.key(0))
        >>> written = path.write_bytes(lj.export(model, params, step=True))
        >>> call = lj.exporting.load(path)
        >>> state, y = call(jnp.ones((2, 3)))
        >>> state, y = call(jnp.ones((2, 3)), state)
        >>> y.shape
        (2, 5)
    """
    about = _read_about(path)
    for dtype in (about["dtype"], about["inputs"]["dtype"]):
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"{os.fspath(path)}: a program of {dtype}, and 64-bit types are off: "
                "jax.enable_x64 turns them on."
            )
    run: Any = loader.load(path)

    def call(xs, state=None, *, lengths=None, reset=None):
        xs = _take_inputs(about["inputs"], xs)
        sizes = dict(zip(about["inputs"]["shape"], xs.shape, strict=True))
        if state is None:
            state = [_start(one, sizes["b"]) for one in about["state"]]
        state = _take_state(about["state"], state, sizes)
        given = {"lengths": lengths, "reset": reset}
        controls = [
            _take_control(one, sizes, given.pop(one["name"]))
            for one in about["controls"]
        ]
        if given.get("lengths") is not None:
            raise TypeError("lengths: expected None, since this is a file of one step.")
        return run(xs, state, *controls)

    return call


def read_model(
    path: str | os.PathLike[str], *, functions: dict[str, Callable] | None = None
) -> Exported:
    """Returns the model of a file of :func:`lstm_jax.export`, to write it anew.

    Args:
        path: the file. Its program is not looked at, so it may be of any age.
        functions: those that :func:`lstm_jax.export` was given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file, or of a newer version of this package.
        ImportError: if safetensors is not installed.

    Example:
        >>> import pathlib, tempfile, jax, lstm_jax as lj
        >>> model = lj.LSTM(3, 5)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.zip"
        >>> params = model.init(jax.random.key(0))
        >>> written = path.write_bytes(lj.export(model, params))
        >>> lj.exporting.read_model(path).model == model
        True
    """
    about = _read_about(path)
    model = from_config(about["model"], functions=functions)
    with zipfile.ZipFile(path) as file:
        taken = _arrays(path, file.read("weights.safetensors"))
    expected = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
    missing = [name for name, _ in named(expected) if name not in taken]
    if missing:
        raise ValueError(f"{os.fspath(path)}: its weights lack {', '.join(missing)}.")
    leaves = [border.take(name, taken[name]) for name, _ in named(expected)]
    params = model.check_params(jax.tree.structure(expected).unflatten(leaves))
    embedding, kernel, bias = (
        border.take(name, taken[name]) if name in taken else None for name in ENDS
    )
    readout = None if kernel is None else (kernel, bias)
    return Exported(model, params, embedding, readout, about)


def _read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file.")
    with open(path, "rb") as source:
        try:
            with zipfile.ZipFile(source) as file:
                damaged, members = file.testzip(), set(file.namelist())
                about = json.loads(file.read("about.json"))
        except _BROKEN as error:
            raise ValueError(
                f"{os.fspath(path)}: no file of lstm_jax.export, or a damaged one: "
                f"{error or type(error).__name__}"
            ) from error
    if damaged:
        raise ValueError(f"{os.fspath(path)}: {damaged} in it is damaged.")
    said = set(about) if isinstance(about, dict) else set()
    if missing := sorted((_MEMBERS - members) | (_ABOUT - said)):
        raise ValueError(
            f"{os.fspath(path)}: no file of lstm_jax.export, or a damaged one: there "
            f"is no {', no '.join(missing)} in it."
        )
    if not isinstance(about["format"], int):
        raise ValueError(
            f"{os.fspath(path)}: format: expected a number, got {about['format']!r}."
        )
    if about["format"] > FORMAT:
        raise ValueError(
            f"{os.fspath(path)}: of format {about['format']}, newer than this version "
            f"of lstm_jax, which reads {FORMAT}. Written by lstm_jax "
            f"{about['lstm_jax']}."
        )
    return about


def _arrays(path: str | os.PathLike[str], data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; NumPy's reader has no bfloat16."""
    library, arrays = safetensors(), {}
    from safetensors import SafetensorError

    try:
        for name, one in library.deserialize(data):
            flat = np.frombuffer(one["data"], _DTYPES[one["dtype"]])
            arrays[name] = flat.reshape(one["shape"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(
            f"{os.fspath(path)}: its weights can't be read: {error}."
        ) from error
    return arrays


def _take_inputs(described: dict[str, Any], value: Any) -> Array:
    """The inputs of a loaded program, checked."""
    name, dtype = described["name"], np.dtype(described["dtype"])
    kind = jnp.integer if dtype.kind == "i" else jnp.floating
    xs, shape = arrays.take_array(name, value, kind), described["shape"]
    expected = tuple(
        got if isinstance(size, str) else size
        for size, got in zip(shape, xs.shape, strict=False)
    )
    if xs.ndim != len(shape) or xs.shape != expected:
        raise ValueError(f"{name}: expected shape {shape}, got {list(xs.shape)}.")
    if xs.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {xs.dtype}.")
    return xs


def _take_state(
    described: list[dict[str, Any]], state: Any, sizes: dict[str, int]
) -> list[Array]:
    """The leaves of a state, checked."""
    names = [one["name"] for one in described]
    if not isinstance(state, (list, tuple)) or len(state) != len(names):
        got = type(state).__name__
        if isinstance(state, (list, tuple)):
            got = f"a {got} of {len(state)}"
        raise TypeError(
            f"state: expected the list of arrays that a call returns, {names}, got "
            f"{got}. jax.tree.leaves(state) makes one of a model's state."
        )
    taken = []
    for one, leaf in zip(described, state, strict=True):
        name, dtype = f"state: {one['name']}", np.dtype(one["dtype"])
        array = border.take(name, leaf)
        letters = f"[{', '.join(map(str, one['shape']))}]"
        batch, *rest = one["shape"]
        arrays.check_shape(name, letters, (sizes[batch], *rest), array)
        if array.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {array.dtype}.")
        taken.append(array)
    return taken


def _start(described: dict[str, Any], batch: int) -> Array:
    """What a leaf of the state starts from, for each row."""
    row = jnp.asarray(described["start"], described["dtype"])
    return jnp.broadcast_to(row, (batch, *described["shape"][1:]))


def _take_control(
    described: dict[str, Any], sizes: dict[str, int], value: Any
) -> Array:
    """``lengths`` or ``reset`` of a loaded program; where not given all, or none."""
    name, shape = described["name"], [sizes[size] for size in described["shape"]]
    if value is None:
        fill = sizes["t"] if name == "lengths" else False
        return jnp.full(shape, fill, described["dtype"])
    taken = border.take(name, value, allow_lists=True)
    kind = jnp.bool_ if name == "reset" else jnp.integer
    arrays.check_array(name, taken, kind)
    arrays.check_shape(name, f"[{', '.join(described['shape'])}]", tuple(shape), taken)
    if name == "lengths":
        arrays.check_length_values(taken, sizes["t"])
    return taken.astype(described["dtype"])


def named(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves with their paths, such as ``[0].forward.kernel``."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def safetensors() -> Any:
    """Returns safetensors for NumPy arrays, or says how to install it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"safetensors is missing: {INSTALL}") from error
    return safetensors.numpy
