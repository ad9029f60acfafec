"""Models read from files of :func:`lstm_jax.export`."""

from __future__ import annotations

import json
import os
import zipfile
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
}
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
        ValueError: if it is no such file, or its program is too old or too new for this
            version of JAX.

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
    run: Any = loader.load(path)

    def call(xs, state=None, *, lengths=None, reset=None):
        xs = _take_inputs(about["inputs"], xs)
        sizes = dict(zip(about["inputs"]["shape"], xs.shape, strict=True))
        if state is None:
            state = [_start(one, sizes["b"]) for one in about["state"]]
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
        taken = _arrays(file.read("weights.safetensors"))
    expected = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
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
    try:
        with zipfile.ZipFile(path) as file:
            damaged, about = file.testzip(), json.loads(file.read("about.json"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)}: no file of lstm_jax.export, or a damaged one: {error}"
        ) from error
    if damaged:
        raise ValueError(f"{os.fspath(path)}: {damaged} in it is damaged.")
    if about["format"] > FORMAT:
        raise ValueError(
            f"{os.fspath(path)}: of format {about['format']}, newer than this version "
            f"of lstm_jax, which reads {FORMAT}. Written by lstm_jax "
            f"{about['lstm_jax']}."
        )
    return about


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; NumPy's reader has no bfloat16."""
    return {
        name: np.frombuffer(one["data"], _DTYPES[one["dtype"]]).reshape(one["shape"])
        for name, one in safetensors().deserialize(data)
    }


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
