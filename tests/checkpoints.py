"""States for tests of checkpoints, and what is on the disk of them."""

import struct

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import training


def assert_same(back, state):
    """The same structure, kinds of leaves and bits."""
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        if isinstance(old, (bool, int, float)):
            assert type(new) is type(old)
            assert struct.pack(">d", new) == struct.pack(">d", old)
            continue
        assert isinstance(new, jax.Array if isinstance(old, jax.Array) else np.ndarray)
        assert (new.dtype, new.shape) == (old.dtype, old.shape)
        if jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
            new, old = jax.random.key_data(new), jax.random.key_data(old)
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()


def simple(step):
    return {"w": np.full((5, 7), step, np.float32), "step": step}


def saved(folder, *steps, keep=9, best=None):
    with training.Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, simple(step), {"step": step}, best=best)
    return checkpoints


def restored(folder, step=None):
    return training.Checkpoints(folder).restore(simple(0), step)


def assert_good(folder, step):
    """The newest good one is of this step."""
    found = restored(folder)
    assert found.step == step
    assert_same(found.state, simple(step))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())
