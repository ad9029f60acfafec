"""Keras computes with JAX here, and is not as strict as our own tests."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import pytest

LENIENT = {
    "jax_legacy_prng_key": "allow",
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


@pytest.fixture(autouse=True)
def lenient():
    before = {name: getattr(jax.config, name) for name in LENIENT}
    for name, value in LENIENT.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
