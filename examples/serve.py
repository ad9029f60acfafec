"""Serves an LSTM to many clients, over WebSocket and HTTP.

    python examples/serve.py --model model.json --weights weights.safetensors
    Serving on http://127.0.0.1:8000

What can be asked for is on the page of lstm_jax.serving.web.make_app. SIGTERM: no new
streams, answers to what is queued, and the end in --grace seconds at most. With
--handover streams go on in the next server, under the names they have.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import sys

import jax

import lstm_jax as lj
from lstm_jax import serving, training

try:
    import tyro
    from aiohttp import web
except ImportError as error:
    sys.exit(
        f'serve: {error.name} is missing: pip install "lstm_jax[examples,serving]"'
    )

LIMITS = dict(sizes=(1, 10**4), port=(0, 2**16 - 1), max_bytes=(1, 2**31 - 1))


@dataclasses.dataclass(frozen=True)
class Config:
    model: pathlib.Path | None = None  # model.to_config() as JSON; random where none is
    weights: pathlib.Path | None = None  # as training.save_weights writes them
    sizes: tuple[int, int, int] = (8, 64, 2)  # I, H and L where there is no model
    host: str = "127.0.0.1"  # who can connect: by default this machine alone
    port: int = 8000  # 0 for one that is free
    workers: int = 1  # no more: streams are in the memory of one process
    slots: int = 256  # most streams
    batch_sizes: tuple[int, ...] | None = None  # how many of them run at once
    chunk_sizes: tuple[int, ...] = (1, 16)  # steps of a chunk; the last is the most
    streams_per_client: int = 64  # most streams of one address
    max_bytes: int = 1 << 20  # of one message
    idle: float = 60.0  # seconds until a silent stream is evicted
    linger: float = 0.002  # seconds that a batch waits for more streams
    patience: float = 10.0  # seconds that a client may take to send or read a message
    grace: float = 10.0  # seconds from SIGTERM to the end
    handover: pathlib.Path | None = None  # folder where streams wait for the next start


def check(config):
    for name, value in vars(config).items():
        low, high = LIMITS.get(name, (0 if isinstance(value, float) else 1, 10**6))
        for n in value if isinstance(value, tuple) else [value]:
            if type(n) in (int, float) and not low <= n <= high:
                raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")


def make_server(config):
    if config.workers != 1:
        raise ValueError(
            f"workers: expected 1, got {config.workers}: each would have streams that "
            "the others don't know. More servers need ports of their own."
        )
    check(config)
    if (config.model is None) != (config.weights is None):
        raise ValueError("model, weights: expected both, or none for random weights.")
    model, key = lj.LSTM(*config.sizes), jax.random.key(0)
    if config.model is not None:
        model = lj.from_config(json.loads(config.model.read_text("utf-8")))
    params = jax.eval_shape(model.init, key)
    load = lambda: training.load_weights(config.weights, params)
    return serving.Server(
        model,
        load() if config.weights else model.init(key),
        slots=config.slots,
        batch_sizes=config.batch_sizes,
        chunk_sizes=config.chunk_sizes,
        limits=serving.Limits(
            idle_s=config.idle,
            linger_s=config.linger,
            streams_per_client=config.streams_per_client,
        ),
    )


async def take_over(server, folder):
    """Goes on with the streams that the server before handed out."""
    for path in sorted(folder.glob("*.safetensors")) if folder else ():
        try:
            state = serving.StreamState.from_bytes(path.read_bytes())
            await server.restore(state, name=path.stem)
            path.unlink()
        except serving.ServingError as error:
            print(f"{path}: {error}", file=sys.stderr)


def hand_over(states, folder):
    if folder and states:
        folder.mkdir(parents=True, exist_ok=True)
        for name, state in states.items():
            (folder / f"{name}.safetensors").write_bytes(state.to_bytes())


async def start(server, config):
    await server.start()
    await take_over(server, config.handover)


async def serve(config, server):
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    limits = {"max_bytes": config.max_bytes, "patience_s": config.patience}
    app = serving.web.make_app(server, **limits)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=config.grace / 10)
    await runner.setup()
    await web.TCPSite(runner, config.host, config.port).start()
    starting, ending = asyncio.create_task(start(server, config)), stop.wait()
    ending = asyncio.create_task(ending)
    await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        print(f"Serving on http://{config.host}:{runner.addresses[0][1]}", flush=True)
    await ending
    hand_over(await server.drain(0.7 * config.grace), config.handover)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2 * config.grace):
            await runner.cleanup()
            await server.stop()


if __name__ == "__main__":
    try:
        config = tyro.cli(Config, description=__doc__)
        asyncio.run(serve(config, make_server(config)))
    except (ValueError, OSError) as error:
        sys.exit(f"serve: {error}")
    sys.stdout.flush()
    os._exit(0)  # Not sys.exit, which may wait for a program that hangs on the device.
