"""An implementation in a few lines, as others might add one: a loop, unrolled."""

import jax
import jax.numpy as jnp

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.numerics import accumulation_dtype
from lstm_jax.recurrence.contract import Implementation, Outputs


class Toy(Implementation):
    """Standard cells. What it saves is empty: its backward pass runs the loop again."""

    name = "toy"
    platforms = ("cpu",)

    def why_not(self, cell, dtype):
        if isinstance(cell, LSTMCell) and cell.standard:
            return None
        return f"runs standard cells only, not {cell}"

    def run(self, call, args, target):
        results = []
        for one, reverse, shape in zip(
            call.inputs(args), call.reverse, call.shapes(args), strict=True
        ):
            one = jax.tree.map(widened, one)
            saved = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape.saved)
            results.append(Outputs(*loop(call, one, reverse), saved))
        wanted = call.emitted(call.shapes(args), call.shapes(args))
        values = call.emitted(call.shapes(args), results)
        return [v.astype(s.dtype) for v, s in zip(values, wanted, strict=True)]

    def pullback(self, call, which, args, target):
        leaves, cotangents = args[: call.leaves], args[len(args) - len(call.emit) :]

        def function(*some):
            some = iter(some)
            moved = [next(some) if w else x for x, w in zip(leaves, which, strict=True)]
            return self.run(call, moved, target)

        some = [leaf for leaf, want in zip(leaves, which, strict=True) if want]
        return list(jax.vjp(function, *some)[1](list(cotangents)))


def loop(call, inputs, reverse):
    """One direction, step by step: the last state, and all outputs or states."""
    cell, state, ys = call.cell, inputs.state, [None] * inputs.xs.shape[0]
    for t in reversed(range(len(ys))) if reverse else range(len(ys)):
        if inputs.reset is not None:
            state = select(inputs.reset[t], inputs.reset_state, state)
        z = cell.project(inputs.params, inputs.xs[t])
        r = cell.recur(inputs.params, state)
        after, y = cell.update(inputs.params, state, z, r)
        y = after if call.emit_states else y
        if inputs.valid is not None:
            after = select(inputs.valid[t], after, state)
            y = select(inputs.valid[t], y, jax.tree.map(jnp.zeros_like, y))
        state, ys[t] = after, y
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *ys)


def widened(leaf):
    """Half precision as float32: the gradient of a weight is a sum over all steps."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return leaf.astype(accumulation_dtype(leaf.dtype))


def select(rows, on_true, on_false):
    pick = lambda a, b: jnp.where(jnp.expand_dims(rows, -1), a, b)
    return jax.tree.map(pick, on_true, on_false)
