"""Times training steps over the CPU's devices, or counts what compiled ones exchange.

``python -m benchmarks.scaling`` takes turns with a step (gradients of all parameters,
and plain descent) on one device and on several, in each layout. *Strong*: the rows of
the case are shared. *Weak*: each device has that many. The devices of a CPU share its
cores, so what they add can't be more than cores that one device leaves idle; what is
seen is what it costs to share.

``python -m benchmarks.scaling --compiled`` compiles for 8 and 256 chips of a TPU v5e
and for 8 H100s, none of which has to be there, and compares what they exchange with the
formulas of docs/scaling.md. ``make aot`` sets up the environment for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.cases import CASES, Case, choose

LAYOUTS = {
    "data": {"data": "devices"},
    "fsdp": {"data": "devices", "fsdp": "devices"},
    "model": {"model": "devices"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--compiled", action="store_true", help="count, time nothing")
    parser.add_argument("--case", default="char", choices=CASES, metavar="NAME")
    parser.add_argument("--devices", default="1,2,4", metavar="N,M")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), metavar="A,B")
    parser.add_argument("--implementations", default="cpu,xla", metavar="A,B")
    parser.add_argument("--budget", type=float, default=20.0, metavar="S")
    parser.add_argument("--out", type=pathlib.Path, metavar="PATH.json")
    args = parser.parse_args(argv)
    if args.compiled:
        return _count(parser, args.out)
    try:
        counts = sorted({1, *(int(text) for text in args.devices.split(","))})
        layouts = choose("--layouts", args.layouts, LAYOUTS)
    except ValueError as error:
        parser.error(f"--devices, --layouts: {error}")
    return _time(args, counts, layouts)


def _count(parser: argparse.ArgumentParser, out: pathlib.Path | None) -> int:
    from benchmarks.aot import targets

    if why := targets.missing():
        parser.error(why)
    targets.prepare()
    # The compilers read the environment where JAX is imported.
    from benchmarks.aot import layouts

    return layouts.run(out or pathlib.Path("out/benchmarks/scaling.json"))


def _time(args: argparse.Namespace, counts: list[int], layouts: Sequence[str]) -> int:
    import jax

    jax.config.update("jax_num_cpu_devices", max(counts))
    from benchmarks import report
    from benchmarks.timing import measure

    case, rows = CASES[args.case], []
    print(f"{case.name}: {case.describe()}; ms a step, times of one device's")
    for implementation in args.implementations.split(","):
        for kind in ("strong", "weak"):
            programs = {
                f"{layout} {count}": step(case, kind, layout, count, implementation)
                for layout in layouts
                for count in counts
                if runs(layout, count, implementation)
            }
            for run in programs.values():
                run()
            times = measure(programs, args.budget)
            first = next(iter(times.values())).median_ms
            for name, found in times.items():
                row = dict(implementation=implementation, kind=kind, layout=name)
                rows.append({**row, **found._asdict()})
                print(
                    f"{implementation:4} {kind:6} {name:8} "
                    f"{found.median_ms:9.1f} ms {found.median_ms / first:6.2f}",
                    flush=True,
                )
    if args.out:
        about = {"machine": report.machine(), "case": dataclasses.asdict(case)}
        args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


def runs(layout: str, devices: int, implementation: str) -> bool:
    """Whether there is such a program: one device once, units on the reference."""
    if devices == 1:
        return layout == "data"
    return layout != "model" or implementation == "xla"


def step(
    case: Case, kind: str, layout: str, devices: int, implementation: str
) -> Callable[[], Any]:
    """A training step on some devices."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding

    import lstm_jax as lj

    mesh = Mesh(np.array(jax.devices()[:devices]), "devices")
    placed = lj.sharding.Layout(mesh, **LAYOUTS[layout])
    model = lj.LSTM(
        case.input_size,
        case.hidden_size,
        num_layers=case.layers,
        bidirectional=case.bidirectional,
    )
    put = lambda tree, specs: jax.device_put(
        tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    )
    params = put(model.init(jax.random.key(0)), placed.params(model))
    rows = case.batch * (devices if kind == "weak" else 1)
    shape = (rows, case.length, case.input_size)
    rng = np.random.default_rng(0)
    xs = put(rng.standard_normal(shape, np.float32), placed.inputs())

    def descend(params, xs):
        loss = lambda params: (model.apply(params, xs)[1] ** 2).mean()
        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    outs = jax.tree.map(lambda leaf: leaf.sharding, params)
    with lj.implementation(implementation), lj.sharding.use(placed):
        compiled = jax.jit(descend, out_shardings=outs).lower(params, xs).compile()
    return lambda: jax.block_until_ready(compiled(params, xs))


if __name__ == "__main__":
    sys.exit(main())
