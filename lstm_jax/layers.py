"""Stacks of LSTM layers by their sizes and options."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, TypedDict

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax import connections, stack
from lstm_jax.cells.lstm_cell import Activation, Initializer, LSTMCell
from lstm_jax.cells.regularized import RATES, Regularized
from lstm_jax.cells.slstm import SLSTMCell
from lstm_jax.cells.variants import VARIANTS
from lstm_jax.checks import options, slips
from lstm_jax.descriptions.base import differs, without_functions
from lstm_jax.initializers import glorot_uniform, orthogonal
from lstm_jax.stack import Params as Params
from lstm_jax.stack import State as State

Rate = float | tuple[float, ...]

# The options of a stack that one layer may have otherwise than another.
_EACH_LAYER = (
    "hidden_size",
    "reverse",
    "variant",
    "input_dropout",
    "recurrent_dropout",
    "drop_connect",
    "zoneout_h",
    "zoneout_c",
)
# The options that no cell has.
_OF_THE_STACK = (
    "input_size",
    "num_layers",
    "bidirectional",
    "reverse",
    "merge",
    "dropout",
    "residual",
    "skip",
)


class LSTMOptions(TypedDict, total=False):
    """The options of :class:`LSTM` that go by name, each with the type it has there.

    ``**options: Unpack[LSTMOptions]`` lets editors and type checkers see them where a
    function hands them on.
    """

    bidirectional: bool
    reverse: bool | tuple[bool, ...]
    merge: str
    dropout: float
    residual: bool
    skip: bool
    input_dropout: Rate
    output_dropout: float
    recurrent_dropout: Rate
    drop_connect: Rate
    zoneout_h: Rate
    zoneout_c: Rate
    proj_size: int | None
    use_bias: bool
    forget_bias: float
    kernel_init: Initializer
    recurrent_init: Initializer
    bias_init: Initializer
    dtype: Any
    param_dtype: Any
    peephole: bool
    variant: str | tuple[str | None, ...] | None
    layer_norm: str | None
    gate_activation: Activation
    candidate_activation: Activation
    output_activation: Activation
    clip: float | None
    cell_clip: float | None
    num_heads: int
    learn_initial_state: bool


@slips.explained
@without_functions
@dataclasses.dataclass(frozen=True, repr=False)
class LSTM(stack.Layers):
    """A stack of LSTM layers, as a description that holds no arrays.

    ``params = model.init(key)``, then ``model.apply(params, xs, state=None)`` runs it
    over a sequence and returns ``(state, ys)``, and ``model.step(params, state, x)``
    takes one step.

    An option marked "each" may be a tuple with one value for each layer.

    Args:
        input_size: I, features of one input.
        hidden_size: H, units of every layer and direction; each, and then the tuple
            says how many layers there are.
        num_layers: L.
        bidirectional: see :class:`Stack`, as for the options up to ``skip``. By default
            the next layer sees both outputs side by side, forward first.
        reverse: see :class:`Stack`; each.
        merge: see :class:`Stack`.
        dropout: see :class:`Stack`.
        residual: see :class:`Stack`.
        skip: see :class:`Stack`.
        input_dropout: see :class:`Regularized`, as for the rates that follow; each.
        output_dropout: of the last layer's outputs.
        recurrent_dropout: each.
        drop_connect: each.
        zoneout_h: each.
        zoneout_c: each.
        proj_size: see :class:`LSTMCell`, as for the options that follow.
        use_bias: see :class:`LSTMCell`.
        forget_bias: see :class:`LSTMCell`.
        kernel_init: see :class:`LSTMCell`.
        recurrent_init: see :class:`LSTMCell`.
        bias_init: see :class:`LSTMCell`.
        dtype: see :class:`LSTMCell`.
        param_dtype: see :class:`LSTMCell`.
        peephole: see :class:`LSTMCell`.
        variant: see :class:`LSTMCell`; each. "sLSTM" makes an :class:`SLSTMCell` with
            its own defaults, to which only the options that it has apply.
        layer_norm: see :class:`LSTMCell`.
        gate_activation: see :class:`LSTMCell`.
        candidate_activation: see :class:`LSTMCell`.
        output_activation: see :class:`LSTMCell`.
        clip: see :class:`LSTMCell`.
        cell_clip: see :class:`LSTMCell`.
        num_heads: see :class:`LSTMCell`.
        learn_initial_state: see :class:`LSTMCell`.

    Raises:
        ValueError: if an option is out of its range, or the cell has none such.
        TypeError: if an option has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
        >>> params = model.init(jax.random.key(0))
        >>> state, ys = model.apply(params, jnp.ones((2, 7, 3)))
        >>> ys.shape, state[-1].backward.h.shape
        ((2, 7, 10), (2, 5))
    """

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    _: dataclasses.KW_ONLY
    bidirectional: bool = False
    reverse: bool | tuple[bool, ...] = False
    merge: str = "concat"
    dropout: float = 0.0
    residual: bool = False
    skip: bool = False
    input_dropout: Rate = 0.0
    output_dropout: float = 0.0
    recurrent_dropout: Rate = 0.0
    drop_connect: Rate = 0.0
    zoneout_h: Rate = 0.0
    zoneout_c: Rate = 0.0
    proj_size: int | None = None
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = glorot_uniform
    recurrent_init: Initializer = orthogonal
    bias_init: Initializer = initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32
    peephole: bool = False
    variant: str | tuple[str | None, ...] | None = None
    layer_norm: str | None = None
    gate_activation: Activation = jax.nn.sigmoid
    candidate_activation: Activation = jnp.tanh
    output_activation: Activation = jnp.tanh
    clip: float | None = None
    cell_clip: float | None = None
    num_heads: int = 1
    learn_initial_state: bool = False

    INIT_ONLY: ClassVar = LSTMCell.INIT_ONLY

    def __post_init__(self) -> None:
        """Checks the options."""
        self._normalise()
        options.check_positive("num_layers", self.num_layers)
        if isinstance(self.hidden_size, (tuple, list)):
            layers = len(self.hidden_size)
            if self.num_layers not in (1, layers) or not layers:
                raise ValueError(
                    f"hidden_size: expected one size or L = {self.num_layers} of them, "
                    f"got {layers}: {self.hidden_size}."
                )
            object.__setattr__(self, "num_layers", layers)
        for name in _EACH_LAYER:
            value = getattr(self, name)
            if isinstance(value, (tuple, list)):
                if len(value) != self.num_layers:
                    raise ValueError(
                        f"{name}: expected one value or L = {self.num_layers} of them, "
                        f"got {len(value)}: {value}."
                    )
                object.__setattr__(self, name, tuple(value))
        each = self.variant if isinstance(self.variant, tuple) else (self.variant,)
        for variant in each:
            options.check_choice("variant", variant, (None, *VARIANTS, "sLSTM"))
        connections.check_options(self)

    @functools.cached_property
    def cells(self) -> tuple[Any, ...]:
        """The cell of each layer, which both directions share."""
        cells, input_size = [], self.input_size
        for index in range(self.num_layers):
            cell = self._cell(index, input_size)
            cells.append(cell)
            input_size = cell.output_size * self._widening
            if self.skip:
                input_size += self.input_size
        return tuple(cells)

    def _cell(self, index: int, input_size: int) -> Any:
        """The cell of one layer, regularized if any rate is above 0."""
        chosen, rates = {"input_size": input_size}, {}
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in _EACH_LAYER and isinstance(value, tuple):
                value = value[index]
            if name in RATES:
                options.check_rate(name, value)
                rates[name] = value
            elif name not in _OF_THE_STACK and differs(value, field.default):
                chosen[name] = value
        if index < self.num_layers - 1:
            rates["output_dropout"] = 0.0
        cell = _make_cell(chosen)
        return Regularized(cell, **rates) if any(rates.values()) else cell


def _make_cell(chosen: dict[str, Any]) -> Any:
    """The cell of the kind that ``variant`` names, with the options ``chosen``."""
    if chosen.get("variant") != "sLSTM":
        return LSTMCell(**chosen)
    del chosen["variant"]
    known = {field.name for field in dataclasses.fields(SLSTMCell)}
    for name, value in chosen.items():
        if name not in known:
            raise ValueError(
                f"{name}: expected the default with variant='sLSTM', whose cell has no "
                f"such option, got {value!r}."
            )
    return SLSTMCell(**chosen)
