"""Many concurrent streams over one compiled step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lstm_jax.checks import options
from lstm_jax.serving import states
from lstm_jax.serving.engine import Engine
from lstm_jax.serving.errors import Gone, ServingError, Unavailable
from lstm_jax.serving.inputs import Inputs, check_number, digest
from lstm_jax.serving.limits import Limits, take_batch_sizes, take_sizes
from lstm_jax.serving.metrics import Metrics
from lstm_jax.serving.programs import Programs
from lstm_jax.serving.runners import Around, make_runner
from lstm_jax.serving.scheduling import Scheduler
from lstm_jax.serving.states import StreamState
from lstm_jax.serving.streams import Result, Stream
from lstm_jax.types import PyTree


class Server:
    """Holds the states of many streams, and runs their chunks in batches.

    A stream is opened, sends chunks of steps that are numbered from 0, and is closed. A
    chunk that is accepted is applied, once, whether whoever sent it still waits or not.
    Its answer is that of one call of ``model.apply`` on the whole stream.

    All methods belong to one event loop; JAX runs in one other thread. Every program is
    compiled before the server is ready, none after.

    Args:
        model: a one-directional stack such as :class:`LSTM`, or any function
            ``step(params, state, x, reset) -> (state, y)``: leaves of the state are
            ``[B, ...]``, as are ``x`` and ``y``; ``reset``, ``[B]`` bool, is true where
            a stream begins, and ``state`` is already what it begins with.
        params: the parameters.
        slots: most streams at once.
        batch_sizes: how many chunks of different streams run at once, a program each;
            by default powers of 4 up to the number of slots or 256.
        chunk_sizes: for how many steps of a chunk programs are compiled; a chunk runs
            as the next larger one, and with chunks of that size only. The last is the
            most a chunk may have.
        inputs: shape and dtype of one step of one stream; needed with a step or an
            embedding, by default ``[I]`` of float32.
        embedding: ``(function, params)``: ``function(params, xs)`` makes the inputs of
            the stack, ``[B, T, I]``, from what comes, ``[B, T, ...]``.
        readout: ``(function, params)``: the same for the outputs.
        state: what a step's streams start from, of one stream, without a batch axis.
        limits: see :class:`Limits`.
        finite: whether inputs that are NaN or infinite are refused. They would stay in
            the state of their stream, though in no other.
        clock: seconds, from any start.

    Raises:
        ValueError: if an option is out of range, or does not go with the model.
        TypeError: if one has the wrong type.

    Example:
        >>> import asyncio, jax, numpy as np, lstm_jax as lj
        >>> from lstm_jax import serving
        >>> model = lj.LSTM(3, 5)
        >>> params = model.init(jax.random.key(0))
        >>> async def main():
        ...     async with serving.Server(model, params, slots=4) as server:
        ...         stream = await server.open()
        ...         first = await server.push(stream, 0, np.ones((2, 3)))
        ...         second = await server.push(stream, 1, np.ones((1, 3)))
        ...         await server.close(stream)
        ...     return np.concatenate([first.ys, second.ys])
        >>> ys = asyncio.run(main())
        >>> _, whole = model.apply(params, np.ones((3, 3), np.float32))
        >>> bool(np.abs(ys - whole).max() < 1e-5)
        True
    """

    def __init__(
        self,
        model: Any,
        params: PyTree,
        *,
        slots: int = 256,
        batch_sizes: Sequence[int] | None = None,
        chunk_sizes: Sequence[int] = (1, 16),
        inputs: Any = None,
        embedding: Around | None = None,
        readout: Around | None = None,
        state: PyTree = None,
        limits: Limits | None = None,
        finite: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Checks everything and traces the programs."""
        options.check_positive("slots", slots)
        options.check_flag("finite", finite)
        batches = take_batch_sizes(batch_sizes, slots)
        chunks = take_sizes("chunk_sizes", chunk_sizes)
        runner = make_runner(model, params, inputs, state, embedding, readout)
        self._programs = Programs(runner, slots, batches, chunks)
        self._inputs = Inputs(runner.step, chunks[-1], finite)
        self._weights = states.fingerprint(runner.params)
        self._core = Scheduler(
            slots, batches, chunks, limits or Limits(), clock, self._make_future
        )
        self._engine = Engine(self._programs, self._core)
        self._loop: Any = None
        self._running = False

    def _make_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    async def start(self) -> None:
        """Compiles every program; the server is then ready.

        Raises:
            RuntimeError: if it was started before.
        """
        if self._loop is not None:
            raise RuntimeError("start: this server was started before. Make a new one.")
        self._loop = asyncio.get_running_loop()
        await self._engine.start()
        self._running = True

    async def stop(self) -> None:
        """Ends every stream at once; :meth:`drain` does it in order, before."""
        if not self._running:
            return
        self._running = False
        self._core.end_all(Unavailable("The server has stopped."))
        await self._engine.stop()

    async def __aenter__(self) -> Server:
        """Starts the server."""
        await self.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        """Stops it."""
        await self.stop()

    async def open(self, client: str = "") -> str:
        """Admits a stream; returns its name, which can't be guessed.

        Args:
            client: whose it is, for :attr:`Limits.streams_per_client`.

        Raises:
            Overloaded: if no slot is free, or the client has too many.
            Unavailable: if the server is not ready, or goes down.
        """
        with self._core.refusals_counted():
            self._check_running()
            return self._core.open(client).id

    async def push(self, stream: str, number: int, xs: Any) -> Result:
        """Sends a chunk, and waits for its outputs.

        Whoever is cancelled while it waits can ask again: the last chunk sent once more
        is not applied once more, but answered with what is stored.

        Args:
            stream: its name.
            number: of the chunk, from 0; after a failed step, the same again.
            xs: ``[T, I]``, or whatever ``inputs`` says of a step: an array, nested
                lists, or little-endian bytes.

        Raises:
            BadRequest: if ``xs`` or ``number`` is nothing that it could be.
            UnknownStream: if there is no such stream.
            OutOfOrder: if a chunk is missing, or came before.
            Gone: if the stream was closed or evicted.
            Overloaded: if too many chunks wait.
            StepFailed: if the step raised.
            Unavailable: if the server is not ready, or goes down.
        """
        with self._core.refusals_counted():
            self._check_running()
            check_number(number)
            self._core.find(stream)
            chunk = self._inputs.read(xs)
            answer = self._core.admit(stream, int(number), chunk, digest(chunk))
        self._engine.wake()
        return await asyncio.shield(answer)

    async def flush(self, stream: str) -> Result | None:
        """Waits for all chunks sent so far; returns the last answer, if there is one.

        Raises:
            StepFailed: if one of them failed.
            ServingError: as :meth:`push` does.
        """
        self._check_running()
        found = self._core.find(stream)
        await _settled(found)
        return found.last

    async def close(self, stream: str) -> Result | None:
        """Takes no more chunks, answers those sent, and frees the slot.

        Returns:
            The last answer, if there is one.

        Raises:
            ServingError: as :meth:`flush` does; the stream is gone all the same.
        """
        self._check_running()
        found = self._core.find(stream)
        found.closing = True
        try:
            await _settled(found)
        finally:
            why = Gone(f"Stream {stream!r} was closed.")
            self._core.end(found, why, "closed")
        return found.last

    def drop(self, stream: str) -> bool:
        """Ends a stream at once, as where its client left; whether it was open."""
        found = self._core.streams.get(stream)
        why = Gone(f"Stream {stream!r} was dropped: its client left.")
        return found is not None and self._core.end(found, why, "dropped")

    async def ended(self, stream: str) -> ServingError:
        """Waits until a stream is gone; returns why.

        Raises:
            ServingError: as :meth:`push` does, if it is gone already.
        """
        return await asyncio.shield(self._core.find(stream).ended)

    async def state(self, stream: str) -> StreamState:
        """Returns where a stream stands, after all chunks sent so far.

        Raises:
            ServingError: as :meth:`flush` does.
        """
        self._check_running()
        found = self._core.find(stream)
        while found.pending:
            await _settled(found)
        self._core.find(stream)
        make = states.describe(found, self._programs.names, self._weights)
        return make(await self._engine.ask(self._programs.read, found.lease.slot))

    async def restore(
        self, state: StreamState, client: str = "", name: str | None = None
    ) -> str:
        """Opens a stream that goes on where another one stood.

        Args:
            state: as from :meth:`state` or :meth:`drain`, of this or another process.
            client: see :meth:`open`.
            name: the one it had, so that its client finds it; a new one if None.

        Raises:
            BadRequest: if it is of another model, or of other weights.
            ServingError: as :meth:`open` does.
        """
        programs = self._programs
        with self._core.refusals_counted():
            self._check_running()
            leaves = states.conform(
                state, self._weights, programs.names, programs.shapes
            )
            found = self._core.open(client, name)
        found.number, found.fresh = int(state.number), leaves is None
        found.last, found.digest = state.last, state.digest
        try:
            if leaves is not None:
                await self._engine.ask(programs.write, found.lease.slot, leaves)
        except BaseException:
            self.drop(found.id)
            raise
        return found.id

    async def drain(self, timeout_s: float = 10.0) -> dict[str, StreamState]:
        """Goes down: no new streams or chunks, answers to what is queued, and the end.

        Args:
            timeout_s: seconds for all of it. Chunks that have not run after half of
                them are refused: their stream stands before them.

        Returns:
            The state of every stream that was still open, by name. Where the device
            hangs, there is none.
        """
        if not self._running:
            return {}
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        self._core.draining = True
        self._engine.wake()
        await self._answered(0.5 * timeout_s)
        self._core.refuse_waiting(Unavailable("The server went down before it.", 5.0))
        await self._answered(until - loop.time())
        job = self._engine.worker.submit(self._programs.read_all)
        await asyncio.wait([job], timeout=max(until - loop.time(), 0.0))
        handed = {}
        if job.done() and job.result().error is None:
            handed = self._split(job.result().value)
        self._core.end_all(Unavailable("The server is going down.", 5.0))
        return handed

    async def _answered(self, timeout_s: float) -> None:
        """Waits until no chunk of any stream waits or runs."""
        streams = self._core.streams.values()
        newest = [stream.newest.future for stream in streams if stream.newest]
        if newest:
            await asyncio.wait(newest, timeout=max(timeout_s, 0.0))

    def _split(self, table: Sequence[np.ndarray]) -> dict[str, StreamState]:
        """The state of every open stream, from the leaves of the table."""
        handed = {}
        for id, stream in self._core.streams.items():
            if stream.running is None:
                make = states.describe(stream, self._programs.names, self._weights)
                handed[id] = make([leaf[stream.lease.slot] for leaf in table])
        return handed

    @property
    def ready(self) -> bool:
        """Whether streams can be opened: compiled, healthy and not going down."""
        return self._running and not self._core.draining and self.healthy

    @property
    def healthy(self) -> bool:
        """Whether batches run: the loop lives, and is not stuck in one."""
        return self._engine.healthy

    @property
    def metrics(self) -> Metrics:
        """What has been counted so far."""
        return self._core.measure()

    def _check_running(self) -> None:
        if not self._running:
            raise Unavailable("The server is not ready, or has stopped.", 1.0)
        if self._engine.broken is not None:
            raise Unavailable(f"The server has broken: {self._engine.broken!r}")


async def _settled(stream: Stream) -> None:
    """Waits for the chunks of a stream that were sent so far."""
    if stream.newest is not None:
        await asyncio.shield(stream.newest.future)
