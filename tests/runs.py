"""A small run of training whose every number can be followed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax import training


def loss_fn(params, carry, batch, key):
    """Squares of a sum; the carry counts batches, the key adds noise."""
    xs = jnp.asarray(batch, jnp.float32)
    if key is not None:
        xs = xs + 0.1 * jax.random.normal(key, xs.shape)
    error = (xs @ params["w"] - 1.0) ** 2
    if jax.tree.leaves(carry):
        carry = carry + 1.0
    loss = training.Weighted(error.sum(), error.size)
    return loss, (carry, {"error": loss})


def batches(number=5, rows=4, seed=0):
    """An epoch's batches, in another order in every epoch."""

    def of_epoch(epoch):
        order = np.random.default_rng((seed, epoch)).permutation(number)
        xs = np.random.default_rng(seed).normal(size=(number, rows, 3))
        return [xs[n].astype(np.float32) for n in order]

    return of_epoch


def batches_of(number):
    """The same batches, in the same order, in every epoch."""
    return batches(number)(0)


def tx():
    return optax.sgd(0.02, momentum=0.9)


def state(carry=(), **options):
    key = options.pop("key", jax.random.key(1))
    params = {"w": jnp.array([1.0, -2.0, 0.5])}
    return training.create(params, tx(), carry, key=key, **options)


def run(out=None, data=None, of=None, **options):
    """fit with everything on and nothing shown."""
    options = {"steps": 23, "log_every": 4, "show": False, "out": out} | options
    if "epochs" in options:
        del options["steps"]
    data = batches() if data is None else data
    return training.fit(
        options.pop("loss_fn", loss_fn),
        tx(),
        state() if of is None else of,
        data,
        **options,
    )


VALID = [
    np.random.default_rng(9).normal(size=(n, 3)).astype(np.float32) for n in (4, 1)
]


def scripted(values):
    """Validation data and a function of it that says these values, one after another.

    What it says is by the step, which the parameters hold: every step adds 1 to "n".
    """
    table = jnp.asarray(values, jnp.float32)

    def train_fn(params, carry, batch, key):
        return -jnp.sum(params["n"]), (carry, {})

    def valid_fn(params, carry, batch, key):
        step = jnp.round(params["n"]).astype(jnp.int32)
        return training.Weighted(table[step - 1], 1), (carry, {})

    start = training.create({"n": jnp.zeros(())}, optax.sgd(1.0), ())
    return train_fn, valid_fn, start


def run_scripted(values, every=1, **options):
    """Runs one step for each value and evaluates: loss and name may be told."""
    train_fn, valid_fn, start = scripted(np.repeat(np.asarray(values, float), every))
    options = {"steps": len(values) * every, "show": False} | options
    return training.fit(
        train_fn,
        optax.sgd(1.0),
        start,
        [np.zeros(1)],
        valid=[np.zeros(1)],
        valid_fn=valid_fn,
        evaluate_every=every,
        **options,
    )
