"""Values and gradients, against loops that know nothing of the library."""

import functools
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax.cells.base import as_cell
from tests.common import (
    TOLERANCE,
    assert_close,
    quick_jit,
    random_controls,
    random_inputs,
    random_like,
    random_params,
    random_state,
    value_and_pullback,
)
from tests.contract import truth
from tests.contract.cases import ALL, contract, is_standard
from tests.oracles import cells


class Case(NamedTuple):
    """One call: what is given, what the loss is of, what it is differentiated by."""

    batch: int
    length: int
    controls: tuple = ()
    reverse: bool = False
    states: bool = False
    loss: str = "all"
    by: tuple = (0, 1, 2, 3)


# The reference takes about eight steps at once where nothing is differentiated.
CASES = {
    "T17": Case(3, 17, ALL),
    "T9_reverse_ys": Case(3, 9, ALL, reverse=True, loss="ys"),
    "T8_lengths_last_h": Case(2, 8, ("lengths",), loss="first"),
    "T7_mask_reverse_last_c": Case(2, 7, ("mask",), reverse=True, loss="last"),
    "T7_reset_states": Case(3, 7, ("reset",), states=True),
    "T2_reverse_states": Case(2, 2, ALL, reverse=True, states=True, loss="ys"),
    "T2_start_is_fixed": Case(1, 2, loss="ys", by=(0, 1)),
    "T1": Case(1, 1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@contract(every_cell=True)
def test_values_and_gradients_agree_with_the_loop(subject, case):
    cell, dtype = subject.cell, subject.dtype
    args = subject.arguments((case.batch,), case.length)
    controls = random_controls(4, (case.batch,), case.length, case.controls)
    run = functools.partial(named_outputs, subject, case, controls)
    shapes = jax.eval_shape(run, *args)
    keys = of_loss(case.loss, list(shapes))
    cotangents = random_like(5, {key: shapes[key] for key in keys})
    plain, out, grads = values_and_gradients(run, args, case.by, cotangents)

    loop = functools.partial(truth.outputs, cell, controls, case.reverse)
    arguments = truth.flat(args)
    expected = {key: value for key, value in loop(arguments).items() if key in shapes}
    # Without a derivative another loop runs.
    assert_close(plain, expected, dtype)
    assert_close(out, {key: expected[key] for key in keys}, dtype)
    if is_standard(subject):
        by_hand = truth.gradients_by_hand(args, controls, case.reverse, cotangents)
        for key in by_hand.keys() & grads.keys():
            assert_close(grads[key], by_hand[key], dtype, str(key))
    for key, grad in grads.items():
        largest = largest_beside(key, grads)
        check_along_a_line(loop, arguments, key, grad, cotangents, dtype, largest)


def largest_beside(key, grads):
    """The size of a gradient: of h and c, which enter the same sums, that of both."""
    kind, _ = key
    beside = [grads[key]]
    if kind in ("state", "reset_state"):
        beside = [grad for other, grad in grads.items() if other[0] == kind]
    return max(np.abs(np.asarray(grad, np.float64)).max() for grad in beside)


def named_outputs(subject, case, controls, params, xs, state, reset_state):
    scan = lj.scan_states if case.states else lj.scan
    last, ys = scan(
        subject.cell,
        params,
        xs,
        state,
        **controls,
        reset_state=reset_state if "reset" in controls else None,
        reverse=case.reverse,
        implementation=subject.implementation,
    )
    kind = "states" if case.states else "ys"
    return truth.named("last", last) | truth.named(kind, ys)


def of_loss(loss, keys):
    """Which outputs a loss is of."""
    last = [key for key in keys if key[0] == "last"]
    others = [key for key in keys if key[0] != "last"]
    return {"all": keys, "ys": others, "first": last[:1], "last": last[-1:]}[loss]


def values_and_gradients(run, args, by, cotangents):
    """All outputs, those of the loss again where it is differentiated, gradients."""

    @quick_jit
    def program(args, cotangents):
        def some_outputs(*moving):
            moved = list(args)
            for n, value in zip(by, moving, strict=True):
                moved[n] = value
            out = run(*moved)
            return {key: out[key] for key in cotangents}

        out, pull = jax.vjp(some_outputs, *(args[n] for n in by))
        return run(*args), out, pull(cotangents)

    plain, out, grads = program(args, cotangents)
    pairs = [(truth.KINDS[n], grad) for n, grad in zip(by, grads, strict=True)]
    named = [truth.named(*pair) for pair in pairs]
    return plain, out, functools.reduce(dict.__or__, named)


def check_along_a_line(loop, arguments, key, grad, cotangents, dtype, largest):
    """The gradient by one array, against how the loss changes along a random line."""
    seed = zlib.crc32(str(key).encode())
    line = np.random.default_rng(seed).standard_normal(arguments[key].shape)
    moved = cells.difference(loop, arguments, {key: line})
    expected = sum(
        np.vdot(np.asarray(d, np.float64), moved[name])
        for name, d in cotangents.items()
    )
    grad = np.asarray(grad, np.float64)
    assert np.isfinite(grad).all(), key
    # As if each entry were off by the tolerance of the largest, beside the rounding of
    # the differences.
    scale = TOLERANCE[dtype] * largest * np.linalg.norm(line)
    sizes = [np.abs(np.asarray(d, np.float64)).sum() for d in cotangents.values()]
    noise = 1e-9 * sum(sizes)
    error = abs(np.vdot(grad, line) - expected)
    assert error <= scale + noise, f"{key}: {error:.2e} off, of {expected:.2e}"


@contract(lambda subject: as_cell(subject.cell).output_size is not None)
def test_both_directions_of_a_layer_are_each_alone(subject):
    """One call runs both; the gradients of what they share are added."""
    cell, both = subject.cell, range(2)
    model = lj.Stack((cell,), bidirectional=True)
    params = lj.Directions(*(random_params(cell, n, subject.dtype) for n in both))
    state = lj.Directions(*(random_state(cell, n, (3,), subject.dtype) for n in both))
    xs = random_inputs(cell, 2, (3,), 5, subject.dtype)
    controls = random_controls(3, (3,), 5, ALL)
    options = dict(controls, implementation=subject.implementation)

    def together(params, xs, state):
        after, ys = model.apply((params,), xs, (state,), **options)
        return after[0], ys

    def apart(params, xs, state):
        results = [
            lj.scan(cell, params[n], xs, state[n], reverse=n == 1, **options)
            for n in both
        ]
        states, ys = zip(*results, strict=True)
        return lj.Directions(*states), jnp.concatenate(ys, -1)

    args = params, xs, state
    cotangents = random_like(4, jax.eval_shape(together, *args))
    actual, expected = (
        value_and_pullback(run, args, cotangents) for run in (together, apart)
    )
    assert_close(actual, expected, subject.dtype)
