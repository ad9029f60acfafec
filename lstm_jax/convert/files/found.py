"""What is found in a file of Keras's: layers, and the names of their arrays."""

from __future__ import annotations

import re
from typing import NamedTuple

from lstm_jax.convert.files.configs import Spec
from lstm_jax.convert.files.hdf5 import HDF5

FIELDS = ("kernel", "recurrent_kernel", "bias")
SIDES = ("forward", "backward")
# For each field the array that it is, or the four of i, f, c and o that Keras 1 keeps.
Names = dict[str, tuple[str, ...]]

# What an LSTM keeps beside its weights: generators of random numbers for dropout, and
# the state that it was left in, where it is stateful.
LEFT = re.compile(r"(^|/)(seed_generator\w*(/|$)|variable\w*(:0)?$)")
_KINDS = {3: "a GRU", 1: "a plain RNN"}


class Found(NamedTuple):
    """A layer: its directions, what its configuration says, or why it is none."""

    name: str
    halves: tuple[Names, ...]
    spec: Spec | None = None
    refusal: str = ""


def refused(file: HDF5, found: Found) -> Found:
    """The same, with the reason why what has a recurrent kernel is no LSTM."""
    for names in found.halves:
        kernels = names.get("recurrent_kernel", ())
        for name in kernels:
            shape = file.datasets[name].shape or ()
            if not is_lstm(shape, len(kernels)):
                gates = shape[1] // max(shape[0], 1) if len(shape) == 2 else 0
                kind = _KINDS.get(gates * len(kernels), "another layer")
                return found._replace(refusal=f"looks like {kind}, no LSTM")
    return found


def is_lstm(shape: tuple[int, ...], arrays: int = 1) -> bool:
    """Whether a recurrent kernel, or one of four, has the shape of an LSTM's."""
    return len(shape) == 2 and shape[1] * arrays == 4 * shape[0] > 0
