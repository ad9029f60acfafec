"""Compiles the CPU kernels as the package is built, where there is a compiler.

Without one, or if it fails, the package is built all the same, without the kernels.
LSTM_JAX_NATIVE=0 leaves them out, LSTM_JAX_NATIVE=1 makes a failure an error.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = pathlib.Path("lstm_jax/recurrence/cpu")
LIBRARY = "_native.so"

# Products and sums may be fused; nothing else about floating point is relaxed.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
)

_AVX512 = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512vl",
    "-mavx512dq",
    "-mfma",
    "-mprefer-vector-width=512",
)
_BFLOAT16 = (*_AVX512, "-mavx512bf16")

# By processor: name, floats in a vector, vector registers, flags; the slowest first.
INSTRUCTION_SETS = {
    "x86_64": (
        ("baseline", 4, 16, ()),
        ("avx2", 8, 16, ("-mavx2", "-mfma")),
        ("avx512", 16, 32, _AVX512),
        ("avx512bf16", 16, 32, _BFLOAT16),
        ("amx", 16, 32, (*_BFLOAT16, "-mamx-tile", "-mamx-bf16")),
    ),
    "aarch64": (("neon", 4, 32, ()),),
}
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}


class NotCompiled(Exception):
    """There are no kernels to be had here; the message says why."""


# For the kernels' own test: `python hatch_build.py --sanitize PROGRAM`.
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
    main = (folder / "ffi.cc", ("-isystem", _headers()))
    _build(folder, main, to, FLAGS, ("-shared",))


def _build(
    folder: pathlib.Path,
    main: tuple[pathlib.Path, tuple[str, ...]],
    to: pathlib.Path,
    flags: tuple[str, ...],
    link_flags: tuple[str, ...],
) -> None:
    compiler = _compiler()
    sets = _instruction_sets(compiler)
    names = " ".join(f"X({name})" for name, *_ in sets)
    units = [
        main,
        (folder / "team.cc", ()),
        (folder / "dispatch.cc", (f"-DLSTM_ISAS={names}",)),
    ]
    for name, width, registers, set_flags in sets:
        defines = f"ISA={name}", f"WIDTH={width}", f"REGISTERS={registers}"
        set_flags += tuple(f"-DLSTM_{define}" for define in defines)
        units.append((folder / "kernels.cc", set_flags))
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


def _instruction_sets(compiler: list[str]) -> list[tuple]:
    """Those of this machine's kind that the compiler knows."""
    machine = MACHINES.get(platform.machine(), platform.machine())
    if machine not in INSTRUCTION_SETS or sys.platform not in ("linux", "darwin"):
        raise NotCompiled(f"there are none for {sys.platform} on {machine}")

    def known(flags):
        command = [*compiler, *flags, "-x", "c++", "-E", os.devnull]
        return not subprocess.run(command, capture_output=True).returncode

    return [one for one in INSTRUCTION_SETS[machine] if not one[3] or known(one[3])]


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
        raise NotCompiled(f"{command[0]} failed: {what}") from error


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
            if wanted == "1":
                raise
            library.unlink(missing_ok=True)
            self.app.display_warning(
                f"lstm_jax is built without its CPU kernels: {reason}. JAX's own "
                "operations take their place."
            )
            return
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"
        build_data["artifacts"].append(str(FOLDER / LIBRARY))


if __name__ == "__main__":
    source = FOLDER / "csrc"
    if sys.argv[1:2] == ["--sanitize"]:
        test = (pathlib.Path("tests/native/kernels_test.cc"), ())
        _build(source, test, pathlib.Path(sys.argv[2]), SANITIZED, ())
    else:
        compile_library(source, FOLDER / LIBRARY)
