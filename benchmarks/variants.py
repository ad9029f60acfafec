"""Times training steps of other cells than the standard one.

``python -m benchmarks.variants`` runs, for each case and option, a training step: the
gradients of all parameters and of the inputs. It takes turns with the standard cell's,
and with a loop over time as one writes it in PyTorch, whose inputs are projected in one
product before it. One layer, one direction, float32. A loop that gives other gradients
than ours is an error. With noise each draws its own masks: no gradients are compared.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from benchmarks import report
from benchmarks.cases import CASES, Case, choose
from benchmarks.timing import Times, measure

NOISE = {
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    "zoneout": {"zoneout_h": 0.1, "zoneout_c": 0.1},
}
OPTIONS = {
    "standard": {},
    "peephole": {"peephole": True},
    "CIFG": {"variant": "CIFG"},
    "layer_norm": {"layer_norm": "haste"},
    **NOISE,
}
# Of torch's gradients, relative to the largest of a leaf.
TOLERANCE = 1e-3


def build(case: Case, name: str) -> tuple[Any, Any, np.ndarray]:
    """The cell, its parameters without zeros, and inputs ``[T, B, I]``."""
    options = OPTIONS[name]
    cell: Any = lj.LSTMCell(
        case.input_size, case.hidden_size, **({} if name in NOISE else options)
    )
    rng = np.random.default_rng(0)
    size = 1 / math.sqrt(case.hidden_size)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-size, size, leaf.shape), jnp.float32),
        jax.eval_shape(cell.init, jax.random.key(0)),
    )
    if params.norm_scale is not None:
        params = params._replace(norm_scale=params.norm_scale + 1)
    if name in NOISE:
        cell = lj.Regularized(cell, **options)
    shape = (case.length, case.batch, case.input_size)
    return cell, params, rng.standard_normal(shape).astype(np.float32)


def ours(case: Case, name: str) -> Callable[[], Any]:
    """Our training step: gradients of ``(params, xs)``."""
    cell, params, xs = build(case, name)
    xs = jnp.asarray(xs)

    @jax.jit
    def step(params, xs, key):
        def loss(params, xs):
            noise = {"key": key} if name in NOISE else {}
            return lj.scan(cell, params, xs, time_major=True, **noise)[1].sum()

        return jax.grad(loss, (0, 1))(params, xs)

    key = jax.random.key(0)
    return lambda: jax.block_until_ready(step(params, xs, key))


def in_torch(case: Case, name: str) -> Callable[[], Any]:
    """The same as a loop in PyTorch: gradients by name, and of ``xs``."""
    import torch

    _, params, xs = build(case, name)
    weights = {
        field: torch.tensor(np.asarray(leaf), requires_grad=True)
        for field, leaf in params._asdict().items()
        if leaf is not None
    }
    inputs = torch.tensor(xs, requires_grad=True)
    leaves = [*weights.values(), inputs]

    def step():
        ys = torch_loop(torch, name, weights, inputs, case.hidden_size)
        grads = torch.autograd.grad(ys.sum(), leaves)
        return dict(zip([*weights, "xs"], grads, strict=True))

    return step


def torch_loop(torch: Any, name: str, weights: Any, xs: Any, hidden: int) -> Any:
    """All h of one layer, ``[T, B, H]``."""
    kernel, recurrent = weights["kernel"], weights["recurrent_kernel"]
    bias, peephole = weights["bias"], weights.get("peephole")
    norms = weights.get("norm_scale"), weights.get("cell_norm")
    normalise = torch.nn.functional.layer_norm
    options, columns = OPTIONS[name], kernel.shape[1]
    h = xs.new_zeros(xs.shape[1], hidden)
    c, ys = h, []
    mask = None
    if "recurrent_dropout" in options:
        mask = torch.nn.functional.dropout(
            torch.ones_like(h), options["recurrent_dropout"]
        )
    if norms[0] is None:
        zs = xs @ kernel + bias
    else:
        zs = normalise(xs @ kernel, (columns,), norms[0][0]) + bias
    for z in zs:
        r = (h if mask is None else h * mask) @ recurrent
        if norms[0] is not None:
            r = normalise(r, (columns,), norms[0][1])
        gates = (z + r).chunk(columns // hidden, 1)
        if name == "CIFG":
            i, g, o = gates
        else:
            i, f, g, o = gates
        if peephole is not None:
            i, f = i + peephole[0] * c, f + peephole[1] * c
        i = torch.sigmoid(i)
        f = 1 - i if name == "CIFG" else torch.sigmoid(f)
        new = f * c + i * torch.tanh(g)
        if peephole is not None:
            o = o + peephole[2] * new
        out = new if norms[1] is None else normalise(new, (hidden,), *norms[1])
        made = torch.sigmoid(o) * torch.tanh(out)
        if name == "zoneout":
            keep_h = torch.rand_like(h) < options["zoneout_h"]
            keep_c = torch.rand_like(c) < options["zoneout_c"]
            made, new = torch.where(keep_h, h, made), torch.where(keep_c, c, new)
        h, c = made, new
        ys.append(h)
    return torch.stack(ys)


def check(name: str, mine: Any, theirs: dict[str, Any]) -> None:
    """Raises where PyTorch's gradients are others."""
    params, xs = mine
    for field, grad in {**params._asdict(), "xs": xs}.items():
        if grad is None:
            continue
        expected = theirs[field].numpy()
        error = np.abs(np.asarray(grad) - expected).max() / np.abs(expected).max()
        if not error < TOLERANCE:
            raise AssertionError(f"{name}: the gradient of {field} is off by {error}.")


def run(case: Case, names: list[str], rival: bool, budget: float) -> dict[str, Times]:
    """Times of all options, in turn; those of PyTorch's loops by ``torch NAME``."""
    programs: dict[str, Callable[[], Any]] = {}
    for name in names:
        programs[name] = ours(case, name)
        mine = programs[name]()
        if rival and name != "standard":
            programs[f"torch {name}"] = in_torch(case, name)
            theirs = programs[f"torch {name}"]()
            if name not in NOISE:
                check(name, mine, theirs)
    return measure(programs, budget)


def ratios(times: dict[str, Times], name: str) -> tuple[float, float | None]:
    """How many times the standard step's time; how many times of it PyTorch's is."""
    ms = times[name].median_ms
    rival = times.get(f"torch {name}")
    return ms / times["standard"].median_ms, rival and rival.median_ms / ms


def main() -> None:
    """Prints a line for each case, the means, and writes all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [n for n, c in CASES.items() if not c.gpu_only]
    parser.add_argument("--cases", default=",".join(known), metavar="A,B")
    parser.add_argument("--options", default=",".join(OPTIONS), metavar="A,B")
    parser.add_argument("--budget", type=float, default=5.0, metavar="S")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, metavar="PATH.json")
    args = parser.parse_args()
    names = ["standard"]
    names += [n for n in choose("--options", args.options, OPTIONS) if n != names[0]]
    about, rows = report.machine(), {}
    print("option: times the standard step's time, PyTorch's loop over ours")
    for case_name in choose("--cases", args.cases, known):
        times = run(CASES[case_name], names, not args.no_torch, args.budget)
        rows[case_name] = {name: t._asdict() for name, t in times.items()}
        cells = [
            f"{name} {slower:.2f}" + ("" if ahead is None else f", {ahead:.1f}")
            for name in names[1:]
            for slower, ahead in [ratios(times, name)]
        ]
        standard = times["standard"].median_ms
        print(f"{case_name:12} {standard:8.1f} ms  " + "; ".join(cells), flush=True)
        if args.out:
            table = {"machine": about, "cases": rows}
            args.out.write_text(json.dumps(table, indent=1) + "\n")
    for name in names[1:]:
        found = [
            ratios({n: Times(**t) for n, t in row.items()}, name)
            for row in rows.values()
        ]
        mean = statistics.geometric_mean(slower for slower, _ in found)
        line = f"{name}: {mean:.2f} times the standard step in the mean"
        ahead = [a for _, a in found if a is not None]
        if ahead:
            of_mean = statistics.geometric_mean(ahead)
            line += f"; PyTorch's loop over ours {of_mean:.1f}, least {min(ahead):.1f}"
        print(line)


if __name__ == "__main__":
    main()
