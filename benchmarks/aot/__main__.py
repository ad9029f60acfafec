"""Compiles lstm_jax and its rivals for accelerators, and writes what compilers say.

Cycles are XLA's own estimates for a TPU, launches the kernels in the loops of the
program for a GPU, both by step of the sequence. No program runs: a figure here is no
time on a device.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from benchmarks.aot import targets

_EPILOG = """
  --check compiles a few programs and compares them with the limits of checks.py.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aot",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="a few, in a minute")
    parser.add_argument(
        "--targets", default=",".join(targets.TARGETS), help="default: %(default)s"
    )
    parser.add_argument(
        "--libraries",
        default="lstm_jax,flax-nnx,haiku,equinox",
        help="default: %(default)s",
    )
    parser.add_argument("--max-size", type=int, default=1536, metavar="H")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("out/benchmarks/aot"),
        help="where PATH.json and PATH.md go (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    chosen = args.targets.split(",")
    if unknown := sorted(set(chosen) - set(targets.TARGETS)):
        known = ", ".join(targets.TARGETS)
        parser.error(f"--targets: expected some of {known}; got {', '.join(unknown)}")
    if why := targets.missing():
        parser.error(why)
    targets.prepare()
    # Both compilers read the environment where JAX is imported.
    from benchmarks.aot import checks, table

    if args.check:
        return checks.run()
    libraries = args.libraries.split(",")
    return table.run(chosen, libraries, args.max_size, args.out)


if __name__ == "__main__":
    sys.exit(main())
