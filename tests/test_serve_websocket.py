"""Serving over WebSocket: a real server, and clients that behave or do not."""

import asyncio
import contextlib
import socket

import aiohttp
import numpy as np
import pytest

from lstm_jax.serving import Limits
from tests.clients import (
    UPGRADE,
    ask,
    chunk_path,
    closed,
    hello,
    masked,
    run,
    until,
)
from tests.common import assert_close
from tests.serving import H, I, inputs, offline


def test_websockets_are_each_the_offline_run():
    streams = [inputs([3, n], 12) for n in range(4)]

    async def main(client, server):
        async def one(xs):
            async with client.ws_connect("/stream") as socket:
                assert (await hello(socket))["number"] == 0
                ys = []
                for n in range(3):  # All sent before the first is answered.
                    await socket.send_bytes(xs[4 * n : 4 * n + 4].tobytes())
                for _ in range(3):
                    ys.append(np.frombuffer(await socket.receive_bytes(), "<f4"))
                await socket.send_str("close")
                assert await closed(socket) == (1000, "closed")
                return np.concatenate(ys).reshape(-1, H)

        answers = await asyncio.gather(*map(one, streams))
        await until(lambda: server.metrics.slots_free == 4)
        assert server.metrics.closed == 4
        return answers

    for ys, xs in zip(run(main), streams, strict=True):
        assert_close(ys, offline(xs))


@pytest.mark.parametrize("size", [0, 1, 4 * I * 2 - 1, 4 * I + 1, 4 * I * 5])
def test_a_frame_that_is_no_chunk_closes_the_connection_and_says_why(size):
    async def main(client, server):
        async with client.ws_connect("/stream") as socket:
            await hello(socket)
            await socket.send_bytes(bytes(size))
            code, reason = await closed(socket)
        await until(lambda: server.metrics.slots_free == 4)
        assert server.metrics.accepted == 0
        return code, reason

    code, reason = run(main)
    whole = f"expected a multiple of 4·3 bytes, got {size}"
    steps = f"expected 1 to 4 steps in a chunk, got {size // (4 * I)}"
    assert code == 1007 and (steps if size % (4 * I) == 0 else whole) in reason


def test_texts_and_large_frames_are_refused_and_fragments_are_joined():
    xs = inputs(4, 2)

    async def main(client, server):
        async with client.ws_connect("/stream") as socket:
            await hello(socket)
            await socket.send_str(xs.tolist().__repr__())
            assert (await closed(socket))[0] == 1003
        async with client.ws_connect("/stream") as socket:
            await hello(socket)
            await socket.send_bytes(bytes(4096))
            assert (await closed(socket))[0] == 1009
        async with client.ws_connect("/stream") as socket:
            await hello(socket)
            data, op = xs.tobytes(), aiohttp.WSMsgType
            writer = socket._writer.transport
            writer.write(masked(data[:5], op.BINARY, False))
            writer.write(masked(data[5:], op.CONTINUATION, True))
            ys = np.frombuffer(await socket.receive_bytes(), "<f4")
        await until(lambda: server.metrics.slots_free == 4)
        return ys.reshape(-1, H)

    assert_close(run(main, max_bytes=1024), offline(xs))


def test_clients_that_vanish_free_their_slots():
    """With chunks on their way; and others get nothing of theirs."""
    xs = inputs(5, 4)

    async def main(client, server):
        for _ in range(3):
            sockets = [await client.ws_connect("/stream") for _ in range(4)]
            for one in sockets:
                await hello(one)
                for _ in range(5):
                    await one.send_bytes(np.full((4, I), 50, "<f4").tobytes())
                one._writer.transport.abort()
                one._response.close()
            await until(lambda: server.metrics.slots_free == 4)
        async with client.ws_connect("/stream") as socket:
            await hello(socket)
            await socket.send_bytes(xs.tobytes())
            ys = np.frombuffer(await socket.receive_bytes(), "<f4")
            await socket.send_str("close")
            await closed(socket)
        assert server.metrics.dropped == 12 and server.healthy
        return ys.reshape(-1, H)

    assert_close(run(main), offline(xs))


def test_a_stream_is_on_one_connection_the_newest():
    """The end of the one before, whenever it is noticed, does not end the stream."""
    xs = inputs(7, 8)

    async def main(client, server):
        async with client.ws_connect("/stream") as old:
            name, ys = (await hello(old))["stream"], []
            await old.send_bytes(xs[:2].tobytes())
            ys.append(await old.receive_bytes())
            ending = asyncio.create_task(closed(old))
            async with client.ws_connect(f"/stream?id={name}") as new:
                assert await hello(new) == {"stream": name, "number": 1}
                assert await ending == (
                    1008,
                    "Another connection goes on with the stream.",
                )
                await new.send_bytes(xs[2:4].tobytes())
                ys.append(await new.receive_bytes())
                async with client.ws_connect(f"/stream?id={name}") as newest:
                    assert (await hello(newest))["number"] == 2
                    for part in (xs[4:6], xs[6:]):
                        await newest.send_bytes(part.tobytes())
                        ys.append(await newest.receive_bytes())
                    assert server.metrics.dropped == 0
        await until(lambda: server.metrics.slots_free == 4)
        return np.frombuffer(b"".join(ys), "<f4").reshape(-1, H)

    assert_close(run(main), offline(xs))


def test_what_an_older_connection_still_sends_is_not_taken():
    xs = inputs(8, 4)

    async def main(client, server):
        async with client.ws_connect("/stream", autoclose=False) as old:
            name = (await hello(old))["stream"]
            socket = client.ws_connect(f"/stream?id={name}")
            taking = asyncio.create_task(socket.__aenter__())
            while not taking.done():  # It has not heard yet that it is closed.
                with contextlib.suppress(ConnectionError):
                    await old.send_bytes(np.full((4, I), 9, "<f4").tobytes())
                await asyncio.sleep(0)
            new = await taking
            number = (await hello(new))["number"]
            taken = server.metrics.accepted
            await new.send_bytes(xs.tobytes())
            await new.receive_bytes()
            assert (number, server.metrics.accepted) == (taken, taken + 1)
            await new.close()

    run(main)


def test_a_client_that_never_reads_is_let_go():
    """What the server holds of it is bounded by the sockets' buffers, and by time."""
    frame = masked(inputs(6, 2).tobytes(), aiohttp.WSMsgType.BINARY, True)

    async def main(client, server):
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(deaf, ("127.0.0.1", client._base_url.port))
        await loop.sock_sendall(deaf, UPGRADE)
        await until(lambda: server.metrics.streams)
        with contextlib.suppress(ConnectionError):
            while server.metrics.streams:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await loop.sock_sendall(deaf, frame * 500)
        deaf.close()
        await until(lambda: not server.metrics.streams)
        assert server.metrics.dropped == 1 and server.metrics.slots_free == 4
        assert server.metrics.queued == 0
        return server.metrics.answered

    # A readout makes answers long, so that few of them fill the buffers.
    wide = lambda kernel, ys: ys @ kernel
    kernel = np.ones((H, 4000), np.float32)
    assert 0 < run(main, patience_s=0.3, readout=(wide, kernel)) < 1000


def test_an_evicted_websocket_is_closed_with_the_reason():
    now = [0.0]

    async def main(client, server):
        async with client.ws_connect("/stream") as socket:
            await hello(socket)
            now[0] = 1.0
            code, reason = await closed(socket)
            assert code == 1008 and "evicted: no chunk for 0.1 s" in reason
        said, _ = await ask(client, "POST", "/streams", 201)
        now[0] = 2.0
        server._core.evict()
        path, body = chunk_path(said["stream"], 0), {"xs": [[1, 2, 3]]}
        said, _ = await ask(client, "POST", path, 410, json=body)
        assert "evicted" in said["error"]

    limits = Limits(idle_s=0.1, linger_s=0.0)
    run(main, limits=limits, clock=lambda: now[0])
