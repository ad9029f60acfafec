"""Many streams over one model: steps a second, and how long each takes.

    python -m benchmarks.serving

Every client sends a step of its stream when the step before is answered. Compared are,
on one machine and in turn: a jitted step of one stream at a time, and of all at once
(which no server can pass), ``lstm_jax.serving`` in this process, ``examples/serve.py``
over WebSocket with batches and with batches of one, and onnxruntime's step of one
stream and of all. The first answers of each stream are checked against one call on it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import jax
import jax.monitoring
import numpy as np

import lstm_jax as lj
from benchmarks.timing import threads
from lstm_jax import serving

SERVE = pathlib.Path(__file__).parents[1] / "examples/serve.py"
CHECKED = 8  # answers of each stream that are compared
TOLERANCE = 1e-4


@dataclasses.dataclass
class Load:
    """Streams, their inputs, and what came back."""

    model: Any
    params: Any
    streams: int
    seconds: float

    def __post_init__(self) -> None:
        shape = self.streams, CHECKED, self.model.input_size
        self.xs = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.ys = np.asarray(self.model.apply(self.params, self.xs)[1])

    async def run(self, ask: Callable[[int, int, np.ndarray], Awaitable[np.ndarray]]):
        """Sends steps for some seconds; seconds of each, once all clients have begun.

        ``ask(stream, number, x)`` returns the answer, ``[H]``.
        """
        times: list[float] = []
        begun, everyone, until = 0, asyncio.Event(), float("inf")

        async def client(stream: int) -> None:
            nonlocal begun, until
            number = 0
            while time.perf_counter() < until:
                x = self.xs[stream, number % CHECKED][None]
                start = time.perf_counter()
                y = await ask(stream, number, x)
                taken = time.perf_counter() - start
                if number < CHECKED:
                    error = np.abs(y - self.ys[stream, number]).max()
                    assert error < TOLERANCE, f"stream {stream}: off by {error:.1e}"
                else:
                    times.append(taken)
                number += 1
                if number == CHECKED:
                    begun += 1
                    if begun == self.streams:
                        until = time.perf_counter() + self.seconds
                        everyone.set()
                        times.clear()
                    await everyone.wait()

        await asyncio.gather(*map(client, range(self.streams)))
        return np.array(times)


def alone(call: Callable[[int], None], seconds: float) -> np.ndarray:
    """Seconds of each call, one after the other."""
    times, number = [], 0
    for number in range(8):
        call(number)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - start)
        number += 1
    return np.array(times)


def jitted(load: Load, rows: int) -> np.ndarray:
    """The jitted step of so many streams at a time."""
    model = load.model
    step = jax.jit(
        lambda params, state, x: model.step(params, state, x), donate_argnums=1
    )
    states = [model.zero_state((rows,)) for _ in range(load.streams // rows)]
    xs = load.xs.reshape(-1, rows, model.input_size)

    def call(number):
        stream = number % len(states)
        x = xs[number % len(xs)]
        states[stream], y = step(load.params, states[stream], x)
        np.asarray(y)

    return alone(call, load.seconds)


def onnx(load: Load, rows: int) -> np.ndarray:
    """The same in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads(), 3
    file = lj.convert.to_onnx(load.model, load.params, step=True).SerializeToString()
    session = onnxruntime.InferenceSession(
        file, options, providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()][1:]
    outputs = ["y", *(name.replace("_0_", "_n_") for name in names)]
    zeros = np.zeros((rows, load.model.hidden_size), np.float32)
    states = [dict.fromkeys(names, zeros) for _ in range(load.streams // rows)]
    xs = load.xs.reshape(-1, rows, load.model.input_size)

    def call(number):
        stream = number % len(states)
        feeds = {"x": xs[number % len(xs)], **states[stream]}
        _, *after = session.run(outputs, feeds)
        states[stream] = dict(zip(names, after, strict=True))

    return alone(call, load.seconds)


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """What is compiled within."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def in_process(load: Load, linger: float) -> np.ndarray:
    """The server in this process."""

    async def main():
        server = serving.Server(
            load.model,
            load.params,
            slots=load.streams,
            chunk_sizes=(1,),
            limits=serving.Limits(linger_s=linger),
        )
        async with server:
            names = [await server.open() for _ in range(load.streams)]

            async def ask(stream, number, x):
                return (await server.push(names[stream], number, x)).ys[0]

            with compilations() as found:
                times = await load.run(ask)
            assert not found, f"compiled under load: {found}"
            describe(server.metrics)
            return times

    return asyncio.run(main())


def describe(metrics: serving.Metrics) -> None:
    """How full batches were."""
    rows = metrics.answered / max(metrics.batches, 1)
    print(f"  {metrics.batches} batches of {rows:.1f} chunks", flush=True)


@contextlib.contextmanager
def example(load: Load, *args: str) -> Iterator[str]:
    """The example as a program, and its address."""
    model = load.model
    sizes = [model.input_size, model.hidden_size, model.num_layers]
    many = ["--slots", load.streams, "--streams-per-client", load.streams]
    given = ["--port", 0, "--chunk-sizes", 1, "--sizes", *sizes, *many, *args]
    process = subprocess.Popen(
        [sys.executable, SERVE, *map(str, given)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, f"examples/serve.py ended with {process.wait()}"
        yield found[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def over_websocket(load: Load, *args: str) -> np.ndarray:
    """The example, and a connection for each stream."""

    async def main(url):
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(url, connector=connector) as client:
            sockets = []
            for _ in range(load.streams):
                sockets.append(await client.ws_connect("/stream", compress=0))
                await sockets[-1].receive_json()

            async def ask(stream, number, x):
                await sockets[stream].send_bytes(x.tobytes())
                return np.frombuffer(await sockets[stream].receive_bytes(), "<f4")

            times = await load.run(ask)
            await asyncio.gather(*(socket.close() for socket in sockets))
            return times

    with example(load, *args) as url:
        return asyncio.run(main(url))


def report(name: str, times: np.ndarray, seconds: float, rows: int = 1) -> float:
    """Prints one figure; steps a second."""
    rate = rows * len(times) / seconds
    p50, p99 = 1e3 * np.quantile(times, [0.5, 0.99])
    print(f"{name:42} {rate:9.0f} {p50:8.2f} {p99:8.2f}", flush=True)
    return rate


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--streams", type=int, default=256)
    add("--hidden", type=int, default=512, help="I and H")
    add("--layers", type=int, default=2)
    add("--seconds", type=float, default=10.0, help="of each figure")
    add("--linger", type=float, default=0.002, help="see serving.Limits")
    args = parser.parse_args()
    model = lj.LSTM(args.hidden, args.hidden, args.layers)
    params = model.init(jax.random.key(0))
    load, seconds = Load(model, params, args.streams, args.seconds), args.seconds
    print(
        f"jax {jax.__version__} on {jax.default_backend()}, {threads()} CPUs, "
        f"{args.layers} x {args.hidden}, {args.streams} streams\n"
        f"{'':42} {'steps/s':>9} {'p50 ms':>8} {'p99 ms':>8}"
    )
    one = report("jitted step, B 1", jitted(load, 1), seconds)
    every, rows = jitted(load, args.streams), args.streams
    report(f"jitted step, B {rows}", every, seconds, rows)
    inside = report("serving, in process", in_process(load, args.linger), seconds)
    linger = "--linger", str(args.linger)
    batched = report("serving, WebSocket", over_websocket(load, *linger), seconds)
    single = report(
        "serving, WebSocket, batches of one",
        over_websocket(load, *linger, "--batch-sizes", "1"),
        seconds,
    )
    report("onnxruntime step, B 1", onnx(load, 1), seconds)
    report(f"onnxruntime step, B {rows}", onnx(load, rows), seconds, rows)
    print(f"in process / jitted step at B 1: {inside / one:.1f} (wanted: 5)")
    print(f"WebSocket / the same in batches of one: {batched / single:.1f} (wanted: 2)")


if __name__ == "__main__":
    main()
