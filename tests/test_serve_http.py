"""Serving over HTTP: a real server on a free port, and real clients."""

import asyncio
import json
import subprocess
import sys

import aiohttp
import numpy as np
import pytest

from lstm_jax.serving import Limits
from tests.clients import (
    BYTES,
    JSON,
    ask,
    chunk_path,
    open_stream,
    run,
)
from tests.common import assert_close
from tests.serving import I, inputs, offline


def test_a_stream_over_http_is_the_offline_run():
    xs = inputs(0, 9)

    async def main(client, server):
        stream, ys = await open_stream(client), []
        said, _ = await ask(client, "POST", f"/streams/{stream}/flush")
        assert said is None
        for number in range(2):
            body = {"xs": xs[4 * number : 4 * number + 4].tolist()}
            path = chunk_path(stream, number)
            said, _ = await ask(client, "POST", path, json=body)
            assert said["number"] == number
            ys += said["ys"]
        again, _ = await ask(client, "POST", path, json=body)
        flushed, _ = await ask(client, "POST", f"/streams/{stream}/flush")
        assert again == flushed == said
        path, data = chunk_path(stream, 2), xs[8:].tobytes()
        async with client.post(path, data=data, headers=BYTES) as answer:
            ys.append(np.frombuffer(await answer.read(), "<f4"))
        said, _ = await ask(client, "DELETE", f"/streams/{stream}")
        assert said["number"] == 2
        said, _ = await ask(client, "DELETE", f"/streams/{stream}", 410)
        assert "was closed" in said["error"]
        assert server.metrics.slots_free == 4
        return np.stack(ys)

    assert_close(run(main), offline(xs))


def test_twenty_chunks_posted_at_once_are_in_order_or_409():
    xs, statuses = inputs(1, 20), []

    async def main(client, server):
        stream, ys = await open_stream(client), {}

        async def one(number):
            body = {"xs": xs[number : number + 1].tolist()}
            while number not in ys:
                post = client.post(chunk_path(stream, number), json=body)
                async with post as answer:
                    statuses.append(answer.status)
                    said = await answer.json()
                if answer.status == 200:
                    ys[number] = said["ys"][0]
                else:
                    assert answer.status == 429 or said["expected"] < number

        await asyncio.gather(*map(one, reversed(range(20))))
        body = {"xs": xs[3:4].tolist()}
        said, _ = await ask(client, "POST", chunk_path(stream, 3), 409, json=body)
        assert said["expected"] == 20 and "sent before" in said["error"]
        body = {"xs": xs[3:4].tolist()}
        said, _ = await ask(client, "POST", chunk_path(stream, 19), 409, json=body)
        assert "other values" in said["error"]
        return np.array([ys[n] for n in range(20)])

    assert_close(run(main), offline(xs))
    assert set(statuses) <= {200, 409, 429} and 409 in statuses


def test_what_is_malformed_is_a_4xx_with_a_reason():
    ok = {"xs": [[1.0, 2.0, 3.0]]}
    bodies = {
        b"": "expected JSON",
        b"{": "expected JSON",
        b"\xff\xfe": "expected JSON",
        b"[" * 100_000: "expected JSON",
        b"[1, 2, 3]": "expected JSON",
        b"{}": "expected JSON",
        b'{"xs": [[1, 2, 3]], "reset": true}': "nothing else",
        b'{"xs": 3}': "expected shape",
        b'{"xs": [[1, 2]]}': "expected shape",
        b'{"xs": [[1, 2, 3], [1]]}': "expected an array",
        b'{"xs": [["1", "2", "3"]]}': "expected an array",
        b'{"xs": [[1, 2, NaN]]}': "finite numbers, got NaN",
        b'{"xs": [[true, 2.0, 3.0]]}': "got true or false",
        b'{"xs": [[9, 9, 9]], "xs": [[1, 2, 3]]}': "nothing else",
        b'{"xs": {"0": [1, 2, 3]}}': "expected an array",
        b'{"xs": [[1, 2, 1e400]]}': "NaN or infinity at step 0",
        b'{"xs": []}': "expected shape",
        json.dumps({"xs": [[1, 2, 3]] * 5}).encode(): "1 to 4 steps",
    }

    async def main(client, server):
        stream = await open_stream(client)
        path = chunk_path(stream, 0)
        for body, message in bodies.items():
            said, _ = await ask(client, "POST", path, 400, data=body, headers=JSON)
            assert message in said["error"], (body[:50], said)
        for size in (1, 4 * I - 1, 4 * I + 1):
            data = {"data": bytes(size), "headers": BYTES}
            said, _ = await ask(client, "POST", path, 400, **data)
            assert f"a multiple of 4·3 bytes, got {size}" in said["error"]
        for number in ("x", "-1", "1.0", "9" * 5000, "%D9%A1"):
            said, _ = await ask(
                client, "POST", chunk_path(stream, number), 400, json=ok
            )
            assert "number: expected an integer" in said["error"]
        for method, end in (
            ("POST", "chunks/0"),
            ("POST", "flush"),
            ("GET", "state"),
            ("DELETE", ""),
        ):
            path = f"/streams/nothing/{end}".rstrip("/")
            said, _ = await ask(client, method, path, 404, json=ok)
            assert "no stream 'nothing'" in said["error"]
        said, _ = await ask(client, "POST", "/streams", 400, data=b"\x80\x04pickled")
        assert "no state of a stream" in said["error"]
        await ask(client, "PUT", "/streams", 405)
        await ask(client, "GET", "/stream", 400)  # no WebSocket
        await ask(client, "GET", f"/stream?id={stream}", 400)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="404"):
            await client.ws_connect("/stream?id=nothing")
        await ask(client, "POST", chunk_path(stream, 0), json=ok)
        assert server.metrics.accepted == 1 and server.metrics.streams == 1

    run(main)


def test_outputs_that_json_has_not_are_null():
    huge = lambda scale, ys: ys * scale[None, None]

    async def main(client, server):
        path = chunk_path(await open_stream(client), 0)
        async with client.post(path, json={"xs": [[1, 2, 3]]}) as answer:
            return json.loads(await answer.text(), parse_constant=pytest.fail)

    scale = np.float32([1, np.inf, np.nan, -np.inf, 1])
    ((first, *others, last),) = run(main, readout=(huge, scale))["ys"]
    assert others == [None] * 3
    assert isinstance(first, float) and isinstance(last, float)


def test_a_body_that_is_too_large_or_never_ends_is_refused():
    async def main(client, server):
        stream = await open_stream(client)
        data = {"data": bytes(4096), "headers": BYTES}
        await ask(client, "POST", chunk_path(stream, 0), 413, **data)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", client._base_url.port
        )
        writer.write(
            b"POST /streams HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf"
        )
        assert b"408" in await reader.readline()
        writer.close()
        await writer.wait_closed()

    run(main, max_bytes=1024, patience_s=0.2)


def test_limits_are_429_with_a_reason_and_when_to_come_back():
    async def main(client, server):
        await open_stream(client)
        await open_stream(client)
        said, headers = await ask(client, "POST", "/streams", 429)
        assert "'127.0.0.1' has 2 streams" in said["error"]
        await server.open("other")
        await server.open("other")
        said, headers = await ask(client, "POST", "/streams", 429)
        server._core._clients.clear()
        said, headers = await ask(client, "POST", "/streams", 429)
        assert "All 4 slots are taken" in said["error"]
        assert 0 < int(headers["Retry-After"]) <= 60

    run(main, limits=Limits(streams_per_client=2))


def test_a_state_goes_out_and_in_over_http():
    xs = inputs(2, 6)

    async def main(client, server):
        stream = await open_stream(client)
        first = await server.push(stream, 0, xs[:3])
        async with client.get(f"/streams/{stream}/state") as answer:
            state = await answer.read()
        await ask(client, "DELETE", f"/streams/{stream}")
        said, _ = await ask(client, "POST", "/streams", 201, data=state)
        assert said["number"] == 1 and said["stream"] != stream
        second = await server.push(said["stream"], 1, xs[3:])
        return np.concatenate([first.ys, second.ys])

    assert_close(run(main), offline(xs))


def test_health_ready_and_metrics():
    async def main(client, server):
        for path in ("/health", "/ready"):
            await ask(client, "GET", path)
        await server.push(await open_stream(client), 0, inputs(0, 2))
        said, _ = await ask(client, "GET", "/metrics")
        assert "lstm_jax_streams 1\n" in said and "lstm_jax_steps_total 2\n" in said
        draining = await server.drain(5.0)
        assert len(draining) == 1
        await ask(client, "GET", "/health")
        await ask(client, "GET", "/ready", 503)
        said, headers = await ask(client, "POST", "/streams", 503)
        assert "going down" in said["error"] and int(headers["Retry-After"]) > 0

    run(main)


def test_a_step_that_raises_is_500_and_the_next_is_answered():
    xs = inputs(7, 2)

    async def main(client, server):
        real = server._programs.run

        def raising(*args):
            server._programs.run = real
            raise RuntimeError("out of memory")

        stream = await open_stream(client)
        server._programs.run = raising
        body = {"json": {"xs": xs.tolist()}}
        said, _ = await ask(client, "POST", chunk_path(stream, 0), 500, **body)
        assert "out of memory" in said["error"]
        await ask(client, "GET", "/health")
        said, _ = await ask(client, "POST", chunk_path(stream, 0), **body)
        return np.array(said["ys"])

    assert_close(run(main), offline(xs))


def test_aiohttp_is_needed_by_the_web_alone():
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "import lstm_jax.serving as serving; assert serving.Server\n"
        "try:\n    serving.web\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == (
        'serving.web needs aiohttp: pip install "lstm_jax[serving]"'
    ), done.stderr
