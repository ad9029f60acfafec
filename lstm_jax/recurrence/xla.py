"""The reference implementation of the recurrence, for any cell, in JAX's operations.

How its loops are arranged depends on what they are compiled for, and is chosen where
JAX lowers them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell
from lstm_jax.recurrence import tape
from lstm_jax.recurrence.contract import (
    Call,
    Implementation,
    Outputs,
    Target,
    cast_like,
    numbered,
    saved_of,
)
from lstm_jax.recurrence.steps import Arrangement, forward, one_tangent, save
from lstm_jax.types import Array


def arrangement(target: Target) -> Arrangement:
    """The arrangement for what a program is lowered for."""
    return Arrangement(
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

    def run(self, call: Call, args: Sequence[Array], target: Target) -> list[Array]:
        """The forward pass; see :meth:`Implementation.run`."""
        how, shapes = arrangement(target), call.shapes(args)
        saving = set(jax.tree.leaves([one.saved for one in numbered(shapes)]))
        results = []
        for n, (one, reverse) in enumerate(
            zip(call.inputs(args), call.reverse, strict=True)
        ):
            if saving & set(call.emit):
                last, ys, saved = save(call, one, reverse, how)
                saved = tape.pack(call.cell, one, saved) if call.taped else saved
            else:
                (last, ys), saved = forward(call, one, reverse, how), shapes[n].saved
            results.append(Outputs(last, ys, saved))
        return cast_like(call.emitted(shapes, results), call.emitted(shapes, shapes))

    def tangent(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array]:
        """The tangents; see :meth:`Implementation.tangent`."""
        return tangent(call, which, args, target)

    def pullback(
        self, call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
    ) -> list[Array]:
        """The backward pass; see :meth:`Implementation.pullback`."""
        end = len(args) - len(call.emit)
        leaves, before, cotangents = args[: call.leaves], args[:end], args[end:]
        moving = [leaf for leaf, moves in zip(leaves, which, strict=True) if moves]
        shapes = call.shapes(leaves)
        wanted = call.emitted(shapes, shapes)

        # Nobody looks at the value. The rule is what JAX itself would transpose.
        @jax.custom_jvp
        def function(*some):
            return [jnp.zeros(out.shape, out.dtype) for out in wanted]

        @function.defjvp
        def rule(_, tangents):
            return function(*moving), tangent(call, which, (*before, *tangents), target)

        return list(jax.vjp(function, *moving)[1](list(cotangents)))


def tangent(
    call: Call, which: tuple[bool, ...], args: Sequence[Array], target: Target
) -> list[Array]:
    """The tangents of ``call.emit``, linear in those of the inputs ``which`` says.

    The arguments are the leaves of the inputs, what the reference saved, and the
    tangents.
    """
    end = len(args) - sum(which)
    leaves, tangents = args[: call.leaves], iter(args[end:])
    d_inputs = call.inputs([next(tangents) if moves else None for moves in which])
    shapes = call.shapes(leaves)
    all_saved = saved_of(shapes, args[call.leaves : end])
    results = []
    for n, (one, reverse) in enumerate(
        zip(call.inputs(leaves), call.reverse, strict=True)
    ):
        saved, hidden = all_saved[n]
        if call.taped:
            saved = tape.unpack(call.cell, one, saved, hidden, reverse)
        d_one = one_tangent(call, one, d_inputs[n], saved, reverse, arrangement(target))
        results.append(Outputs(*d_one, shapes[n].saved))
    return cast_like(call.emitted(shapes, results), call.emitted(shapes, shapes))
