"""The stack as a Flax Linen module: the same options, the same functions underneath."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Unpack, get_type_hints

import jax
from flax import linen as nn

from lstm_jax import boxes, layers, naming
from lstm_jax.checks import border, options, slips
from lstm_jax.types import Array, Directions

__all__ = ("LSTM", "Stack", "params_of", "variables_of")


def _open(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, nn.meta.AxisMetadata):
        return value, None
    (array,), box = jax.tree.flatten(value)
    return array, box


def _close(box: Any, array: Array, axes: int) -> Any:
    boxed = box.unflatten([array])
    for _ in range(axes):
        boxed = nn.meta.add_axis(boxed, 0, {nn.meta.PARTITION_NAME: None})
    return boxed


_BOXES = boxes.Boxes("flax.linen.with_partitioning", _open, _close)


class _Stack(nn.Module):
    """What the modules below share: a subclass has the attribute ``model``."""

    def setup(self) -> None:
        """Declares one set of parameters for each layer and direction."""
        self.layers = [
            self._layer(f"layer_{index}", cell)
            for index, cell in enumerate(self.model.cells)
        ]

    @nn.nowrap
    def _layer(self, name: str, cell: Any) -> Any:
        # Flax would compare given parameters with new ones at each call, leaf by leaf
        # whatever their names; what is wrong with them is better said by the stack.
        if self.has_variable("params", name):
            return nn.meta.unbox(self.get_variable("params", name))
        return self.param(name, self._init_layer, cell)

    @nn.nowrap
    def _init_layer(self, key: Array, cell: Any) -> dict[str, Any]:
        keys = jax.random.split(key, 2 if self.model.bidirectional else 1)
        init = boxes.opened(cell, _BOXES).init
        params = [boxes.boxed(cell, _BOXES, init(key)) for key in keys]
        return _as_dict(Directions(*params), nn.meta.is_axis_metadata)

    @slips.explained
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
        slips.check_inputs(xs)
        options.check_flag("deterministic", deterministic)
        model = boxes.opened(self.model, _BOXES)
        key = None
        if model.noisy and not deterministic:
            key = self.make_rng("dropout")
        return model.apply(
            self._params(model),
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

    def step(
        self, state: layers.State, x: Array, *, reset: Array | None = None
    ) -> tuple[layers.State, Array]:
        """Takes one step through the stack; see :meth:`lstm_jax.LSTM.step`.

        Call it as ``model.apply(variables, state, x, method="step")``.
        """
        model = boxes.opened(self.model, _BOXES)
        return model.step(self._params(model), state, x, reset=reset)

    @nn.nowrap
    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> layers.State:
        """Returns zeros; see :meth:`lstm_jax.LSTM.zero_state`."""
        return self.model.zero_state(batch_shape, dtype)

    @nn.nowrap
    def _params(self, model: Any) -> layers.Params:
        return tuple(
            _from_dict(layer, f"layer_{index}", cell)
            for index, (layer, cell) in enumerate(
                zip(self.layers, model.cells, strict=True)
            )
        )


@slips.explained
class Stack(_Stack):
    """A stack of any cells, for Flax Linen.

    Parameters are found under ``layer_0/forward/kernel`` and so on: by field, key or
    position in what the cell's ``init`` returns, or ``array`` where that is one array.

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

    def __post_init__(self) -> None:
        """Checks the model."""
        slips.check_model(self.model)
        super().__post_init__()


def _body(description: type[Any]) -> dict[str, Any]:
    """The body of a class that has the fields of a dataclass."""
    hints, annotations, defaults = get_type_hints(description), {}, {}
    for field in dataclasses.fields(description):
        if field.kw_only:
            annotations.setdefault("_", dataclasses.KW_ONLY)
        annotations[field.name] = hints[field.name]
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
    return {"__annotations__": annotations, **defaults}


@slips.explained
class LSTM(_Stack):
    """A stack of LSTM layers, for Flax Linen.

    It takes what :class:`lstm_jax.LSTM` takes, where the options are listed with what
    they mean and the errors they raise. Each is an attribute of the module, too.
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

    if TYPE_CHECKING:

        def __init__(  # noqa: D107
            self,
            input_size: int,
            hidden_size: int | tuple[int, ...],
            num_layers: int = 1,
            *,
            parent: Any = ...,
            name: str | None = None,
            **options: Unpack[layers.LSTMOptions],
        ) -> None: ...

    else:
        vars().update(_body(layers.LSTM))

    def __post_init__(self) -> None:
        """Checks the options, and keeps them as their description does."""
        model = _describe(self)
        for field in dataclasses.fields(model):
            setattr(self, field.name, getattr(model, field.name))
        super().__post_init__()

    @property
    def model(self) -> layers.LSTM:
        """The :class:`lstm_jax.LSTM` that the options describe."""
        return _describe(self)


# Defaults that are functions would look like methods, with help of their own.
for _name, _value in list(vars(LSTM).items()):
    if _name in layers.LSTMOptions.__annotations__ and callable(_value):
        delattr(LSTM, _name)


def params_of(variables: Any, model: Any = None) -> layers.Params:
    """Returns the module's parameters as :meth:`lstm_jax.LSTM.apply` takes them.

    Args:
        variables: of an :class:`LSTM` or a :class:`Stack`. For one inside a larger
            model, pass ``{"params": variables["params"][name]}``.
        model: the module, or the :class:`lstm_jax.Stack` it was made from. Needed where
            a cell's parameters are not :class:`lstm_jax.LSTMParams`.

    Raises:
        ValueError: if the variables are not those of such a module, or of ``model``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lstm_jax import linen
        >>> variables = linen.LSTM(3, 5).init(jax.random.key(0), jnp.ones((7, 3)))
        >>> linen.params_of(variables)[0].forward.kernel.shape
        (3, 20)
    """
    tree = nn.meta.unbox(variables.get("params", {}))
    tree = border.take_leaves("variables", tree)
    cells, layers_of_model = [None] * len(tree), ""
    if model is not None:
        cells = boxes.opened(getattr(model, "model", model), _BOXES).cells
        layers_of_model = f" with {len(cells)} layers"
    names = [f"layer_{index}" for index in range(len(cells))]
    if not names or set(tree) != set(names):
        raise ValueError(
            f"variables: expected {{'params': {{'layer_0': ...}}}}{layers_of_model}, "
            f"as model.init returns it, got the keys {sorted(variables)} and in "
            f"'params' {sorted(tree)}. In a larger model's variables this module's are "
            "under its name."
        )
    return tuple(
        _from_dict(tree[name], name, cell)
        for name, cell in zip(names, cells, strict=True)
    )


def variables_of(params: layers.Params) -> dict[str, Any]:
    """Returns the module's variables that hold ``params``, converted weights say.

    Args:
        params: as from :meth:`lstm_jax.LSTM.init` or :meth:`lstm_jax.Stack.init`.

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
    params = border.take_leaves("params", params)
    tree = {f"layer_{index}": _as_dict(layer) for index, layer in enumerate(params)}
    return {"params": tree}


def _describe(module: LSTM) -> layers.LSTM:
    """Reads the options without the wrapper that Flax puts around a module's methods.

    The wrapper would run ``setup`` of a module that is still being made.
    """
    names = [field.name for field in dataclasses.fields(layers.LSTM)]
    return layers.LSTM(**{name: getattr(module, name) for name in names})


def _as_dict(layer: Directions, is_leaf: Any = None) -> dict[str, Any]:
    return {
        direction: naming.nest(one, is_leaf)
        for direction, one in layer._asdict().items()
        if one is not None
    }


def _from_dict(tree: Any, name: str, cell: Any = None) -> Directions:
    """One layer's parameters; ``LSTMParams`` where the cell is not known."""
    if not {"forward"} <= set(tree) <= set(Directions._fields):
        raise ValueError(
            f"variables: expected forward, and backward if there is one, in {name}, "
            f"got {sorted(tree)}."
        )
    return Directions(
        **{
            direction: naming.unnest(one, f"variables: {name}/{direction}", cell)
            for direction, one in tree.items()
        }
    )
