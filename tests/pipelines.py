"""Every kind of batches there is, and a run of training on each."""

import grain
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax import data, training

LENGTHS = np.random.default_rng(0).lognormal(2, 0.5, 37).astype(int) + 1


def shuffled():
    return data.shuffled_batches((np.arange(37), np.ones(37, np.int32)), 4)


def grain_dataset():
    """Shuffled, with noise of its own in each epoch, batches of 4."""
    draw = lambda n, rng: n + rng.integers(3)
    source = grain.MapDataset.source(np.arange(37)).seed(5).shuffle()
    return source.random_map(draw).batch(4)


PIPELINES = {
    "shuffled": shuffled,
    "buckets": lambda: data.bucket_batches(
        [np.full(n, k) for k, n in enumerate(LENGTHS)], batch_size=4, buckets=3
    ),
    "packed": lambda: data.pack_documents(
        [np.full(n, k) for k, n in enumerate(LENGTHS % 9 + 2)], 3, 8
    ),
    "windows": lambda: data.shuffled_batches(
        data.sliding_windows(np.arange(40.0)[:, None], 3, 1), 4
    ),
    "prefetched": lambda: data.prefetch(shuffled(), ahead=3),
    "grain": lambda: data.from_grain(grain_dataset()),
    "grain_prefetched": lambda: data.prefetch(data.from_grain(grain_dataset())),
}


def loss_fn(params, carry, batch, key):
    """Makes of the parameters a checksum of all batches, in their order."""
    leaves = batch if isinstance(batch, tuple) else (batch,)
    numbers = [jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves]
    digest = jnp.sin(jnp.concatenate(numbers) + 1).sum()
    return params * digest, (carry, {})


def run(name, out=None, around=lambda batches: batches, **options):
    start = training.create(jnp.float32(1), optax.sgd(0.01), ())
    shape = {"out": out, "log_every": 1, "show": False} | options
    batches = around(PIPELINES[name]())
    return training.fit(loss_fn, optax.sgd(0.01), start, batches, **shape)
