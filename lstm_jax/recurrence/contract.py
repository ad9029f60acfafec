"""What an implementation of the recurrence is given, and what it owes.

The arrays of a layer come in tuples, one entry for each of its one or two directions,
time-major, with any number of batch axes: ``xs`` is ``[T, *batch, ...]``. A *call*
says what is static about them. An implementation is a forward and a backward pass; what
makes of these two a function with every transform of JAX is in ``primitive.py``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.core import NamedAxisEffect  # no public name

from lstm_jax.cells.base import Cell
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.checks.trees import check_after
from lstm_jax.numerics import added
from lstm_jax.types import Array, LSTMState, PyTree

# Rows of the tape are as long as whole vectors of the widest processor.
TAPE_UNITS = 16
_BITS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


class Inputs(NamedTuple):
    """What one direction is given; None where there is nothing.

    Attributes:
        params: the cell's, in the compute dtype.
        xs: ``[T, *batch, ...]``, in the compute dtype; 0 where not valid.
        state: the state to start from, in the dtypes that the cell's steps return.
        valid: ``[T, *batch]`` bool; a step that is not valid holds the state, and its
            output is 0.
        reset: ``[T, *batch]`` bool; the state becomes ``reset_state`` before this step,
            in the order in which the steps are run.
        reset_state: a state of the batch.
    """

    params: PyTree
    xs: PyTree
    state: PyTree
    valid: Array | None = None
    reset: Array | None = None
    reset_state: PyTree = None

    @property
    def dtype(self) -> jnp.dtype:
        """The compute dtype: inputs may have masks of other dtypes beside them."""
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(self.xs)]
        floating = [dt for dt in dtypes if jnp.issubdtype(dt, jnp.floating)]
        return min(floating or dtypes, key=lambda dt: dt.itemsize)


class Outputs(NamedTuple):
    """What one direction returns.

    Attributes:
        last: the last state.
        ys: the outputs of all steps or, where the call says so, their states.
        saved: what the backward pass needs; see :func:`output_shapes`.
    """

    last: PyTree
    ys: PyTree
    saved: PyTree


class Saved(NamedTuple):
    """What the reference saves of a cell that it alone runs.

    Attributes:
        states: the state that entered each step.
        pre: what ``update`` was given of inputs and state at each step.
    """

    states: PyTree
    pre: PyTree


class Tape(NamedTuple):
    """What is saved of an LSTM that kernels run: bits, on every platform as many.

    Shapes and dtypes follow from those of the inputs alone, since one trace may be
    lowered for several platforms. What a row holds, and in which order, is the business
    of whoever wrote it; but a row is whole, so that a batch may be cut anywhere.

    Attributes:
        gates: ``[T, *batch, 4U]``, U being H rounded up to a multiple of 16; uint16,
            uint32 or uint64, as wide as the inputs.
        cells: ``[T, *batch, U]``, uint32 or uint64, as wide as c.
        entering: ``[T, *batch, P]``, the h that entered each step; None where that is
            the output before.
    """

    gates: Any
    cells: Any
    entering: Any


class Implementation:
    """One way to run the recurrence. A subclass overrides what is not so.

    Attributes:
        name: what ``implementation=`` calls it.
        platforms: those of JAX that it can be lowered for; None for all.
        native: whether it calls code that is not JAX's own operations, so that XLA can
            neither cut its programs unless it says how, nor map them over weights.
        taped: whether it saves a :class:`Tape`.
        by_default: whether it may run where none is named; one that no device was ever
            measured with does not.
    """

    name: str
    platforms: tuple[str, ...] | None = None
    native: bool = False
    taped: bool = True
    by_default: bool = True

    def unavailable(self) -> str | None:
        """Why it can't run on this machine; None if it can."""
        return None

    def why_not(self, cell: Cell, dtype: Any) -> str | None:
        """Why it can't run a cell in a compute dtype; None if it can."""
        raise NotImplementedError

    def refuses(self, target: Target) -> str | None:
        """Why it can't be lowered for a target of its platforms; None if it can."""
        return None

    def run(self, call: Call, args: Sequence[Array], target: Target) -> list[Array]:
        """The forward pass, on the leaves of the inputs.

        Returns:
            The leaves of the outputs that ``call.emit`` names.
        """
        raise NotImplementedError

    def tangent(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array] | None:
        """The tangents of ``call.emit``, or None: the reference computes them anew.

        The arguments are the leaves of the inputs, what was saved, and the tangents of
        those inputs that ``which`` says.
        """
        return None

    def pullback(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array] | None:
        """The backward pass, or None: the reference runs it anew.

        The arguments are the leaves of the inputs, what was saved (``call.kept``), and
        the cotangents of ``call.emit``.

        Returns:
            The gradients of those inputs that ``which`` says.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is lowered for.

    Attributes:
        platform: such as "cpu", "cuda" or "tpu"; None where it is not known.
        devices: how many XLA may cut its arrays over.
        exporting: whether it is to run where this package is not.
        partly_manual: whether it is cut by hand over some axes of a mesh, by XLA over
            others.
    """

    platform: str | None = None
    devices: int = 1
    exporting: bool = False
    partly_manual: bool = False

    @property
    def partitioned(self) -> bool:
        """Whether XLA may cut its arrays over several devices."""
        return self.devices > 1


@dataclasses.dataclass(frozen=True)
class Call:
    """What is static about a call.

    Attributes:
        cell: the cell.
        reverse: for each direction, whether it runs from the last step to the first.
        emit_states: whether ``ys`` are the states.
        candidates: the implementations that may run it, the preferred first.
        tree: structure of the tuple of :class:`Inputs`.
        emit: which leaves of the tuple of :class:`Outputs` are wanted, or, in the
            backward pass, have a cotangent.
    """

    cell: Cell
    reverse: tuple[bool, ...]
    emit_states: bool
    candidates: tuple[Implementation, ...]
    tree: Any
    emit: tuple[int, ...] = ()

    @property
    def taped(self) -> bool:
        """Whether a :class:`Tape` is saved.

        Where a candidate wants one and, since it is the least that can be saved, of
        every standard cell whose rows it does not make longer.
        """
        cell = self.cell
        if isinstance(cell, LSTMCell) and cell.standard:
            fits = cell.hidden_size % TAPE_UNITS == 0
            return fits or any(candidate.taped for candidate in self.candidates)
        return any(candidate.taped for candidate in self.candidates)

    @property
    def leaves(self) -> int:
        """How many inputs there are."""
        return self.tree.num_leaves

    def inputs(self, leaves: Sequence[Any]) -> tuple[Inputs, ...]:
        """The inputs from their leaves."""
        return self.tree.unflatten(leaves)

    def shapes(self, leaves: Sequence[Any]) -> tuple[Outputs, ...]:
        """Shapes and dtypes of all outputs."""
        return tuple(
            output_shapes(self, *split) for split in enumerate(self.inputs(leaves))
        )

    def emitted(self, shapes: Any, outputs: Any) -> list[Any]:
        """Those leaves of a tuple of :class:`Outputs` that are wanted."""
        leaves = jax.tree.structure(shapes).flatten_up_to(tuple(outputs))
        return [leaves[index] for index in self.emit]

    def outputs(self, shapes: Any, values: Sequence[Any]) -> tuple[Outputs, ...]:
        """The inverse of :meth:`emitted`: None for what was not wanted."""
        known = dict(zip(self.emit, values, strict=True))
        structure = jax.tree.structure(shapes)
        return structure.unflatten([known.get(n) for n in range(structure.num_leaves)])


def numbered(shapes: PyTree) -> PyTree:
    """A pytree with its leaves' numbers in their places."""
    structure = jax.tree.structure(shapes)
    return structure.unflatten(range(structure.num_leaves))


def kept(shapes: tuple[Outputs, ...]) -> list[int]:
    """Which leaves of the outputs the backward pass is handed.

    Those saved and, where the h that enters a step is the output before, the outputs.
    """
    indices = []
    for one in numbered(shapes):
        if _hidden_is_output(one):
            indices.append(hidden_of(one.ys))
        indices += jax.tree.leaves(one.saved)
    return indices


def saved_of(
    shapes: tuple[Outputs, ...], values: Sequence[Any]
) -> list[tuple[Any, Any]]:
    """For each direction what was saved, and h of the outputs or None."""
    known = dict(zip(kept(shapes), values, strict=True))
    return [
        (
            jax.tree.map(known.__getitem__, one.saved),
            known[hidden_of(one.ys)] if _hidden_is_output(one) else None,
        )
        for one in numbered(shapes)
    ]


def _hidden_is_output(one: Outputs) -> bool:
    return isinstance(one.saved, Tape) and one.saved.entering is None


def hidden_of(ys: Any) -> Any:
    """h, of the outputs or of the states of a standard cell."""
    return ys.h if isinstance(ys, LSTMState) else ys


def keeps_entering(cell: Cell, inputs: Inputs) -> bool:
    """Whether the h that enters a step may be another than the output before."""
    controls = inputs.valid is not None or inputs.reset is not None
    return controls or not cell.outputs_hidden


def output_shapes(call: Call, direction: int, inputs: Inputs) -> Outputs:
    """Shapes and dtypes of all that one direction returns, from one step of it."""
    length = jax.tree.leaves(inputs.xs)[0].shape[0]
    pre, (_, y), _ = traced_step(call.cell, inputs)
    for_all = lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape), leaf.dtype)
    state = jax.tree.map(_like, inputs.state)
    saved = Saved(*jax.tree.map(for_all, (state, pre)))
    if call.taped:
        saved = _tape_shapes(call.cell, inputs)
    ys = jax.tree.map(for_all, state if call.emit_states else y)
    return Outputs(state, ys, saved)


def _like(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def traced_step(cell: Cell, inputs: Inputs) -> tuple[PyTree, tuple, frozenset]:
    """Shapes and dtypes of what one step makes, and its side effects.

    Returns:
        ``(pre, (state, y), effects)``; see :func:`keep` for the first.
    """
    first = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    params, state = jax.tree.map(_like, (inputs.params, inputs.state))
    args = (params, state, jax.tree.map(first, inputs.xs))
    leaves, structure = jax.tree.flatten(args)
    return _traced_step(cell, structure, tuple(leaves))


@functools.lru_cache(maxsize=256)
def _traced_step(cell: Cell, structure: Any, leaves: tuple) -> tuple:
    def step(params, state, x):
        z, r = cell.project(params, x), cell.recur(params, state)
        return keep(cell, z, r), cell.update(params, state, z, r)

    args = structure.unflatten(leaves)
    jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(*args)
    check_after(cell, args[1], shapes[1])
    # That devices exchange something is none.
    effects = (e for e in jaxpr.effects if not isinstance(e, NamedAxisEffect))
    return *shapes, frozenset(effects)


def _tape_shapes(cell: Cell, inputs: Inputs) -> Tape:
    *leading, hidden = inputs.state.c.shape
    xs = jax.tree.leaves(inputs.xs)[0]
    steps = (xs.shape[0], *leading)
    units = -(-hidden // TAPE_UNITS) * TAPE_UNITS
    entering = None
    if keeps_entering(cell, inputs):
        shape = (*steps, inputs.state.h.shape[-1])
        entering = jax.ShapeDtypeStruct(shape, inputs.state.h.dtype)
    return Tape(
        jax.ShapeDtypeStruct((*steps, 4 * units), bits_of(xs.dtype)),
        jax.ShapeDtypeStruct((*steps, units), bits_of(inputs.state.c.dtype)),
        entering,
    )


def bits_of(dtype: jnp.dtype) -> Any:
    """The dtype of the tape's entries for numbers of a dtype."""
    return _BITS[dtype.itemsize]


def input_axes(call: Call) -> list[int | None]:
    """Where each input has its batch axis; None for weights."""
    axes: list[int | None] = [0] * call.leaves
    for one in call.inputs(range(call.leaves)):
        for number in jax.tree.leaves((one.xs, one.valid, one.reset)):
            axes[number] = 1
        by_row = call.cell.params_by_row(one.params)
        structure = jax.tree.structure(one.params)
        for number, row in zip(
            jax.tree.leaves(one.params), structure.flatten_up_to(by_row), strict=True
        ):
            axes[number] = 0 if row else None
    return axes


def output_axes(shapes: tuple[Outputs, ...]) -> list[int]:
    """Where each output has its batch axis: the last states in front, the rest not."""
    axes = []
    for part, axis in [
        pair for one in shapes for pair in zip(one, (0, 1, 1), strict=True)
    ]:
        axes += [axis] * len(jax.tree.leaves(part))
    return axes


def keep(cell: Cell, z: PyTree, r: PyTree) -> tuple[PyTree, PyTree]:
    """What ``update`` needs of z and r: their sum, where it depends on that alone."""
    return (added(z, r), None) if cell.additive else (z, r)
