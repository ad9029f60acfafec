"""Every transform of JAX, and every order of two, gives the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.common import assert_close, assert_rounded_otherwise, quick_jit, random_like
from tests.contract import truth
from tests.contract.cases import contract
from tests.oracles import cells

B, T = 2, 4


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: leaf * np.asarray(factor, leaf.dtype), tree)


@contract()
def test_remat_and_checkpointing_change_nothing(subject):
    run, args = subject.case((B,), T, **subject.noise)
    cotangents = random_like(5, jax.eval_shape(run, *args))

    @quick_jit
    def program(args, cotangents):
        def gradients(function):
            out, pull = jax.vjp(function, *args)
            return out, pull(cotangents)

        expected = gradients(run)
        others = {
            "remat": jax.checkpoint(run),
            "jit": jax.jit(run),
            "blocks": functools.partial(run, checkpoint_every=3),
            "square root": functools.partial(run, checkpoint_every="sqrt"),
        }
        return expected, {name: gradients(other) for name, other in others.items()}

    expected, others = program(args, cotangents)
    for name, actual in others.items():
        assert_rounded_otherwise(actual, expected, subject.dtype, name)


@contract()
def test_forward_mode_agrees_with_the_loop(subject):
    """Tangents of everything at once, by jvp and by linearize."""
    run, args = subject.case((B,), T)
    tangents = random_like(6, args)

    @quick_jit
    def program(args, tangents):
        linear = jax.linearize(run, *args)[1]
        return jax.jvp(run, args, tangents), linear(*tangents)

    (_, d_out), linear = program(args, tangents)
    assert_close(linear, d_out, subject.dtype)
    loop = functools.partial(truth.outputs, subject.cell, run.keywords, False)
    expected = cells.difference(loop, truth.flat(args), truth.flat(tangents))
    last, ys = d_out
    actual = truth.named("last", last) | truth.named("ys", ys)
    dtype = "float32" if subject.dtype == "float64" else subject.dtype
    assert_close(actual, {key: expected[key] for key in actual}, dtype)


@contract()
def test_second_derivatives_agree_with_the_loop(subject):
    """Forward over reverse and reverse over reverse, along three lines at once."""
    run, args = subject.case((B,), 3)
    loss = subject.loss(run, args)
    lines = stacked([scaled(random_like(n, args), 0.3) for n in range(3)])

    def along(position):
        def move(leaf, line):
            moved = jnp.tensordot(position.astype(line.dtype), line, 1)
            return leaf + moved.astype(leaf.dtype)

        return loss(*jax.tree.map(move, args, lines))

    @quick_jit
    def program(position):
        gradient = jax.grad(along)
        return jax.jacfwd(gradient)(position), jax.jacrev(gradient)(position)

    dtype = "float64" if subject.dtype == "float64" else "float32"
    forward, reverse = program(jnp.zeros(3, dtype))
    weights = random_like(8, jax.eval_shape(run, *args))
    expected = second_differences(subject, run.keywords, args, lines, weights)
    tolerance = "float32" if subject.dtype == "float64" else subject.dtype
    assert_close(forward, expected, tolerance, "forward over reverse")
    assert_close(reverse, expected, tolerance, "reverse over reverse")


def second_differences(subject, controls, args, lines, weights):
    """The second derivatives of ``subject.loss`` by central differences of the loop."""
    at = truth.flat(args)
    moves = [truth.flat(jax.tree.map(lambda leaf: leaf[n], lines)) for n in range(3)]
    last, ys = weights
    weights = truth.named("last", last) | truth.named("ys", ys)

    def along(position):
        moved = dict(at)
        for p, move in zip(position, moves, strict=True):
            moved = {key: value + p * move[key] for key, value in moved.items()}
        out = truth.outputs(subject.cell, controls, False, moved)
        return sum(np.vdot(np.float64(w), out[key]) for key, w in weights.items()) / 4

    def differences(size):
        second = np.zeros((3, 3))
        for i, j in np.ndindex(3, 3):
            signs = [(a, b) for a in (1, -1) for b in (1, -1)]
            step = size * np.eye(3)
            points = (a * b * along(a * step[i] + b * step[j]) for a, b in signs)
            second[i, j] = sum(points) / (4 * size**2)
        return second

    # Richardson's extrapolation: the error is of the fourth order in the step.
    return (4 * differences(5e-4) - differences(1e-3)) / 3


@contract()
def test_jacfwd_agrees_with_grad(subject):
    run, args = subject.case((B,), 3)
    loss = subject.loss(run, args)

    @quick_jit
    def program(*args):
        # Of one dtype: JAX makes one basis of all arguments.
        argnums = (0, 1)
        return jax.jacfwd(loss, argnums)(*args), jax.grad(loss, argnums)(*args)

    assert_close(*program(*args), subject.dtype)


@contract()
def test_vmap_agrees_with_one_after_the_other(subject):
    """Over rows, over weights, over both; inside grad, around it, and nested."""
    run, args = subject.case((B,), T, **subject.noise)
    many = [scaled(args, factor) for factor in (1, 0.5, -1)]
    if hasattr(args[2], "n"):  # an sLSTM's normaliser is never negative
        many[2] = (*many[2][:2], *args[2:])
    (params, *_), rows = args, tuple(stacked(one[1:] for one in many))
    weights = stacked(one[0] for one in many)
    d_one = [random_like(n, jax.eval_shape(run, *args)) for n in range(3)]
    d_many = stacked(d_one)

    def gradients(params, rows, cotangents):
        out, pull = jax.vjp(run, params, *rows)
        return out, pull(cotangents)

    @quick_jit
    def program(params, weights, args, rows, d_many):
        def around(in_axes, *args):
            """Reverse mode of a vmap; gradients of what is not mapped are sums."""
            out, pull = jax.vjp(jax.vmap(run, in_axes), *args)
            return out, pull(d_many)

        each = lambda axes, *args: jax.vmap(gradients, axes)(*args)
        return {
            "rows": each((None, 0, 0), params, rows, d_many),
            "weights": each((0, None, 0), weights, args, d_many),
            "both": each((0, 0, 0), weights, rows, d_many),
            "grad of rows": around((None, 0, 0, 0), params, *rows),
            "grad of weights": around((0, None, None, None), weights, *args),
            "grad of both": around((0, 0, 0, 0), weights, *rows),
            "nested": jax.vmap(lambda p: each((None, 0, 0), p, rows, d_many))(weights),
        }

    one = quick_jit(gradients)
    each = lambda params: [
        one(params, rest, d) for (_, *rest), d in zip(many, d_one, strict=True)
    ]
    table = [each(params) for params, *_ in many]
    of_weights = [
        one(params, list(args[1:]), d)
        for (params, *_), d in zip(many, d_one, strict=True)
    ]
    expected = {
        "rows": stacked(table[0]),
        "weights": stacked(of_weights),
        "both": stacked(table[n][n] for n in range(3)),
        "nested": stacked(stacked(row) for row in table),
    }
    total = lambda tree: jax.tree.map(lambda leaf: leaf.sum(0), tree)
    out, (d_params, *d_rows) = expected["rows"]
    expected["grad of rows"] = out, (total(d_params), *d_rows)
    out, (d_params, *d_rows) = expected["weights"]
    expected["grad of weights"] = out, (d_params, *total(d_rows))
    expected["grad of both"] = expected["both"]
    for name, actual in program(params, weights, args[1:], rows, d_many).items():
        assert_close(actual, expected[name], subject.dtype, name)


@contract()
def test_loops_around_it_agree_with_the_whole(subject):
    """scan and its gradient, and while_loop, over chunks of two steps."""
    run, args = subject.case((B,), 2, ())
    params, _, state, _ = args
    xs = subject.arguments((B,), 3 * 2)[1]
    whole = lambda params, xs, state: subject.scan(params, xs, state)
    cotangents = random_like(5, jax.eval_shape(whole, params, xs, state))

    def scanned(params, xs, state):
        step = lambda state, chunk: subject.scan(params, chunk, state)
        state, ys = jax.lax.scan(step, state, chunks_of(xs))
        join = lambda y: jnp.moveaxis(y, 0, 1).reshape(B, 6, *y.shape[3:])
        return state, jax.tree.map(join, ys)

    def chunks_of(xs):
        return jnp.moveaxis(xs.reshape(B, 3, 2, *xs.shape[2:]), 1, 0)

    def while_loop(params, xs, state):
        def body(carry):
            n, state = carry
            return n + 1, subject.scan(params, chunks_of(xs)[n], state)[0]

        return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, state))[1]

    @quick_jit
    def program(*args):
        results = []
        for function in (scanned, whole):
            out, pull = jax.vjp(function, *args)
            results.append((out, pull(cotangents)))
        return results, while_loop(*args)

    (actual, expected), last = program(params, xs, state)
    assert_rounded_otherwise(actual, expected, subject.dtype)
    assert_close(last, expected[0][0], subject.dtype)
