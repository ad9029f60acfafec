"""Steps that are not the standard one: each as a change of the standard equations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from lstm_jax.checks import options
from lstm_jax.initializers import chrono_bias
from lstm_jax.numerics import as_last_axes, matmul
from lstm_jax.types import Array, LSTMParams, serializable

# The names of "LSTM: A Search Space Odyssey" (arXiv:1503.04069). Its NP is the standard
# cell, and its other eight have peepholes.
VARIANTS = ("NIG", "NFG", "NOG", "NIAF", "NOAF", "CIFG", "NP", "FGR")
LAYER_NORMS = ("haste", "ba")
_MISSING_GATE = {"NIG": "i", "NFG": "f", "NOG": "o", "CIFG": "f"}
_EPSILON = 1e-5


@serializable
class GateState(NamedTuple):
    """What an LSTM with full gate recurrence carries from one step to the next.

    Attributes:
        h: hidden state, ``[*batch, P]``, in the compute dtype.
        c: cell state, ``[*batch, H]``, in float32 or wider.
        gates: the gates i, f, o of the step before, ``[*batch, 3H]``, as c.

    Example:
        >>> import lstm_jax as lj
        >>> state = lj.LSTMCell(3, 5, variant="FGR").zero_state((2,))
        >>> type(state).__name__, state.gates.shape
        ('GateState', (2, 15))
    """

    h: Array
    c: Array
    gates: Array


def check_options(cell: Any) -> None:
    """Checks the options of an ``LSTMCell`` that change its steps."""
    options.check_choice("variant", cell.variant, (None, *VARIANTS))
    options.check_choice("layer_norm", cell.layer_norm, (None, *LAYER_NORMS))
    if cell.variant == "NP" and cell.peephole:
        raise ValueError(
            "peephole: expected False with variant='NP', which is the one without "
            "peepholes, got True."
        )
    if getattr(cell.bias_init, "func", None) is chrono_bias and (
        gates_of(cell.variant) != "ifgo"
    ):
        raise ValueError(
            f"bias_init: expected another than chrono, which is for the gates i, f, g "
            f"and o, with variant={cell.variant!r}, whose gates are "
            f"{', '.join(gates_of(cell.variant))}."
        )
    activations = ("gate_activation", "candidate_activation", "output_activation")
    for name in activations:
        options.check_callable(name, getattr(cell, name), "jax.nn.hard_sigmoid")
    for name in ("clip", "cell_clip"):
        options.check_limit(name, getattr(cell, name))


def gates_of(variant: str | None) -> str:
    """The gates that a variant has weights for, in their order."""
    return "ifgo".replace(_MISSING_GATE.get(variant or "", " "), "")


def peephole_gates(variant: str | None) -> str:
    """The gates that see the cell state through peepholes."""
    return gates_of(variant).replace("g", "")


def identity(x: Array) -> Array:
    """Returns ``x``: the activation that is none."""
    return x


def layer_norm(x: Array, scale: Array, shift: Array | None) -> Array:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    x = centred * lax.rsqrt(variance + _EPSILON) * as_last_axes(scale, x)
    return x if shift is None else x + as_last_axes(shift, x)


def normalise(params: LSTMParams, part: int, x: Array) -> Array:
    """Normalises what the inputs (part 0) or the state (part 1) contribute."""
    if params.norm_scale is None:
        return x
    shift = None if params.norm_shift is None else params.norm_shift[part]
    return layer_norm(x, params.norm_scale[part], shift)


def recur_gates(gate_kernel: Any, gates: Array) -> Array:
    """What the gates of the step before contribute, ``[..., 4H]``."""
    i, f, o = jnp.split(matmul(gates, gate_kernel), 3, axis=-1)
    return jnp.concatenate([i, f, jnp.zeros_like(i), o], axis=-1)


def update(
    cell: Any, params: LSTMParams, state: Any, z: Array, r: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """One step of an ``LSTMCell`` with any of its options, projection apart.

    Returns:
        ``(h, c, gates)``: ``o * act(c)``, c, and the gates i, f, o by name.
    """
    names = gates_of(cell.variant)
    z = z + normalise(params, 1, r)
    pre = dict(zip(names, jnp.split(z, len(names), axis=-1), strict=True))
    activated = {}

    def gate(name: str, seen: Array) -> Array | float:
        """A gate that sees the cell state ``seen``; 1 where the variant has none."""
        if name not in pre:
            return 1.0
        value = pre[name]
        if params.peephole is not None:
            row = params.peephole[peephole_gates(cell.variant).index(name)]
            value = value + as_last_axes(row, value) * seen
        activated[name] = cell.gate_activation(_clip(value, cell.clip))
        return activated[name]

    i = gate("i", state.c)
    f = 1 - i if cell.variant == "CIFG" else gate("f", state.c)
    candidate = identity if cell.variant == "NIAF" else cell.candidate_activation
    c = f * state.c + i * candidate(_clip(pre["g"], cell.clip))
    c = _clip(c, cell.cell_clip)
    out = c
    if params.cell_norm is not None:
        out = layer_norm(c, *params.cell_norm)
    output = identity if cell.variant == "NOAF" else cell.output_activation
    h = gate("o", c) * output(out)
    return h, c, activated


def _clip(x: Array, limit: float | None) -> Array:
    return x if limit is None else jnp.clip(x, -limit, limit)
