"""Every other cell as a float64 NumPy step, from its paper's equations.

Imports nothing of the project. Parameters and a state are dicts of arrays, the state's
of one row; what is one array has the name "". Derivatives are central differences of
the loop, so they depend on nothing but the equations either.
"""

import numpy as np

EPSILON = 1e-5
DIFFERENCE = 1e-6


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def softsign(x):
    return x / (1 + np.abs(x))


def normalised(x):
    return (x - x.mean()) / np.sqrt(x.var() + EPSILON)


def block_product(h, blocks, gates):
    """``h`` times a block-diagonal matrix, gate by gate and head by head."""
    heads, rows, columns = blocks.shape
    units = columns // gates
    out = np.zeros((gates, heads, units))
    for n in range(heads):
        part = h[n * rows : (n + 1) * rows]
        for g in range(gates):
            out[g, n] = part @ blocks[n][:, g * units : (g + 1) * units]
    return out.reshape(-1)


def lstm_step(
    p, s, x, *, variant=None, gate=sigmoid, g_act=np.tanh, h_act=np.tanh, **o
):
    """One step of an LSTM with any options: ``clip``, ``cell_clip``."""
    names = {"NIG": "fgo", "NFG": "igo", "NOG": "ifg", "CIFG": "igo"}.get(
        variant, "ifgo"
    )
    clip = lambda v, limit: (
        v if o.get(limit) is None else np.clip(v, -o[limit], o[limit])
    )
    h, c, R = s["h"], s["c"], p["recurrent_kernel"]
    from_x = x @ p["kernel"]
    from_h = h @ R if R.ndim == 2 else block_product(h, R, len(names))
    if p.get("gate_kernel") is not None:
        i, f, out = np.split(s["gates"] @ p["gate_kernel"], 3)
        from_h = from_h + np.concatenate([i, f, 0 * i, out])
    if p.get("norm_scale") is not None:
        from_x = p["norm_scale"][0] * normalised(from_x)
        from_h = p["norm_scale"][1] * normalised(from_h)
    if p.get("norm_shift") is not None:
        from_x, from_h = from_x + p["norm_shift"][0], from_h + p["norm_shift"][1]
    bias = 0 if p.get("bias") is None else p["bias"]
    pre = dict(zip(names, np.split(from_x + from_h + bias, len(names)), strict=True))
    rows = [name for name in names if name != "g"]

    def peep(name, seen):
        if p.get("peephole") is None:
            return pre[name]
        return pre[name] + p["peephole"][rows.index(name)] * seen

    i = 1.0 if variant == "NIG" else gate(clip(peep("i", c), "clip"))
    if variant == "NFG":
        f = 1.0
    elif variant == "CIFG":
        f = 1 - i
    else:
        f = gate(clip(peep("f", c), "clip"))
    g = clip(pre["g"], "clip")
    c = clip(f * c + i * (g if variant == "NIAF" else g_act(g)), "cell_clip")
    out_gate = 1.0 if variant == "NOG" else gate(clip(peep("o", c), "clip"))
    shown = c
    if p.get("cell_norm") is not None:
        shown = p["cell_norm"][0] * normalised(c) + p["cell_norm"][1]
    h = out_gate * (shown if variant == "NOAF" else h_act(shown))
    if p.get("projection_kernel") is not None:
        h = h @ p["projection_kernel"]
    state = {"h": h, "c": c}
    if variant == "FGR":
        state["gates"] = np.concatenate([i, f, out_gate])
    return state, h


def slstm_step(p, s, x, *, exponential=False):
    """The unstabilised equations 8 to 17 of arXiv:2405.04517, in logarithms of i, f."""
    R = p["recurrent_kernel"]
    from_h = s["h"] @ R if R.ndim == 2 else block_product(s["h"], R, 4)
    bias = 0 if p.get("bias") is None else p["bias"]
    i, f, z, o = np.split(x @ p["kernel"] + from_h + bias, 4)
    f = f if exponential else -np.logaddexp(0, -f)
    m = np.where(s["n"] == 0, i, np.maximum(f + s["m"], i))
    keep = np.where(s["n"] == 0, 0, np.exp(np.minimum(f + s["m"] - m, 0)))
    c = keep * s["c"] + np.exp(i - m) * np.tanh(z)
    n = keep * s["n"] + np.exp(i - m)
    h = sigmoid(o) * c / n
    return {"h": h, "c": c, "n": n, "m": m}, h


def convolve(x, kernel, strides, dilation, padding):
    """A convolution as TensorFlow and Keras pad it, tap by tap."""
    axes = len(strides)
    sizes, spans = x.shape[:axes], []
    for k, d in zip(kernel.shape[:axes], dilation, strict=True):
        spans.append((k - 1) * d + 1)
    if padding == "same":
        outs = [-(-n // s) for n, s in zip(sizes, strides, strict=True)]
        pads = [
            max((out - 1) * s + span - n, 0)
            for out, s, span, n in zip(outs, strides, spans, sizes, strict=True)
        ]
        x = np.pad(x, [(p // 2, p - p // 2) for p in pads] + [(0, 0)])
    else:
        outs = [
            (n - span) // s + 1
            for n, s, span in zip(sizes, strides, spans, strict=True)
        ]
    y = np.zeros((*outs, kernel.shape[-1]))
    for tap in np.ndindex(*kernel.shape[:axes]):
        seen = tuple(
            slice(k * d, k * d + (out - 1) * s + 1, s)
            for k, d, s, out in zip(tap, dilation, strides, outs, strict=True)
        )
        y += x[seen] @ kernel[tap]
    return y


def conv_step(p, s, x, *, strides, dilation, padding, gate=sigmoid):
    """Shi et al. 2015, equation 3, with peepholes or without."""
    ones = (1,) * len(strides)
    pre = convolve(x, p["kernel"], strides, dilation, padding)
    pre = pre + convolve(s["h"], p["recurrent_kernel"], ones, ones, "same")
    if p.get("bias") is not None:
        pre = pre + p["bias"]
    i, f, g, o = np.split(pre, 4, -1)
    peep = p.get("peephole")
    peep = np.zeros(3) if peep is None else peep
    c = gate(f + peep[1] * s["c"]) * s["c"] + gate(i + peep[0] * s["c"]) * np.tanh(g)
    h = gate(o + peep[2] * c) * np.tanh(c)
    return {"h": h, "c": c}, h


def minlstm_step(p, s, x, *, positive=False):
    """Feng et al. 2024 (arXiv:2410.01201), section 3.2; ``positive`` as in B.3.2."""
    z = x @ p["kernel"] + p.get("bias", 0)
    i, f, g = np.split(z, 3)
    i, f = sigmoid(i), sigmoid(f)
    if positive:
        g = np.where(g >= 0, g + 0.5, sigmoid(g))
    h = f / (f + i) * s["h"] + i / (f + i) * g
    return {"h": h}, h


def gru_step(p, s, x):
    """Cho et al. 2014 as cuDNN has it, without bias; the update gate is put out too."""
    (xr, xu, xn), (hr, hu, hn) = np.split(x @ p["w"], 3), np.split(s["h"] @ p["u"], 3)
    n = np.tanh(xn + sigmoid(xr + hr) * hn)
    u = sigmoid(xu + hu)
    h = (1 - u) * n + u * s["h"]
    return {"h": h}, {"out": h, "gate": u}


def leaky_step(p, s, x):
    """Half of the state, and half of what an Elman network makes of it."""
    new = np.tanh(x @ p["w"] + s[""] @ p["r"])
    return {"": (s[""] + new) / 2}, new


def zoneout_step(step, rate_h, rate_c, p, s, x):
    """Another step with zoneout in the mean (Krueger et al. 2017), without a key."""
    after, y = step(p, s, x)
    h = rate_h * s["h"] + (1 - rate_h) * after["h"]
    c = rate_c * s["c"] + (1 - rate_c) * after["c"]
    return after | {"h": h, "c": c}, h if rate_h else y


def run_row(step, p, xs, state, length, mask, reset, reset_state, reverse):
    """One row over time: the last state, and ``(state, y)`` of each valid step."""
    steps, valid = range(length), {}
    for t in reversed(steps) if reverse else steps:
        boundary = (t + 1 < length and reset[t + 1]) if reverse else reset[t]
        if boundary:
            state = reset_state
        if mask[t]:
            state, y = step(p, state, xs[t])
            valid[t] = state, y if isinstance(y, dict) else {"": y}
    return state, valid


def run(step, p, xs, state, reset_state, controls, reverse):
    """A batch, row by row.

    Returns:
        ``(last, ys, states)``, each a dict of arrays; 0 where not valid.
    """
    B, T = xs.shape[:2]
    pick = lambda tree, n: {name: value[n] for name, value in tree.items()}
    lengths = controls.get("lengths", np.full(B, T))
    mask = controls.get("mask", np.ones((B, T), bool))
    reset = controls.get("reset", np.zeros((B, T), bool))
    last = {name: np.zeros_like(value) for name, value in state.items()}
    states = {name: np.zeros((B, T, *v.shape[1:])) for name, v in state.items()}
    _, y = step(p, pick(state, 0), xs[0, 0])
    one = y if isinstance(y, dict) else {"": y}
    ys = {name: np.zeros((B, T, *value.shape)) for name, value in one.items()}
    for n in range(B):
        starts = pick(state, n), int(lengths[n]), mask[n], reset[n]
        after, valid = run_row(step, p, xs[n], *starts, pick(reset_state, n), reverse)
        for name in last:
            last[name][n] = after[name]
        for t, pair in valid.items():
            for whole, one in zip((states, ys), pair, strict=True):
                for name in whole:
                    whole[name][n, t] = one[name]
    return last, ys, states


def difference(function, arguments, direction):
    """The derivative of a function of a dict of arrays, by central differences.

    Args:
        function: returns a dict of arrays.
        arguments: what it is differentiated at.
        direction: a dict of some of them: along what.
    """
    sides = []
    for sign in (1, -1):
        moved = {n: arguments[n] + sign * DIFFERENCE * d for n, d in direction.items()}
        sides.append(function(arguments | moved))
    return {
        name: (value - sides[1][name]) / (2 * DIFFERENCE)
        for name, value in sides[0].items()
    }
