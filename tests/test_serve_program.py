"""The example of serving, as a program."""

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import aiohttp
import numpy as np
import pytest

from lstm_jax import serving, training
from tests.clients import UPGRADE, hello
from tests.common import assert_close
from tests.serving import MODEL, PARAMS, H, inputs, offline, run

SERVE = pathlib.Path(__file__).parents[1] / "examples/serve.py"


def begun(folder, *args):
    """The example as a program."""
    model, weights = folder / "model.json", folder / "weights.safetensors"
    model.write_text(json.dumps(MODEL.to_config()), "utf-8")
    training.save_weights(weights, PARAMS)
    sizes = ["--slots", "100", "--batch-sizes", "32", "--chunk-sizes", "4"]
    given = [*("--model", model), *("--weights", weights), *("--port", "0"), *sizes]
    return subprocess.Popen(
        [sys.executable, SERVE, *map(str, given), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def served(folder, *args):
    """The same when it serves, and its address."""
    process = begun(folder, *args)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"Serving on (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stdout.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_sigterm_answers_what_is_queued_and_hands_streams_to_the_next(tmp_path):
    """A hundred open streams, half of them silent."""
    xs = [inputs([8, n], 8) for n in range(100)]
    folder = tmp_path / "streams"
    args = "--handover", str(folder), "--grace", "20", "--streams-per-client", "100"

    async def before(url, process):
        async with aiohttp.ClientSession(url) as client:
            sockets = [await client.ws_connect("/stream") for _ in range(100)]
            names = [(await hello(one))["stream"] for one in sockets]
            for one, chunk in zip(sockets[:50], xs, strict=False):
                await one.send_bytes(chunk[:4].tobytes())
            answers = [[await one.receive_bytes()] for one in sockets[:50]]
            answers += [[] for _ in range(50)]
            for one, chunk in zip(sockets[:25], xs, strict=False):
                await one.send_bytes(chunk[4:6].tobytes())
            process.send_signal(signal.SIGTERM)
            for one, some in zip(sockets, answers, strict=True):
                async for frame in one:
                    some.append(frame.data)
                assert one.close_code == 1012
            return names, answers

    async def after(url, names, answers):
        async with aiohttp.ClientSession(url) as client:
            for name, some, whole in zip(names, answers, xs, strict=True):
                async with client.ws_connect("/stream", params={"id": name}) as one:
                    # What was answered was applied, and nothing else was.
                    assert (await hello(one))["number"] == len(some)
                    for chunk in (whole[:4], whole[4:6], whole[6:])[len(some) :]:
                        await one.send_bytes(chunk.tobytes())
                        some.append(await one.receive_bytes())

    with served(tmp_path, *args) as (process, url):
        names, answers = asyncio.run(before(url, process))
        assert process.wait(60) == 0
    assert len(list(folder.iterdir())) == 100
    with served(tmp_path, *args) as (process, url):
        assert not list(folder.iterdir())
        asyncio.run(after(url, names, answers))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for some, whole in zip(answers, xs, strict=True):
        ys = np.frombuffer(b"".join(some), "<f4").reshape(-1, H)
        assert_close(ys, offline(whole))


@pytest.mark.parametrize("left", [60, 59, 30, 1])
def test_sigterm_while_streams_are_taken_over_loses_none(left, tmp_path):
    """So many of the sixty wait for the server yet when it is told to end."""

    async def make(server):
        states = []
        for n in range(2):
            stream = await server.open()
            await server.push(stream, 0, inputs([9, n], 3))
            states.append((await server.state(stream)).to_bytes())
        return states

    folder = tmp_path / "streams"
    folder.mkdir()
    states = run(make)
    for n in range(60):
        (folder / f"{n}.safetensors").write_bytes(states[n % 2])
    process = begun(tmp_path, "--handover", str(folder), "--grace", "20")
    try:
        time.sleep(2.0 * (left == 60))  # It is importing, or compiling.
        while len(os.listdir(folder)) > left and process.poll() is None:
            pass
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (0, -signal.SIGTERM), said
    assert "Traceback" not in said
    read = serving.StreamState.from_bytes
    for n in range(60):
        one = read((folder / f"{n}.safetensors").read_bytes())
        expected = read(states[n % 2])
        assert one.number == 1
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(one.arrays[name], array)


def test_sigterm_ends_in_time_whatever_clients_do(tmp_path):
    """A client that reads nothing, and a body that never comes."""
    with served(tmp_path, "--grace", "3") as (process, url):
        port = int(url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)) as half,
            socket.create_connection(("127.0.0.1", port)) as deaf,
        ):
            half.sendall(
                b"POST /streams HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx"
            )
            deaf.sendall(UPGRADE)
            assert b"101" in deaf.recv(100)
            start = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            assert time.monotonic() - start < 3 + 2  # and what it takes to be noticed


@pytest.mark.parametrize(
    "args, message",
    [
        (["--workers", "2"], "workers: expected 1, got 2"),
        (["--slots", "0"], "serve: --slots: expected 1 to 1000000, got 0"),
        (["--workers", "0"], "workers: expected 1, got 0"),
        (["--model", "nothing.json"], "model, weights: expected both"),
        (["--model", "nothing.json", "--weights", "nothing"], "nothing.json"),
    ],
)
def test_what_can_not_be_served_is_refused_in_a_sentence(args, message):
    done = subprocess.run(
        [sys.executable, SERVE, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("serve: ")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_second_server_on_one_port_is_refused(tmp_path):
    with served(tmp_path) as (_, url):
        port = url.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, SERVE, "--port", port, "--slots", "1"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1 and "address already in use" in done.stderr
