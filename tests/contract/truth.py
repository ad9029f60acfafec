"""What is true of a subject: the float64 loops of tests/oracles, on its arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from tests.common import GRUCell, LeakyCell, fields
from tests.oracles import cells, lstm

KINDS = ("params", "xs", "state", "reset_state")
ACTIVATIONS = {
    jax.nn.sigmoid: cells.sigmoid,
    jnp.tanh: np.tanh,
    jax.nn.hard_sigmoid: cells.hard_sigmoid,
    jax.nn.soft_sign: cells.softsign,
    jax.nn.relu: lambda x: np.maximum(x, 0),
}


def step_of(cell):
    """The NumPy step of a cell, with its options."""
    if isinstance(cell, lj.Regularized):
        return functools.partial(regularized_step, cell, step_of(cell.cell))
    if isinstance(cell, GRUCell):
        return cells.gru_step
    if isinstance(cell, LeakyCell):
        return cells.leaky_step
    if isinstance(cell, lj.SLSTMCell):
        exponential = cell.forget_gate == "exponential"
        return functools.partial(cells.slstm_step, exponential=exponential)
    if isinstance(cell, lj.ConvLSTMCell):
        names = ("strides", "dilation", "padding")
        return functools.partial(
            cells.conv_step, **{name: getattr(cell, name) for name in names}
        )
    return functools.partial(
        cells.lstm_step,
        variant=cell.variant,
        gate=ACTIVATIONS[cell.gate_activation],
        g_act=ACTIVATIONS[cell.candidate_activation],
        h_act=ACTIVATIONS[cell.output_activation],
        clip=cell.clip,
        cell_clip=cell.cell_clip,
    )


def regularized_step(cell, step, p, s, x):
    """Without a key dropout is off, and zoneout is what it is in the mean."""
    after, y = step(p, s, x)
    mix = lambda rate, name: rate * s[name] + (1 - rate) * after[name]
    after = after | {"h": mix(cell.zoneout_h, "h"), "c": mix(cell.zoneout_c, "c")}
    return after, after["h"] if cell.zoneout_h else y


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
        step_of(cell),
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
