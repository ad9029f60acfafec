"""Cells on top of each other: directions, dropout and connections between layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import connections, sequence
from lstm_jax.cells.base import Cell, as_cell, compute_dtype
from lstm_jax.checks import arrays, names, options, slips, trees
from lstm_jax.descriptions.base import Description
from lstm_jax.recurrence import choice, units
from lstm_jax.types import Array, Directions, Options

Params = tuple[Directions, ...]
State = tuple[Directions, ...]


class Layers(names.Guessed, Description):
    """What every stack does, whatever it is described by.

    A subclass is a frozen dataclass with the attributes ``cells``, ``bidirectional``,
    ``reverse``, ``merge``, ``dropout``, ``residual`` and ``skip`` of :class:`Stack`.
    """

    cells: Any
    bidirectional: bool
    reverse: bool | tuple[bool, ...]
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
        between = bool(self.dropout) and len(self.cells) > 1
        return between or any(as_cell(cell).noisy for cell in self.cells)

    @property
    def _widening(self) -> int:
        return 2 if self.bidirectional and self.merge == "concat" else 1

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _reversed(self) -> tuple[bool, ...]:
        """Of each layer whether it runs from the last step to the first alone."""
        if isinstance(self.reverse, tuple):
            return self.reverse
        return (self.reverse,) * len(self.cells)

    @slips.explained
    def init(self, key: Array) -> Params:
        """Returns new :class:`Directions` of each cell's parameters for each layer."""
        key = arrays.check_key(key)
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

    @slips.explained
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
        given = Options(
            lengths=lengths,
            mask=mask,
            reset=reset,
            key=key,
            time_major=time_major,
            checkpoint_every=checkpoint_every,
            implementation=implementation,
        )
        sequence.check_options(given)
        params = self.check_params(params)
        first = as_cell(self.cells[0])
        xs, batch_shape, length = arrays.check_sequence(first, xs, time_major)
        sequence.check_length(given, length)
        given = arrays.take_controls(batch_shape, length, given)
        batch = int(time_major), len(batch_shape)
        state = self._conform_state(params, state, xs, batch, length)
        permitted = choice.permitted(implementation)
        for cell in map(as_cell, self.cells):
            dtype = compute_dtype(cell, xs.dtype)
            runs = units.in_parts(cell.without_noise)
            choice.candidates(permitted, runs, dtype)
        given = given._replace(implementation=permitted)
        program, static = self.for_program(), given.static
        return connections.apply(
            program, params, xs, state, given.arrays, static=static
        )

    @slips.explained
    def step(
        self,
        params: Params,
        state: State | None,
        x: Array,
        *,
        reset: Array | None = None,
    ) -> tuple[State, Array]:
        """Takes one step through the stack, for sampling and serving.

        Shapes:
            ``x`` is ``[*batch, I]`` and ``y`` ``[*batch, P]``.

        Args:
            params: as from :meth:`init`.
            state: as from :meth:`zero_state`, :meth:`step` or :meth:`apply`; None for
                the start of a sequence.
            x: the input of the step.
            reset: ``[*batch]`` bool. Where it is True this step begins a sequence: the
                state becomes that of zeros, or the one the model has learned to start
                from, as with ``reset`` of :meth:`apply`.

        Returns:
            ``(state, y)``: the state after the step and the last layer's output.

        Raises:
            ValueError: if the model is bidirectional or has layers that run in
                reverse, or a shape is wrong.
            TypeError: if a type or dtype is wrong.
        """
        options.check_forward("step", self)
        params = self.check_params(params)
        x, batch_shape = arrays.check_step_input(as_cell(self.cells[0]), x)
        state = self._conform_state(params, state, x, (0, len(batch_shape)))
        if reset is not None:
            reset = arrays.take_array("reset", reset, jnp.bool_)
            arrays.check_shape("reset", "[*batch]", batch_shape, reset)
        return connections.take_step(self.for_program(), params, state, x, reset)

    def initial_state(
        self, params: Params, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> State:
        """Returns the state that sequences start from: the learned one, or zeros.

        What :meth:`apply` starts from where no state is given, and what resets go back
        to.

        Args:
            params: as from :meth:`init`.
            batch_shape: the batch axes; ``()`` for none.
            dtype: of every h; see :meth:`LSTMCell.zero_state`.
        """
        params = self.check_params(params)
        return tuple(
            Directions(
                *(
                    None
                    if one is None
                    else as_cell(cell).initial_state(one, batch_shape, dtype)
                    for one in layer
                )
            )
            for cell, layer in zip(self.cells, params, strict=True)
        )

    def last(self, state: State) -> Array:
        """Returns the last output, ``[*batch, output_size]``, from a last state.

        That of the last valid step of each row and, going backward, of the first: both
        directions are joined as ``merge`` says. Keras's ``return_sequences=False``.

        Args:
            state: as :meth:`apply` or :meth:`step` returned it.

        Raises:
            ValueError: if it is of another model, or ``residual`` adds outputs of
                layers that end at different steps, since some are ``reverse``.
            TypeError: if it is no state of a stack.

        Example:
            >>> import jax, jax.numpy as jnp, lstm_jax as lj
            >>> model = lj.LSTM(3, 5, bidirectional=True)
            >>> params = model.init(jax.random.key(0))
            >>> state, ys = model.apply(params, jnp.ones((2, 7, 3)))
            >>> model.last(state).shape
            (2, 10)
        """
        return connections.last_output(self, self._take_state(state))

    def bridge(self, state: State, merge: str = "concat") -> State:
        """Returns the state of one direction from that of two.

        Layer by layer, what a decoder starts from after this encoder.

        Args:
            state: as :meth:`apply` of this model returned it.
            merge: how the two directions become one: "concat" doubles H; "sum" and
                "mean" keep it.

        Raises:
            ValueError: if the model is one-directional, whose state needs no bridge,
                or the state is of another model.
            TypeError: if it is no state of a stack.

        Example:
            >>> import jax, jax.numpy as jnp, lstm_jax as lj
            >>> encoder = lj.LSTM(3, 5, 2, bidirectional=True)
            >>> decoder = lj.LSTM(4, 10, 2)
            >>> params = encoder.init(jax.random.key(0))
            >>> state, _ = encoder.apply(params, jnp.ones((2, 7, 3)))
            >>> start = encoder.bridge(state)
            >>> params = decoder.init(jax.random.key(1))
            >>> decoder.apply(params, jnp.ones((2, 6, 4)), start)[1].shape
            (2, 6, 10)
        """
        if not self.bidirectional:
            raise ValueError(
                "bridge: expected a bidirectional model, got bidirectional=False. Its "
                "state is one a decoder takes as it is."
            )
        return connections.bridge(self._take_state(state), merge)

    def _take_state(self, state: State) -> State:
        cells = [as_cell(cell) for cell in self.cells]
        return trees.take_state(cells, state, self.bidirectional)

    def check_params(self, params: Params) -> Params:
        """Checks that ``params`` are this model's, and returns them as JAX's arrays.

        Raises:
            ValueError: if they are of another shape, or there are more or fewer layers.
            TypeError: if they are nested otherwise.
        """
        cells = [as_cell(cell) for cell in self.cells]
        return trees.take_params(cells, params, self.bidirectional)

    def _conform_state(
        self,
        params: Params,
        state: State | None,
        xs: Array,
        batch: tuple[int, int],
        length: int | None = None,
    ) -> State:
        dtype = xs.dtype
        cells = [as_cell(cell) for cell in self.cells]
        if state is not None:
            trees.check_layers("state", cells, state, self.bidirectional)
        layers = []
        for index, cell in enumerate(cells):
            dtype = compute_dtype(cell, dtype)
            states = (
                trees.conform_state(
                    cell,
                    f"state[{index}].{Directions._fields[direction]}",
                    None if state is None else state[index][direction],
                    params[index][direction],
                    xs,
                    batch,
                    dtype,
                    length,
                )
                for direction in range(self._directions)
            )
            layers.append(Directions(*states))
        return tuple(layers)

    def _make_program(self) -> Stack | None:
        made = Stack(
            tuple(as_cell(cell).for_program() for cell in self.cells),
            bidirectional=self.bidirectional,
            reverse=self.reverse,
            merge=self.merge if self.bidirectional else "concat",
            dropout=self.dropout if len(self.cells) > 1 else 0.0,
            residual=self.residual,
            skip=self.skip,
        )
        return None if made == self else made


@slips.explained
@dataclasses.dataclass(frozen=True, repr=False)
class Stack(Layers):
    """A stack of any cells, of one kind or of several.

    :class:`LSTM` is the shorter way to a stack of LSTM cells.

    Args:
        cells: the cell of each layer, in both directions. What a cell takes is what
            the layer below puts out: with two directions and "concat", twice that.
        bidirectional: whether every layer also runs from the last step to the first.
        reverse: whether layers run from the last step to the first, and in that
            direction alone: one for all, or a tuple with one for each layer. Parameters
            and states are in ``forward`` as ever: a state is that before the layer's
            last step and, coming back, after its first; see :func:`scan`.
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
    reverse: bool | tuple[bool, ...] = False
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
        connections.check_options(self)
