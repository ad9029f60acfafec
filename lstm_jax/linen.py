"""The stack as a Flax Linen module: the same options, the same functions underneath."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from lstm_jax import layers
from lstm_jax.cell import GLOROT_UNIFORM, ORTHOGONAL, Initializer, LSTMCell
from lstm_jax.types import Array, Directions, LSTMParams


class LSTM(nn.Module):
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
    proj_size: int | None = None
    use_bias: bool = True
    forget_bias: float = 1.0
    kernel_init: Initializer = GLOROT_UNIFORM
    recurrent_init: Initializer = ORTHOGONAL
    bias_init: Initializer = initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the options."""
        self.hidden_size = _describe(self).hidden_size
        super().__post_init__()

    @property
    def model(self) -> layers.LSTM:
        """The :class:`lstm_jax.LSTM` that the options describe."""
        return _describe(self)

    def setup(self) -> None:
        """Declares one set of parameters for each layer and direction."""
        self.layers = [
            self.param(f"layer_{index}", self._init_layer, cell)
            for index, cell in enumerate(self.model.cells)
        ]

    @nn.nowrap
    def _init_layer(self, key: Array, cell: LSTMCell) -> dict[str, dict[str, Array]]:
        one = dataclasses.replace(
            self.model,
            input_size=cell.input_size,
            hidden_size=cell.hidden_size,
            num_layers=1,
        )
        return _as_dict(one.init(key)[0])

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
        checkpoint_every: int | None = None,
        implementation: str | None = None,
    ) -> tuple[layers.State, Array]:
        """Runs the stack over a sequence; see :meth:`lstm_jax.LSTM.apply`.

        Args:
            xs: see :meth:`lstm_jax.LSTM.apply`, as for what is not named below.
            state: see :meth:`lstm_jax.LSTM.apply`.
            lengths: see :meth:`lstm_jax.LSTM.apply`.
            mask: see :meth:`lstm_jax.LSTM.apply`.
            reset: see :meth:`lstm_jax.LSTM.apply`.
            deterministic: False turns dropout on; pass ``rngs={"dropout": key}``.
            time_major: see :meth:`lstm_jax.LSTM.apply`.
            checkpoint_every: see :meth:`lstm_jax.LSTM.apply`.
            implementation: see :meth:`lstm_jax.LSTM.apply`.

        Returns:
            ``(state, ys)``: see :meth:`lstm_jax.LSTM.apply`.

        Raises:
            ValueError: see :meth:`lstm_jax.LSTM.apply`.
            TypeError: see :meth:`lstm_jax.LSTM.apply`.
        """
        dropped = self.dropout and not deterministic
        return self.model.apply(
            self._params(),
            xs,
            state,
            lengths=lengths,
            mask=mask,
            reset=reset,
            key=self.make_rng("dropout") if dropped else None,
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
