"""The convolutional LSTM cell: images, volumes or signals instead of vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import initializers

from lstm_jax.cells.base import LearnedStart
from lstm_jax.cells.lstm_cell import Activation, Initializer, LSTMCell
from lstm_jax.checks import arrays, options, slips
from lstm_jax.descriptions.base import without_functions
from lstm_jax.initializers import glorot_uniform, orthogonal
from lstm_jax.numerics import accumulation_dtype, as_last_axes, merges_rows
from lstm_jax.types import Array, LSTMParams, LSTMState

# One number for all spatial axes, or a tuple with one each; always that in a made cell.
Sizes = Any


@slips.explained
@without_functions
@dataclasses.dataclass(frozen=True, repr=False)
class ConvLSTMCell(LearnedStart):
    """One step of a convolutional LSTM, as a description that holds no arrays.

    The equations of :class:`LSTMCell` with convolutions for products, over 1, 2 or 3
    spatial axes, channels last: those of Keras's ``ConvLSTM1D``, ``2D`` and ``3D``,
    whose ``kernel``, ``recurrent_kernel`` and ``bias`` have our arrays.

    Shapes:
        S stands for the spatial axes of the state, those of the input after the input's
        convolution. ``kernel`` is ``[*kernel_size, I, 4H]``, ``recurrent_kernel``
        ``[*kernel_size, H, 4H]``, ``bias`` ``[4H]``, and h and c ``[*batch, *S, H]``.

    Args:
        input_shape: the shape of one input: 1 to 3 spatial axes, then the channels, I.
        hidden_size: H, output channels; Keras's ``filters``.
        kernel_size: of both convolutions: one number for all spatial axes, or one each.
        strides: of the input's convolution; the state's has none.
        padding: "same" or "valid", which is Keras's default, of the input's
            convolution; the state's is "same".
        dilation: of the input's convolution.
        peephole: whether the gates see the cell state, each unit at each place with its
            own weight, ``[3, *S, H]``, as in the paper; Keras has none.
        use_bias: whether there is a bias.
        forget_bias: added to the forget gate's bias at initialization.
        kernel_init: initializer of ``kernel``.
        recurrent_init: initializer of ``recurrent_kernel``.
        bias_init: initializer of ``bias``, before ``forget_bias`` is added.
        gate_activation: of i, f and o.
        candidate_activation: of g.
        output_activation: of c on the way to h.
        dtype: the compute dtype; None to compute in the dtype of the inputs.
        param_dtype: dtype of new parameters.
        learn_initial_state: whether the parameters hold the state that sequences start
            from and resets go back to; it starts at zeros.

    Raises:
        ValueError: if a size is not positive or there are not 1 to 3 spatial axes.
        TypeError: if an option has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.ConvLSTMCell((16, 16, 3), 8, kernel_size=3)
        >>> params = cell.init(jax.random.key(0))
        >>> state, ys = lj.scan(cell, params, jnp.ones((2, 5, 16, 16, 3)))
        >>> ys.shape
        (2, 5, 16, 16, 8)

    References:
        Shi et al. 2015, arXiv:1506.04214.
    """

    input_shape: tuple[int, ...] = dataclasses.field()
    hidden_size: int
    kernel_size: Sizes
    _: dataclasses.KW_ONLY
    strides: Sizes = 1
    padding: str = "same"
    dilation: Sizes = 1
    peephole: bool = False
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = glorot_uniform
    recurrent_init: Initializer = orthogonal
    bias_init: Initializer = initializers.zeros
    gate_activation: Activation = jax.nn.sigmoid
    candidate_activation: Activation = jnp.tanh
    output_activation: Activation = jnp.tanh
    dtype: Any = None
    param_dtype: Any = jnp.float32
    learn_initial_state: bool = False

    additive: ClassVar[bool] = True
    convolves: ClassVar[bool] = True
    INIT_ONLY: ClassVar[tuple[str, ...]] = LSTMCell.INIT_ONLY
    param_letters: ClassVar[dict[str, str]] = {
        ".kernel": "[*kernel_size, I, 4H]",
        ".recurrent_kernel": "[*kernel_size, H, 4H]",
        ".bias": "[4H]",
        ".peephole": "[3, *S, H]",
        ".initial_h": "[*S, H]",
        ".initial_c": "[*S, H]",
    }
    state_letters: ClassVar[dict[str, str]] = {".h": "*S, H", ".c": "*S, H"}

    def __post_init__(self) -> None:
        """Checks the options and makes each size a tuple, one for each spatial axis."""
        self._normalise()
        options.check_cell(self)
        options.check_choice("padding", self.padding, ("same", "valid"))
        axes = options.check_spatial_shape("input_shape", self.input_shape)
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        for name in ("kernel_size", "strides", "dilation"):
            sizes = options.one_each(name, getattr(self, name), axes)
            object.__setattr__(self, name, sizes)
        for name in ("gate_activation", "candidate_activation", "output_activation"):
            options.check_callable(name, getattr(self, name), "jax.nn.hard_sigmoid")
        if min(self.output_shape) < 1:
            raise ValueError(
                f"kernel_size: expected at most the input, {self.input_shape[:-1]}, "
                f"with padding='valid', got {self.kernel_size} with dilation "
                f"{self.dilation}."
            )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of one output, and of h and c: ``(*S, H)``."""
        spatial = []
        for axis, stride in enumerate(self.strides):
            size = self.input_shape[axis]
            if self.padding == "valid":
                size -= self.dilation[axis] * (self.kernel_size[axis] - 1)
            spatial.append(-(-size // stride))
        return (*spatial, self.hidden_size)

    @property
    def output_size(self) -> int:
        """H: the channels of one output."""
        return self.hidden_size

    @slips.explained
    def init(self, key: Array) -> LSTMParams:
        """Returns new parameters, in ``param_dtype``, by Keras's defaults."""
        kernel_key, recurrent_key, bias_key = jax.random.split(key, 3)
        dtype, hidden = accumulation_dtype(self.param_dtype), self.hidden_size
        bias = peephole = None
        if self.use_bias:
            bias = self.bias_init(bias_key, (4 * hidden,), dtype)
            bias = bias.at[hidden : 2 * hidden].add(self.forget_bias)
        if self.peephole:
            peephole = jnp.zeros((3, *self.output_shape), dtype)
        learned = self.learn_initial_state
        start = lambda: jnp.zeros(self.output_shape, dtype) if learned else None
        columns = 4 * hidden
        params = LSTMParams(
            kernel=self.kernel_init(
                kernel_key, (*self.kernel_size, self.input_shape[-1], columns), dtype
            ),
            recurrent_kernel=self.recurrent_init(
                recurrent_key, (*self.kernel_size, hidden, columns), dtype
            ),
            bias=bias,
            peephole=peephole,
            initial_h=start(),
            initial_c=start(),
        )
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), params)

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> LSTMState:
        """Returns the state of zeros: see :meth:`LSTMCell.zero_state`."""
        if dtype is None:
            dtype = jnp.float32 if self.dtype is None else self.dtype
        shape = (*arrays.check_batch_shape(batch_shape), *self.output_shape)
        return LSTMState(
            jnp.zeros(shape, dtype), jnp.zeros(shape, accumulation_dtype(dtype))
        )

    def project(self, params: LSTMParams, xs: Array) -> Array:
        """Returns the inputs' convolution and the bias, ``[..., *S, 4H]``."""
        zs = _convolve(
            xs, params.kernel, self.strides, self.padding.upper(), self.dilation
        )
        return zs if params.bias is None else zs + as_last_axes(params.bias, zs)

    def recur(self, params: LSTMParams, state: LSTMState) -> Array:
        """Returns the hidden state's convolution, ``[..., *S, 4H]``."""
        one = (1,) * len(self.strides)
        return _convolve(state.h, params.recurrent_kernel, one, "SAME", one)

    def update(
        self, params: LSTMParams, state: LSTMState, z: Array, r: Array
    ) -> tuple[LSTMState, Array]:
        """Returns ``(state, y)`` from ``z + r``, ``[..., *S, 4H]``."""
        i, f, g, o = jnp.split(z + r, 4, axis=-1)
        i = self.gate_activation(_see(params.peephole, 0, i, state.c))
        f = self.gate_activation(_see(params.peephole, 1, f, state.c))
        c = f * state.c + i * self.candidate_activation(g)
        o = self.gate_activation(_see(params.peephole, 2, o, c))
        h = (o * self.output_activation(c)).astype(state.h.dtype)
        return LSTMState(h, c), h


def _see(peephole: Array | None, row: int, gate: Array, c: Array) -> Array:
    """A gate's pre-activation with what it sees of the cell state."""
    return gate if peephole is None else gate + as_last_axes(peephole[row], c) * c


def _convolve(
    xs: Array,
    kernel: Array,
    strides: tuple[int, ...],
    padding: str,
    dilation: tuple[int, ...],
) -> Array:
    """A convolution over any leading axes, channels last, in float32 or wider.

    Both sides are widened first: JAX can't transpose a convolution that accumulates in
    a wider dtype than that of its arguments.
    """
    axes = len(strides)
    wide = accumulation_dtype(kernel.dtype)
    # Of several leading axes time is the first. Made the last it leaves those of the
    # batch in front, which may be cut over devices.
    moved = xs.ndim - axes > 2 and not merges_rows()
    xs = jnp.moveaxis(xs, 0, xs.ndim - axes - 2) if moved else xs
    leading = xs.shape[: xs.ndim - axes - 1]
    letters = "DHW"[3 - axes :]
    out = lax.conv_general_dilated(
        xs.reshape(math.prod(leading), *xs.shape[len(leading) :]).astype(wide),
        kernel.astype(wide),
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    out = out.reshape(*leading, *out.shape[1:])
    return jnp.moveaxis(out, len(leading) - 1, 0) if moved else out
