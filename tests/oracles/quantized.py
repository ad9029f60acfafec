"""The LSTM in 8 bits as a NumPy loop: whole sums, and every rounding to float32.

Row by row and step by step, importing nothing of the project. NumPy rounds after each
operation, so that results are to be equal to the bit.
"""

import numpy as np

from tests.oracles.lstm import begins_segment, visits

F = np.float32
LOG2_E = F(1.44269504)
COEFFICIENTS = (9.66624543e-3, 5.55050038e-2, 2.40223512e-1, 6.93147123e-1)


def exp2_parts(y):
    """2^n and 2^f - 1 with 2^y = 2^n 2^f."""
    n = np.rint(y)
    f = y - n
    p = np.full_like(f, F(1.33335392e-3))
    for coefficient in COEFFICIENTS:
        p = f * p + F(coefficient)
    return np.ldexp(F(1), n.astype(int)).astype(F), f * p


def one_over_sigmoid(x):
    power, m1 = exp2_parts(np.clip(x * -LOG2_E, F(-125), F(125)))
    return (m1 + F(1)) * power + F(1)


def tanh_times_sigmoid(x, gate):
    power, m1 = exp2_parts(np.minimum(np.abs(x) * (2 * LOG2_E), F(29)))
    m1 = m1 * power + (power - F(1))
    return np.copysign(m1, x) / ((m1 + F(2)) * one_over_sigmoid(gate))


def columns(kernel):
    """A float matrix as integers and scales, column by column."""
    kernel = np.asarray(kernel, F)
    values, scales = np.zeros(kernel.shape, np.int8), np.zeros(kernel.shape[1], F)
    for n, column in enumerate(kernel.T):
        scales[n] = np.abs(column).max() * F(1 / 127)
        if scales[n]:
            values[:, n] = np.clip(np.rint(column / scales[n]), -127, 127)
    return values, scales


def row(x):
    """A row as integers and its scale."""
    largest = np.abs(x).max()
    if largest < F(2.0**-119):
        return np.zeros(x.shape, np.int64), largest * F(1 / 127)
    return np.rint(x * (F(127) / largest)).astype(np.int64), largest * F(1 / 127)


def product(x, values, scales):
    steps, scale = row(x)
    sums = steps @ values.astype(np.int64)
    assert np.abs(sums).max(initial=0) < 2**31
    return sums.astype(np.int32).astype(F) * scales * scale


def limited(x, limit):
    return x if limit is None else np.clip(x, -F(limit), F(limit))


def step(p, h, c, x, clip=None, cell_clip=None):
    """One step; ``p`` is a dict of the parameters' fields."""
    z = product(x, p["kernel"], p["kernel_scale"])
    if p["bias"] is not None:
        z = z + p["bias"]
    z = z + product(h, p["recurrent_kernel"], p["recurrent_scale"])
    i, f, g, o = np.split(limited(z, clip), 4)
    c = limited(c / one_over_sigmoid(f) + tanh_times_sigmoid(g, i), cell_clip)
    h = tanh_times_sigmoid(c, o)
    if p["projection_kernel"] is not None:
        h = product(h, p["projection_kernel"], p["projection_scale"])
    return h, c


def forward_row(p, xs, h, c, length, mask, reset, reset_h, reset_c, reverse, **options):
    """One row: ``xs`` [T, I]. Returns ys, the last h and the last c."""
    ys = np.zeros((len(xs), len(h)), F)
    for t in visits(len(xs), length, reverse):
        if begins_segment(reset, t, length, reverse):
            h, c = reset_h, reset_c
        if mask[t]:
            h, c = step(p, h, c, xs[t], **options)
            ys[t] = h
    return ys, h, c


def forward(p, xs, state, reset_state, controls, *, reverse=False, **options):
    """A batch ``xs [B, T, I]``; states are pairs. Returns ys, last h and last c."""
    p = {name: None if v is None else np.asarray(v) for name, v in p.items()}
    batch, length, _ = xs.shape
    rows = []
    for n in range(batch):
        rows.append(
            forward_row(
                p,
                np.asarray(xs[n]),
                *(np.asarray(leaf[n]) for leaf in state),
                int(controls.get("lengths", [length] * batch)[n]),
                np.asarray(controls.get("mask", np.ones((batch, length), bool)))[n],
                np.asarray(controls.get("reset", np.zeros((batch, length), bool)))[n],
                *(np.asarray(leaf[n]) for leaf in reset_state),
                reverse,
                **options,
            )
        )
    return tuple(map(np.stack, zip(*rows, strict=True)))
