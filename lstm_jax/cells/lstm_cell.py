"""The LSTM cell: the definition of one step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax.cells import variants
from lstm_jax.cells.base import LearnedStart
from lstm_jax.checks import arrays, options, slips, trees
from lstm_jax.descriptions.base import without_functions
from lstm_jax.initializers import glorot_uniform, orthogonal
from lstm_jax.numerics import accumulation_dtype, as_last_axes, heads_matmul, matmul
from lstm_jax.types import Array, LSTMParams, LSTMState

Initializer = Callable[..., Array]
Activation = Callable[[Array], Array]


@slips.explained
@without_functions
@dataclasses.dataclass(frozen=True, repr=False)
class LSTMCell(LearnedStart):
    r"""One step of an LSTM, as a description that holds no arrays.

    By default it is the standard one:

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
        bias_init: initializer of ``bias``, before ``forget_bias`` is added; for long
            dependencies ``lstm_jax.initializers.chrono(t_max)``.
        dtype: the compute dtype; None to compute in the dtype of the inputs. Products
            accumulate in float32 or wider, and so is c carried.
        param_dtype: dtype of new parameters.
        peephole: whether the gates see the cell state, i and f the one before the step
            and o the one after it (Gers and Schmidhuber 2000).
        variant: one change of the equations by its name in "A Search Space Odyssey":
            "NIG", "NFG", "NOG" for no input, forget or output gate (it is 1), "CIFG"
            for coupled gates (f is 1 - i), "NIAF", "NOAF" for no candidate or output
            activation, "FGR" for full gate recurrence (i, f and o also see i, f and o
            of the step before; the state is then a ``GateState``), "NP" or None for
            none. The paper's cells all have peepholes but NP: pass ``peephole=True``
            for those.
        layer_norm: "haste" for ``LN(x W) + LN(h R) + b`` with a scale each, and
            ``h = o * act(LN(c))`` with scale and shift, as Haste computes it; "ba" for
            the same with a shift at each, as Ba et al. write it (arXiv:1607.06450). All
            gates are normalised together, with epsilon 1e-5.
        gate_activation: of i, f and o; Keras's ``recurrent_activation``. The hard
            sigmoid of Keras 3 is ``jax.nn.hard_sigmoid``, of slope 1/6; that of Keras 1
            and 2, TensorFlow 1 and ONNX is another, ``clip(0.2 * x + 0.5, 0, 1)``.
        candidate_activation: of g.
        output_activation: of c on the way to h.
        clip: pre-activations are clipped to [-clip, clip], as in ONNX.
        cell_clip: the same of c, before it is put out and handed on.
        num_heads: N, into how many blocks the recurrent kernel is divided: units see
            only those of their own head. With H of them a unit sees only itself, and
            :func:`parallel_scan` is Newton's method with exact 2 by 2 Jacobians;
            ``num_heads=H, variant="CIFG", peephole=True`` is ParaRNN's LSTM.
        learn_initial_state: whether the parameters hold the state that sequences start
            from and resets go back to; it starts at zeros.

    Raises:
        ValueError: if a size is not positive, P is not smaller than H, or an option is
            out of its range.
        TypeError: if an option has the wrong type.

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
        2014, arXiv:1402.1128. Variants: Greff et al. 2015, arXiv:1503.04069. Haste:
        github.com/lmnt-com/haste. ParaRNN: Danieli et al. 2025, arXiv:2510.21450.
    """

    input_size: int
    hidden_size: int
    _: dataclasses.KW_ONLY
    proj_size: int | None = None
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = glorot_uniform
    recurrent_init: Initializer = orthogonal
    bias_init: Initializer = initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32

    peephole: bool = False
    variant: str | None = None
    layer_norm: str | None = None
    gate_activation: Activation = jax.nn.sigmoid
    candidate_activation: Activation = jnp.tanh
    output_activation: Activation = jnp.tanh
    clip: float | None = None
    cell_clip: float | None = None
    num_heads: int = 1
    learn_initial_state: bool = False

    INIT_ONLY: ClassVar[tuple[str, ...]] = (
        "forget_bias",
        "kernel_init",
        "recurrent_init",
        "bias_init",
        "param_dtype",
    )
    # Options that leave a step the standard one. Any other makes it the reference's.
    STANDARD: ClassVar[tuple[str, ...]] = (
        *("input_size", "hidden_size", "proj_size", "use_bias", "dtype"),
        *("learn_initial_state", *INIT_ONLY),
    )

    def __post_init__(self) -> None:
        """Checks the options."""
        self._normalise()
        options.check_cell(self)
        options.check_heads(self.num_heads, hidden_size=self.hidden_size)
        options.check_heads(self.num_heads, proj_size=self.output_size)
        variants.check_options(self)
        if self.variant == "NP":
            object.__setattr__(self, "variant", None)

    @property
    def input_shape(self) -> tuple[int]:
        """The shape of one input: ``(I,)``."""
        return (self.input_size,)

    @property
    def output_size(self) -> int:
        """P: the size of h and of one output."""
        return self.hidden_size if self.proj_size is None else self.proj_size

    @property
    def standard(self) -> bool:
        """Whether the steps are those of the standard LSTM, which has fast kernels."""
        return type(self) is LSTMCell and self.is_standard_but_for()

    def is_standard_but_for(self, *names: str) -> bool:
        """Whether only these options may make a step another than the standard one."""
        return all(
            getattr(self, field.name) == field.default
            for field in dataclasses.fields(self)
            if field.name not in (*self.STANDARD, *names)
        )

    @property
    def unitwise(self) -> bool:
        """Whether what a unit holds depends on no other unit's h and c."""
        mixed = self.proj_size or self.layer_norm or self.variant == "FGR"
        return self.num_heads == self.hidden_size and not mixed

    @property
    def param_letters(self) -> dict[str, str]:
        """The letters of the parameters' shapes."""
        gates, h = len(variants.gates_of(self.variant)), self.state_letters[".h"]
        columns = f"{gates}H"
        recurrent = f"[{h}, {columns}]"
        if self.num_heads > 1:
            recurrent = f"[N, {h}/N, {columns}/N]"
        return {
            ".kernel": f"[I, {columns}]",
            ".recurrent_kernel": recurrent,
            ".bias": f"[{columns}]",
            ".projection_kernel": "[H, P]",
            ".peephole": f"[{len(variants.peephole_gates(self.variant))}, H]",
            ".gate_kernel": "[3H, 3H]",
            ".norm_scale": f"[2, {columns}]",
            ".norm_shift": f"[2, {columns}]",
            ".cell_norm": "[2, H]",
            ".initial_h": f"[{h}]",
            ".initial_c": "[H]",
        }

    @property
    def state_letters(self) -> dict[str, str]:
        """The letters of the state's shapes, without batch axes."""
        h = "H" if self.proj_size is None else "P"
        return {".h": h, ".c": "H", ".gates": "3H"}

    @property
    def additive(self) -> bool:
        """Whether a step depends on inputs and state through their sum alone."""
        return self.layer_norm is None

    @classmethod
    def for_params(cls, params: LSTMParams) -> LSTMCell:
        """Returns the cell whose parameters have the shapes of ``params``.

        It is the standard one, with peepholes and a learned start if they are there.

        Raises:
            TypeError: if ``params`` is not an :class:`LSTMParams`.
            ValueError: if the shapes do not fit together.
        """
        input_size, hidden_size, proj_size = trees.sizes_of(params)
        cell = cls(
            input_size,
            hidden_size,
            proj_size=proj_size,
            use_bias=params.bias is not None,
            peephole=params.peephole is not None,
            learn_initial_state=params.initial_h is not None,
        )
        trees.check_params(cell, params)
        return cell

    @slips.explained
    def init(self, key: Array) -> LSTMParams:
        """Returns new parameters, in ``param_dtype``.

        The defaults are Keras's: kernel Glorot uniform, recurrent kernel orthogonal,
        bias 0 and 1 for the forget gate. Peepholes, shifts and a learned start are 0,
        scales 1. Values are drawn in float32 or wider and then cast, since an
        orthogonal matrix made in bfloat16 is not orthogonal.
        """
        keys = jax.random.split(key, 4)
        kernel_key, recurrent_key, bias_key, projection_key = keys
        dtype = accumulation_dtype(self.param_dtype)
        columns = len(variants.gates_of(self.variant)) * self.hidden_size
        projection_kernel = None
        if self.proj_size is not None:
            shape = (self.hidden_size, self.proj_size)
            projection_kernel = self.kernel_init(projection_key, shape, dtype)
        params = LSTMParams(
            kernel=self.kernel_init(kernel_key, (self.input_size, columns), dtype),
            recurrent_kernel=init_recurrent(
                self.recurrent_init,
                recurrent_key,
                (self.output_size, columns),
                self.num_heads,
                dtype,
            ),
            bias=self._init_bias(bias_key, columns, dtype),
            projection_kernel=projection_kernel,
            **self._init_options(jax.random.fold_in(recurrent_key, 1), columns, dtype),
        )
        return jax.tree.map(lambda leaf: leaf.astype(self.param_dtype), params)

    def _init_bias(self, key: Array, columns: int, dtype: Any) -> Array | None:
        if not self.use_bias:
            return None
        bias = self.bias_init(key, (columns,), dtype)
        gates = variants.gates_of(self.variant)
        if "f" not in gates:
            return bias
        start = gates.index("f") * self.hidden_size
        return bias.at[start : start + self.hidden_size].add(self.forget_bias)

    def _init_options(self, key: Array, columns: int, dtype: Any) -> dict[str, Array]:
        """The parameters that the standard cell has not."""
        hidden, extra = self.hidden_size, {}
        if self.peephole:
            rows = len(variants.peephole_gates(self.variant))
            extra["peephole"] = jnp.zeros((rows, hidden), dtype)
        if self.variant == "FGR":
            shape = (3 * hidden, 3 * hidden)
            extra["gate_kernel"] = self.recurrent_init(key, shape, dtype)
        if self.layer_norm is not None:
            extra["norm_scale"] = jnp.ones((2, columns), dtype)
            extra["cell_norm"] = jnp.stack(
                [jnp.ones(hidden, dtype), jnp.zeros(hidden, dtype)]
            )
        if self.layer_norm == "ba":
            extra["norm_shift"] = jnp.zeros((2, columns), dtype)
        if self.learn_initial_state:
            extra["initial_h"] = jnp.zeros(self.output_size, dtype)
            extra["initial_c"] = jnp.zeros(hidden, dtype)
        return extra

    def zero_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Any:
        """Returns the state of zeros for a batch of shape ``batch_shape``.

        Args:
            batch_shape: the batch axes; ``()`` for none.
            dtype: of h, by default the cell's ``dtype`` or else float32; c is at least
                float32.
        """
        if dtype is None:
            dtype = jnp.float32 if self.dtype is None else self.dtype
        batch_shape, wide = arrays.check_batch_shape(batch_shape), accumulation_dtype
        h = jnp.zeros((*batch_shape, self.output_size), dtype)
        c = jnp.zeros((*batch_shape, self.hidden_size), wide(dtype))
        if self.variant != "FGR":
            return LSTMState(h, c)
        gates = jnp.zeros((*batch_shape, 3 * self.hidden_size), c.dtype)
        return variants.GateState(h, c, gates)

    def project(self, params: LSTMParams, xs: Array) -> Array:
        """Returns ``xs @ kernel + bias``, ``[..., 4H]``, the product normalised."""
        zs = variants.normalise(params, 0, matmul(xs, params.kernel))
        return zs if params.bias is None else zs + as_last_axes(params.bias, zs)

    def recur(self, params: LSTMParams, state: Any) -> Array:
        """Returns ``h @ recurrent_kernel``, ``[..., 4H]``."""
        if self.num_heads > 1:
            gates = len(variants.gates_of(self.variant))
            r = heads_matmul(state.h, params.recurrent_kernel, gates)
        else:
            r = matmul(state.h, params.recurrent_kernel)
        if self.variant == "FGR":
            r = r + variants.recur_gates(params.gate_kernel, state.gates)
        return r

    def update(
        self, params: LSTMParams, state: Any, z: Array, r: Array
    ) -> tuple[Any, Array]:
        """Returns ``(state, y)`` from what inputs and state contribute."""
        if not self.standard:
            return self._update_variant(params, state, z, r)
        i, f, g, o = jnp.split(z + r, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = self._put_out(params, state, jax.nn.sigmoid(o) * jnp.tanh(c))
        return LSTMState(h, c), h

    def _update_variant(
        self, params: LSTMParams, state: Any, z: Array, r: Array
    ) -> tuple[Any, Array]:
        h, c, gates = variants.update(self, params, state, z, r)
        h = self._put_out(params, state, h)
        if self.variant == "FGR":
            gates = jnp.concatenate([gates[name] for name in "ifo"], axis=-1)
            return variants.GateState(h, c, gates), h
        return LSTMState(h, c), h

    def _put_out(self, params: LSTMParams, state: Any, h: Array) -> Array:
        """Casts h to the dtype of the state and projects it."""
        h = h.astype(state.h.dtype)
        if params.projection_kernel is None:
            return h
        return matmul(h, params.projection_kernel).astype(state.h.dtype)


def init_recurrent(
    initializer: Initializer, key: Array, shape: tuple[int, int], heads: int, dtype: Any
) -> Array:
    """A recurrent kernel: one matrix of ``shape``, or the blocks of its diagonal."""
    if heads == 1:
        return initializer(key, shape, dtype)
    block = (shape[0] // heads, shape[1] // heads)
    keys = jax.random.split(key, heads)
    return jnp.stack([initializer(key, block, dtype) for key in keys])
