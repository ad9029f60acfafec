"""Compiles the CPU kernels as the package is built, where there is a compiler.

Without one, or if it fails, the package is built all the same, without the kernels.
LSTM_JAX_NATIVE=0 leaves them out, LSTM_JAX_NATIVE=1 makes a failure an error.
LSTM_JAX_WERROR=1, which the Makefile sets, makes errors of warnings and of a failing
compiler; whoever installs the package may have a newer one, with other warnings.
LSTM_JAX_PLATFORM, such as manylinux_2_28_aarch64, names what a wheel is for where CXX
compiles for another platform than this one.
"""

from __future__ import annotations

import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = pathlib.Path("lstm_jax/recurrence/cpu")
LIBRARY = "_native.so"

WARNINGS = ("-Wall", "-Wextra", "-Wno-psabi", "-Werror")
# Products and sums may be fused; nothing else about floating point is relaxed.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
)

# Where results are to be the same to the bit on every machine.
UNFUSED = ("-ffp-contract=off",)

MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}


class NotCompiled(Exception):
    """There are no kernels to be had here; the message says why."""


class CompilerFailed(NotCompiled):
    """There is a compiler, but it does not take these sources."""


class InstructionSet(NamedTuple):
    """A line of ``csrc/isas.def``."""

    machine: str
    name: str
    width: str
    registers: str
    flags: tuple[str, ...]


# For the kernels' own test: `python hatch_build.py --sanitize PROGRAM`, and across
# `python hatch_build.py --static PROGRAM`.
SANITIZED = (
    "-std=c++17",
    "-O1",
    "-g",
    "-ffp-contract=fast",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)


def compile_library(folder: pathlib.Path, to: pathlib.Path) -> None:
    """Compiles the sources in ``folder`` into the library ``to``.

    Raises:
        NotCompiled: if there is no compiler, or it fails.
    """
    headers = ("-isystem", _headers())
    doors = [(door, headers) for door in sorted(folder.glob("ffi*.cc"))]
    # What is published has no symbols for debuggers, which are ten times as large.
    stripped = ("-s",) if os.environ.get("LSTM_JAX_PLATFORM") else ()
    _build(folder, doors, to, FLAGS, ("-shared", *stripped))


def _build(
    folder: pathlib.Path,
    mains: list[tuple[pathlib.Path, tuple[str, ...]]],
    to: pathlib.Path,
    flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> None:
    compiler = _compiler()
    if _werror():
        flags += WARNINGS
    sets = _instruction_sets(folder, compiler)
    names = " ".join(f"X({one.name})" for one in sets)
    compiled = (f"-DLSTM_COMPILED_ISAS={names}",)
    units = [*mains, (folder / "dispatch.cc", compiled)]
    for room in ("memory", "threads"):
        units += [(source, ()) for source in sorted((folder / room).glob("*.cc"))]
    for one in sets:
        defines = f"ISA={one.name}", f"WIDTH={one.width}", f"REGISTERS={one.registers}"
        set_flags = one.flags + tuple(f"-DLSTM_{define}" for define in defines)
        units.append((folder / "lstm" / "kernels.cc", set_flags))
        units.append((folder / "quantized" / "kernels.cc", (*set_flags, *UNFUSED)))
    with tempfile.TemporaryDirectory() as scratch:

        def compile_unit(numbered):
            number, (source, unit_flags) = numbered
            result = pathlib.Path(scratch) / f"{number}.o"
            _call(
                [*compiler, *flags, *unit_flags, f"-I{folder}", "-c", str(source)]
                + ["-o", str(result)]
            )
            return str(result)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_unit, enumerate(units)))
        new = pathlib.Path(scratch) / to.name
        _call(
            [*compiler, *flags, *link_flags, *objects, "-o", str(new), "-pthread"],
        )
        # A running program may have the old one mapped: replace it, do not rewrite it.
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_suffix(".new")
        shutil.copy(new, beside)
        beside.replace(to)


def _instruction_sets(
    folder: pathlib.Path, compiler: list[str]
) -> list[InstructionSet]:
    """Those of this machine's kind that the compiler knows."""
    machine = _machine()
    text = (folder / "isas.def").read_text()
    sets = [one for one in read_instruction_sets(text) if one.machine == machine]
    if not sets or sys.platform not in ("linux", "darwin"):
        raise NotCompiled(f"there are none for {sys.platform} on {machine}")

    def known(flags):
        command = [*compiler, *flags, "-x", "c++", "-E", os.devnull]
        return not subprocess.run(command, capture_output=True).returncode

    return [one for one in sets if not one.flags or known(one.flags)]


def _machine() -> str:
    """What the kernels are for: this machine's kind, or that of the platform named."""
    named = re.search(r"x86_64|aarch64|$", os.environ.get("LSTM_JAX_PLATFORM", ""))
    return named[0] or MACHINES.get(platform.machine(), platform.machine())


def read_instruction_sets(text: str) -> list[InstructionSet]:
    """What ``isas.def`` says to a compiler; the rest is the dispatch's."""
    line = re.compile(
        r'^ISA_(\w+)\((\w+), (\d+), (\d+),((?:\s*"[^"]*")+),', re.MULTILINE
    )
    return [
        InstructionSet(
            machine.lower(),
            name,
            width,
            registers,
            tuple(flags.replace('"', "").split()),
        )
        for machine, name, width, registers, flags in line.findall(text)
    ]


def _werror() -> bool:
    return os.environ.get("LSTM_JAX_WERROR", "") == "1"


def _compiler() -> list[str]:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        command = shlex.split(name)
        if shutil.which(command[0]):
            return command
    raise NotCompiled(f"no C++ compiler found ({wanted or 'c++, g++, clang++'})")


def _headers() -> str:
    """The folder of XLA's headers, which come with jaxlib."""
    try:
        import jaxlib
    except ImportError as error:
        raise NotCompiled("no jaxlib to build against") from error
    return str(pathlib.Path(jaxlib.__file__).parent / "include")


def _call(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except OSError as error:
        raise NotCompiled(f"{command[0]}: {error}") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        what = lines[0] if lines else f"exit status {error.returncode}"
        raise CompilerFailed(f"{command[0]} failed: {what}") from error


class KernelsBuildHook(BuildHookInterface):
    """Puts the library into the wheel, or beside the sources of an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; hatchling calls this before it builds a wheel."""
        wanted = os.environ.get("LSTM_JAX_NATIVE", "")
        folder = pathlib.Path(self.root) / FOLDER
        library = folder / LIBRARY
        if self.target_name != "wheel" or wanted == "0":
            return
        try:
            compile_library(folder / "csrc", library)
        except NotCompiled as reason:
            if wanted == "1" or (_werror() and isinstance(reason, CompilerFailed)):
                raise
            library.unlink(missing_ok=True)
            self.app.display_warning(
                f"lstm_jax is built without its CPU kernels: {reason}. JAX's own "
                "operations take their place."
            )
            return
        build_data["pure_python"] = False
        here = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        named = os.environ.get("LSTM_JAX_PLATFORM")
        build_data["tag"] = f"py3-none-{named or here}"
        build_data["artifacts"].append(str(FOLDER / LIBRARY))


if __name__ == "__main__":
    source = FOLDER / "csrc"
    ways = {"--sanitize": (SANITIZED, ()), "--static": (FLAGS, ("-static",))}
    if sys.argv[1:2] and sys.argv[1] in ways:
        tests = [
            (test, ()) for test in sorted(pathlib.Path("tests/native").glob("*.cc"))
        ]
        _build(source, tests, pathlib.Path(sys.argv[2]), *ways[sys.argv[1]])
    else:
        compile_library(source, FOLDER / LIBRARY)
