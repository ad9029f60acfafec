"""The sLSTM cell of xLSTM: exponential gates, a normaliser and a stabiliser."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax.cells.base import LearnedStart
from lstm_jax.cells.lstm_cell import (
    Initializer,
    init_recurrent,
)
from lstm_jax.checks import arrays, options, slips
from lstm_jax.descriptions.base import without_functions
from lstm_jax.initializers import glorot_uniform
from lstm_jax.numerics import accumulation_dtype, as_last_axes, heads_matmul, matmul
from lstm_jax.types import Array, LSTMParams, serializable


@serializable
class SLSTMState(NamedTuple):
    """What an sLSTM carries from one step to the next.

    Attributes:
        h: hidden state, ``[*batch, H]``, in the compute dtype.
        c: cell state, ``[*batch, H]``, in float32 or wider, as what follows.
        n: normaliser, ``[*batch, H]``; 0 where there was no step yet.
        m: stabiliser, ``[*batch, H]``: the logarithm that c and n are scaled by.

    Example:
        >>> import lstm_jax as lj
        >>> state = lj.SLSTMCell(3, 4).zero_state((2,))
        >>> state._fields, state.n.shape
        (('h', 'c', 'n', 'm'), (2, 4))
    """

    h: Array
    c: Array
    n: Array
    m: Array


@slips.explained
@without_functions
@dataclasses.dataclass(frozen=True, repr=False)
class SLSTMCell(LearnedStart):
    r"""One step of the sLSTM, as a description that holds no arrays.

    .. math::
        c_t = f c_{t-1} + i g, \quad n_t = f n_{t-1} + i, \quad h_t = o \, c_t / n_t

    with ``i = exp`` of its pre-activation, ``g = tanh``, ``o = sigmoid`` and ``f``
    either. What grows without bound is kept as ``c exp(-m)`` and ``n exp(-m)``, with
    ``m_t = max(log f + m_{t-1}, log i)``, so that nothing overflows; h is the same.

    Args:
        input_size: I, features of one input.
        hidden_size: H, units.
        num_heads: N, into how many blocks the recurrent kernel is divided: units see
            only those of their own head.
        forget_gate: "sigmoid" or "exponential".
        use_bias: whether there is a bias.
        kernel_init: initializer of ``kernel``.
        recurrent_init: initializer of ``recurrent_kernel``, block by block.
        bias_init: initializer of ``bias``; None for the authors' own: 0, and for the
            forget gate from 5 at a head's first unit down to -7 at its last, by a power
            law, so that units remember over many different spans.
        dtype: the compute dtype; None to compute in the dtype of the inputs. Products
            accumulate in float32 or wider, and so are c, n and m carried.
        param_dtype: dtype of new parameters.
        learn_initial_state: whether the parameters hold the state that sequences start
            from and resets go back to: h and c, with n = 1 and m = 0.

    Raises:
        ValueError: if a size is not positive, or ``num_heads`` does not divide H.
        TypeError: if an option has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.SLSTMCell(3, 8, num_heads=2)
        >>> params = cell.init(jax.random.key(0))
        >>> state, ys = lj.scan(cell, params, jnp.ones((2, 7, 3)))
        >>> ys.shape, params.recurrent_kernel.shape
        ((2, 7, 8), (2, 4, 16))

    References:
        Beck et al. 2024, arXiv:2405.04517, section 2.2 and appendix A.2.
    """

    input_size: int
    hidden_size: int
    _: dataclasses.KW_ONLY
    num_heads: int = 1
    forget_gate: str = "sigmoid"
    use_bias: bool = True
    kernel_init: Initializer = glorot_uniform
    recurrent_init: Initializer = initializers.zeros
    bias_init: Initializer | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    learn_initial_state: bool = False

    additive: ClassVar[bool] = True
    INIT_ONLY: ClassVar[tuple[str, ...]] = (
        "kernel_init",
        "recurrent_init",
        "bias_init",
        "param_dtype",
    )
    state_letters: ClassVar[dict[str, str]] = {
        ".h": "H",
        ".c": "H",
        ".n": "H",
        ".m": "H",
    }

    def __post_init__(self) -> None:
        """Checks the options."""
        self._normalise()
        options.check_cell(self)
        options.check_heads(self.num_heads, hidden_size=self.hidden_size)
        options.check_choice(
            "forget_gate", self.forget_gate, ("sigmoid", "exponential")
        )

    @property
    def input_shape(self) -> tuple[int]:
        """The shape of one input: ``(I,)``."""
        return (self.input_size,)

    @property
    def unitwise(self) -> bool:
        """Whether what a unit holds depends on no other unit's state."""
        return self.num_heads == self.hidden_size

    @property
    def param_letters(self) -> dict[str, str]:
        """The letters of the parameters' shapes."""
        recurrent = "[H, 4H]" if self.num_heads == 1 else "[N, H/N, 4H/N]"
        return {
            ".kernel": "[I, 4H]",
            ".recurrent_kernel": recurrent,
            ".bias": "[4H]",
            ".initial_h": "[H]",
            ".initial_c": "[H]",
        }

    @property
    def output_size(self) -> int:
        """H: the size of one output."""
        return self.hidden_size

    @slips.explained
    def init(self, key: Array) -> LSTMParams:
        """Returns new parameters, in ``param_dtype``."""
        kernel_key, recurrent_key, bias_key = jax.random.split(key, 3)
        dtype = accumulation_dtype(self.param_dtype)
        hidden, columns = self.hidden_size, 4 * self.hidden_size
        start = lambda: jnp.zeros(hidden, dtype) if self.learn_initial_state else None
        recurrent_kernel = init_recurrent(
            self.recurrent_init,
            recurrent_key,
            (hidden, columns),
            self.num_heads,
            dtype,
        )
        params = LSTMParams(
            kernel=self.kernel_init(kernel_key, (self.input_size, columns), dtype),
            recurrent_kernel=recurrent_kernel,
            bias=self._init_bias(bias_key, dtype) if self.use_bias else None,
            initial_h=start(),
            initial_c=start(),
        )
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), params)

    def _init_bias(self, key: Array, dtype: Any) -> Array:
        if self.bias_init is not None:
            return self.bias_init(key, (4 * self.hidden_size,), dtype)
        units = jnp.linspace(0, 1, self.hidden_size // self.num_heads, dtype=dtype)
        forget = jnp.tile(5 - 12 * units ** jnp.asarray(0.3, dtype), self.num_heads)
        zeros = jnp.zeros_like(forget)
        return jnp.concatenate([zeros, forget, zeros, zeros])

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> SLSTMState:
        """Returns the state of zeros: see :meth:`LSTMCell.zero_state`."""
        if dtype is None:
            dtype = jnp.float32 if self.dtype is None else self.dtype
        shape = (*arrays.check_batch_shape(batch_shape), self.hidden_size)
        c, n, m = (jnp.zeros(shape, accumulation_dtype(dtype)) for _ in range(3))
        return SLSTMState(jnp.zeros(shape, dtype), c, n, m)

    def initial_state(
        self, params: LSTMParams, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> SLSTMState:
        """Returns the state that sequences start from: the learned one, or zeros."""
        state = super().initial_state(params, batch_shape, dtype)
        if not self.learn_initial_state:
            return state
        return state._replace(n=jnp.ones_like(state.n))

    def project(self, params: LSTMParams, xs: Array) -> Array:
        """Returns ``xs @ kernel + bias``, ``[..., 4H]``."""
        zs = matmul(xs, params.kernel)
        return zs if params.bias is None else zs + as_last_axes(params.bias, zs)

    def recur(self, params: LSTMParams, state: SLSTMState) -> Array:
        """Returns ``h @ recurrent_kernel``, ``[..., 4H]``."""
        if self.num_heads == 1:
            return matmul(state.h, params.recurrent_kernel)
        return heads_matmul(state.h, params.recurrent_kernel, 4)

    def update(
        self, params: LSTMParams, state: SLSTMState, z: Array, r: Array
    ) -> tuple[SLSTMState, Array]:
        """Returns ``(state, y)`` from the pre-activations ``z + r``, ``[..., 4H]``."""
        log_i, log_f, g, o = jnp.split(z + r, 4, axis=-1)
        if self.forget_gate == "sigmoid":
            log_f = jax.nn.log_sigmoid(log_f)
        # Before the first step there is nothing to forget: m = log i whatever f is, as
        # in the authors' code, so that n, their quotient's divisor, becomes 1.
        first = state.n == 0
        kept = log_f + state.m
        m = jnp.where(first, log_i, jnp.maximum(kept, log_i))
        f = jnp.where(first, jnp.zeros_like(m), jnp.exp(jnp.minimum(kept - m, 0)))
        i = jnp.exp(log_i - m)
        c = f * state.c + i * jnp.tanh(g)
        n = f * state.n + i
        h = (jax.nn.sigmoid(o) * c / n).astype(state.h.dtype)
        return SLSTMState(h, c, n, m), h
