"""Builds what is published, and tries each of it in an empty environment.

python tests/wheels.py FOLDER

An sdist, a wheel for each Linux machine with kernels, compiled by zig against the glibc
of manylinux_2_28, and one without kernels for all others.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile

MACHINES = ("x86_64", "aarch64")
PLATFORM = "manylinux_2_28"
LIBRARY = "lstm_jax/recurrence/cpu/_native.so"
# The machine's number in an ELF header, little-endian at its byte 18.
ELF = {"x86_64": 62, "aarch64": 183}
TRY = """
import jax, jax.numpy as jnp, numpy as np, lstm_jax as lj
model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
params, xs = model.init(jax.random.key(0)), jnp.ones((2, 7, 3))
state, ys = model.apply(params, xs, lengths=[7, 4])
reference = model.apply(params, xs, lengths=[7, 4], implementation="xla")[1]
np.testing.assert_allclose(ys, reference, atol=1e-6)
assert "site-packages" in lj.__file__, lj.__file__
available = lj.implementations()["cpu"] == "available"
assert available == {kernels}, lj.implementations()
"""


def call(*command, **environment):
    subprocess.run(command, check=True, env={**os.environ, **environment})


def build(folder):
    """All files, by what they are for."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    call(*hatchling, "-t", "sdist")
    for machine in MACHINES:
        glibc = PLATFORM.partition("_")[2].replace("_", ".")
        zig = f"{sys.executable} -m ziglang c++ -target {machine}-linux-gnu.{glibc}"
        named = f"{PLATFORM}_{machine}"
        call(
            *(*hatchling, "-t", "wheel"),
            **dict(CXX=zig, LSTM_JAX_NATIVE="1", LSTM_JAX_PLATFORM=named),
        )
    call(*hatchling, "-t", "wheel", LSTM_JAX_NATIVE="0")
    (sdist,), wheels = folder.glob("*.tar.gz"), sorted(folder.glob("*.whl"))
    by_platform = {path.stem.rpartition("-")[2]: path for path in wheels}
    assert set(by_platform) == {"any", *(f"{PLATFORM}_{one}" for one in MACHINES)}
    return sdist, by_platform


def check_library(path, machine):
    """Whether a wheel's kernels are for a machine, and those of no other wheel's."""
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        assert any(name.endswith("/licenses/LICENSE") for name in names)
        if machine is None:
            assert LIBRARY not in names
            return
        header = file.read(LIBRARY)[:20]
    assert header[:4] == b"\x7fELF" and header[18] == ELF[machine], path


def check_glibc(path):
    """Whether a wheel asks for no newer glibc than its name says."""
    command = [sys.executable, "-m", "auditwheel", "show", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True)
    text = " ".join(shown.stdout.split())
    assert f'"{path.stem.rpartition("-")[2]}"' in text or "manylinux_2_17" in text, text


def try_out(path, folder, kernels):
    """Installs a file in an empty environment, and runs a model there."""
    venv.create(folder, clear=True, with_pip=True)
    python = str(folder / "bin" / "python")
    call(python, "-m", "pip", "install", "--quiet", str(path))
    subprocess.run([python, "-c", TRY.format(kernels=kernels)], check=True, cwd=folder)
    print(f"{path.name}: runs", flush=True)


def try_kernels(machine, scratch):
    """Runs the kernels' own test for another machine, where qemu is there."""
    qemu = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if qemu is None:
        return f"not run: no qemu-{machine} here"
    program = str(scratch / "kernels_test")
    zig = f"{sys.executable} -m ziglang c++ -target {machine}-linux-musl"
    named = f"{PLATFORM}_{machine}"
    command = (sys.executable, "hatch_build.py", "--static", program)
    call(*command, CXX=zig, LSTM_JAX_PLATFORM=named)
    call(qemu, program, "20")
    return "its kernels pass their test under qemu"


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    sdist, wheels = build(folder)
    for named, path in wheels.items():
        machine = next((one for one in MACHINES if named.endswith(one)), None)
        check_library(path, machine)
        if machine:
            check_glibc(path)
    here = f"{PLATFORM}_{platform.machine()}"
    with tempfile.TemporaryDirectory() as scratch:
        tried = [(wheels[here], True), (wheels["any"], False), (sdist, True)]
        for number, (path, kernels) in enumerate(tried):
            try_out(path, pathlib.Path(scratch) / str(number), kernels)
        for machine in MACHINES:
            if machine != platform.machine():
                said = try_kernels(machine, pathlib.Path(scratch))
                print(f"{wheels[f'{PLATFORM}_{machine}'].name}: {said}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
