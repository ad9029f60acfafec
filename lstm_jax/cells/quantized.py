"""The LSTM cell whose products are of 8-bit integers."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.cells import bitwise
from lstm_jax.cells.base import LearnedStart
from lstm_jax.cells.int8 import DEEPEST, int8_matmul, quantize_columns
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.checks import arrays, slips
from lstm_jax.numerics import as_last_axes
from lstm_jax.types import Array, LSTMParams, LSTMState, serializable


@serializable
class QuantizedParams(NamedTuple):
    """The parameters of one layer in one direction, in 8 bits.

    A matrix is ``values * scale``: int8 from -127 to 127, and a float32 for each of its
    columns, of its own.

    Attributes:
        kernel: input weights, int8 ``[I, 4H]``.
        kernel_scale: ``[4H]``.
        recurrent_kernel: recurrent weights, int8 ``[P, 4H]``.
        recurrent_scale: ``[4H]``.
        bias: ``[4H]`` in float32, or None for a layer without bias.
        projection_kernel: int8 ``[H, P]``, or None for a layer without projection.
        projection_scale: ``[P]``, or None.
        initial_h: ``[P]``, learned start, or None.
        initial_c: ``[H]``, of the same.

    Example:
        >>> import jax, lstm_jax as lj
        >>> params = lj.QuantizedLSTMCell(3, 5).init(jax.random.key(0))
        >>> params.kernel.dtype.name, params.kernel_scale.shape
        ('int8', (20,))
    """

    kernel: Array
    kernel_scale: Array
    recurrent_kernel: Array
    recurrent_scale: Array
    bias: Array | None = None
    projection_kernel: Array | None = None
    projection_scale: Array | None = None
    initial_h: Array | None = None
    initial_c: Array | None = None


@slips.explained
@dataclasses.dataclass(frozen=True, repr=False)
class QuantizedLSTMCell(LearnedStart):
    """One step of an LSTM whose matrix products are of 8-bit integers, for inference.

    :func:`quantize` makes it of an :class:`LSTMCell`, and its parameters of that one's.
    A product is ``x W`` with ``x`` rounded to 8 bits, by its own largest number in each
    row and step, and summed in 32 bits; scales, gates, sums and c are float32. So a
    row's result depends on nothing but that row: not on the others, on padding, or on
    how a sequence is cut; nor, to the bit, on the implementation or the machine. Inputs
    may be float32, bfloat16 or float16; outputs are float32. A row with a number that
    is not finite becomes NaN.

    Args:
        input_size: see :class:`LSTMCell`, as for all of them.
        hidden_size: see :class:`LSTMCell`.
        proj_size: see :class:`LSTMCell`.
        use_bias: see :class:`LSTMCell`.
        clip: see :class:`LSTMCell`.
        cell_clip: see :class:`LSTMCell`.
        learn_initial_state: see :class:`LSTMCell`.

    Raises:
        ValueError: if a size or an option is out of its range.
        TypeError: if an option has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.QuantizedLSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> state, ys = lj.scan(cell, params, jnp.ones((2, 7, 3)))
        >>> ys.shape, ys.dtype.name
        ((2, 7, 5), 'float32')
    """

    input_size: int
    hidden_size: int
    _: dataclasses.KW_ONLY
    proj_size: int | None = None
    use_bias: bool = True
    clip: float | None = None
    cell_clip: float | None = None
    learn_initial_state: bool = False

    additive = True
    dtype = np.dtype(np.float32)
    # What float32 holds exactly.
    input_dtypes = ("float32", "bfloat16", "float16")

    def __post_init__(self) -> None:
        """Checks the options."""
        self._normalise()
        self._plain  # noqa: B018 - the checks are those of the cell it is made of
        for name in ("input_size", "hidden_size"):
            if getattr(self, name) > DEEPEST:
                raise ValueError(
                    f"{name}: expected at most {DEEPEST}, so that sums of products in "
                    f"8 bits fit in 32, got {getattr(self, name)}."
                )

    @property
    def _plain(self) -> LSTMCell:
        """The cell that this one is made of, without what only training needs."""
        fields = dataclasses.fields(self)
        return LSTMCell(**{field.name: getattr(self, field.name) for field in fields})

    @property
    def input_shape(self) -> tuple[int]:
        """The shape of one input: ``(I,)``."""
        return (self.input_size,)

    @property
    def output_size(self) -> int:
        """P: the size of h and of one output."""
        return self.hidden_size if self.proj_size is None else self.proj_size

    @property
    def param_letters(self) -> dict[str, str]:
        """The letters of the parameters' shapes."""
        scales = {
            ".kernel_scale": "[4H]",
            ".recurrent_scale": "[4H]",
            ".projection_scale": "[P]",
        }
        return self._plain.param_letters | scales

    @property
    def state_letters(self) -> dict[str, str]:
        """The letters of the state's shapes, without batch axes."""
        return {".h": "H" if self.proj_size is None else "P", ".c": "H"}

    @slips.explained
    def init(self, key: Array) -> QuantizedParams:
        """Returns new parameters of an :class:`LSTMCell`, quantised."""
        return quantized_params(self._plain.init(key))

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> LSTMState:
        """Returns the state of zeros for a batch of shape ``batch_shape``.

        Args:
            batch_shape: the batch axes; ``()`` for none.
            dtype: of h, float32 whatever it says.
        """
        del dtype
        batch_shape = arrays.check_batch_shape(batch_shape)
        h = jnp.zeros((*batch_shape, self.output_size), jnp.float32)
        return LSTMState(h, jnp.zeros((*batch_shape, self.hidden_size), jnp.float32))

    def check_differentiable(self) -> None:
        """Says that there is no gradient.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(bitwise.NO_GRADIENT)

    def project(self, params: QuantizedParams, xs: Array) -> Array:
        """Returns ``xs @ kernel + bias``, ``[..., 4H]``."""
        zs = int8_matmul(xs, params.kernel, params.kernel_scale)
        return zs if params.bias is None else zs + as_last_axes(params.bias, zs)

    def recur(self, params: QuantizedParams, state: LSTMState) -> Array:
        """Returns ``h @ recurrent_kernel``, ``[..., 4H]``."""
        return int8_matmul(state.h, params.recurrent_kernel, params.recurrent_scale)

    def update(
        self, params: QuantizedParams, state: LSTMState, z: Array, r: Array
    ) -> tuple[LSTMState, Array]:
        """Returns ``(state, y)`` from what inputs and state contribute."""
        i, f, g, o = jnp.split(_clipped(z + r, self.clip), 4, axis=-1)
        c = bitwise.times_sigmoid(state.c, f) + bitwise.tanh_times_sigmoid(g, i)
        c = _clipped(c, self.cell_clip)
        h = bitwise.tanh_times_sigmoid(c, o)
        if params.projection_kernel is not None:
            h = int8_matmul(h, params.projection_kernel, params.projection_scale)
        return LSTMState(h, c), h


def _clipped(x: Array, limit: float | None) -> Array:
    return x if limit is None else bitwise.limited(x, np.float32(limit))


def quantized_params(params: LSTMParams) -> QuantizedParams:
    """Rounds the matrices of a standard cell's parameters to 8 bits."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    projection, projection_scale = None, None
    if params.projection_kernel is not None:
        projection, projection_scale = quantize_columns(params.projection_kernel)
    return QuantizedParams(
        *quantize_columns(params.kernel),
        *quantize_columns(params.recurrent_kernel),
        bias=params.bias,
        projection_kernel=projection,
        projection_scale=projection_scale,
        initial_h=params.initial_h,
        initial_c=params.initial_c,
    )
