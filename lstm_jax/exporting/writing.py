"""Models written as files: a program of StableHLO, and all that is needed to read it.

A file is a zip of ``program`` (what ``jax.export`` serializes), ``about.json``,
``weights.safetensors`` and ``load.py``, ten lines that run it with nothing but JAX.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells.base import as_cell
from lstm_jax.checks import arrays, border, options, slips
from lstm_jax.descriptions.config import to_config
from lstm_jax.exporting import loader
from lstm_jax.exporting.reading import ENDS, FORMAT, INSTALL, named, safetensors
from lstm_jax.numerics import as_last_axes, matmul
from lstm_jax.stack import Params
from lstm_jax.types import Array

PLATFORMS = ("cpu", "cuda", "tpu")
_KNOWN = (*PLATFORMS, "rocm")
_AGE = (
    "The program was written by jax {jax} on {date}, and can't be read here: JAX reads "
    "programs of the last six months, and those of versions up to three weeks newer "
    "than itself. Install jax=={jax}, or write it anew: the file holds weights and "
    "description of the model (lstm_jax.exporting.read_model)."
)


@slips.explained
def export(
    model: Any,
    params: Params,
    *,
    step: bool = False,
    embedding: Any = None,
    readout: Any = None,
    time_major: bool = False,
    platforms: Sequence[str] = PLATFORMS,
    dtype: Any = None,
    vjp_order: int = 0,
    functions: dict[str, Callable] | None = None,
) -> bytes:
    """Returns a model as a file that runs where this package is not.

    One program for every platform and every size of batch and time. Write the bytes to
    a file; :func:`lstm_jax.exporting.load` runs it, and so do the lines of its own
    ``load.py``, which need JAX alone::

        call(xs, state, lengths, reset) -> (state, ys)
        call(x, state, reset) -> (state, y)  # step=True

    Shapes:
        ``xs`` is ``[B, T, I]``, or ``[T, B, I]`` if ``time_major``, ``lengths [B]``
        int32, ``reset`` bool of the leading axes of ``xs``; of one step ``x`` is
        ``[B, I]`` and ``reset [B]``. With an embedding ``xs`` and ``x`` are int32 ids
        without the last axis. The state is the list of the leaves of
        ``model.zero_state((B,))``; ``about.json`` names them.

    Args:
        model: any stack, such as :class:`LSTM`.
        params: its parameters, which become constants of the program.
        step: whether the program takes one step, for streams, and not a sequence.
        embedding: a table ``[V, I]`` that ids are looked up in; an id out of it is
            taken as the nearest that is in it.
        readout: a kernel ``[P, O]``, or ``(kernel, bias)`` with a bias ``[O]``, that
            the outputs are multiplied with.
        time_major: whether the first axis of a sequence is time.
        platforms: those that it is compiled for where it is loaded.
        dtype: of ``xs``; None for the model's compute dtype, or else that of its
            parameters.
        vjp_order: how many times the program can be differentiated where it is loaded,
            in reverse mode. Neither ``jax.jvp`` nor ``jax.vmap`` take a loaded program:
            batches are what B is for.
        functions: names of functions in the description that are neither JAX's nor
            this package's, as for ``model.to_config``.

    Raises:
        ValueError: if a shape or an option does not fit, a layer needs the whole
            sequence and ``step`` is on, or a function in the description has no name.
        TypeError: if ``model`` is no stack, or an array's dtype is wrong.
        ImportError: if flatbuffers or safetensors is missing.

    Example:
        >>> import pathlib, tempfile, jax, jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> params = model.init(jax.random.key(0))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.zip"
        >>> path.write_bytes(lj.export(model, params)) > 0
        True
        >>> call = lj.exporting.load(path)
        >>> state, ys = call(jnp.ones((2, 7, 3)), lengths=[7, 4])
        >>> ys.shape, len(state)
        ((2, 7, 5), 4)
    """
    _check_model(model, step)
    _check_options(platforms, vjp_order)
    held = model.check_params(params), *_take_ends(model, embedding, readout)
    # On no device in particular: constants of a program for any.
    held = border.take_leaves("params", jax.tree.map(border.give, held))
    whole = _Whole(model, *held)
    arguments = _arguments(whole, step, time_major, _input_dtype(whole, dtype))
    run = functools.partial(whole.take_step if step else whole.run, time_major)
    with jax.disable_jit(False):
        exporting = jax.export.export(jax.jit(run), platforms=tuple(platforms))
        exported = exporting(*arguments)
    about = _about(whole, exported, arguments, functions)
    return _zipped(_serialized(exported, vjp_order), about, _stored(whole))


class _Whole(NamedTuple):
    """A model between its embedding and its readout."""

    model: Any
    params: Params
    embedding: Array | None
    kernel: Array | None
    bias: Array | None

    def run(self, time_major, xs, leaves, lengths, reset):
        state, ys = self.model.apply(
            self.params,
            self.embed(xs),
            self._state(leaves),
            lengths=lengths,
            reset=reset,
            time_major=time_major,
        )
        return jax.tree.leaves(state), self._read(ys)

    def take_step(self, _, x, leaves, reset):
        state = self._state(leaves)
        state, y = self.model.step(self.params, state, self.embed(x), reset=reset)
        return jax.tree.leaves(state), self._read(y)

    def _state(self, leaves):
        return jax.tree.structure(self.model.zero_state()).unflatten(leaves)

    def embed(self, xs):
        return xs if self.embedding is None else self.embedding.at[xs].get(mode="clip")

    def _read(self, ys):
        if self.kernel is None:
            return ys
        ys = matmul(ys, self.kernel)
        return ys if self.bias is None else ys + as_last_axes(self.bias, ys)


def _check_model(model: Any, step: bool) -> None:
    if not hasattr(model, "cells"):
        raise TypeError(
            "model: expected a stack such as lstm_jax.LSTM, got "
            f"{type(model).__name__}. Functions of your own go through jax.export; one "
            "cell is lstm_jax.Stack((cell,))."
        )
    if step and model.bidirectional:
        raise ValueError(
            "step: expected False for a bidirectional model, whose backward half needs "
            "the whole sequence, got True."
        )
    if step:
        options.check_forward("step", model)


def _check_options(platforms: Any, vjp_order: Any) -> None:
    if isinstance(platforms, str) or not platforms:
        raise ValueError(
            f"platforms: expected some of {', '.join(_KNOWN)} in a tuple, got "
            f"{platforms!r}."
        )
    for platform in platforms:
        options.check_choice("platforms", platform, _KNOWN)
    if isinstance(vjp_order, bool) or not isinstance(vjp_order, int) or vjp_order < 0:
        raise ValueError(f"vjp_order: expected an integer from 0, got {vjp_order!r}.")


def _take_ends(model: Any, embedding: Any, readout: Any) -> tuple:
    """The embedding, the readout's kernel and its bias; each may be None."""
    input_shape = as_cell(model.cells[0]).input_shape
    if embedding is not None:
        embedding = arrays.take_array("embedding", embedding)
        if embedding.ndim != 2 or embedding.shape[1:] != input_shape:
            raise ValueError(
                f"embedding: expected shape [V, I] with I = {list(input_shape)}, got "
                f"{list(embedding.shape)}."
            )
    if readout is None:
        return embedding, None, None
    kernel, bias = readout if isinstance(readout, (tuple, list)) else (readout, None)
    kernel = arrays.take_array("readout", kernel)
    if kernel.ndim != 2 or kernel.shape[0] != model.output_size:
        raise ValueError(
            f"readout: expected a kernel [P, O] with P = {model.output_size}, got "
            f"{list(kernel.shape)}."
        )
    if bias is not None:
        bias = arrays.take_array("readout bias", bias)
        arrays.check_shape("readout bias", "[O]", kernel.shape[1:], bias)
    return embedding, kernel, bias


def _input_dtype(whole: _Whole, dtype: Any) -> Any:
    if whole.embedding is not None:
        return jnp.int32
    options.check_floating("dtype", dtype)
    first = as_cell(whole.model.cells[0])
    return dtype or first.dtype or jax.tree.leaves(whole.params)[0].dtype


def _arguments(whole: _Whole, step: bool, time_major: bool, dtype: Any) -> tuple:
    """The shapes that the program is traced with, sizes of batch and time open."""
    leading = jax.export.symbolic_shape("b" if step else "b, t")
    batch, leading = leading[0], leading[::-1] if time_major else leading
    features = as_cell(whole.model.cells[0]).input_shape
    features = features if whole.embedding is None else ()
    # The state that a call returns is what the next takes.
    one = jax.ShapeDtypeStruct((1, 1, *features), dtype)
    apply = lambda xs: whole.model.apply(whole.params, whole.embed(xs))[0]
    state = [
        jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)
        for leaf in jax.tree.leaves(jax.eval_shape(apply, one))
    ]
    lengths = () if step else (jax.ShapeDtypeStruct((batch,), jnp.int32),)
    reset = jax.ShapeDtypeStruct(leading, jnp.bool_)
    return jax.ShapeDtypeStruct((*leading, *features), dtype), state, *lengths, reset


def _about(
    whole: _Whole, exported: jax.export.Exported, arguments: tuple, functions: Any
) -> dict[str, Any]:
    """What ``about.json`` says."""
    xs, state, *controls = arguments
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    names = ("lengths", "reset")[-len(controls) :]
    given = [_described(name, one) for name, one in zip(names, controls, strict=True)]
    start = whole.model.initial_state(whole.params)
    sizes, output = len(controls), exported.out_avals[-1]
    return {
        "format": FORMAT,
        "lstm_jax": metadata.version("lstm_jax"),
        "jax": jax.__version__,
        "date": date,
        "age": _AGE.format(jax=jax.__version__, date=date),
        "platforms": list(exported.platforms),
        "sizes": sizes,
        "inputs": _described("xs" if sizes == 2 else "x", xs),
        "controls": given,
        "state": [
            {**_described(name, one), "start": _numbers(leaf)}
            for (name, leaf), one in zip(named(start), state, strict=True)
        ],
        "output": list(output.shape[sizes:]),
        "dtype": str(output.dtype),
        "model": to_config(whole.model, functions),
    }


def _described(name: str, one: Any) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else str(size) for size in one.shape]
    return {"name": name, "shape": shape, "dtype": str(one.dtype)}


def _numbers(leaf: Array) -> Any:
    """A row's start as plain numbers; 0 for zeros of any shape."""
    return np.asarray(leaf, np.float64).tolist() if leaf.any() else 0


def _stored(whole: _Whole) -> bytes:
    """The weights in the safetensors format."""
    leaves = named(whole.params) + [(name, getattr(whole, name)) for name in ENDS]
    kept = {name: border.give(leaf) for name, leaf in leaves if leaf is not None}
    return safetensors().save(kept)


def _serialized(exported: jax.export.Exported, vjp_order: int) -> bytes:
    try:
        return bytes(exported.serialize(vjp_order=vjp_order))
    except ImportError as error:
        raise ImportError(f"flatbuffers is missing: {INSTALL}") from error


def _zipped(program: bytes, about: dict[str, Any], weights: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as file:
        file.writestr("about.json", json.dumps(about, indent=1))
        file.writestr("load.py", inspect.getsource(loader))
        file.writestr("program", program)
        file.writestr("weights.safetensors", weights)
    return data.getvalue()
