"""The backward pass of the reference in blocks of steps, for accelerators.

What a step writes costs more there than what it computes, and so does each kernel that
is launched. So the loop walks several steps in one body, and reads and writes once for
all of them. Only the state that enters a block is kept; those within follow from the
pre-activations, which a tape keeps in the inputs' dtype. The gradients of the
pre-activations take their place in memory, and weight gradients are products after the
loop, as in :mod:`lstm_jax.recurrence.steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import partial_eval as pe

from lstm_jax.cells.base import Cell
from lstm_jax.numerics import (
    accumulation_dtype,
    merging_rows,
    where_rows,
    zero_where_not,
)
from lstm_jax.recurrence.blocks import cut_blocks, parts_of
from lstm_jax.recurrence.contract import Call, Inputs, Outputs, Saved, traced_step
from lstm_jax.recurrence.steps import (
    Arrangement,
    batch_shape,
    block_size,
    cast_tree,
    enter,
    hold,
    in_order,
    instantiated,
    one_by_one,
    together,
    update,
)
from lstm_jax.types import Array, PyTree


class Block(NamedTuple):
    """What the loop is given of a block; a leaf of ``start`` is one row."""

    pres: PyTree
    start: PyTree
    d_ys: PyTree
    valid: Array | None
    reset: Array | None


class Sums(NamedTuple):
    """What is summed over all steps."""

    params: PyTree
    reset_state: PyTree


def pull(
    call: Call,
    inputs: Inputs,
    saved: Saved,
    starts: PyTree,
    d_outputs: Outputs,
    reverse: bool,
    how: Arrangement,
) -> Inputs:
    """The gradients of one direction's inputs.

    Args:
        call: what is static.
        inputs: as the forward pass was given them.
        saved: pre-activations of all steps, and of the states what ``recur`` reads.
        starts: the state that entered each block.
        d_outputs: cotangents; None for a leaf that has none.
        reverse: the direction of the forward pass.
        how: the arrangement.
    """
    step = _Step(call, inputs, how)
    carry = instantiated(inputs.state, d_outputs.last), step.zero_sums()
    blocks = Block(saved.pre, starts, d_outputs.ys, inputs.valid, inputs.reset)
    d_pres = []
    for part in _parts(blocks, how) if reverse else reversed(_parts(blocks, how)):
        carry, d_part = _loop(step, carry, *part, reverse)
        d_pres.append(d_part)
    in_time = d_pres if reverse else d_pres[::-1]
    d_pre = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *in_time)
    return step.gradients(saved.states, d_pre, *carry)


def entering(
    call: Call,
    inputs: Inputs,
    saved: Saved,
    starts: PyTree,
    reverse: bool,
    how: Arrangement,
) -> PyTree:
    """The state that entered each step, from those that entered the blocks."""
    step = _Step(call, inputs, how)
    blocks = Block(saved.pre, starts, None, inputs.valid, inputs.reset)
    one = lambda block: together(dict(enumerate(step.entering(block, reverse))))
    states = [
        jax.tree.map(_joined, lax.map(one, part)) for part, _ in _parts(blocks, how)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)


def _parts(blocks: Block, how: Arrangement) -> list[tuple[Block, int]]:
    """Blocks of one size, ``[count, size, ...]`` each, with how many there are."""
    length = jax.tree.leaves(blocks.pres)[0].shape[0]
    parts, row = [], 0
    for part in parts_of(length, block_size(length, how.differentiated)):
        start, stop, size = part
        count = (stop - start) // size
        steps = cut_blocks(blocks._replace(start=None), part)
        first = jax.tree.map(lambda leaf: leaf[row : row + count], blocks.start)
        parts.append((steps._replace(start=first), count))
        row += count
    return parts


def _joined(leaf: Array) -> Array:
    return leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:])


class _Step:
    """One step backwards, of one call."""

    def __init__(self, call: Call, inputs: Inputs, how: Arrangement):
        self.call, self.inputs, self.how = call, inputs, how
        self.cell, self.params = call.cell, inputs.params
        self.like, *_ = traced_step(call.cell, inputs)
        self.leaves, self.structure = jax.tree.flatten(inputs.params)
        self.used = _used_params(call.cell, inputs, self.like)
        self.batch = batch_shape(call.cell, inputs.state) if how.by_row else ()
        by_row = call.cell.params_by_row(inputs.params)
        self.has_rows = self.structure.flatten_up_to(by_row)

    def some_params(self) -> list[Array]:
        """Those that ``update`` reads; where asked for, each row has its own."""
        return [
            leaf if rows else jnp.broadcast_to(leaf, (*self.batch, *leaf.shape))
            for leaf, rows, used in zip(
                self.leaves, self.has_rows, self.used, strict=True
            )
            if used
        ]

    def zero_sums(self) -> Sums:
        """Sums over no steps."""
        zeros = lambda leaf: jnp.zeros(leaf.shape, accumulation_dtype(leaf.dtype))
        params = [zeros(leaf) for leaf in self.some_params()]
        reset_state = jax.tree.map(jnp.zeros_like, self.inputs.reset_state)
        return Sums(params, reset_state)

    def scratch(self, pres: PyTree) -> PyTree:
        """Where a block's gradients are put together; None for nowhere.

        For each gate an array of its own, which each step writes one row of in passing.
        Arrays that are stacked when all are there are written once more, since steps
        come from the last to the first; and so are gates that are joined at each step.
        """
        if not self.how.apart:
            return None

        def of_leaf(leaf):
            if not _is_number(leaf):
                return None
            return self._gates(jnp.zeros(leaf.shape[1:], leaf.dtype))

        return jax.tree.map(of_leaf, pres)

    def written(self, scratch: PyTree, d_pre: PyTree, t: int) -> PyTree:
        """The same with one more step in it."""

        def of_leaf(d, pieces):
            put = lambda piece, gate: lax.dynamic_update_index_in_dim(piece, gate, t, 0)
            return tuple(map(put, pieces, self._gates(d)))

        return jax.tree.map(of_leaf, d_pre, scratch)

    def _gates(self, leaf: Array) -> tuple[Array, ...]:
        """Pre-activations in parts as wide as the state, where they are such."""
        width = max(leaf.shape[-1] for leaf in jax.tree.leaves(self.inputs.state))
        count, rest = divmod(leaf.shape[-1], width)
        if rest:
            return (leaf,)
        return tuple(lax.split(leaf, (width,) * count, leaf.ndim - 1))

    def entering(self, block: Block, reverse: bool) -> list[PyTree]:
        """The state that enters each step of a block."""
        state, states = block.start, {}
        length = jax.tree.leaves(block.pres)[0].shape[0]
        for t in in_order(length, reverse):
            given = (block.pres, block.valid, block.reset)
            pre, ok, new = jax.tree.map(lambda leaf: leaf[t], given)
            state = states[t] = enter(state, new, self.inputs.reset_state)
            pre = cast_tree(pre, self.like)
            state, _ = hold(ok, state, update(self.cell, self.params, state, pre))
        return [states[t] for t in range(length)]

    def back(
        self, d_state: PyTree, sums: Sums, step: Block
    ) -> tuple[PyTree, Sums, PyTree]:
        """The gradients of the state before a step, and of its pre-activations."""
        pre = cast_tree(step.pres, self.like)
        d_params, d_entered, d_pre = self._through_update(d_state, pre, step)
        d_pre = cast_tree(d_pre, step.pres)
        d_r = self._of_recur(*cast_tree(d_pre, self.like))
        recur = lambda state: self.cell.recur(self.params, state)
        (d_through,) = pullback(recur, (step.start,), d_r)
        d_entered = _added(d_entered, d_through)
        params = [
            total + d.astype(total.dtype)
            for total, d in zip(sums.params, d_params, strict=True)
        ]
        if step.reset is None:
            return d_entered, Sums(params, sums.reset_state), d_pre
        zeros = jax.tree.map(jnp.zeros_like, d_entered)
        again = where_rows(step.reset, d_entered, zeros)
        d_before = where_rows(step.reset, zeros, d_entered)
        return d_before, Sums(params, _added(sums.reset_state, again)), d_pre

    def _of_recur(self, d_z: PyTree, d_r: PyTree) -> PyTree:
        """The gradient of what ``recur`` returns: a sum's is that of its parts."""
        if not self.cell.additive:
            return d_r
        like = jax.eval_shape(self.cell.recur, self.params, self.inputs.state)
        pick = lambda part, d: None if part is None else d
        return jax.tree.map(pick, like, d_z, is_leaf=lambda part: part is None)

    def _through_update(self, d_after: PyTree, pre: PyTree, step: Block) -> tuple:
        """Gradients of the used parameters, the state that entered, and ``pre``."""

        def one(some, state, pre):
            some = iter(some)
            leaves = [
                next(some) if used else leaf
                for leaf, used in zip(self.leaves, self.used, strict=True)
            ]
            params = self.structure.unflatten(leaves)
            return update(self.cell, params, state, pre)

        for _ in self.batch:
            one = jax.vmap(one)

        def forward(some, state, pre):
            after, y = hold(step.valid, state, one(some, state, pre))
            y = after if self.call.emit_states else y
            return after, zero_where_not(step.valid, y)

        args = self.some_params(), step.start, pre
        _, y = jax.eval_shape(forward, *args)
        return pullback(forward, args, (d_after, instantiated(y, step.d_ys)))

    def gradients(
        self, states: PyTree, d_pre: PyTree, d_state: PyTree, sums: Sums
    ) -> Inputs:
        """The gradients of all inputs, from those of all steps."""
        cell, inputs = self.cell, self.inputs
        d_z, d_r = cast_tree(d_pre, self.like)
        with merging_rows(self.how.merge):
            primals = (inputs.params, inputs.xs)
            d_params, d_xs = pullback(cell.project, primals, d_z)
            recur = lambda params: cell.recur(params, states)
            (d_recur,) = pullback(recur, (inputs.params,), self._of_recur(d_z, d_r))
        totals = self.structure.flatten_up_to(_added(d_params, d_recur))
        summed = iter(sums.params)
        for n, used in enumerate(self.used):
            if used:
                total = next(summed)
                if not self.has_rows[n]:
                    total = total.sum(tuple(range(len(self.batch))))
                wide = totals[n].astype(total.dtype) + total
                totals[n] = wide.astype(totals[n].dtype)
        d_params = self.structure.unflatten(totals)
        return Inputs(d_params, d_xs, d_state, None, None, sums.reset_state)


def _loop(
    step: _Step, carry: tuple, blocks: Block, count: int, reverse: bool
) -> tuple[tuple, PyTree]:
    """Walks blocks of one size; gradients take the place of pre-activations."""
    if not count:
        return carry, jax.tree.map(_joined, blocks.pres)

    def body(i, carry):
        d_state, sums, pres, scratch = carry
        n = i if reverse else count - 1 - i
        at = lambda leaf: lax.dynamic_index_in_dim(leaf, n, keepdims=False)
        block = jax.tree.map(at, blocks._replace(pres=pres))
        carry = d_state, sums, scratch
        (d_state, sums, scratch), d_pre = _block(step, carry, block, reverse)

        def put(leaf, d):
            if d is None:
                return leaf
            return lax.dynamic_update_index_in_dim(leaf, d, n, 0)

        pres = jax.tree.map(put, pres, d_pre, is_leaf=lambda leaf: leaf is None)
        return d_state, sums, pres, scratch

    whole = *carry, blocks.pres, step.scratch(blocks.pres)
    d_state, sums, d_pre, _ = lax.fori_loop(0, count, body, whole)
    return (d_state, sums), jax.tree.map(_joined, d_pre)


def _block(
    step: _Step, carry: tuple, block: Block, reverse: bool
) -> tuple[tuple, PyTree]:
    """Walks the steps of one block."""
    d_state, sums, scratch = carry
    states, d_pres = step.entering(block, reverse), {}
    length, d_ys = len(states), [block.d_ys] * len(states)
    if jax.tree.leaves(block.d_ys):
        d_ys = one_by_one(block.d_ys, apart=step.how.apart)
    for t in in_order(length, not reverse):
        given = block.pres, block.valid, block.reset
        pre, ok, new = jax.tree.map(lambda leaf: leaf[t], given)
        one = Block(pre, states[t], d_ys[t], ok, new)
        d_state, sums, d_pres[t] = step.back(d_state, sums, one)
        if scratch is not None:
            scratch = step.written(scratch, d_pres[t], t)
    if scratch is None:
        return (d_state, sums, None), together(d_pres)
    join = lambda _, pieces: jnp.concatenate(pieces, -1)
    return (d_state, sums, scratch), jax.tree.map(join, d_pres[0], scratch)


def _used_params(cell: Cell, inputs: Inputs, like: PyTree) -> list[bool]:
    """For each leaf of the parameters, whether ``update`` reads it."""
    leaves, structure = jax.tree.flatten(inputs.params)

    def function(leaves, state, pre):
        return update(cell, structure.unflatten(leaves), state, pre)

    jaxpr = jax.make_jaxpr(function)(leaves, inputs.state, like).jaxpr
    _, used = pe.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return used[: len(leaves)]


def pullback(function: Callable, primals: tuple, cotangents: PyTree) -> tuple:
    """Gradients of a function's arguments; None for a leaf that is no number."""
    leaves, structure = jax.tree.flatten(primals)

    def of_numbers(*some):
        some = iter(some)
        merged = [next(some) if _is_number(leaf) else leaf for leaf in leaves]
        outputs, tree = jax.tree.flatten(function(*structure.unflatten(merged)))
        given = tree.flatten_up_to(cotangents)
        pairs = [
            pair for pair in zip(outputs, given, strict=True) if _is_number(pair[0])
        ]
        return [out for out, _ in pairs], [d for _, d in pairs]

    values = [leaf for leaf in leaves if _is_number(leaf)]
    _, pull, given = jax.vjp(of_numbers, *values, has_aux=True)
    grads = iter(pull(given))
    return structure.unflatten(
        [next(grads) if _is_number(leaf) else None for leaf in leaves]
    )


def _is_number(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _added(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)
