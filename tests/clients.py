"""A server on a free port, and what its clients say to it."""

import asyncio
import json

import aiohttp
from aiohttp import web

from lstm_jax import serving
from lstm_jax.serving import Limits
from tests.serving import MODEL, PARAMS

BYTES = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}
UPGRADE = (
    b"GET /stream HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def run(main, max_bytes=1 << 20, patience_s=10.0, **options):
    """Runs ``main(client, server)`` with a client of a server that is ready."""
    few = {"slots": 4, "batch_sizes": (4,), "chunk_sizes": (4,)}
    options = {**few, "limits": Limits(linger_s=0.0), **options}

    async def whole():
        server = serving.Server(MODEL, PARAMS, **options)
        app = serving.web.make_app(server, max_bytes=max_bytes, patience_s=patience_s)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession(url) as client:
                async with client.get("/ready") as answer:
                    assert answer.status == 503
                await server.start()
                return await main(client, server)
        finally:
            await server.stop()
            await runner.cleanup()

    return asyncio.run(whole())


async def ask(client, method, path, expected=200, **options):
    """The JSON of an answer, with the status that is expected."""
    async with client.request(method, path, **options) as answer:
        text = await answer.text()
        assert answer.status == expected, text
        said = json.loads(text) if answer.content_type == "application/json" else text
        return said, answer.headers


async def open_stream(client):
    said, _ = await ask(client, "POST", "/streams", 201)
    assert said["number"] == 0
    return said["stream"]


async def until(condition):
    """Waits until what is asked for is so."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never was so")


def chunk_path(stream, number):
    return f"/streams/{stream}/chunks/{number}"


async def hello(socket):
    return await asyncio.wait_for(socket.receive_json(), 30)


async def closed(socket):
    """The code and the reason with which a WebSocket is closed."""
    frame = await asyncio.wait_for(socket.receive(), 30)
    assert frame.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED), frame
    return socket.close_code, frame.extra


def masked(data, kind, last):
    """A frame of a client, with a mask of zeros."""
    return bytes([int(kind) | 0x80 * last, 0x80 | len(data)]) + bytes(4) + data
