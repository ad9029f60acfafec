"""The stack as a Flax Linen module: the same options, the same functions underneath."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from lstm_jax import layers
from lstm_jax.cells.lstm_cell import GLOROT_UNIFORM, ORTHOGONAL, Activation, Initializer
from lstm_jax.types import Array, Directions, LSTMParams


class _Stack(nn.Module):
    """What the modules below share: a subclass has the attribute ``model``."""

    def setup(self) -> None:
        """Declares one set of parameters for each layer and direction."""
        self.layers = [
            self.param(f"layer_{index}", self._init_layer, cell)
            for index, cell in enumerate(self.model.cells)
        ]

    @nn.nowrap
    def _init_layer(self, key: Array, cell: Any) -> dict[str, dict[str, Array]]:
        keys = jax.random.split(key, 2 if self.model.bidirectional else 1)
        return _as_dict(Directions(*(cell.init(key) for key in keys)))

    def __call__(
        self,
        xs: Array,
        state: layers.State | None = None,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        deterministic: bool = True,
        time_major: bool = False,
        checkpoint_every: int | str | None = None,
        implementation: str | None = None,
    ) -> tuple[layers.State, Array]:
        """Runs the stack over a sequence; see :meth:`lstm_jax.LSTM.apply`.

        Args:
            xs: see :meth:`lstm_jax.LSTM.apply`, as for what is not named below.
            state: see :meth:`lstm_jax.LSTM.apply`.
            lengths: see :meth:`lstm_jax.LSTM.apply`.
            mask: see :meth:`lstm_jax.LSTM.apply`.
            reset: see :meth:`lstm_jax.LSTM.apply`.
            deterministic: False turns dropout and all other noise on; pass
                ``rngs={"dropout": key}``.
            time_major: see :meth:`lstm_jax.LSTM.apply`.
            checkpoint_every: see :meth:`lstm_jax.LSTM.apply`.
            implementation: see :meth:`lstm_jax.LSTM.apply`.

        Returns:
            ``(state, ys)``: see :meth:`lstm_jax.LSTM.apply`.

        Raises:
            ValueError: see :meth:`lstm_jax.LSTM.apply`.
            TypeError: see :meth:`lstm_jax.LSTM.apply`.
        """
        key = None
        if self.model.noisy and not deterministic:
            key = self.make_rng("dropout")
        return self.model.apply(
            self._params(),
            xs,
            state,
            lengths=lengths,
            mask=mask,
            reset=reset,
            key=key,
            time_major=time_major,
            checkpoint_every=checkpoint_every,
            implementation=implementation,
        )

    def step(self, state: layers.State, x: Array) -> tuple[layers.State, Array]:
        """Takes one step through the stack; see :meth:`lstm_jax.LSTM.step`.

        Call it as ``model.apply(variables, state, x, method="step")``.
        """
        return self.model.step(self._params(), state, x)

    @nn.nowrap
    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> layers.State:
        """Returns zeros; see :meth:`lstm_jax.LSTM.zero_state`."""
        return self.model.zero_state(batch_shape, dtype)

    @nn.nowrap
    def _params(self) -> layers.Params:
        return tuple(_from_dict(layer) for layer in self.layers)


class Stack(_Stack):
    """A stack of any cells whose parameters are ``LSTMParams``, for Flax Linen.

    Args:
        model: an :class:`lstm_jax.Stack` or :class:`lstm_jax.LSTM`.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> from lstm_jax.linen import Stack
        >>> cells = lj.LSTMCell(3, 8), lj.SLSTMCell(8, 8, num_heads=2)
        >>> model, xs = Stack(lj.Stack(cells)), jnp.ones((2, 7, 3))
        >>> variables = model.init(jax.random.key(0), xs)
        >>> state, ys = model.apply(variables, xs)
        >>> ys.shape
        (2, 7, 8)
    """

    model: Any


class LSTM(_Stack):
    """A stack of LSTM layers, for Flax Linen.

    The options are those of :class:`lstm_jax.LSTM`, and so are the errors they raise.
    Parameters are found under ``layer_0/forward/kernel`` and so on.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax.linen import LSTM
        >>> model, xs = LSTM(3, 5, num_layers=2), jnp.ones((2, 7, 3))
        >>> variables = model.init(jax.random.key(0), xs)
        >>> state, ys = model.apply(variables, xs, lengths=jnp.array([7, 4]))
        >>> ys.shape, state[-1].forward.h.shape
        ((2, 7, 5), (2, 5))
    """

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    _: dataclasses.KW_ONLY
    bidirectional: bool = False
    merge: str = "concat"
    dropout: float = 0.0
    residual: bool = False
    skip: bool = False
    input_dropout: layers.Rate = 0.0
    output_dropout: float = 0.0
    recurrent_dropout: layers.Rate = 0.0
    drop_connect: layers.Rate = 0.0
    zoneout_h: layers.Rate = 0.0
    zoneout_c: layers.Rate = 0.0
    proj_size: int | None = None
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = GLOROT_UNIFORM
    recurrent_init: Initializer = ORTHOGONAL
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

    def __post_init__(self) -> None:
        """Checks the options, and makes tuples of lists."""
        for name, value in vars(_describe(self)).items():
            if isinstance(value, tuple):
                setattr(self, name, value)
        super().__post_init__()

    @property
    def model(self) -> layers.LSTM:
        """The :class:`lstm_jax.LSTM` that the options describe."""
        return _describe(self)


def params_of(variables: Any) -> layers.Params:
    """Returns the module's parameters as :meth:`lstm_jax.LSTM.apply` takes them.

    Args:
        variables: of an :class:`LSTM`. For one inside a larger model, pass
            ``{"params": variables["params"][name]}``.

    Raises:
        ValueError: if the variables are not those of an :class:`LSTM`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax import linen
        >>> variables = linen.LSTM(3, 5).init(jax.random.key(0), jnp.ones((7, 3)))
        >>> linen.params_of(variables)[0].forward.kernel.shape
        (3, 20)
    """
    tree = variables.get("params", {})
    if not tree or set(tree) != {f"layer_{index}" for index in range(len(tree))}:
        raise ValueError(
            "variables: expected {'params': {'layer_0': ...}}, as model.init returns "
            f"it, got the keys {sorted(variables)} and in 'params' {sorted(tree)}. In "
            "a larger model's variables this module's are under its name."
        )
    return tuple(_from_dict(tree[f"layer_{index}"]) for index in range(len(tree)))


def variables_of(params: layers.Params) -> dict[str, Any]:
    """Returns the module's variables that hold ``params``, converted weights say.

    Args:
        params: as from :meth:`lstm_jax.LSTM.init`.

    Raises:
        TypeError: if ``params`` are not :class:`Directions`, one for each layer.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax import linen
        >>> params = lj.LSTM(3, 5).init(jax.random.key(0))
        >>> list(linen.variables_of(params)["params"])
        ['layer_0']
    """
    if not all(isinstance(layer, Directions) for layer in params):
        raise TypeError(
            "params: expected a tuple of Directions, one for each layer, as from "
            f"lstm_jax.LSTM.init, got {type(params).__name__}."
        )
    tree = {f"layer_{index}": _as_dict(layer) for index, layer in enumerate(params)}
    return {"params": tree}


def _describe(module: LSTM) -> layers.LSTM:
    """Reads the options without the wrapper that Flax puts around a module's methods.

    The wrapper would run ``setup`` of a module that is still being made.
    """
    names = [field.name for field in dataclasses.fields(layers.LSTM)]
    return layers.LSTM(**{name: getattr(module, name) for name in names})


def _as_dict(layer: Directions) -> dict[str, dict[str, Array]]:
    return {
        direction: {n: p for n, p in one._asdict().items() if p is not None}
        for direction, one in layer._asdict().items()
        if one is not None
    }


def _from_dict(tree: Any) -> Directions:
    return Directions(**{name: LSTMParams(**one) for name, one in tree.items()})
