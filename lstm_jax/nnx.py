"""The stack as a Flax NNX module: the same options, the same functions underneath."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

import jax.numpy as jnp
from flax import nnx

from lstm_jax import layers
from lstm_jax.checks import slips
from lstm_jax.types import Array, Directions, LSTMParams

F = TypeVar("F", bound=Callable[..., None])


class Direction(nnx.Module):
    """The parameters of one layer in one direction, each an ``nnx.Param`` or None."""

    def __init__(self, params: LSTMParams):
        """Takes over ``params``."""
        for name, value in params._asdict().items():
            setattr(self, name, None if value is None else nnx.Param(value))

    def load(self, params: LSTMParams) -> None:
        """Sets the parameters to ``params``, which have the same fields."""
        for name, value in params._asdict().items():
            if value is not None:
                getattr(self, name).set_value(jnp.asarray(value))

    def params(self) -> LSTMParams:
        """Returns the parameters as plain arrays."""
        return LSTMParams(*(_value(getattr(self, name)) for name in LSTMParams._fields))


class Layer(nnx.Module):
    """The directions of one layer."""

    def __init__(self, directions: Directions):
        """Takes over the parameters of the layer."""
        self.forward = Direction(directions.forward)
        backward = directions.backward
        self.backward = None if backward is None else Direction(backward)

    def load(self, directions: Directions) -> None:
        """Sets the parameters to those of a layer with the same directions."""
        self.forward.load(directions.forward)
        if self.backward is not None:
            self.backward.load(directions.backward)

    def params(self) -> Directions:
        """Returns the layer's parameters as plain arrays."""
        backward = self.backward
        return Directions(
            self.forward.params(), None if backward is None else backward.params()
        )


class _Signature:
    """Shows ``inspect.signature`` what a module's ``__init__`` takes.

    It would see what the metaclass of NNX takes, which is anything.
    """

    def __get__(self, instance: Any, owner: type[Any]) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Stack(nnx.Module):
    """A stack of any cells with its parameters, for Flax NNX.

    The cells' parameters are :class:`lstm_jax.LSTMParams`. They are found under
    ``layers/0/forward/kernel`` and so on.

    Args:
        model: an :class:`lstm_jax.Stack` or :class:`lstm_jax.LSTM`.
        rngs: makes the parameters, and where there is dropout or other noise the masks
            (its stream ``dropout``, or else its default stream).

    Attributes:
        model: what the module was made from.
        deterministic: whether noise is off; False in a new module.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> from flax import nnx
        >>> from lstm_jax.nnx import Stack
        >>> cells = lj.LSTMCell(3, 8), lj.SLSTMCell(8, 8, num_heads=2)
        >>> model = Stack(lj.Stack(cells), rngs=nnx.Rngs(0))
        >>> state, ys = model(jnp.ones((2, 7, 3)))
        >>> ys.shape
        (2, 7, 8)
    """

    __signature__ = _Signature()

    @slips.explained
    def __init__(self, model: Any, *, rngs: nnx.Rngs):
        """Makes the parameters."""
        slips.check_model(model)
        self.model = model
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(
                "rngs: expected an nnx.Rngs such as nnx.Rngs(0), got "
                f"{type(rngs).__name__}."
            )
        self.deterministic = False
        self.rngs = nnx.data(rngs.dropout.fork() if model.noisy else None)
        params = self.model.init(rngs.params())
        self.layers = nnx.List([Layer(layer) for layer in params])

    def load(self, params: layers.Params) -> None:
        """Sets the parameters to a pytree as :meth:`lstm_jax.LSTM.init` makes it.

        What ``lstm_jax.convert`` returns goes in here. The values change in place: each
        ``nnx.Param`` stays the one it was, wherever else it is referred to.

        Raises:
            ValueError: if a shape or the number of layers is not the module's.
            TypeError: if ``params`` are nested otherwise.

        Example:
            >>> import jax, lstm_jax as lj
            >>> from flax import nnx
            >>> from lstm_jax.nnx import LSTM
            >>> model = LSTM(3, 5, rngs=nnx.Rngs(0))
            >>> params = lj.LSTM(3, 5).init(jax.random.key(1))
            >>> model.load(params)
            >>> bool((model.layers[0].forward.kernel == params[0].forward.kernel).all())
            True
        """
        self.model.check_params(params)
        for layer, directions in zip(self.layers, params, strict=True):
            layer.load(directions)

    def params(self) -> layers.Params:
        """Returns the parameters as :meth:`lstm_jax.LSTM.apply` takes them."""
        return tuple(layer.params() for layer in self.layers)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets ``deterministic``; what ``nnx.view`` calls.

        Args:
            deterministic: True turns noise off, False on; None changes nothing.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> layers.State:
        """Returns zeros; see :meth:`lstm_jax.LSTM.zero_state`."""
        return self.model.zero_state(batch_shape, dtype)

    @slips.explained
    def __call__(
        self,
        xs: Array,
        state: layers.State | None = None,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | Array | None = None,
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
            deterministic: True turns noise off, False on; None for the attribute that
                ``model.train()`` and ``model.eval()`` set.
            rngs: what to draw the noise's key from instead of the constructor's stream:
                an ``nnx.Rngs``, a stream of one, or the key itself.
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
        if deterministic is None:
            deterministic = self.deterministic
        key = None
        if self.model.noisy and not deterministic:
            key = _key(self.rngs if rngs is None else rngs)
        return self.model.apply(
            self.params(),
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
        """Takes one step through the stack; see :meth:`lstm_jax.LSTM.step`."""
        return self.model.step(self.params(), state, x)


def _with_options(init: F) -> F:
    """Shows the options of ``lstm_jax.LSTM`` in place of ``**options``."""
    own = inspect.signature(init).parameters
    options = inspect.signature(layers.LSTM).parameters
    shown = [own["self"], *options.values(), own["rngs"]]
    vars(init)["__signature__"] = inspect.Signature(shown)
    return init


class LSTM(Stack):
    """A stack of LSTM layers with its parameters, for Flax NNX.

    It takes what :class:`lstm_jax.LSTM` takes, where the options are listed with what
    they mean and the errors they raise.

    Args:
        input_size: see :class:`lstm_jax.LSTM`.
        hidden_size: see :class:`lstm_jax.LSTM`.
        num_layers: see :class:`lstm_jax.LSTM`.
        rngs: see :class:`Stack`.
        **options: see :class:`lstm_jax.LSTM`; by name.

    Raises:
        ValueError: if an option is out of its range.
        TypeError: if an option has the wrong type, or there is none of that name.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lstm_jax.nnx import LSTM
        >>> model = LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> state, ys = model(jnp.ones((2, 7, 3)), lengths=jnp.array([7, 4]))
        >>> ys.shape, state[-1].forward.h.shape
        ((2, 7, 5), (2, 5))
    """

    @slips.explained
    @_with_options
    def __init__(
        self,
        input_size: int,
        hidden_size: int | tuple[int, ...],
        num_layers: int = 1,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[layers.LSTMOptions],
    ):
        """Makes the parameters."""
        model = layers.LSTM(input_size, hidden_size, num_layers, **options)
        super().__init__(model, rngs=rngs)


def _value(param: Any) -> Any:
    return None if param is None else param.get_value()


def _key(rngs: Any) -> Array:
    if isinstance(rngs, nnx.Rngs):
        return rngs.dropout()
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs
