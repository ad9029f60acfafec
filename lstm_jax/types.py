"""The pytrees and the notation that every other module uses.

Notation, in every docstring: ``B`` batch, ``T`` time steps, ``I`` input size, ``H``
hidden size, ``P`` projection size (``H`` where there is no projection), ``L`` layers,
``D`` directions (1 or 2). ``x``, ``h``, ``c`` belong to one step, ``xs`` and ``ys`` to
a sequence. ``*batch`` is any number of batch axes, none included. The four gates stand
side by side on the last axis, always in the order i, f, g, o: input, forget, candidate,
output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.export

Array = jax.Array
PyTree = Any
# Its states are attributes that no type checker knows.
config: Any = jax.config


def serializable(cls: Any) -> Any:
    """Lets a NamedTuple be an argument or a result of an exported program."""
    name = f"lstm_jax.{cls.__name__}"
    jax.export.register_namedtuple_serialization(cls, serialized_name=name)
    return cls


@serializable
class LSTMState(NamedTuple):
    """What an LSTM carries from one step to the next.

    The names are there because ``(h, c)`` and ``(c, h)`` have equal shapes: PyTorch and
    Keras say the first, Flax the second.

    Attributes:
        h: hidden state, ``[*batch, P]``, in the compute dtype.
        c: cell state, ``[*batch, H]``, in float32 or wider.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> state = lj.LSTMState(h=jnp.zeros((2, 5)), c=jnp.zeros((2, 5)))
        >>> state._replace(c=state.c + 1).c[0, 0].item()
        1.0
    """

    h: Array
    c: Array


@serializable
class LSTMParams(NamedTuple):
    """The parameters of one layer in one direction.

    The standard cell has the first three, with a projection the first four; what
    follows belongs to the options of :class:`LSTMCell` that it is named after. Where a
    variant has fewer gates, ``4H`` is ``3H``.

    Attributes:
        kernel: input weights, ``[I, 4H]``.
        recurrent_kernel: recurrent weights, ``[P, 4H]``; with N heads, the blocks of a
            block-diagonal matrix, ``[N, P/N, 4H/N]``.
        bias: ``[4H]``, or None for a layer without bias. There is one bias, as in
            Keras; PyTorch's two are summed on import.
        projection_kernel: ``[H, P]``, or None for a layer without projection.
        peephole: ``[3, H]`` for the gates i, f, o; ``[2, H]`` where one is missing.
        gate_kernel: ``[3H, 3H]``, from the gates i, f, o of the step before to those of
            this one (full gate recurrence).
        norm_scale: ``[2, 4H]``, of the layer normalisation of what the inputs and what
            the state contribute.
        norm_shift: ``[2, 4H]``, of the same.
        cell_norm: ``[2, H]``, scale and shift of that of the cell state.
        initial_h: ``[P]``, learned start.
        initial_c: ``[H]``, of the same.

    Example:
        >>> import jax.numpy as jnp, lstm_jax as lj
        >>> params = lj.LSTMParams(
        ...     kernel=jnp.ones((3, 20)), recurrent_kernel=jnp.ones((5, 20))
        ... )
        >>> state, ys = lj.lstm(params, jnp.ones((7, 3)))
        >>> ys.shape
        (7, 5)
    """

    kernel: Array
    recurrent_kernel: Array
    bias: Array | None = None
    projection_kernel: Array | None = None
    peephole: Array | None = None
    gate_kernel: Array | None = None
    norm_scale: Array | None = None
    norm_shift: Array | None = None
    cell_norm: Array | None = None
    initial_h: Array | None = None
    initial_c: Array | None = None


@serializable
class Directions(NamedTuple):
    """What one layer of a stack holds for each direction.

    Attributes:
        forward: of the direction from the first step to the last.
        backward: of the other direction; None in a one-directional layer.

    Example:
        >>> import jax, lstm_jax as lj
        >>> params = lj.LSTM(3, 5, num_layers=2).init(jax.random.key(0))
        >>> type(params[1]).__name__, params[1].forward.kernel.shape, params[1].backward
        ('Directions', (5, 20), None)
    """

    forward: Any
    backward: Any = None

    def __getattr__(self, name: str) -> Any:
        """Says where what is looked for stands."""
        hint = ""
        if name in ("h", "c"):
            hint = (
                f" Each direction has its own: .forward.{name}, .backward.{name}; "
                "model.last(state) joins the h of both."
            )
        raise AttributeError(f"Directions has no attribute {name!r}.{hint}")


class Options(NamedTuple):
    """What a call over time is given beside its inputs; see :func:`lstm_jax.scan`."""

    lengths: Array | None = None
    mask: Array | None = None
    reset: Array | None = None
    reset_state: PyTree = None
    key: Array | None = None
    time_major: bool = False
    checkpoint_every: int | str | None = None
    implementation: Any = None

    @property
    def arrays(self) -> tuple:
        """What is traced."""
        return tuple(self[:5])

    @property
    def static(self) -> tuple:
        """What a program is compiled for."""
        return tuple(self[5:])
