"""What is true of a subject: the float64 loops of tests/oracles, on its arguments."""

import jax
import numpy as np

from tests.common import fields, oracle_step
from tests.oracles import cells, lstm

KINDS = ("params", "xs", "state", "reset_state")


def named(kind, tree):
    """The leaves of a pytree in a dict, by kind and name."""
    return {
        (kind, jax.tree_util.keystr(path, simple=True)): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def flat(args):
    """All arguments in one dict, in float64."""
    parts = [named(*pair) for pair in zip(KINDS, args, strict=True)]
    return {
        key: np.array(leaf, np.float64) for one in parts for key, leaf in one.items()
    }


def part(arguments, kind):
    return {name: value for (k, name), value in arguments.items() if k == kind}


def outputs(cell, controls, reverse, arguments):
    """The last state, outputs and states, by kind and name."""
    results = cells.run(
        oracle_step(cell),
        part(arguments, "params"),
        arguments["xs", ""],
        part(arguments, "state"),
        part(arguments, "reset_state"),
        controls,
        reverse,
    )
    return {
        (kind, name): value
        for kind, result in zip(("last", "ys", "states"), results, strict=True)
        for name, value in result.items()
    }


def gradients_by_hand(args, controls, reverse, cotangents):
    """Those of the standard cell, for cotangents of some of its outputs."""
    params, xs, state, reset_state = args
    layer = lstm.Layer(fields(params), reverse=reverse)
    given = [controls.get(name) for name in ("lengths", "mask", "reset")]
    ys, cs, h, c = layer.forward(xs, *state, *given, *reset_state)
    d = {key: np.asarray(value, np.float64) for key, value in cotangents.items()}
    d_hs = d.get(("ys", ""), d.get(("states", "h"), np.zeros_like(ys)))
    d_cs = d.get(("states", "c"), np.zeros_like(cs))
    d_h, d_c = (
        d.get(("last", name), np.zeros_like(a)) for name, a in (("h", h), ("c", c))
    )
    grads = layer.backward(d_hs, d_h, d_c, d_cs)
    names = {("xs", ""): "xs"}
    names |= {("state", name): name for name in "hc"}
    names |= {("reset_state", name): f"reset_{name}" for name in "hc"}
    names |= {key: key[1] for key in named("params", params)}
    return {
        key: grads[name]
        for key, name in names.items()
        # The loop does not know what sequences start from where no state is given.
        if not name.startswith("initial_")
    }
