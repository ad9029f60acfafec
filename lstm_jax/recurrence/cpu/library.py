"""The compiled kernels: found, loaded and made known to XLA.

All of that happens when this module is imported, so that a program that was compiled in
another process, or comes from JAX's compilation cache, finds them. It raises nothing
and starts no backend; where there are no kernels, :func:`missing` says why.
"""

from __future__ import annotations

import ctypes
import pathlib

import jax

FORWARD = "lstm_jax_forward"
BACKWARD = "lstm_jax_backward"
QUANTIZED = "lstm_jax_quantized"

_PATH = pathlib.Path(__file__).with_name("_native.so")


def _open() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not _PATH.exists():
        return None, "not compiled: install lstm_jax where there is a C++17 compiler"
    try:
        library = ctypes.CDLL(str(_PATH))
        for name in ("isa", "isa_error", "known_isa"):
            getattr(library, f"lstm_jax_{name}").restype = ctypes.c_char_p
        for name in (FORWARD, BACKWARD, QUANTIZED):
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except (OSError, AttributeError, RuntimeError) as error:
        return None, f"cannot be loaded: {error}"
    return library, None


_LIBRARY, _MISSING = _open()


def load() -> ctypes.CDLL:
    """Returns the library.

    Raises:
        OSError: if there is none, or it does not fit this machine.
        ValueError: if the environment variable LSTM_JAX_ISA asks for an instruction set
            that is not known or cannot run here.
    """
    if _LIBRARY is None:
        raise OSError(f"The CPU kernels are {_MISSING}.")
    if error := _LIBRARY.lstm_jax_isa_error():
        raise ValueError(error.decode())
    return _LIBRARY


def missing() -> str | None:
    """Why there is no library here; None if there is one.

    Raises:
        ValueError: as :func:`load`.
    """
    if _LIBRARY is not None:
        load()
    return _MISSING


def instruction_set() -> str:
    """The name of the instruction set that the kernels use here."""
    return load().lstm_jax_isa().decode()


def known_instruction_sets() -> list[str]:
    """The names of all for this kind of machine, the slowest first."""
    name, names = load().lstm_jax_known_isa, []
    while one := name(len(names)):
        names.append(one.decode())
    return names


def supports(isa: str) -> bool:
    """Whether the kernels of an instruction set were compiled and can run here."""
    return bool(load().lstm_jax_supports(isa.encode()))
