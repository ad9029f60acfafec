"""Servers, streams and their answers, which several test modules share."""

import asyncio
import time

import jax.numpy as jnp
import numpy as np

import lstm_jax as lj
from lstm_jax import serving
from lstm_jax.serving import Limits, Server
from tests.common import random_params

I, H = 3, 5
QUICK = Limits(linger_s=0.0)


def random_stack(model, seed=0):
    """Parameters of a stack without zeros, a learned start among them."""
    return tuple(
        lj.Directions(random_params(cell, [seed, n]))
        for n, cell in enumerate(model.cells)
    )


MODEL = lj.LSTM(I, H, num_layers=2)
PARAMS = random_stack(MODEL)


def inputs(seed, steps, scale=1.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((steps, I))).astype(np.float32)


def offline(xs, model=MODEL, params=PARAMS):
    return np.asarray(model.apply(params, jnp.asarray(xs))[1])


def run(main, *args, **options):
    """Runs ``main(server, *args)`` with a server that is ready."""
    model, params = options.pop("model", MODEL), options.pop("params", PARAMS)
    # Few programs: they are what a test takes its time for.
    few = {"slots": 4, "batch_sizes": (4,), "chunk_sizes": (4,), "limits": QUICK}
    options = {**few, **options}

    async def whole():
        async with Server(model, params, **options) as server:
            return await main(server, *args)

    return asyncio.run(whole())


async def stream_whole(server, xs, sizes):
    """Sends a stream in chunks of these sizes, and returns all its outputs."""
    stream, ys, at = await server.open(), [], 0
    for number, size in enumerate(sizes):
        result = await server.push(stream, number, xs[at : at + size])
        assert result.number == number
        ys.append(result.ys)
        at += size
    await server.close(stream)
    return np.concatenate(ys)


async def opened(server):
    """A stream, as soon as the step of the one that had its slot is out of a batch."""
    while True:
        try:
            return await server.open()
        except serving.Overloaded as error:
            assert error.retry_after <= 0.1
            await asyncio.sleep(0.001)


def slow(server, seconds):
    """Makes each batch take at least so long."""
    real = server._programs.run

    def run(*args):
        time.sleep(seconds)
        return real(*args)

    server._programs.run = run


MODELS = {
    "stack": MODEL,
    "learned start": lj.LSTM(I, H, num_layers=2, learn_initial_state=True),
    "skip, residual": lj.LSTM(I, (H, H, H), residual=True, skip=True),
    "sLSTM": lj.LSTM(I, H, variant="sLSTM"),
    "bfloat16": lj.LSTM(I, H, num_layers=2, dtype=jnp.bfloat16),
    "projection": lj.LSTM(I, H, proj_size=2, layer_norm="haste", peephole=True),
}
