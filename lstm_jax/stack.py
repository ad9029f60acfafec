"""Cells on top of each other: directions, dropout and connections between layers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import sequence
from lstm_jax.cells.lstm_cell import step
from lstm_jax.cells.regularized import inverted_dropout
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import options
from lstm_jax.description import Description
from lstm_jax.recurrence import loop
from lstm_jax.types import Array, Cell, Directions

Params = tuple[Directions, ...]
State = tuple[Directions, ...]

MERGES = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "mul": jnp.multiply,
}


class Layers(Description):
    """What every stack does, whatever it is described by.

    A subclass is a frozen dataclass with the attributes ``cells``, ``bidirectional``,
    ``merge``, ``dropout``, ``residual`` and ``skip`` of :class:`Stack`.
    """

    cells: Any
    bidirectional: bool
    merge: str
    dropout: float
    residual: bool
    skip: bool

    @property
    def output_size(self) -> int:
        """The size of one output: D*P with "concat", else P; summed with ``skip``."""
        sizes = [cell.output_size * self._widening for cell in self.cells]
        return sum(sizes) if self.skip else sizes[-1]

    @property
    def noisy(self) -> bool:
        """Whether a key changes anything: whether there is dropout or other noise."""
        return bool(self.dropout) or any(hasattr(c, "perturb") for c in self.cells)

    @property
    def _widening(self) -> int:
        return 2 if self.bidirectional and self.merge == "concat" else 1

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def init(self, key: Array) -> Params:
        """Returns new :class:`Directions` of each cell's parameters for each layer."""
        shapes.check_key(key)
        keys = jax.random.split(key, (len(self.cells), self._directions))
        return tuple(
            Directions(*(cell.init(key) for key in layer_keys))
            for cell, layer_keys in zip(self.cells, keys, strict=True)
        )

    def zero_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
        """Returns zeros: :class:`Directions` of each cell's state for each layer.

        Args:
            batch_shape: the batch axes; ``()`` for none.
            dtype: of every h; see :meth:`LSTMCell.zero_state`.
        """
        return tuple(
            Directions(
                *(cell.zero_state(batch_shape, dtype) for _ in range(self._directions))
            )
            for cell in self.cells
        )

    def apply(
        self,
        params: Params,
        xs: Array,
        state: State | None = None,
        *,
        lengths: Array | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
        key: Array | None = None,
        time_major: bool = False,
        checkpoint_every: int | str | None = None,
        implementation: str | None = None,
    ) -> tuple[State, Array]:
        """Runs the stack over a sequence.

        Shapes:
            ``xs`` is ``[*batch, T, I]``, or ``[T, *batch, I]`` if ``time_major``;
            ``ys`` has the same leading axes and ends in :attr:`output_size`.

        Args:
            params: as from :meth:`init`.
            xs: the inputs.
            state: as from :meth:`zero_state`, or as an earlier call returned it; if
                None zeros, or what the model has learned to start from.
            lengths: see :func:`lstm_jax.scan`, as for mask and reset.
            mask: see :func:`lstm_jax.scan`.
            reset: see :func:`lstm_jax.scan`. The state becomes that of zeros, or the
                one the model has learned.
            key: a random key turns dropout and all other noise on; without one the
                model is deterministic.
            time_major: whether the first axis is time.
            checkpoint_every: see :func:`lstm_jax.scan`; of every layer.
            implementation: see :func:`lstm_jax.scan`.

        Returns:
            ``(state, ys)``: the last state of every layer and direction, and the last
            layer's outputs.

        Raises:
            ValueError: if a shape, a value of ``lengths`` or an option is wrong.
            TypeError: if a type or dtype is wrong.
        """
        self.check_params(params)
        batch_shape, length = sequence.check_arguments(
            self.cells[0],
            params[0].forward,
            xs,
            lengths,
            mask,
            reset,
            time_major,
            checkpoint_every,
        )
        if key is not None:
            shapes.check_key(key)
        xs = jnp.asarray(xs)
        for cell in self.cells:
            loop.check_implementation(implementation, cell, xs)
        return _apply(
            self,
            params,
            xs,
            self._conform_state(params, state, batch_shape, xs.dtype, length),
            lengths,
            mask,
            reset,
            key,
            time_major=time_major,
            checkpoint_every=checkpoint_every,
            implementation=implementation,
        )

    def step(
        self, params: Params, state: State | None, x: Array
    ) -> tuple[State, Array]:
        """Takes one step through the stack, for sampling and serving.

        Shapes:
            ``x`` is ``[*batch, I]`` and ``y`` ``[*batch, P]``.

        Args:
            params: as from :meth:`init`.
            state: as from :meth:`zero_state`, :meth:`step` or :meth:`apply`; None for
                the start of a sequence.
            x: the input of the step.

        Returns:
            ``(state, y)``: the state after the step and the last layer's output.

        Raises:
            ValueError: if the model is bidirectional, or a shape is wrong.
            TypeError: if a type or dtype is wrong.
        """
        if self.bidirectional:
            raise ValueError(
                "step: expected a one-directional model, got bidirectional=True. Its "
                "backward half needs the whole sequence: use apply."
            )
        self.check_params(params)
        batch_shape = shapes.check_step_input(self.cells[0], x)
        x = jnp.asarray(x)
        state = self._conform_state(params, state, batch_shape, x.dtype)
        return _step(self, params, state, x)

    def check_params(self, params: Params) -> None:
        """Raises ValueError or TypeError if ``params`` are not this model's."""
        shapes.check_layers("params", self.cells, params, self.bidirectional)
        for index, (cell, layer) in enumerate(zip(self.cells, params, strict=True)):
            for name, one in zip(layer._fields, layer, strict=True):
                if one is not None:
                    shapes.check_params(cell, one, f"params[{index}].{name}")

    def _conform_state(
        self,
        params: Params,
        state: State | None,
        batch_shape: tuple[int, ...],
        dtype: Any,
        length: int | None = None,
    ) -> State:
        if state is not None:
            shapes.check_layers("state", self.cells, state, self.bidirectional)
        layers = []
        for index, cell in enumerate(self.cells):
            dtype = getattr(cell, "dtype", None) or dtype
            layers.append(
                Directions(
                    *(
                        shapes.conform_state(
                            cell,
                            f"state[{index}].{Directions._fields[direction]}",
                            None if state is None else state[index][direction],
                            params[index][direction],
                            batch_shape,
                            dtype,
                            length,
                        )
                        for direction in range(self._directions)
                    )
                )
            )
        return tuple(layers)


@dataclasses.dataclass(frozen=True)
class Stack(Layers):
    """A stack of any cells, of one kind or of several.

    :class:`LSTM` is the shorter way to a stack of LSTM cells.

    Args:
        cells: the cell of each layer, in both directions. What a cell takes is what
            the layer below puts out: with two directions and "concat", twice that.
        bidirectional: whether every layer also runs from the last step to the first.
        merge: how the outputs of two directions become one: "concat", "sum", "mean" or
            "mul".
        dropout: rate of the elementwise, inverted dropout between layers, in [0, 1);
            never after the last layer, and only where ``apply`` is given a key.
        residual: whether each layer after the first adds the outputs of the layer below
            to its own.
        skip: whether each layer after the first also takes the inputs of the whole
            stack, behind the outputs of the layer below, and the stack puts out the
            outputs of all layers side by side (Graves 2013, arXiv:1308.0850).

    Raises:
        ValueError: if an option is out of its range, or a layer does not fit the one
            below.
        TypeError: if an option has the wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cells = lj.LSTMCell(3, 8, variant="CIFG"), lj.SLSTMCell(8, 8, num_heads=2)
        >>> model = lj.Stack(cells, residual=True)
        >>> params = model.init(jax.random.key(0))
        >>> state, ys = model.apply(params, jnp.ones((2, 7, 3)))
        >>> ys.shape, type(state[1].forward).__name__
        ((2, 7, 8), 'SLSTMState')
    """

    cells: tuple[Cell, ...]
    _: dataclasses.KW_ONLY
    bidirectional: bool = False
    merge: str = "concat"
    dropout: float = 0.0
    residual: bool = False
    skip: bool = False

    def __post_init__(self) -> None:
        """Checks the options."""
        self._normalise()
        if not isinstance(self.cells, (tuple, list)) or not self.cells:
            raise ValueError(
                "cells: expected a tuple with a cell for each layer, got "
                f"{self.cells!r}."
            )
        object.__setattr__(self, "cells", tuple(self.cells))
        check_options(self)


def check_options(model: Any) -> None:
    """Checks the options of a stack, and that its layers fit on top of each other."""
    options.check_choice("merge", model.merge, tuple(MERGES))
    options.check_rate("dropout", model.dropout)
    cells, widening = model.cells, model._widening
    for index in range(1, len(cells)):
        below = cells[index - 1].output_size * widening
        expected = below
        if model.skip:
            expected += cells[0].input_shape[-1]
        got = cells[index].input_shape[-1]
        if got != expected:
            raise ValueError(
                f"cells[{index}]: expected an input size of {expected}, what it gets "
                f"from the layer below{' and from the input' if model.skip else ''}, "
                f"got {got}."
            )
        size = cells[index].output_size * widening
        if model.residual and size != below:
            raise ValueError(
                f"residual: expected layers with outputs of one size, got {below} from "
                f"layer {index - 1} and {size} from layer {index}."
            )


def through_layers(
    model: Any,
    xs: Array,
    run: Callable[[int, Any, Array], tuple[Any, Array]],
    key: Array | None = None,
) -> tuple[State, Array]:
    """Leads inputs, of one step or of all, through the layers and what connects them.

    Args:
        model: a stack.
        xs: the inputs.
        run: ``run(index, cell, xs) -> (state, ys)`` runs one layer.
        key: a random key for the dropout between layers, or None.
    """
    states, outputs, below = [], [], xs
    for index, cell in enumerate(model.cells):
        inputs = below
        if index and key is not None and model.dropout:
            inputs = inverted_dropout(
                jax.random.fold_in(key, index), model.dropout, inputs
            )
        if index and model.skip:
            inputs = jnp.concatenate([inputs, xs.astype(inputs.dtype)], axis=-1)
        after, ys = run(index, cell, inputs)
        if index and model.residual:
            ys = ys + below
        states.append(after)
        outputs.append(ys)
        below = ys
    return tuple(states), jnp.concatenate(outputs, -1) if model.skip else below


@functools.partial(
    jax.jit,
    static_argnames=("model", "time_major", "checkpoint_every", "implementation"),
)
def _apply(
    model, params, xs, state, lengths, mask, reset, key, *, time_major, **options
):
    axis = xs.ndim - shapes.input_ndim(model.cells[0]) - 1
    if not time_major:
        xs, mask, reset = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf, axis, 0), (xs, mask, reset)
        )

    def run(index, cell, xs):
        noise = None if key is None else jax.random.fold_in(key, index)
        controls = lengths, mask, reset, noise
        return _layer(model, cell, params[index], xs, state[index], controls, **options)

    new_state, ys = through_layers(model, xs, run, key)
    return new_state, ys if time_major else jnp.moveaxis(ys, 0, axis)


def _layer(model, cell, params, xs, state, controls, **options):
    """One layer over time, in one direction or in two."""
    lengths, mask, reset, key = controls
    directions = []
    for n in range(model._directions):
        reset_state = None
        if reset is not None:
            batch_shape = reset.shape[1:]
            reset_state = shapes.conform_state(
                cell, "reset_state", None, params[n], batch_shape, xs.dtype
            )
        noise = None if key is None else jax.random.fold_in(key, 1 + n)
        directions.append(
            loop.Direction(params[n], state[n], reset_state, noise, reverse=n == 1)
        )
    results = loop.run(cell, xs, directions, lengths, mask, reset, **options)
    afters, outputs = zip(*results, strict=True)
    ys = outputs[0] if len(outputs) == 1 else MERGES[model.merge](*outputs)
    return Directions(*afters), ys


@functools.partial(jax.jit, static_argnames="model")
def _step(model, params, state, x):
    def run(index, cell, x):
        after, y = step(cell, params[index].forward, state[index].forward, x)
        return Directions(after), y

    return through_layers(model, x, run)
