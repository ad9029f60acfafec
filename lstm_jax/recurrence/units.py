"""Hidden units over a mesh axis: each device runs its own, and a step gathers h.

A part of the units is a cell like another: it sees all of h, and holds its own c. What
joins the parts stands where a projection would. So the loops of the reference run it
as they are, inside ``shard_map`` over that one axis; the batch's axes are XLA's.

Stored weights are ``[I, 4H]`` on every mesh. Here they are seen as ``[I, 4, H]``, and
cut along H: a device's columns are those of its units in every gate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstm_jax.cells import variants
from lstm_jax.cells.base import Cell
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.cells.regularized import Noisy, Regularized
from lstm_jax.meshes import Cut, Units, names_in, units_here
from lstm_jax.numerics import matmul
from lstm_jax.recurrence.contract import Inputs
from lstm_jax.types import Array, LSTMParams, LSTMState, PyTree


@dataclasses.dataclass(frozen=True)
class PartOfUnits(Cell):
    """The units of an ``LSTMCell`` that one device has.

    Attributes:
        cell: the LSTM of these units alone, without a projection.
        whole: P, the size of the h that all devices have.
        axis: the mesh axis.
    """

    cell: LSTMCell
    whole: int
    axis: str

    additive = True

    @property
    def dtype(self) -> Any:
        """That of the cell."""
        return self.cell.dtype

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> LSTMState:
        """Returns zeros: all of h, and c of these units."""
        state = self.cell.zero_state(batch_shape, dtype)
        return state._replace(h=jnp.zeros((*batch_shape, self.whole), state.h.dtype))

    def project(self, params: LSTMParams, xs: Array) -> Array:
        """Returns what the inputs contribute to these units."""
        return self.cell.project(params, xs)

    def recur(self, params: LSTMParams, state: LSTMState) -> Array:
        """Returns what all of h contributes to these units."""
        return self.cell.recur(params, state)

    def update(
        self, params: LSTMParams, state: LSTMState, z: Array, r: Array
    ) -> tuple[LSTMState, Array]:
        """Returns ``(state, y)``: the one place where devices meet."""
        kernel = params.projection_kernel
        own = params._replace(projection_kernel=None)
        after, h = self.cell.update(own, state, z, r)
        if kernel is None:
            h = lax.all_gather(h, self.axis, axis=h.ndim - 1, tiled=True)
        else:
            h = lax.psum(matmul(h, kernel), self.axis).astype(state.h.dtype)
        return after._replace(h=h), h


def run(
    function: Callable[[Cell, tuple[Inputs, ...]], list[tuple[PyTree, PyTree]]],
    cell: Cell,
    inputs: tuple[Inputs, ...],
    over: Units,
    *,
    emit_states: bool,
) -> list[tuple[PyTree, PyTree]]:
    """Runs a layer with its units over a mesh axis.

    Args:
        function: runs a cell on the inputs of each direction: ``(last, ys)`` for each.
        cell: the cell of the layer.
        inputs: those of its directions.
        over: the axes of the units and of the batch.
        emit_states: whether ``ys`` are states.
    """
    part = part_of(cell, over)
    batch = _batch_spec(inputs[0].state.c.shape[:-1], over)
    last = LSTMState(P(*batch), P(*batch, over.axis))
    ys: Any = P(None, *batch)
    if emit_states:
        ys = LSTMState(ys, P(None, *batch, over.axis))

    def local(inputs):
        return function(part, _map_params(cell, _joined, inputs))

    # What several devices have alike, h and outputs, is typed as if each had its own.
    by_hand = jax.shard_map(
        local,
        mesh=None if jax.sharding.get_abstract_mesh().shape else over.mesh,
        in_specs=(tuple(_specs(cell, one, batch, over.axis) for one in inputs),),
        out_specs=[(last, ys) for _ in inputs],
        axis_names={over.axis, *names_in(batch)},
        check_vma=False,
    )
    gates = len(variants.gates_of(lstm_of(cell).variant))
    by_unit = lambda params: _by_unit(gates, _in_rows(params, over))
    return by_hand(_map_params(cell, by_unit, inputs))


def _batch_spec(shape: tuple[int, ...], over: Units) -> tuple:
    """The mesh axes of each batch axis."""
    if len(over.batch) > len(shape):
        raise ValueError(
            f"data: expected mesh axes for the {len(shape)} batch axes of xs, got "
            f"{len(over.batch)}: {P(*over.batch)}. Time is never sharded: a step needs "
            "the one before it."
        )
    for size, names in zip(shape, over.batch, strict=False):
        parts = math.prod(over.mesh.shape[name] for name in names_in((names,)))
        if size % parts:
            raise ValueError(
                f"xs: expected a batch that the {parts} parts of the mesh axes {names} "
                f"divide, got B = {size}. Pad it (lengths=0 for the rows that are not "
                "there)."
            )
    return (*over.batch, *(None for _ in shape[len(over.batch) :]))


def in_parts(cell: Cell) -> Cell:
    """What runs of a cell on each device here: some units, or the whole."""
    over = units_here()
    return cell if over is None else part_of(cell, over)


def state_places(state: PyTree, axis: int, between: int = 0) -> Any:
    """Where states have their batch axes, and where c is over a mesh axis too.

    Args:
        state: one.
        axis: where its batch axes begin.
        between: how many axes, of time, are between those and the last.
    """
    over = units_here()
    if over is None:
        return axis
    return jax.tree.map(
        lambda one: LSTMState(axis, Cut(axis, over.axis, between)),
        state,
        is_leaf=lambda one: isinstance(one, LSTMState),
    )


def lstm_of(cell: Cell) -> Any:
    """The LSTM inside a cell that may have noise."""
    if isinstance(cell, Noisy):
        cell = cell.regularized
    return cell.cell if isinstance(cell, Regularized) else cell


def part_of(cell: Any, over: Units) -> Any:
    """The cell that each device runs."""
    if isinstance(cell, Noisy):
        return Noisy(part_of(cell.regularized, over))
    if isinstance(cell, Regularized):
        return dataclasses.replace(cell, cell=part_of(cell.cell, over))
    check(cell, over.axis, over.size)
    units = cell.hidden_size // over.size
    own = dataclasses.replace(cell, hidden_size=units, proj_size=None)
    return PartOfUnits(own, cell.output_size, over.axis)


def check(cell: Any, axis: str, size: int) -> None:
    """Checks that the units of a cell can be over a mesh axis."""
    if type(cell) is not LSTMCell:
        raise ValueError(
            f"model: expected LSTMCells, whose units see one another through h "
            f"alone, got {cell!r}."
        )
    for name, default in (("layer_norm", None), ("num_heads", 1)):
        if getattr(cell, name) != default:
            raise ValueError(
                f"model: expected {name}={default!r}, got {cell!r}: its units see "
                "more of one another than h."
            )
    if cell.variant == "FGR":
        raise ValueError(
            f"model: expected another variant than 'FGR', got {cell!r}: its units "
            "see one another's gates."
        )
    if cell.hidden_size % size:
        raise ValueError(
            f"model: expected a hidden_size that the {size} parts of the mesh "
            f"axis {axis!r} divide, got H = {cell.hidden_size}. Take "
            f"{-(-cell.hidden_size // size) * size} units, or another axis."
        )


def _map_params(
    cell: Cell, function: Callable, inputs: tuple[Inputs, ...]
) -> tuple[Inputs, ...]:
    """Changes the LSTM's parameters, which may have masks beside them."""

    def change(params):
        if isinstance(cell, Noisy):
            return params._replace(params=function(params.params))
        return function(params)

    return tuple(one._replace(params=change(one.params)) for one in inputs)


def _in_rows(params: LSTMParams, over: Units) -> LSTMParams:
    """Weights of which a device along the axis has some rows, whatever it stores.

    From there, what a device has goes to the units of every other in one exchange;
    XLA would gather rows that are over more axes whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = NamedSharding(mesh if mesh.shape else over.mesh, P(over.axis))
    see = lambda leaf: jax.lax.with_sharding_constraint(leaf, rows)
    return params._replace(
        kernel=see(params.kernel), recurrent_kernel=see(params.recurrent_kernel)
    )


def _by_unit(gates: int, params: LSTMParams) -> LSTMParams:
    """Columns by gate and unit."""

    def see(leaf):
        if leaf is None:
            return None
        *rows, columns = leaf.shape
        return leaf.reshape(*rows, gates, columns // gates)

    return params._replace(
        kernel=see(params.kernel),
        recurrent_kernel=see(params.recurrent_kernel),
        bias=see(params.bias),
    )


def _joined(params: LSTMParams) -> LSTMParams:
    """The inverse of :func:`_by_unit`, of some units."""

    def join(leaf):
        if leaf is None:
            return None
        *rows, gates, units = leaf.shape
        return leaf.reshape(*rows, gates * units)

    return params._replace(
        kernel=join(params.kernel),
        recurrent_kernel=join(params.recurrent_kernel),
        bias=join(params.bias),
    )


def _specs(cell: Cell, inputs: Inputs, batch: tuple, axis: str) -> Inputs:
    """How the inputs of one direction are cut, columns by gate and unit."""

    def given(value: Any, *spec: Any) -> Any:
        return None if value is None else P(*spec)

    params = inputs.params.params if isinstance(cell, Noisy) else inputs.params
    own: Any = LSTMParams(
        kernel=P(None, None, axis),
        recurrent_kernel=P(None, None, axis),
        bias=given(params.bias, None, axis),
        projection_kernel=given(params.projection_kernel, axis),
        peephole=given(params.peephole, None, axis),
    )
    steps = (None, *batch)
    xs: Any = P(*steps)
    if isinstance(cell, Noisy):
        masks = (given(mask, *batch) for mask in inputs.params[1:])
        own = type(inputs.params)(own, *masks)
        if isinstance(inputs.xs, tuple):
            keep_h, keep_c = inputs.xs[1]
            xs = (xs, (given(keep_h, *steps), given(keep_c, *steps, axis)))
    state = LSTMState(P(*batch), P(*batch, axis))
    return Inputs(
        own,
        xs,
        state,
        given(inputs.valid, *steps),
        given(inputs.reset, *steps),
        None if inputs.reset_state is None else state,
    )
