"""The compiled kernels: found, loaded and made known to XLA."""

from __future__ import annotations

import ctypes
import functools
import pathlib

import jax

FORWARD = "lstm_jax_forward"
BACKWARD = "lstm_jax_backward"

_PATH = pathlib.Path(__file__).with_name("_native.so")


@functools.cache
def load() -> ctypes.CDLL:
    """Returns the library; its kernels are XLA's to call from then on.

    Raises:
        OSError: if there is none, or it does not fit this machine.
    """
    library = ctypes.CDLL(str(_PATH))
    for name in (FORWARD, BACKWARD):
        handler = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    library.lstm_jax_isa.restype = ctypes.c_char_p
    return library


@functools.cache
def missing() -> str | None:
    """Why there is no library here; None if there is one."""
    if not _PATH.exists():
        return "not compiled: install lstm_jax where there is a C++17 compiler"
    try:
        load()
    except (OSError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    return None


def instruction_set() -> str:
    """The name of the instruction set that the kernels use here."""
    return load().lstm_jax_isa().decode()


def supports(isa: str) -> bool:
    """Whether the kernels of an instruction set were compiled and can run here."""
    return bool(load().lstm_jax_supports(isa.encode()))
