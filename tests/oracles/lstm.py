"""The LSTM as a float64 NumPy loop, with its gradients by hand.

Row by row and step by step, from the equations, importing nothing of the project: what
every implementation is held against.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def visits(length, valid_length, reverse):
    """The steps of one row in the order in which they are run."""
    steps = range(min(length, valid_length))
    return list(reversed(steps)) if reverse else list(steps)


def begins_segment(reset, t, valid_length, reverse):
    """Whether the state is reset just before step t runs."""
    if not reverse:
        return bool(reset[t])
    return t + 1 < valid_length and bool(reset[t + 1])


def forward_row(p, xs, h, c, length, mask, reset, reset_h, reset_c, reverse):
    """One row: ``xs`` [T, I]. Returns ys, states, the last h and c, and a tape."""
    W, R, b, P = p["kernel"], p["recurrent_kernel"], p["bias"], p["projection_kernel"]
    ys = np.zeros((len(xs), len(h)))
    cs = np.zeros((len(xs), len(c)))
    tape = []
    for t in visits(len(xs), length, reverse):
        if begins_segment(reset, t, length, reverse):
            tape.append(("reset",))
            h, c = reset_h, reset_c
        if not mask[t]:
            continue
        i, f, g, o = np.split(xs[t] @ W + h @ R + (0 if b is None else b), 4)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        new_c = f * c + i * g
        m = o * np.tanh(new_c)
        new_h = m if P is None else m @ P
        tape.append(("step", t, h, c, i, f, g, o, new_c, m))
        h, c = new_h, new_c
        ys[t], cs[t] = h, c
    return ys, cs, h, c, tape


def backward_row(p, xs, tape, d_ys, d_cs, d_h, d_c, grads):
    """The gradient of one row; adds to ``grads`` and returns those of xs and state."""
    W, R, P = p["kernel"], p["recurrent_kernel"], p["projection_kernel"]
    d_xs = np.zeros_like(xs)
    for what, *record in reversed(tape):
        if what == "reset":
            grads["reset_h"] += d_h
            grads["reset_c"] += d_c
            d_h, d_c = np.zeros_like(d_h), np.zeros_like(d_c)
            continue
        t, h, c, i, f, g, o, new_c, m = record
        d_h, d_c = d_h + d_ys[t], d_c + d_cs[t]
        d_m = d_h
        if P is not None:
            grads["projection_kernel"] += np.outer(m, d_h)
            d_m = P @ d_h
        th = np.tanh(new_c)
        d_c = d_c + d_m * o * (1 - th**2)
        d_z = np.concatenate(
            [
                d_c * g * i * (1 - i),
                d_c * c * f * (1 - f),
                d_c * i * (1 - g**2),
                d_m * th * o * (1 - o),
            ]
        )
        grads["kernel"] += np.outer(xs[t], d_z)
        grads["recurrent_kernel"] += np.outer(h, d_z)
        if grads.get("bias") is not None:
            grads["bias"] += d_z
        d_xs[t] = W @ d_z
        d_h, d_c = R @ d_z, d_c * f
    return d_xs, d_h, d_c


def float64(value):
    return None if value is None else np.asarray(value, np.float64)


class Layer:
    """One layer in one direction, on a batch ``[B, T, I]``.

    ``params`` is a dict with the fields of the parameters.
    """

    def __init__(self, params, *, reverse=False):
        self.params = {name: float64(value) for name, value in params.items()}
        self.reverse = reverse

    def forward(self, xs, h, c, lengths, mask, reset, reset_h, reset_c):
        B, T, _ = xs.shape
        self.xs = float64(xs)
        rows = [
            forward_row(
                self.params,
                self.xs[n],
                float64(h[n]),
                float64(c[n]),
                T if lengths is None else int(lengths[n]),
                np.ones(T, bool) if mask is None else mask[n],
                np.zeros(T, bool) if reset is None else reset[n],
                float64(reset_h[n]),
                float64(reset_c[n]),
                self.reverse,
            )
            for n in range(B)
        ]
        ys, cs, last_h, last_c, self.tapes = zip(*rows, strict=True)
        return np.stack(ys), np.stack(cs), np.stack(last_h), np.stack(last_c)

    def backward(self, d_ys, d_h, d_c, d_cs=None):
        """Gradients of all parameters, xs, h, c and the reset state, as a dict.

        ``d_cs`` are cotangents of c after every step.
        """
        if d_cs is None:
            d_cs = np.zeros((*d_ys.shape[:2], d_c.shape[-1]))
        total = {
            name: None if value is None else np.zeros_like(value)
            for name, value in self.params.items()
        }
        rows = {"xs": [], "h": [], "c": [], "reset_h": [], "reset_c": []}
        for n, tape in enumerate(self.tapes):
            total["reset_h"] = np.zeros_like(d_h[n])
            total["reset_c"] = np.zeros_like(d_c[n])
            d_row = d_ys[n], d_cs[n], d_h[n], d_c[n]
            row = backward_row(self.params, self.xs[n], tape, *d_row, total)
            for name, value in zip(("xs", "h", "c"), row, strict=True):
                rows[name].append(value)
            rows["reset_h"].append(total.pop("reset_h"))
            rows["reset_c"].append(total.pop("reset_c"))
        return total | {name: np.stack(values) for name, values in rows.items()}


MERGES = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": lambda a, b: a + b,
    "mean": lambda a, b: (a + b) / 2,
    "mul": lambda a, b: a * b,
}


def split_merge(merge, d_ys, a, b):
    """The gradients of the two outputs that were merged."""
    if merge == "concat":
        return np.split(d_ys, 2, -1)
    if merge == "mul":
        return d_ys * b, d_ys * a
    return (d_ys, d_ys) if merge == "sum" else (d_ys / 2, d_ys / 2)


class Stack:
    """Layers of one or two directions, on a batch ``[B, T, I]``.

    ``params`` is a list over layers of lists over directions of dicts.
    """

    def __init__(self, params, merge="concat"):
        self.layers = [
            [Layer(p, reverse=n == 1) for n, p in enumerate(directions)]
            for directions in params
        ]
        self.merge = merge

    def forward(self, xs, states, lengths, mask, reset):
        """``states`` is a list over layers of lists over directions of (h, c)."""
        self.outputs, lasts = [], []
        for layer, layer_states in zip(self.layers, states, strict=True):
            outputs, last = [], []
            for one, (h, c) in zip(layer, layer_states, strict=True):
                zeros = np.zeros_like(h), np.zeros_like(c)
                ys, _, h, c = one.forward(xs, h, c, lengths, mask, reset, *zeros)
                outputs.append(ys)
                last.append((h, c))
            xs = outputs[0] if len(layer) == 1 else MERGES[self.merge](*outputs)
            self.outputs.append(outputs)
            lasts.append(last)
        return xs, lasts

    def backward(self, d_ys, d_states):
        """Returns the gradient of xs and, per layer and direction, a dict of them."""
        grads = []
        for layer, outputs, d_last in zip(
            self.layers[::-1], self.outputs[::-1], d_states[::-1], strict=True
        ):
            parts = [d_ys]
            if len(layer) == 2:
                parts = split_merge(self.merge, d_ys, *outputs)
            both = [
                one.backward(part, *last)
                for one, part, last in zip(layer, parts, d_last, strict=True)
            ]
            d_ys = sum(grad["xs"] for grad in both)
            grads.insert(0, both)
        return d_ys, grads
