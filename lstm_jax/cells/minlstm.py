"""The minLSTM cell: gates that see the inputs alone, so that a step is linear in h."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax.cells.base import Cell
from lstm_jax.cells.lstm_cell import Initializer
from lstm_jax.checks import arrays, options, slips
from lstm_jax.descriptions.base import without_functions
from lstm_jax.initializers import glorot_uniform
from lstm_jax.numerics import accumulation_dtype, as_last_axes, matmul
from lstm_jax.types import Array, PyTree, serializable


@serializable
class MinLSTMState(NamedTuple):
    """What a minLSTM carries from one step to the next.

    Attributes:
        h: ``[*batch, H]``, in float32 or wider. It is the memory, so that it is carried
            as c of an LSTM is; outputs have the compute dtype.

    Example:
        >>> import lstm_jax as lj
        >>> state = lj.MinLSTMCell(3, 5).zero_state((2,))
        >>> state._fields, state.h.shape
        (('h',), (2, 5))
    """

    h: Array


@serializable
class MinLSTMParams(NamedTuple):
    """The parameters of a minLSTM.

    Attributes:
        kernel: input weights, ``[I, 3H]``, for i, f and the candidate g.
        bias: ``[3H]``, or None for a layer without bias.

    Example:
        >>> import jax, lstm_jax as lj
        >>> lj.MinLSTMCell(3, 5).init(jax.random.key(0)).kernel.shape
        (3, 15)
    """

    kernel: Array
    bias: Array | None = None


@slips.explained
@without_functions
@dataclasses.dataclass(frozen=True, repr=False)
class MinLSTMCell(Cell):
    r"""One step of the minLSTM, as a description that holds no arrays.

    .. math::
        i, f, g &= x W + b, \qquad
        i' = \frac{\sigma(i)}{\sigma(f) + \sigma(i)}, \quad
        f' = \frac{\sigma(f)}{\sigma(f) + \sigma(i)} \\
        h_t &= f' \odot h_{t-1} + i' \odot g

    The gates do not see the state: there are no recurrent weights, and
    :func:`parallel_scan` runs all steps as one associative scan, exact at once, with
    the decay f' as its logarithm.

    Args:
        input_size: I, features of one input.
        hidden_size: H, units.
        positive: whether g is made positive, ``g + 0.5`` from 0 on and ``sigmoid(g)``
            below, as in the paper's log-space form: h is then positive where the state
            it started from is. That form also puts the state it is given through this
            function; here a state is what the steps go on from, as it is.
        use_bias: whether there is a bias.
        forget_bias: added to the forget gate's bias at initialization.
        kernel_init: initializer of ``kernel``.
        bias_init: initializer of ``bias``, before ``forget_bias`` is added.
        dtype: the compute dtype; None to compute in the dtype of the inputs. Products
            accumulate in float32 or wider, and so is h carried.
        param_dtype: dtype of new parameters.

    Raises:
        ValueError: if a size is not positive.
        TypeError: if an option has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.MinLSTMCell(3, 5)
        >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((2, 7, 3))
        >>> state, ys = lj.scan(cell, params, xs)
        >>> _, same, report = lj.parallel_scan(cell, params, xs)
        >>> ys.shape, bool(jnp.allclose(ys, same, atol=1e-6)), int(report.iterations)
        ((2, 7, 5), True, 1)

    References:
        Feng et al. 2024, "Were RNNs All We Needed?", arXiv:2410.01201, section 3.2 and
        appendix B; the log-space form is its B.3.2.
    """

    input_size: int
    hidden_size: int
    _: dataclasses.KW_ONLY
    positive: bool = False
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = glorot_uniform
    bias_init: Initializer = initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32

    unitwise: ClassVar[bool] = True
    INIT_ONLY: ClassVar[tuple[str, ...]] = (
        "forget_bias",
        "kernel_init",
        "bias_init",
        "param_dtype",
    )
    param_letters: ClassVar[dict[str, str]] = {".kernel": "[I, 3H]", ".bias": "[3H]"}
    state_letters: ClassVar[dict[str, str]] = {".h": "H"}

    def __post_init__(self) -> None:
        """Checks the options."""
        self._normalise()
        options.check_cell(self)

    @property
    def input_shape(self) -> tuple[int]:
        """The shape of one input: ``(I,)``."""
        return (self.input_size,)

    @property
    def output_size(self) -> int:
        """H: the size of one output."""
        return self.hidden_size

    @slips.explained
    def init(self, key: Array) -> MinLSTMParams:
        """Returns new parameters, in ``param_dtype``.

        The defaults are those of :class:`LSTMCell`: kernel Glorot uniform, bias 0 and 1
        for the forget gate.
        """
        kernel_key, bias_key = jax.random.split(key)
        dtype, hidden = accumulation_dtype(self.param_dtype), self.hidden_size
        kernel = self.kernel_init(kernel_key, (self.input_size, 3 * hidden), dtype)
        bias = None
        if self.use_bias:
            bias = self.bias_init(bias_key, (3 * hidden,), dtype)
            bias = bias.at[hidden : 2 * hidden].add(self.forget_bias)
        params = MinLSTMParams(kernel, bias)
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), params)

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> MinLSTMState:
        """Returns the state of zeros for a batch of shape ``batch_shape``.

        Args:
            batch_shape: the batch axes; ``()`` for none.
            dtype: of the computation, by default the cell's ``dtype`` or else float32;
                h is at least float32.
        """
        if dtype is None:
            dtype = jnp.float32 if self.dtype is None else self.dtype
        shape = (*arrays.check_batch_shape(batch_shape), self.hidden_size)
        return MinLSTMState(jnp.zeros(shape, accumulation_dtype(dtype)))

    def project(self, params: MinLSTMParams, xs: Array) -> Array:
        """Returns ``xs @ kernel + bias``, ``[..., 3H]``."""
        zs = matmul(xs, params.kernel)
        return zs if params.bias is None else zs + as_last_axes(params.bias, zs)

    def recur(self, params: MinLSTMParams, state: MinLSTMState) -> PyTree:
        """Returns nothing: the gates do not see the state."""
        del params, state
        return ()

    def update(
        self, params: MinLSTMParams, state: MinLSTMState, z: Array, r: PyTree
    ) -> tuple[MinLSTMState, Array]:
        """Returns ``(state, y)`` from what the inputs contribute, ``[..., 3H]``."""
        (log_f, log_i), g = self._gates_and_candidate(z)
        new = jnp.exp(log_i) * g
        # What f' takes away has the digits that f', rounded next to 1, has not: over
        # many steps they count.
        changed = state.h + (new + jnp.expm1(log_f) * state.h)
        replaced = new + jnp.exp(log_f) * state.h
        h = jnp.where(log_f > log_i, changed, replaced)
        return MinLSTMState(h), h.astype(params.kernel.dtype)

    def affine_steps(
        self, params: MinLSTMParams, zs: Array
    ) -> tuple[MinLSTMState, MinLSTMState]:
        """Returns ``(log_a, b)`` of the steps ``h' = exp(log_a) h + b``."""
        del params
        (log_f, log_i), g = self._gates_and_candidate(zs)
        return MinLSTMState(log_f), MinLSTMState(jnp.exp(log_i) * g)

    def _gates_and_candidate(self, z: Array) -> tuple[tuple[Array, Array], Array]:
        """The logarithms of f' and i', and the candidate, each ``[..., H]``.

        Logarithms, since a sigmoid's derivative, s * (1 - s), has no digits where s is
        next to 1. Both follow from those of the sigmoids, log(i' / f').
        """
        i, f, g = jnp.split(z, 3, axis=-1)
        odds = jax.nn.softplus(-f) - jax.nn.softplus(-i)
        if self.positive:
            g = jnp.where(g < 0, jax.nn.sigmoid(g), g + 0.5)
        return (-jax.nn.softplus(odds), -jax.nn.softplus(-odds)), g
