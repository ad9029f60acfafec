"""A server over HTTP and WebSocket, with aiohttp."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from lstm_jax.checks import options
from lstm_jax.serving.errors import (
    BadRequest,
    Gone,
    OutOfOrder,
    Overloaded,
    ServingError,
    Unavailable,
)
from lstm_jax.serving.server import Server
from lstm_jax.serving.states import StreamState
from lstm_jax.serving.streams import Result

try:
    from aiohttp import WSMessage, WSMsgType, web
except ImportError as error:
    raise ImportError(
        'serving.web needs aiohttp: pip install "lstm_jax[serving]"'
    ) from error

BYTES = "application/octet-stream"
# With which code a WebSocket is closed, by the status that says the same; else 1008.
_CODES = {400: 1007, 429: 1013, 500: 1011, 503: 1012}
_TAKEN = "Another connection goes on with the stream."
_JSON = 'expected JSON such as {"xs": [[0.5, 1.5]]}, the steps of a chunk'


def make_app(
    server: Server, *, max_bytes: int = 1 << 20, patience_s: float = 10.0
) -> web.Application:
    """Makes the application that serves a server's streams; it starts nothing.

    ======================================  ============================================
    ``GET /stream``                         a WebSocket for one stream
    ``POST /streams``                       opens one; restores one, if a state is sent
    ``POST /streams/ID/chunks/NUMBER``      ``{"xs": [...]}``: ``{"number", "ys"}``
    ``POST /streams/ID/flush``              the last answer, after all that was sent
    ``GET /streams/ID/state``               the state, as :meth:`StreamState.to_bytes`
    ``DELETE /streams/ID``                  the last answer, and the end
    ``GET /health``, ``/ready``             200 or 503
    ``GET /metrics``                        as Prometheus reads them
    ======================================  ============================================

    Opening a stream answers ``{"stream", "number"}``: its name, and the number of its
    next chunk. A chunk of the type ``application/octet-stream`` is the steps' bytes,
    little-endian and in C order, and so is its answer. What is refused says why in
    ``{"error"}``, with the status of its :class:`ServingError`; one that is out of
    order says what was ``"expected"``. In JSON, an output that is not finite is
    ``null``.

    A WebSocket begins with the text ``{"stream", "number"}``. Each binary frame is then
    a chunk, whole steps of bytes, and each is answered with one. The text ``close``
    ends it. A client that leaves, or does not read its answers, loses its stream;
    ``/stream?id=ID`` goes on with one that is open, and a connection that has it till
    then is closed with 1008. A frame that is no chunk closes it
    with 1007, a text with 1003, an eviction with 1008, the end of the server with 1012.

    Streams are in the memory of this process: of several, each would have its own.

    Args:
        server: it is started, drained and stopped by whoever made it.
        max_bytes: most bytes of a message.
        patience_s: seconds that a client may take to send a body, or to read an answer.

    Raises:
        ValueError: if an option is out of range.
        TypeError: if one is no number.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax import serving
        >>> model = lj.LSTM(3, 5)
        >>> server = serving.Server(model, model.init(jax.random.key(0)), slots=1)
        >>> type(serving.web.make_app(server)).__name__
        'Application'
    """
    options.check_positive("max_bytes", max_bytes)
    options.check_limit("patience_s", patience_s)
    service = _Service(server, max_bytes, patience_s)
    app = web.Application(client_max_size=max_bytes, middlewares=[_refuse])
    app.add_routes(
        [
            web.get("/stream", service.talk),
            web.post("/streams", service.open),
            web.post("/streams/{id}/chunks/{number}", service.push),
            web.post("/streams/{id}/flush", service.flush),
            web.get("/streams/{id}/state", service.state),
            web.delete("/streams/{id}", service.close),
            web.get("/health", service.health),
            web.get("/ready", service.ready),
            web.get("/metrics", service.metrics),
        ]
    )
    return app


@web.middleware
async def _refuse(
    request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]
) -> web.StreamResponse:
    """Answers with the reason, where there is one."""
    try:
        return await handler(request)
    except ServingError as error:
        said, headers = {"error": str(error)}, {}
        if isinstance(error, OutOfOrder):
            said |= {"expected": error.expected}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(math.ceil(error.retry_after), 1))
        return web.json_response(said, status=error.status, headers=headers)


class _Service:
    """What the routes lead to."""

    def __init__(self, server: Server, max_bytes: int, patience_s: float):
        self._server = server
        self._max_bytes, self._patience_s = max_bytes, patience_s
        # The one connection that each stream is served on.
        self._sockets: dict[str, web.WebSocketResponse] = {}

    async def open(self, request: web.Request) -> web.Response:
        body, client = await self._body(request), request.remote or "unknown"
        if not body:
            opened = {"stream": await self._server.open(client), "number": 0}
            return web.json_response(opened, status=201)
        state = StreamState.from_bytes(body)
        opened = {"stream": await self._server.restore(state, client)}
        return web.json_response(opened | {"number": state.number}, status=201)

    async def push(self, request: web.Request) -> web.Response:
        number, plain = request.match_info["number"], request.content_type == BYTES
        if not number.isascii() or not number.isdigit() or len(number) > 18:
            raise BadRequest(
                f"number: expected an integer from 0, got {number[:40]!r}."
            )
        body = await self._body(request)
        xs = body if plain else _steps(body)
        answer = await self._server.push(_id(request), int(number), xs)
        if plain:
            return web.Response(body=answer.ys.tobytes(), content_type=BYTES)
        return _said(answer)

    async def flush(self, request: web.Request) -> web.Response:
        return _said(await self._server.flush(_id(request)))

    async def close(self, request: web.Request) -> web.Response:
        return _said(await self._server.close(_id(request)))

    async def state(self, request: web.Request) -> web.Response:
        state = await self._server.state(_id(request))
        return web.Response(body=state.to_bytes(), content_type=BYTES)

    async def health(self, request: web.Request) -> web.Response:
        well = self._server.healthy
        return web.Response(status=200 if well else 503, text=f"healthy: {well}\n")

    async def ready(self, request: web.Request) -> web.Response:
        well = self._server.ready
        return web.Response(status=200 if well else 503, text=f"ready: {well}\n")

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self._server.metrics.prometheus())

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self._patience_s):
                return await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout() from None

    async def talk(self, request: web.Request) -> web.WebSocketResponse:
        """One stream for as long as one connection."""
        socket = web.WebSocketResponse(
            max_msg_size=self._max_bytes, heartbeat=20.0, timeout=1.0, compress=False
        )
        if not socket.can_prepare(request):  # It is to cost no stream.
            raise web.HTTPBadRequest(text="Expected the handshake of a WebSocket.")
        id, number = await self._begin(request, socket)
        watch = None
        try:
            await socket.prepare(request)
            watch = asyncio.create_task(self._watch(id, socket))
            await self._send(socket.send_json({"stream": id, "number": number}))
            async for frame in socket:
                self._check_owner(id, socket)
                if frame.type is not WSMsgType.BINARY:
                    await self._text(frame, id, socket, watch)
                    break
                answer = await self._patient(id, number, frame.data, socket)
                await self._send(socket.send_bytes(answer.ys.tobytes()))
                number += 1
        except Unavailable:
            # The stream may be handed out yet. Then it ends, and the watch says so.
            if watch is not None:
                await asyncio.wait([watch])
        except ServingError as error:
            await _shut(socket, _CODES.get(error.status, 1008), str(error))
        except (TimeoutError, ConnectionError):  # It does not read, or has left.
            if request.transport is not None:
                request.transport.abort()
        finally:
            if self._sockets.get(id) is socket:
                del self._sockets[id]
                self._server.drop(id)
            elif watch is not None:
                watch.cancel()
            # Where it closes the connection, the frame that says why is to be sent.
            if watch is not None:
                await asyncio.gather(watch, return_exceptions=True)
        return socket

    async def _begin(
        self, request: web.Request, socket: web.WebSocketResponse
    ) -> tuple[str, int]:
        """The stream of a connection, and the number of its next chunk."""
        id = request.query.get("id")
        if id is None:
            id = await self._server.open(request.remote or "unknown")
            self._sockets[id] = socket
            return id, 0
        older, self._sockets[id] = self._sockets.get(id), socket
        try:
            if older is not None and older.prepared:
                await _shut(older, 1008, _TAKEN)
            last = await self._server.flush(id)
        except BaseException:
            if self._sockets.get(id) is socket:
                del self._sockets[id]
            raise
        return id, 0 if last is None else last.number + 1

    def _check_owner(self, id: str, socket: web.WebSocketResponse) -> None:
        if self._sockets.get(id) is not socket:
            raise Gone(_TAKEN)

    async def _patient(
        self, id: str, number: int, data: bytes, socket: web.WebSocketResponse
    ) -> Result:
        """A chunk's answer; where the queue is full, nothing more is read meanwhile."""
        while True:
            self._check_owner(id, socket)
            try:
                return await self._server.push(id, number, data)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after or 0.1)

    async def _send(self, sending: Awaitable[None]) -> None:
        async with asyncio.timeout(self._patience_s):
            await sending

    async def _text(
        self, frame: WSMessage, id: str, socket: web.WebSocketResponse, watch: Any
    ) -> None:
        watch.cancel()
        if frame.type is WSMsgType.TEXT and frame.data == "close":
            await self._server.close(id)
            await _shut(socket, 1000, "closed")
        else:
            await _shut(socket, 1003, "Expected binary frames, or the text close.")

    async def _watch(self, id: str, socket: web.WebSocketResponse) -> None:
        """Tells a client that waits in silence that its stream is gone."""
        end = await self._server.ended(id)
        await _shut(socket, _CODES.get(end.status, 1008), str(end))


async def _shut(socket: web.WebSocketResponse, code: int, reason: str) -> None:
    """Closes with a reason, of which a frame holds 123 bytes."""
    short = reason.encode()[:123].decode(errors="ignore").encode()
    await socket.close(code=code, message=short)


def _id(request: web.Request) -> str:
    return request.match_info["id"]


def _said(answer: Result | None) -> web.Response:
    """An answer as JSON, which has no NaN and no infinity."""
    if answer is None:
        return web.json_response(None)
    ys, finite = answer.ys, np.isfinite(answer.ys)
    if not finite.all():
        ys = ys.astype(np.float64).astype(object)
        ys[~finite] = None
    return web.json_response({"number": answer.number, "ys": ys.tolist()})


def _steps(body: bytes) -> Any:
    """The steps in a JSON text, which has no NaN."""

    def refuse(word):
        raise BadRequest(f"xs: expected finite numbers, got {word}.")

    try:
        # Pairs, of which a name may be in two: a dict would keep the last.
        said = json.loads(body, parse_constant=refuse, object_pairs_hook=tuple)
    except BadRequest:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"body: {_JSON}; got none: {error}.") from None
    if not isinstance(said, tuple) or [name for name, _ in said] != ["xs"]:
        raise BadRequest(f"body: {_JSON}, and nothing else.")
    if b"true" in body or b"false" in body:  # NumPy would make numbers of them.
        raise BadRequest(f"body: {_JSON}, got true or false.")
    return said[0][1]
