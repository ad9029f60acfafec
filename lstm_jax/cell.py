"""The standard LSTM cell: the definition of one step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax import shapes
from lstm_jax.types import Array, LSTMParams, LSTMState

Initializer = Callable[..., Array]

GLOROT_UNIFORM = initializers.glorot_uniform()
ORTHOGONAL = initializers.orthogonal()


def accumulation_dtype(dtype: Any) -> jnp.dtype:
    """The dtype in which products of ``dtype`` are summed: float32 or wider."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype).itemsize > 4 else jnp.float32)


def matmul(x: Array, kernel: Array) -> Array:
    """``x @ kernel``, accumulated in float32 or wider, over any leading axes of ``x``.

    The leading axes are made one first: the product's transpose, a weight gradient, is
    then one plain matrix product, which XLA:CPU runs 1.6 times as fast as a contraction
    over several axes.
    """
    *leading, size = x.shape
    rows = x.reshape(math.prod(leading), size).astype(kernel.dtype)
    out = jnp.matmul(
        rows, kernel, preferred_element_type=accumulation_dtype(kernel.dtype)
    )
    return out.reshape(*leading, kernel.shape[1])


@dataclasses.dataclass(frozen=True)
class LSTMCell:
    r"""One step of the standard LSTM, as a description that holds no arrays.

    .. math::
        i, f, g, o &= \sigma, \sigma, \tanh, \sigma
            (x W + h_{t-1} R + b) \\
        c_t &= f \odot c_{t-1} + i \odot g \\
        h_t &= o \odot \tanh(c_t), \quad
            \text{with a projection } h_t = (o \odot \tanh(c_t)) W_p

    Args:
        input_size: I, features of one input.
        hidden_size: H, units.
        proj_size: P, the size h is projected to; None for no projection (P is H).
        use_bias: whether there is a bias.
        forget_bias: added to the forget gate's bias at initialization, so that a new
            cell remembers (Jozefowicz et al. 2015). It is part of the stored bias.
        kernel_init: initializer of ``kernel`` and ``projection_kernel``.
        recurrent_init: initializer of ``recurrent_kernel``, as one ``[P, 4H]`` matrix.
        bias_init: initializer of ``bias``, before ``forget_bias`` is added.
        dtype: the compute dtype; None to compute in the dtype of the inputs. Products
            accumulate in float32 or wider, and so is c carried.
        param_dtype: dtype of new parameters.

    Raises:
        ValueError: if a size is not positive, or P is not smaller than H.
        TypeError: if a size is not an integer, or a dtype is not a floating one.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.LSTMCell(3, 5)
        >>> params = cell.init(jax.random.key(0))
        >>> state, y = cell(params, cell.zero_state((2,)), jnp.ones((2, 3)))
        >>> y.shape, state.c.shape
        ((2, 5), (2, 5))

    References:
        Hochreiter and Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735; with the forget
        gate of Gers et al. 2000, doi:10.1162/089976600300015015. Projection: Sak et al.
        2014, arXiv:1402.1128.
    """

    input_size: int
    hidden_size: int
    _: dataclasses.KW_ONLY
    proj_size: int | None = None
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = GLOROT_UNIFORM
    recurrent_init: Initializer = ORTHOGONAL
    bias_init: Initializer = initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32

    input_ndim: ClassVar[int] = 1
    additive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Checks the options."""
        shapes.check_cell_options(self)

    @property
    def output_size(self) -> int:
        """P: the size of h and of one output."""
        return self.hidden_size if self.proj_size is None else self.proj_size

    @classmethod
    def for_params(cls, params: LSTMParams) -> LSTMCell:
        """Returns the standard cell whose parameters have the shapes of ``params``.

        Raises:
            TypeError: if ``params`` is not an :class:`LSTMParams`.
            ValueError: if the shapes do not fit together.
        """
        input_size, hidden_size, proj_size = shapes.sizes_of(params)
        cell = cls(
            input_size,
            hidden_size,
            proj_size=proj_size,
            use_bias=params.bias is not None,
        )
        shapes.check_params(cell, params)
        return cell

    def init(self, key: Array) -> LSTMParams:
        """Returns new parameters, in ``param_dtype``.

        The defaults are Keras's: kernel Glorot uniform, recurrent kernel orthogonal,
        bias 0 and 1 for the forget gate. Values are drawn in float32 or wider and then
        cast, since an orthogonal matrix made in bfloat16 is not orthogonal.
        """
        kernel_key, recurrent_key, bias_key, projection_key = jax.random.split(key, 4)
        dtype = accumulation_dtype(self.param_dtype)
        gates = 4 * self.hidden_size
        bias = projection_kernel = None
        if self.use_bias:
            bias = self.bias_init(bias_key, (gates,), dtype)
            forget = slice(self.hidden_size, 2 * self.hidden_size)
            bias = bias.at[forget].add(self.forget_bias)
        if self.proj_size is not None:
            shape = (self.hidden_size, self.proj_size)
            projection_kernel = self.kernel_init(projection_key, shape, dtype)
        params = LSTMParams(
            kernel=self.kernel_init(kernel_key, (self.input_size, gates), dtype),
            recurrent_kernel=self.recurrent_init(
                recurrent_key, (self.output_size, gates), dtype
            ),
            bias=bias,
            projection_kernel=projection_kernel,
        )
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), params)

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> LSTMState:
        """Returns the state of zeros for a batch of shape ``batch_shape``.

        Args:
            batch_shape: the batch axes; ``()`` for none.
            dtype: of h, by default the cell's ``dtype`` or else float32; c is at least
                float32.
        """
        if dtype is None:
            dtype = jnp.float32 if self.dtype is None else self.dtype
        batch_shape = shapes.check_batch_shape(batch_shape)
        return LSTMState(
            h=jnp.zeros((*batch_shape, self.output_size), dtype),
            c=jnp.zeros((*batch_shape, self.hidden_size), accumulation_dtype(dtype)),
        )

    def project(self, params: LSTMParams, xs: Array) -> Array:
        """Returns ``xs @ kernel + bias``, ``[..., 4H]``."""
        zs = matmul(xs, params.kernel)
        if params.bias is None:
            return zs
        bias = params.bias.astype(zs.dtype)
        return zs + jnp.expand_dims(bias, tuple(range(zs.ndim - 1)))

    def recur(self, params: LSTMParams, state: LSTMState) -> Array:
        """Returns ``h @ recurrent_kernel``, ``[..., 4H]``."""
        return matmul(state.h, params.recurrent_kernel)

    def update(
        self, params: LSTMParams, state: LSTMState, z: Array, r: Array
    ) -> tuple[LSTMState, Array]:
        """Returns ``(state, y)`` from the pre-activations ``z + r``, ``[..., 4H]``."""
        i, f, g, o = jnp.split(z + r, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        h = h.astype(state.h.dtype)
        if params.projection_kernel is not None:
            h = matmul(h, params.projection_kernel).astype(state.h.dtype)
        return LSTMState(h, c), h

    def __call__(
        self, params: LSTMParams, state: LSTMState, x: Array
    ) -> tuple[LSTMState, Array]:
        """Takes one step.

        Shapes:
            ``x`` is ``[*batch, I]``, ``state`` holds ``[*batch, P]`` and ``[*batch,
            H]``.

        Args:
            params: as from :meth:`init`.
            state: the state before the step.
            x: the input of the step.

        Returns:
            ``(state, y)``: the state after the step, and the output, which is its h.

        Raises:
            TypeError: if ``state`` is not an :class:`LSTMState`, or a dtype is wrong.
            ValueError: if a shape is wrong.
        """
        shapes.check_params(self, params)
        shapes.check_step_input(self, x)
        state = shapes.conform_state(self, "state", state, x.shape[:-1], x.dtype)
        return _step(self, params, state, x)


def cast_params(params: Any, dtype: Any) -> Any:
    """Casts every leaf of a cell's parameters to the compute dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


@jax.jit(static_argnames="cell")
def _step(
    cell: LSTMCell, params: LSTMParams, state: LSTMState, x: Array
) -> tuple[LSTMState, Array]:
    dtype = x.dtype if cell.dtype is None else cell.dtype
    params = cast_params(params, dtype)
    z = cell.project(params, x.astype(dtype))
    return cell.update(params, state, z, cell.recur(params, state))
