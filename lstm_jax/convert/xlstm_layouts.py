"""The arrays of the package ``xlstm``: their names, and their two layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag

from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border
from lstm_jax.convert import paths, torch_names
from lstm_jax.types import Array, LSTMParams

# By slot: what is called fgate feeds i.
GATES = ("fgate.weight", "igate.weight", "zgate.weight", "ogate.weight")
CELL = ("_recurrent_kernel_", "_bias_")
INSIDE = "slstm_cell."
AROUND = {
    "conv1d": "feeds i and f with a convolution of its inputs, and SiLU of that: pass "
    "leave_out=('conv1d',), and both side by side, [silu(conv1d(x)), x], as xs",
    "group_norm": "normalises its outputs head by head: pass leave_out=('group_norm',),"
    " and normalise ys",
}


class Read(NamedTuple):
    """One layer in one direction, in our layout, with the keys of its arrays."""

    params: LSTMParams
    heads: int
    units: int
    keys: dict[str, str]


def read(
    name: str, weights: Mapping[str, Any], prefix: str, leave_out: tuple[str, ...]
) -> Read:
    """A layer in one direction, or a cell alone, out of a dict."""
    keys = _keys(name, weights, prefix, leave_out)
    arrays = {word: take(key, weights[key]) for word, key in keys.items()}
    recurrent, bias = (arrays[word] for word in CELL)
    size = min(recurrent.shape[1:], default=0)
    if recurrent.ndim != 3 or max(recurrent.shape[1:]) != 4 * size:
        raise ValueError(
            f"{keys[CELL[0]]}: expected shape [N, D, 4D], or [N, 4D, D] of the "
            f"backend 'vanilla', got {list(recurrent.shape)}."
        )
    heads = recurrent.shape[0]
    units = heads * size
    shapes.check_shape(keys[CELL[1]], "[4H]", (4 * units,), bias)
    if recurrent.shape[1] > size:
        recurrent = recurrent.transpose(0, 2, 1)
    else:
        bias = bias.reshape(heads, 4, size).transpose(1, 0, 2).reshape(-1)
    params = LSTMParams(
        kernel=_kernel(keys, arrays, heads, size, "conv1d" in leave_out),
        recurrent_kernel=recurrent if heads > 1 else recurrent[0],
        bias=bias,
    )
    return Read(params, heads, units, keys)


def take(key: str, value: Any) -> Array:
    """A tensor of any device, NumPy or JAX array as a JAX array."""
    if hasattr(value, "detach"):
        value = border.read(key, value.detach().cpu())
    return paths.take(key, value)


def _keys(
    name: str, weights: Mapping[str, Any], prefix: str, leave_out: tuple[str, ...]
) -> dict[str, str]:
    """The keys of the arrays by their names in the layer, those of a cell alone too."""
    found = torch_names.below(weights, prefix)
    there = {word.removeprefix(INSIDE): key for word, key in found.items()}
    convolved = any(word.startswith("conv1d.") for word in there)
    if "conv1d" in leave_out and not convolved:
        raise ValueError("leave_out: there is no convolution, conv1d, to leave out.")
    for part, words in AROUND.items():
        for word in [word for word in there if word.startswith(f"{part}.")]:
            key = there.pop(word)
            if part not in leave_out:
                raise ValueError(f"{key}: the layer {words}.")
    alone = bool(found) and found.keys() <= set(CELL)
    known = CELL if alone else (*GATES, *CELL)
    for word in known:
        if word not in there:
            listed = ", ".join(sorted(map(str, weights))[:8]) or "nothing"
            raise ValueError(
                f"{name}: {prefix}{word} is missing; there are {listed}. path says "
                "where in a larger model the layer is."
            )
    if unknown := sorted(str(there[word]) for word in set(there) - set(known)):
        raise ValueError(f"{name}: unknown names {', '.join(unknown)}.")
    return {word: there[word] for word in known}


def _kernel(
    keys: dict[str, str],
    arrays: dict[str, Array],
    heads: int,
    size: int,
    convolved: bool,
) -> Array:
    """The input weights as one matrix, ``[I, 4H]``."""
    if GATES[0] not in arrays:
        return jnp.eye(4 * heads * size, dtype=arrays[CELL[0]].dtype)
    gates = [arrays[word] for word in GATES]
    inputs = gates[0].shape[-1] if gates[0].ndim == 3 else size
    for word, gate in zip(GATES, gates, strict=True):
        expected = (heads, size, inputs)
        shapes.check_shape(keys[word], "[N, D, I/N]", expected, gate)
    i, f, z, o = (block_diag(*gate.transpose(0, 2, 1)) for gate in gates)
    none = jnp.zeros_like(i)
    if not convolved:
        return jnp.concatenate([i, f, z, o], axis=1)
    rows = [i, f, none, none], [none, none, z, o]
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])


def cell_weights(one: LSTMParams, heads: int, backend: str) -> dict[str, Array]:
    """The recurrent weights and the bias in the layout of a backend."""
    recurrent, bias = jnp.asarray(one.recurrent_kernel), one.bias
    if heads == 1:
        recurrent = recurrent[None]
    size = recurrent.shape[1]
    if bias is None:
        bias = jnp.zeros(4 * heads * size, recurrent.dtype)
    if backend == "vanilla":
        recurrent = recurrent.transpose(0, 2, 1)
    else:
        bias = bias.reshape(4, heads, size).transpose(1, 0, 2).reshape(-1)
    return dict(zip(CELL, (recurrent, bias), strict=True))


def input_weights(name: str, kernel: Any, heads: int, inputs: str) -> dict[str, Any]:
    """The input weights, head by head; none where the kernel is the identity."""
    kernel = np.asarray(kernel)
    if inputs == "gates":
        if kernel.shape[0] != kernel.shape[1] or (kernel != np.eye(len(kernel))).any():
            raise ValueError(
                f"{name}: expected the identity, [4H, 4H], with inputs='gates', since "
                "a cell takes pre-activations, got another kernel "
                f"{list(kernel.shape)}."
            )
        return {}
    parts = 2 if inputs == "conv1d" else 1
    rows, units = kernel.shape[0] // parts, kernel.shape[1] // 4
    if kernel.shape[0] % (parts * heads):
        raise ValueError(
            f"input_size: expected a multiple of {parts * heads}, {parts} for each of "
            f"the {heads} heads, got {kernel.shape[0]}."
        )
    # By part of the inputs, head, input; then gate, head, unit.
    blocks = kernel.reshape(parts, heads, rows // heads, 4, heads, units // heads)
    weights, rest = {}, blocks.copy()
    for slot, word in enumerate(GATES):
        part = slot // 2 if parts == 2 else 0
        own = blocks[part, range(heads), :, slot, range(heads)]
        rest[part, range(heads), :, slot, range(heads)] = 0
        weights[word] = own.transpose(0, 2, 1)
    if rest.any():
        raise ValueError(
            f"{name}: expected zeros but in the blocks that lead from a head's inputs "
            f"to its gates, since xLSTM has no others with {heads} heads and inputs="
            f"{inputs!r}, got up to {np.abs(rest).max():.3g}."
        )
    return weights
