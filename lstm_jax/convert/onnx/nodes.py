"""One LSTM node of an ONNX graph: its attributes, and its weights in our form."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.convert.onnx import activations, folding, tensors
from lstm_jax.types import LSTMParams

_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_KINDS = {
    "activation_alpha": list,
    "activation_beta": list,
    "activations": list,
    "clip": float,
    "direction": str,
    "hidden_size": int,
    "input_forget": int,
    "layout": int,
    "output_sequence": int,
}
# The operator's inputs by position; a name that is empty is one that is not there.
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_SHAPES = {
    "W": ("D", "4H", "I"),
    "R": ("D", "4H", "H"),
    "B": ("D", "8H"),
    "P": ("D", "3H"),
}


class Layer(NamedTuple):
    """One node, or two that run in both directions.

    Attributes:
        names: of its nodes.
        reverse: whether it runs from the last step to the first alone.
        params: for each direction its parameters, as NumPy's arrays.
        options: those of :class:`LSTMCell`, ``input_size`` and ``hidden_size`` among
            them.
        inputs: the names of the node's inputs, by the operator's names for them.
        outputs: the names of Y, Y_h and Y_c as far as they are there, or empty.
        batch_first: whether the batch is the first axis (layout 1).
    """

    names: tuple[str, ...]
    reverse: bool
    params: tuple[LSTMParams, ...]
    options: dict[str, Any]
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    batch_first: bool

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"node {self.names[0]!r} (LSTM)"


def read(
    node: Any, name: str, constants: folding.Constants, starts: folding.Constants
) -> Layer:
    """Reads a node.

    Args:
        node: the node.
        name: what it is called.
        constants: those of its graph.
        starts: the same through Expand, for initial states.

    Raises:
        ValueError: if it is not one that ONNX or this library knows.
    """
    where = f"node {name!r} (LSTM)"
    given = _attributes(where, node)
    inputs = _inputs(where, node)
    arrays = _weights(where, inputs, constants)
    sizes = _sizes(where, given, arrays)
    coupled = bool(given.get("input_forget", 0))
    batch_first = bool(given.get("layout", 0))
    params = [_params(arrays, d, coupled) for d in range(sizes["D"])]
    start = _start(where, inputs, starts, sizes, batch_first)
    if start is not None:
        params = [
            one._replace(initial_h=h, initial_c=c)
            for one, h, c in zip(params, *start, strict=True)
        ]
    _check_lengths(where, inputs, constants)
    options = {
        "input_size": sizes["I"],
        "hidden_size": sizes["H"],
        "use_bias": "B" in arrays,
        "peephole": "P" in arrays,
        "variant": "CIFG" if coupled else None,
        "clip": _clip(where, given),
        "learn_initial_state": start is not None,
        "param_dtype": arrays["W"].dtype.type,
        **_functions(where, given, sizes["D"]),
    }
    return Layer(
        (name,),
        given.get("direction", "forward") == "reverse",
        tuple(params),
        options,
        inputs,
        tuple(node.output),
        batch_first,
    )


def _inputs(where: str, node: Any) -> dict[str, str]:
    """The names of the inputs that there are, by the operator's names for them."""
    inputs = dict(zip(_INPUTS, node.input, strict=False))
    inputs = {key: value for key, value in inputs.items() if value}
    if "X" not in inputs or len(node.input) > len(_INPUTS):
        raise ValueError(
            f"{where}: expected the inputs {', '.join(_INPUTS)}, X, W and R at least, "
            f"got {list(node.input)}."
        )
    return inputs


def _attributes(where: str, node: Any) -> dict[str, Any]:
    """The attributes, each of the kind it has to have."""
    given = folding.attributes(node)
    for name, value in given.items():
        if isinstance(value, bytes):
            given[name] = value = value.decode("ascii", "backslashreplace")
        kind = _KINDS.get(name)
        if kind is None or not isinstance(value, kind):
            expected = ", ".join(_KINDS) if kind is None else f"a {kind.__name__}"
            raise ValueError(
                f"{where}: {name}: expected {expected}, got {name} of type "
                f"{type(value).__name__}."
            )
    for name in ("activation_alpha", "activation_beta"):
        if not all(isinstance(value, float) for value in given.get(name, ())):
            raise ValueError(f"{where}: {name}: expected floats, got {given[name]}.")
    direction = given.get("direction", "forward")
    if direction not in _DIRECTIONS:
        raise ValueError(
            f"{where}: direction: expected one of {', '.join(_DIRECTIONS)}, got "
            f"{direction!r}."
        )
    for name in ("input_forget", "layout"):
        if given.get(name, 0) not in (0, 1):
            raise ValueError(f"{where}: {name}: expected 0 or 1, got {given[name]}.")
    return given


def _weights(
    where: str, inputs: dict[str, str], constants: folding.Constants
) -> dict[str, np.ndarray]:
    """The node's constants by the operator's names for them."""
    arrays = {}
    for key in _SHAPES:
        if key not in inputs:
            if key in ("W", "R"):
                raise ValueError(f"{where}: {key} is missing.")
            continue
        try:
            arrays[key] = constants.value(inputs[key])
        except ValueError as error:
            raise ValueError(
                f"{where}: {key}: expected a constant of the file, or one behind "
                f"operators that only move values, got {error}"
            ) from error
        if arrays[key].dtype not in tensors.FLOATING:
            raise ValueError(
                f"{where}: {key}: expected a floating dtype, got {arrays[key].dtype}."
            )
        if arrays[key].dtype != arrays["W"].dtype:
            raise ValueError(
                f"{where}: {key}: expected the dtype of W, {arrays['W'].dtype}, got "
                f"{arrays[key].dtype}."
            )
    return arrays


def _sizes(
    where: str, given: dict[str, Any], arrays: dict[str, np.ndarray]
) -> dict[str, int]:
    """D, I and H, which all shapes have to agree with."""
    recurrent = arrays["R"].shape
    hidden = given.get("hidden_size", recurrent[-1] if recurrent else 0)
    directions = _DIRECTIONS[given.get("direction", "forward")]
    inputs = arrays["W"].shape[-1] if arrays["W"].ndim else 0
    sizes = {"D": directions, "I": inputs, "H": hidden}
    if min(inputs, hidden) < 1:
        raise ValueError(
            f"{where}: expected at least one input and one unit, got W "
            f"{list(arrays['W'].shape)} and hidden_size {hidden}."
        )
    for key, array in arrays.items():
        expected = [
            math.prod(sizes.get(sign) or int(sign) for sign in letters)
            for letters in _SHAPES[key]
        ]
        if list(array.shape) != expected:
            letters = f"[{', '.join(_SHAPES[key])}]"
            raise ValueError(
                f"{where}: {key}: expected shape {letters} = {expected}, with "
                f"D = {directions} and H = {hidden}, got {list(array.shape)}."
            )
    return sizes


def _params(arrays: dict[str, np.ndarray], direction: int, coupled: bool) -> LSTMParams:
    """One direction's weights: gates i, o, f, c become i, f, g, o, two biases one."""
    bias = peephole = None
    if "B" in arrays:
        ours, other = np.split(arrays["B"][direction], 2)
        bias = _columns(ours + other if other.any() else ours, coupled)
    if "P" in arrays:
        i, o, f = np.split(arrays["P"][direction], 3)
        peephole = np.stack([i, o] if coupled else [i, f, o])
    return LSTMParams(
        kernel=_columns(arrays["W"][direction].T, coupled),
        recurrent_kernel=_columns(arrays["R"][direction].T, coupled),
        bias=bias,
        peephole=peephole,
    )


def _columns(values: np.ndarray, coupled: bool) -> np.ndarray:
    """Columns of gates in our order; with coupled gates those of f have no effect."""
    i, o, f, c = np.split(values, 4, axis=-1)
    return np.concatenate([i, c, o] if coupled else [i, f, c, o], axis=-1)


def _clip(where: str, given: dict[str, Any]) -> float | None:
    if "clip" not in given:
        return None
    clip = activations.shortest(given["clip"])
    if not (clip > 0 and math.isfinite(clip)):
        raise ValueError(f"{where}: clip: expected a limit above 0, got {clip}.")
    warnings.warn(
        f"{where}: clip={clip} is taken as onnxruntime does: it limits what enters the "
        "gates and the candidate. The specification also has it limit c on its way to "
        "the output, so that outputs differ where c is beyond it.",
        stacklevel=2,
    )
    return clip


def _functions(where: str, given: dict[str, Any], directions: int) -> dict[str, Any]:
    """The activations of a node as options of a cell."""
    if not given.get("activations"):
        return {}
    names = [
        name.decode("ascii", "backslashreplace") if isinstance(name, bytes) else name
        for name in given["activations"]
    ]
    if len(names) != 3 * directions or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"{where}: activations: expected {3 * directions} names, got {names}."
        )
    functions = activations.take(
        where,
        names,
        given.get("activation_alpha", ()),
        given.get("activation_beta", ()),
    )
    if functions[:3] != functions[-3:]:
        raise ValueError(
            f"{where}: activations: expected the same in both directions, as "
            f"lstm_jax's layers have, got {names}."
        )
    options = ("gate_activation", "candidate_activation", "output_activation")
    return dict(zip(options, functions, strict=False))


def _start(
    where: str,
    inputs: dict[str, str],
    starts: folding.Constants,
    sizes: dict[str, int],
    batch_first: bool,
) -> list[np.ndarray] | None:
    """The initial h and c, ``[D, H]`` each, where the file has them; None if not.

    Zeros are what a sequence starts from anyway. What the graph is given or computes is
    a state for ``apply``.
    """
    found: dict[str, np.ndarray] = {}
    outside = False
    for key in ("initial_h", "initial_c"):
        name = inputs.get(key)
        if name is None or starts.zero(name):
            continue
        try:
            value = starts.value(name)
        except folding.NotConstantError as error:
            outside = True
            if error.given is None:
                warnings.warn(
                    f"{where}: {key} is computed by the graph: {error}. Pass such a "
                    "state to apply.",
                    stacklevel=2,
                )
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {key}: {error}") from error
        found[key] = _one_row(f"{where}: {key}", value, sizes, batch_first)
    if not found:
        return None
    if outside:
        raise ValueError(
            f"{where}: expected initial_h and initial_c to be both constants or both "
            f"given to the graph, got only {', '.join(found)} as a constant."
        )
    dtype = next(iter(found.values())).dtype
    zeros = np.zeros((sizes["D"], sizes["H"]), dtype)
    return [found.get(key, zeros) for key in ("initial_h", "initial_c")]


def _one_row(
    where: str, value: np.ndarray, sizes: dict[str, int], batch_first: bool
) -> np.ndarray:
    """A state that all rows of a batch start from, ``[D, H]``."""
    if batch_first and value.ndim == 3:
        value = value.swapaxes(0, 1)
    shape, expected = value.shape, (sizes["D"], sizes["H"])
    fits = len(shape) == 3 and shape[1] > 0 and (shape[0], shape[2]) == expected
    if not fits or value.dtype not in tensors.FLOATING:
        raise ValueError(
            f"{where}: expected floats of shape [D, B, H] with D = {expected[0]} and "
            f"H = {expected[1]}, got {value.dtype} {list(shape)}."
        )
    first = value[:, :1]
    if not ((value == first) | (value != value) & (first != first)).all():
        raise ValueError(
            f"{where}: expected a constant that is the same for each row of a batch, "
            f"as a learned initial state is, got {shape[1]} rows that differ. Make it "
            "an input of the graph, and pass it to apply."
        )
    return value[:, 0]


def _check_lengths(
    where: str, inputs: dict[str, str], constants: folding.Constants
) -> None:
    """Says that lengths which are in the file are not in the model."""
    if "sequence_lens" not in inputs:
        return
    try:
        lengths = constants.value(inputs["sequence_lens"])
    except folding.NotConstantError:
        return
    warnings.warn(
        f"{where}: sequence_lens is a constant, {lengths.reshape(-1)[:8].tolist()}, "
        "which no model holds. Pass it to apply as lengths.",
        stacklevel=2,
    )
