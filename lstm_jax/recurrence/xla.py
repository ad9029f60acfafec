"""The reference implementation of the recurrence, for any cell, in JAX's operations.

How its loops are arranged depends on what they are compiled for, and is chosen where
JAX lowers them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell
from lstm_jax.numerics import cast_like
from lstm_jax.recurrence import backward, tape
from lstm_jax.recurrence.blocks import first_of_blocks
from lstm_jax.recurrence.contract import (
    Call,
    Implementation,
    Inputs,
    Outputs,
    Saved,
    Target,
    numbered,
    saved_of,
)
from lstm_jax.recurrence.steps import (
    Arrangement,
    block_size,
    forward,
    one_tangent,
    save,
)
from lstm_jax.types import Array, LSTMState


def arrangement(target: Target) -> Arrangement:
    """The arrangement for what a program is lowered for."""
    accelerator = target.platform not in ("cpu", None)
    return Arrangement(
        block=8 if accelerator else 16,
        differentiated=16 if accelerator else 1,
        apart=target.platform == "tpu",
        widen=target.platform == "cpu",
        merge=not target.partitioned and target.platform is not None,
        by_row=target.partitioned,
    )


class Reference(Implementation):
    """JAX's own operations: every cell, on every platform."""

    name = "xla"
    taped = False

    def why_not(self, cell: Cell, dtype: Any) -> None:
        """There is nothing it can't run."""

    def arrangement(self, target: Target) -> Arrangement:
        """How the loops are arranged."""
        return arrangement(target)

    def run(self, call: Call, args: Sequence[Array], target: Target) -> list[Array]:
        """The forward pass; see :meth:`Implementation.run`."""
        how, shapes = self.arrangement(target), call.shapes(args)
        saving = set(jax.tree.leaves([one.saved for one in numbered(shapes)]))
        results = []
        for n, (one, reverse) in enumerate(
            zip(call.inputs(args), call.reverse, strict=True)
        ):
            if saving & set(call.emit):
                last, ys, saved, starts = save(call, one, reverse, how)
                saved = (
                    tape.pack(call.cell, one, saved, starts) if call.taped else saved
                )
            else:
                (last, ys), saved = forward(call, one, reverse, how), shapes[n].saved
            results.append(Outputs(last, ys, saved))
        return cast_like(call.emitted(shapes, results), call.emitted(shapes, shapes))

    def tangent(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array]:
        """The tangents; see :meth:`Implementation.tangent`."""
        end = len(args) - sum(which)
        leaves, tangents = args[: call.leaves], iter(args[end:])
        d_inputs = call.inputs([next(tangents) if moves else None for moves in which])
        how, shapes = self.arrangement(target), call.shapes(leaves)
        results = []
        for n, (one, saved, starts) in enumerate(_kept(call, args[:end], how)):
            reverse = call.reverse[n]
            if call.taped:
                states = starts
                if _in_blocks(one, how):
                    states = backward.entering(call, one, saved, starts, reverse, how)
                saved = Saved(LSTMState(saved.states.h, states.c), saved.pre)
            d_one = one_tangent(call, one, d_inputs[n], saved, reverse, how)
            results.append(Outputs(*d_one, shapes[n].saved))
        return cast_like(call.emitted(shapes, results), call.emitted(shapes, shapes))

    def pullback(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array]:
        """The backward pass; see :meth:`Implementation.pullback`."""
        how, end = self.arrangement(target), len(args) - len(call.emit)
        leaves, before, cotangents = args[: call.leaves], args[:end], args[end:]
        if not _in_blocks(call.inputs(leaves)[0], how):
            transpose = functools.partial(self._transposed, call, which, target)
            return transpose(before, cotangents)
        d_outputs = call.outputs(call.shapes(leaves), cotangents)
        d_inputs = [
            backward.pull(call, one, saved, starts, d_outputs[n], call.reverse[n], how)
            for n, (one, saved, starts) in enumerate(_kept(call, before, how))
        ]
        grads = call.tree.flatten_up_to(tuple(d_inputs))
        return [
            grad.astype(leaf.dtype)
            for grad, leaf, want in zip(grads, leaves, which, strict=True)
            if want
        ]

    def _transposed(self, call, which, target, before, cotangents):
        """The backward pass that JAX makes of the tangents."""
        leaves = before[: call.leaves]
        moving = [leaf for leaf, moves in zip(leaves, which, strict=True) if moves]
        shapes = call.shapes(leaves)
        wanted = call.emitted(shapes, shapes)

        # Nobody looks at the value. The rule is what JAX itself would transpose.
        @jax.custom_jvp
        def function(*some):
            return [jnp.zeros(out.shape, out.dtype) for out in wanted]

        @function.defjvp
        def rule(_, tangents):
            args = (*before, *tangents)
            return function(*moving), self.tangent(call, which, args, target)

        return list(jax.vjp(function, *moving)[1](list(cotangents)))


def _in_blocks(inputs: Inputs, how: Arrangement) -> bool:
    """Whether derivatives go by blocks of steps: not if their number is not known."""
    length = jax.tree.leaves(inputs.xs)[0].shape[0]
    return how.differentiated > 1 and isinstance(length, int)


def _kept(
    call: Call, args: Sequence[Array], how: Arrangement
) -> Iterator[tuple[Inputs, Saved, Any]]:
    """Each direction's inputs, what was saved, and the states that entered blocks.

    The arguments are the leaves of the inputs, and what the reference saved. There is
    no c in the states from a tape.
    """
    leaves = args[: call.leaves]
    all_saved = saved_of(call.shapes(leaves), args[call.leaves :])
    for one, (saved, hidden), reverse in zip(
        call.inputs(leaves), all_saved, call.reverse, strict=True
    ):
        length = jax.tree.leaves(one.xs)[0].shape[0]
        size = block_size(length, how.differentiated)
        if call.taped:
            yield one, *tape.unpack(call.cell, one, saved, hidden, reverse, size)
        else:
            yield one, saved, first_of_blocks(saved.states, size, reverse)
