"""Stacks of LSTM layers: directions, sizes, projection, dropout between layers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from lstm_jax import loop, sequence, shapes
from lstm_jax.cell import GLOROT_UNIFORM, ORTHOGONAL, Initializer, LSTMCell
from lstm_jax.types import Array, Directions, LSTMParams, LSTMState

Params = tuple[Directions, ...]
State = tuple[Directions, ...]

_MERGES = {
    "concat": lambda a, b: jnp.concatenate([a, b], axis=-1),
    "sum": jnp.add,
    "mean": lambda a, b: (a + b) / 2,
    "mul": jnp.multiply,
}


@dataclasses.dataclass(frozen=True)
class LSTM:
    """A stack of LSTM layers, as a description that holds no arrays.

    Args:
        input_size: I, features of one input.
        hidden_size: H, units of every layer and direction; or a tuple with one for each
            layer, which then says how many layers there are.
        num_layers: L.
        bidirectional: whether every layer also runs from the last step to the first. By
            default the next layer then sees both outputs side by side, forward first.
        merge: how the outputs of two directions become one: "concat", "sum", "mean" or
            "mul".
        dropout: rate of the elementwise, inverted dropout between layers, in [0, 1);
            never after the last layer, and only where ``apply`` is given a key.
        proj_size: P, the size that h is projected to; None for no projection.
        use_bias: see :class:`LSTMCell`, as for the options that follow.
        forget_bias: see :class:`LSTMCell`.
        kernel_init: see :class:`LSTMCell`.
        recurrent_init: see :class:`LSTMCell`.
        bias_init: see :class:`LSTMCell`.
        dtype: see :class:`LSTMCell`.
        param_dtype: see :class:`LSTMCell`.

    Raises:
        ValueError: if an option is out of its range.
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
        shapes.check_positive("num_layers", self.num_layers)
        shapes.check_choice("merge", self.merge, tuple(_MERGES))
        shapes.check_rate("dropout", self.dropout)
        if isinstance(self.hidden_size, (tuple, list)):
            layers = len(self.hidden_size)
            if self.num_layers not in (1, layers) or not layers:
                raise ValueError(
                    f"hidden_size: expected one size or L = {self.num_layers} of them, "
                    f"got {layers}: {self.hidden_size}."
                )
            object.__setattr__(self, "hidden_size", tuple(self.hidden_size))
            object.__setattr__(self, "num_layers", layers)
        _ = self.cells

    @functools.cached_property
    def cells(self) -> tuple[LSTMCell, ...]:
        """The cell of each layer, which both directions share."""
        sizes = self.hidden_size
        if not isinstance(sizes, tuple):
            sizes = (sizes,) * self.num_layers
        cells, input_size = [], self.input_size
        for hidden_size in sizes:
            cell = LSTMCell(
                input_size,
                hidden_size,
                proj_size=self.proj_size,
                use_bias=self.use_bias,
                forget_bias=self.forget_bias,
                kernel_init=self.kernel_init,
                recurrent_init=self.recurrent_init,
                bias_init=self.bias_init,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            cells.append(cell)
            input_size = cell.output_size * self._widening
        return tuple(cells)

    @property
    def output_size(self) -> int:
        """The size of one output: D*P with "concat", else P."""
        return self.cells[-1].output_size * self._widening

    @property
    def _widening(self) -> int:
        return 2 if self.bidirectional and self.merge == "concat" else 1

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def init(self, key: Array) -> Params:
        """Returns new :class:`Directions` of :class:`LSTMParams` for each layer."""
        shapes.check_key(key)
        keys = jax.random.split(key, (self.num_layers, self._directions))
        return tuple(
            Directions(*(cell.init(key) for key in layer_keys))
            for cell, layer_keys in zip(self.cells, keys, strict=True)
        )

    def zero_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> State:
        """Returns zeros: :class:`Directions` of :class:`LSTMState` for each layer.

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
        checkpoint_every: int | None = None,
        implementation: str | None = None,
    ) -> tuple[State, Array]:
        """Runs the stack over a sequence.

        Shapes:
            ``xs`` is ``[*batch, T, I]``, or ``[T, *batch, I]`` if ``time_major``;
            ``ys`` has the same leading axes and ends in :attr:`output_size`.

        Args:
            params: as from :meth:`init`.
            xs: the inputs.
            state: as from :meth:`zero_state`, or as an earlier call returned it; zeros
                if None.
            lengths: see :func:`lstm_jax.scan`, as for mask and reset.
            mask: see :func:`lstm_jax.scan`.
            reset: see :func:`lstm_jax.scan`.
            key: a random key turns dropout on; without one the model is deterministic.
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
        return _apply(
            self,
            params,
            xs,
            self._conform_state(state, batch_shape, xs.dtype, length),
            lengths,
            mask,
            reset,
            key,
            time_major=time_major,
            checkpoint_every=checkpoint_every,
            implementation=loop.choose_implementation(
                implementation, self.cells[0], xs
            ),
        )

    def step(self, params: Params, state: State, x: Array) -> tuple[State, Array]:
        """Takes one step through the stack, for sampling and serving.

        Shapes:
            ``x`` is ``[*batch, I]`` and ``y`` ``[*batch, P]``.

        Args:
            params: as from :meth:`init`.
            state: as from :meth:`zero_state`, :meth:`step` or :meth:`apply`.
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
        shapes.check_step_input(self.cells[0], x)
        x = jnp.asarray(x)
        state = self._conform_state(state, x.shape[:-1], x.dtype)
        return _step(self, params, state, x)

    def check_params(self, params: Params) -> None:
        """Raises ValueError or TypeError if ``params`` are not this model's."""
        both = [self.bidirectional] * self.num_layers
        shapes.check_layers("params", LSTMParams, params, both)
        for index, (cell, layer) in enumerate(zip(self.cells, params, strict=True)):
            for name, one in zip(layer._fields, layer, strict=True):
                if one is not None:
                    shapes.check_params(cell, one, f"params[{index}].{name}")

    def _conform_state(
        self,
        state: State | None,
        batch_shape: tuple[int, ...],
        dtype: Any,
        length: int | None = None,
    ) -> State:
        if state is None:
            return self.zero_state(batch_shape, self.dtype or dtype)
        both = [self.bidirectional] * self.num_layers
        shapes.check_layers("state", LSTMState, state, both)

        def conform(cell, name, one):
            if one is None:
                return None
            return shapes.conform_state(cell, name, one, batch_shape, dtype, length)

        return tuple(
            Directions(
                conform(cell, f"state[{index}].forward", layer.forward),
                conform(cell, f"state[{index}].backward", layer.backward),
            )
            for index, (cell, layer) in enumerate(zip(self.cells, state, strict=True))
        )


@functools.partial(
    jax.jit,
    static_argnames=("model", "time_major", "checkpoint_every", "implementation"),
)
def _apply(
    model, params, xs, state, lengths, mask, reset, key, *, time_major, **options
):
    if not time_major:
        xs, mask, reset = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf, xs.ndim - 2, 0), (xs, mask, reset)
        )
    new_state, ys = [], xs
    for index, cell in enumerate(model.cells):
        if index and key is not None and model.dropout:
            ys = _dropout(jax.random.fold_in(key, index), model.dropout, ys)
        steps = (ys, lengths, mask, reset)
        after, ys = _layer(model, cell, params[index], steps, state[index], **options)
        new_state.append(after)
    if not time_major:
        ys = jnp.moveaxis(ys, 0, ys.ndim - 2)
    return tuple(new_state), ys


def _layer(model, cell, params, steps, state, **options):
    """One layer over time, in one direction or in two."""
    xs, lengths, mask, reset = steps
    afters, outputs = [], []
    for direction in range(model._directions):
        reset_state = None
        if reset is not None:
            reset_state = jax.tree.map(jnp.zeros_like, state[direction])
        after, ys = loop.run(
            cell,
            params[direction],
            xs,
            state[direction],
            lengths,
            mask,
            reset,
            reset_state,
            reverse=direction == 1,
            **options,
        )
        afters.append(after)
        outputs.append(ys)
    ys = outputs[0] if len(outputs) == 1 else _MERGES[model.merge](*outputs)
    return Directions(*afters), ys


def _dropout(key: Array, rate: float, xs: Array) -> Array:
    keep = jax.random.bernoulli(key, 1 - rate, xs.shape)
    return jnp.where(keep, xs / (1 - rate), jnp.zeros_like(xs))


@functools.partial(jax.jit, static_argnames="model")
def _step(model, params, state, x):
    after = []
    for cell, layer_params, layer_state in zip(model.cells, params, state, strict=True):
        new, x = cell(layer_params.forward, layer_state.forward, x)
        after.append(Directions(new))
    return tuple(after), x
