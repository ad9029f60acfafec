"""Schedules of the kernels for a TPU: ``python -m benchmarks.aot.kernels``.

A bundle is what a core begins in one cycle, while nothing stalls: bundles are no
cycles, and no time. With lengths and resets, bfloat16. *Product* is a kernel of the
recurrent product alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.aot import targets

CHIPS = ("v5e", "v6e", "v5p")
BATCHES, SIZES = (8, 16, 128), (256, 768, 1024, 1536)
LENGTH = 32
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*(>*)")


class Loop(NamedTuple):
    """The loop over the steps of a block, in one kernel.

    Attributes:
        bundles: of a step, without those of a loop within it.
        within: of a round of the loop within a step; 0 where there is none.
        spills: vector registers that go to memory, in both.
    """

    bundles: int
    within: int
    spills: int


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints a line for each kernel, and writes all as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot.kernels", description=__doc__
    )
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("out/benchmarks/kernels.json")
    )
    args = parser.parse_args(argv)
    if why := targets.missing():
        parser.error(why)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = (
            f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        )
        targets.prepare()
        from benchmarks.aot.table import versions

        rows, about = [], versions()
        batches, sizes = (
            [int(text) for text in one.split(",")] for one in (args.batches, args.sizes)
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for row in _measured(
            args.chips.split(","), batches, sizes, pathlib.Path(folder)
        ):
            rows.append(row)
            print(*row.values(), flush=True)
            # After each, so that an interrupted run keeps what it has.
            args.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


def _measured(
    chips: Sequence[str],
    batches: Sequence[int],
    sizes: Sequence[int],
    folder: pathlib.Path,
) -> Iterator[dict[str, Any]]:
    for chip in chips:
        for size in sizes:
            for batch in batches:
                for name, function, shapes in _programs(batch, size):
                    start = time.perf_counter()
                    for kernel, loop in _loops(chip, function, shapes, folder).items():
                        yield {
                            **dict(chip=chip, batch=batch, size=size, program=name),
                            **dict(kernel=kernel, **loop._asdict()),
                            "seconds": round(time.perf_counter() - start, 1),
                        }


def _programs(batch: int, size: int) -> list[tuple[str, Callable, Any]]:
    """Name, function, and shapes with dtypes: the product, forward, and gradient."""
    import jax
    import jax.numpy as jnp

    import lstm_jax as lj

    cell = lj.LSTMCell(size, size)
    array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype)
    params = jax.tree.map(
        lambda leaf: array(*leaf.shape), jax.eval_shape(cell.init, jax.random.key(0))
    )
    xs = array(LENGTH, batch, size)
    controls = array(batch, dtype=jnp.int32), array(LENGTH, batch, dtype=jnp.bool_)

    def forward(params, xs, lengths, reset):
        _, ys = lj.scan(
            cell,
            params,
            xs,
            time_major=True,
            lengths=lengths,
            reset=reset,
            implementation="pallas_tpu",
        )
        return ys

    def gradient(params, xs, weights, lengths, reset):
        def loss(params, xs):
            ys = forward(params, xs, lengths, reset)
            return jnp.vdot(ys, weights).astype(jnp.float32)

        return jax.grad(loss, (0, 1))(params, xs)

    return [
        ("product", _product, (array(batch, size), params.recurrent_kernel)),
        ("forward", forward, (params, xs, *controls)),
        ("gradient", gradient, (params, xs, xs, *controls)),
    ]


def _product(h: Any, kernel: Any) -> Any:
    """Products after each other, with nothing between."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def body(h_ref, kernel_ref, out_ref, state):
        state[...] = h_ref[...]

        def step(_, carry):
            z = jnp.dot(state[...], kernel_ref[...], preferred_element_type=jnp.float32)
            out_ref[...] = z
            state[...] = z[:, : h.shape[1]].astype(h.dtype)
            return carry

        jax.lax.fori_loop(0, LENGTH, step, 0)

    return pl.pallas_call(
        body,
        grid=(2,),  # A loop around, as the kernels of the library have.
        in_specs=[
            pl.BlockSpec(h.shape, lambda n: (0, 0)),
            pl.BlockSpec(
                kernel.shape,
                lambda n: (0, 0),
                pipeline_mode=pl.Buffered(buffer_count=1),
            ),
        ],
        out_specs=pl.BlockSpec((h.shape[0], kernel.shape[1]), lambda n: (0, 0)),
        out_shape=jax.ShapeDtypeStruct((h.shape[0], kernel.shape[1]), jnp.float32),
        scratch_shapes=[pltpu.VMEM(h.shape, h.dtype)],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=60 << 20),
        name="product",
    )(h, kernel)


def _loops(
    chip: str, function: Callable, shapes: Any, folder: pathlib.Path
) -> dict[str, Loop]:
    """Compiles for one chip; the loops of its kernels by name."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(targets.devices(chip)), "x")
    where = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(
        lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=where), shapes
    )
    jax.jit(function).lower(*placed).compile()
    found = {}
    for path in sorted(folder.iterdir()):
        name = re.search(r"-(lstm_\w+|product)\.\d+-\d+-final_bundles\.txt$", path.name)
        if name:
            found[name[1]] = _read(path)
        path.unlink()
    return found


def _read(path: pathlib.Path) -> Loop:
    """The loop over steps in the final schedule of a kernel, and one within it."""
    bundles, spills = {2: 0, 3: 0}, 0
    with path.open(errors="replace") as lines:
        for line in lines:
            found = _BUNDLE.match(line)
            if found is None or len(found[1]) not in bundles:
                continue
            bundles[len(found[1])] += 1
            spills += sum("vmem" in one and "_spill" in one for one in line.split(";;"))
    return Loop(bundles[2], bundles[3], spills)


if __name__ == "__main__":
    sys.exit(main())
