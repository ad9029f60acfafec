"""The stack as a Flax NNX module: the same options, the same functions underneath."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, Unpack

import jax
import jax.core
import jax.numpy as jnp
from flax import nnx

from lstm_jax import boxes, layers, naming
from lstm_jax.checks import options, slips
from lstm_jax.types import Array, Directions, PyTree

__all__ = ("LSTM", "Parameters", "Stack")

F = TypeVar("F", bound=Callable[..., None])


def _open(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, nnx.VariableMetadata):
        return value, None
    return value.raw_value, dataclasses.replace(value, raw_value=None)


def _close(box: Any, array: Array, axes: int) -> Any:
    metadata = dict(box.metadata)
    if axes and metadata.get("out_sharding"):
        metadata["out_sharding"] = (None,) * axes + tuple(metadata["out_sharding"])
    return dataclasses.replace(box, raw_value=array, metadata=metadata)


_BOXES = boxes.Boxes("flax.nnx.with_partitioning", _open, _close)


class Parameters(nnx.Module):
    """Parameters by name: each an ``nnx.Param``, more of them, or None for none.

    Example:
        >>> from flax import nnx
        >>> from lstm_jax.nnx import LSTM
        >>> layer = LSTM(3, 5, rngs=nnx.Rngs(0)).layers[0]
        >>> type(layer).__name__, layer.forward.kernel.shape, layer.backward
        ('Parameters', (3, 20), None)
    """

    def __init__(self, tree: dict[str, Any]):
        """Takes over ``tree``, whose leaves are ``nnx.Param`` or None."""
        for name, value in tree.items():
            setattr(self, name, Parameters(value) if isinstance(value, dict) else value)


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

    Parameters are found under ``layers/0/forward/kernel`` and so on: by field, key or
    position in what the cell's ``init`` returns, or ``array`` where that is one array.

    A call returns ``(state, ys)``. An ``nnx.Sequential`` hands that on as two
    arguments, which no other layer takes: put a module around this one that returns
    ``ys`` alone.

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
        params = self._plain.init(rngs.params())
        self.layers = nnx.List(
            _layer(cell, layer) for cell, layer in zip(model.cells, params, strict=True)
        )

    @property
    def _plain(self) -> Any:
        """The model, with initializers that return arrays."""
        return boxes.opened(self.model, _BOXES)

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
        self._plain.check_params(params)
        for layer, directions in zip(self.layers, params, strict=True):
            for direction, one in directions._asdict().items():
                leaves = zip(naming.names_of(one), jax.tree.leaves(one), strict=True)
                for names, value in leaves:
                    _set(_get(layer, direction, *names), value)

    def params(self) -> layers.Params:
        """Returns the parameters as :meth:`lstm_jax.LSTM.apply` takes them."""
        return tuple(
            Directions(
                *(
                    _read(cell, getattr(layer, direction))
                    for direction in Directions._fields
                )
            )
            for cell, layer in zip(self._plain.cells, self.layers, strict=True)
        )

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
        if deterministic is None:
            deterministic = self.deterministic
        options.check_flag("deterministic", deterministic)
        key = None
        if self.model.noisy and not deterministic:
            key = _key(self.rngs if rngs is None else rngs)
        return self._plain.apply(
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

    def step(
        self, state: layers.State, x: Array, *, reset: Array | None = None
    ) -> tuple[layers.State, Array]:
        """Takes one step through the stack; see :meth:`lstm_jax.LSTM.step`."""
        return self._plain.step(self.params(), state, x, reset=reset)


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


def _layer(cell: Any, directions: Directions) -> Parameters:
    """The parameters of a layer as a module."""

    def is_leaf(value: Any) -> bool:
        return value is None or isinstance(value, nnx.Variable)

    tree = {}
    for name, params in directions._asdict().items():
        if params is not None:
            params = boxes.boxed(cell, _BOXES, jax.tree.map(_own, params))
            params = naming.nest(jax.tree.map(nnx.Param, params), is_leaf)
        tree[name] = params
    return Parameters(tree)


def _read(cell: Any, parameters: Parameters | None) -> PyTree:
    """The parameters of one direction as the cell has them."""
    if parameters is None:
        return None
    names, structure = naming.layout(cell)
    return structure.unflatten(_get(parameters, *one).get_value() for one in names)


def _get(parameters: Parameters, *names: str) -> Any:
    return functools.reduce(getattr, names, parameters)


def _set(param: Any, value: Any) -> None:
    """Gives a parameter a value of its own, placed as the one before was."""
    value, before = _own(value), param.get_value()
    traced = isinstance(before, jax.core.Tracer) or not isinstance(before, jax.Array)
    if not traced and before.committed:
        value = jax.device_put(value, before.sharding)
    param.set_value(value)


def _own(value: Any) -> Array:
    """A copy: a buffer that is donated elsewhere, or changed, is no other's."""
    return jnp.array(value, copy=True)


def _key(rngs: Any) -> Array:
    if isinstance(rngs, nnx.Rngs):
        return rngs.dropout()
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs


def __getattr__(name: str) -> Any:
    if name in ("Direction", "Layer"):
        warnings.warn(
            f"lstm_jax.nnx.{name} is now lstm_jax.nnx.Parameters, and goes with the "
            "next release.",
            DeprecationWarning,
            stacklevel=2,
        )
        return Parameters
    raise AttributeError(f"module 'lstm_jax.nnx' has no attribute {name!r}")
