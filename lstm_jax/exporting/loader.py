"""Runs a file of ``lstm_jax.export`` with nothing but JAX. A copy is in the file."""

import json
import zipfile

import jax
import jax.export
import jax.numpy as jnp


def load(path):
    """Returns ``call(xs, state, lengths, reset)``; of a step, ``(x, state, reset)``."""
    with zipfile.ZipFile(path) as file:
        about, program = json.loads(file.read("about.json")), file.read("program")
    try:
        exported = jax.export.deserialize(bytearray(program))
        exported.mlir_module()  # Reads all of it; else the first call would.
    except Exception as error:
        raise ValueError(f"{about['age']} This is jax {jax.__version__}.") from error
    empty = lambda xs: jnp.zeros(xs.shape[: about["sizes"]] + (*about["output"],))
    nothing = lambda xs, state, *controls: (state, empty(xs).astype(about["dtype"]))
    return lambda xs, *rest: (nothing if 0 in xs.shape else exported.call)(xs, *rest)
