"""What the kernels are told of a step."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import variants
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.cells.regularized import Noise, Noisy, Regularized
from lstm_jax.numerics import as_last_axes
from lstm_jax.recurrence.contract import Inputs
from lstm_jax.types import Array, LSTMParams

# Options that the kernels have, beside those that leave a step the standard one.
_OPTIONS = ("peephole", "variant", "layer_norm", "clip", "cell_clip", "num_heads")
_OWN_STATE = ("FGR",)


class Step(NamedTuple):
    """An LSTM's step, as the kernels know it.

    Attributes:
        cell: the LSTM.
        zoneout_h: the rate at which h is kept, where no mask says so.
        zoneout_c: the same of c.
    """

    cell: LSTMCell
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0

    @property
    def attributes(self) -> dict[str, Any]:
        """What a call says beside its buffers."""
        cell = self.cell
        limit = lambda value: np.float32(math.inf if value is None else value)
        return {
            "gates": variants.gates_of(cell.variant),
            "heads": np.int64(1 if cell.unitwise else cell.num_heads),
            "coupled": cell.variant == "CIFG",
            "linear_candidate": cell.variant == "NIAF",
            "linear_output": cell.variant == "NOAF",
            "clip": limit(cell.clip),
            "cell_clip": limit(cell.cell_clip),
            "zoneout_h": np.float32(self.zoneout_h),
            "zoneout_c": np.float32(self.zoneout_c),
        }


class Extras(NamedTuple):
    """What one direction of a step is given that the standard one is not.

    Attributes:
        diagonal: ``[gates, H]``, in place of a recurrent kernel where every unit is a
            head of its own.
        peephole: ``[gates that see c, H]``.
        recurrent_mask: ``[*batch, P]`` float32; h is multiplied by it on its way into
            the product.
        output_mask: the same of outputs.
        keep_h: ``[T, *batch, P]`` bool; where h is that of the step before.
        keep_c: ``[T, *batch, H]`` bool, the same of c.
        norm_scale: ``[2, gates * H]``, of layer normalisation, of what inputs and h
            contribute; with it comes ``cell_norm``.
        norm_shift: the same, where there is one.
        cell_norm: ``[2, H]``, the scale and the shift of c.
    """

    diagonal: Array | None = None
    peephole: Array | None = None
    recurrent_mask: Array | None = None
    output_mask: Array | None = None
    keep_h: Array | None = None
    keep_c: Array | None = None
    norm_scale: Array | None = None
    norm_shift: Array | None = None
    cell_norm: Array | None = None


def step_of(cell: Any) -> Step | None:
    """The step that a cell takes, if the kernels know it."""
    if isinstance(cell, Noisy):
        return step_of(cell.regularized)
    if isinstance(cell, Regularized):
        inside = step_of(cell.cell)
        if inside is None or not isinstance(cell.cell, LSTMCell):
            return None
        return inside._replace(zoneout_h=cell.zoneout_h, zoneout_c=cell.zoneout_c)
    if type(cell) is not LSTMCell or cell.variant in _OWN_STATE:
        return None
    return Step(cell) if cell.is_standard_but_for(*_OPTIONS) else None


def lstm_params(params: Any) -> LSTMParams:
    """The parameters of the LSTM itself."""
    return params.params if isinstance(params, Noise) else params


def given(cell: Any, inputs: Inputs) -> tuple[LSTMParams, Array, Extras]:
    """Parameters, inputs and extras of one direction."""
    params, xs, extras = inputs.params, inputs.xs, Extras()
    if isinstance(xs, tuple):
        xs, keep = xs
        extras = extras._replace(keep_h=keep[0], keep_c=keep[1])
    if isinstance(params, Noise):
        noise, params = params, params.params
        if noise.input_mask is not None:
            xs = xs * as_last_axes(noise.input_mask, xs)
        rounded = lambda mask: mask.astype(xs.dtype).astype(jnp.float32)
        if noise.recurrent_mask is not None:
            extras = extras._replace(recurrent_mask=rounded(noise.recurrent_mask))
        if noise.output_mask is not None:
            extras = extras._replace(output_mask=rounded(noise.output_mask))
    recurrent, diagonal = packed_heads(cell, params.recurrent_kernel)
    return (
        params._replace(recurrent_kernel=recurrent),
        xs,
        extras._replace(
            diagonal=diagonal,
            peephole=params.peephole,
            norm_scale=params.norm_scale,
            norm_shift=params.norm_shift,
            cell_norm=params.cell_norm,
        ),
    )


def packed_heads(cell: Any, kernel: Array) -> tuple[Array | None, Array | None]:
    """A recurrent kernel as the kernels take it: a matrix, or else a diagonal.

    Heads of several units become blocks of a matrix of zeros. The kernels pass over
    those, but for some at its edges: so what is not finite in one head may reach the
    others of its row.
    """
    if kernel.ndim == 2:
        return kernel, None
    heads, rows, columns = kernel.shape
    if _is_diagonal(cell):
        return None, kernel.reshape(heads, columns).T
    gates = _gates(cell)
    blocks = kernel.reshape(heads, rows, gates, 1, columns // gates)
    own = jnp.eye(heads, dtype=bool).reshape(heads, 1, 1, heads, 1)
    matrix = jnp.where(own, blocks, jnp.zeros((), kernel.dtype))
    return matrix.reshape(heads * rows, heads * columns), None


def unpacked_heads(cell: Any, kernel: Array, grads: tuple[Array, Array]) -> Array:
    """The gradient of a recurrent kernel, from those of what it became."""
    matrix, diagonal = grads
    if kernel.ndim == 2:
        return matrix
    if _is_diagonal(cell):
        return diagonal.T
    if not matrix.size:  # nobody wants it
        return matrix
    (heads, rows, columns), gates = kernel.shape, _gates(cell)
    blocks = matrix.reshape(heads, rows, gates, heads, columns // gates)
    own = jnp.arange(heads)
    return blocks[own, :, :, own]  # the others were never written


def packed_shapes(cell: Any, kernel: Any) -> tuple[Any, Any]:
    """The shapes of what a recurrent kernel becomes; None where there is none."""
    if kernel is None:
        return None, None
    return jax.eval_shape(lambda kernel: packed_heads(cell, kernel), kernel)


def _is_diagonal(cell: Any) -> bool:
    return _lstm_cell(cell).unitwise


def _gates(cell: Any) -> int:
    return len(variants.gates_of(_lstm_cell(cell).variant))


def _lstm_cell(cell: Any) -> LSTMCell:
    """The LSTM itself."""
    step = step_of(cell)
    assert step is not None  # or the kernels would not have been chosen
    return step.cell
