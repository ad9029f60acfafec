"""Which chunks run when: admission, batches, answers, evictions.

Without arrays to compute on, threads or an event loop: what happens depends on the
calls, their order and the clock alone.
"""

from __future__ import annotations

import collections
import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lstm_jax.serving.batching import Waiting
from lstm_jax.serving.errors import (
    BadRequest,
    Gone,
    OutOfOrder,
    Overloaded,
    ServingError,
    StepFailed,
    Unavailable,
    UnknownStream,
)
from lstm_jax.serving.limits import Limits
from lstm_jax.serving.metrics import Metrics
from lstm_jax.serving.slots import Slots
from lstm_jax.serving.streams import Batch, Chunk, Result, Stream, settle


class Scheduler:
    """Open streams, and their chunks from acceptance to answer.

    Args:
        slots: most streams at once.
        batch_sizes: how many chunks a batch has room for, ascending.
        chunk_sizes: for how many steps of a chunk programs are compiled, ascending.
        limits: see :class:`Limits`.
        clock: seconds, from any start.
        make_future: an asyncio future, or anything with its methods.
    """

    def __init__(
        self,
        slots: int,
        batch_sizes: Sequence[int],
        chunk_sizes: Sequence[int],
        limits: Limits,
        clock: Callable[[], float],
        make_future: Callable[[], Any],
    ):
        """Starts with no stream."""
        self.limits, self.clock, self.make_future = limits, clock, make_future
        self.slots = Slots(slots)
        self.streams: dict[str, Stream] = {}
        self.metrics = Metrics()
        self.draining = False
        self._waiting = Waiting(batch_sizes, chunk_sizes, limits.linger_s)
        self._idle: collections.OrderedDict[str, Stream] = collections.OrderedDict()
        self._gone: collections.OrderedDict[str, ServingError] = (
            collections.OrderedDict()
        )
        self._clients: collections.Counter[str] = collections.Counter()
        self._queued = self._running = 0

    def open(self, client: str = "", name: str | None = None) -> Stream:
        """Admits a stream, and gives it a slot."""
        if self.draining:
            raise Unavailable("The server is going down: no new streams.", 5.0)
        if name in self.streams:
            raise BadRequest(f"name: stream {name!r} is open already.")
        most = self.limits.streams_per_client
        if client and most is not None and self._clients[client] >= most:
            raise Overloaded(
                f"Client {client!r} has {most} streams open, and may not have more."
            )
        self.evict()
        lease = self.slots.acquire()
        if lease is None:
            raise Overloaded(
                f"All {len(self.slots)} slots are taken. A stream is evicted after "
                f"{self.limits.idle_s:g} s without a chunk.",
                self._next_eviction(),
            )
        id, now = name or secrets.token_urlsafe(16), self.clock()
        self._gone.pop(id, None)
        stream = Stream(id, client, lease, self.make_future(), now)
        self.streams[id] = self._idle[id] = stream
        if client:
            self._clients[client] += 1
        self.metrics.opened += 1
        return stream

    def find(self, id: str) -> Stream:
        """The stream of this name."""
        stream = self.streams.get(id)
        if stream is not None:
            return stream
        end = self._gone.get(id)
        if end is not None:
            raise type(end)(str(end), end.retry_after)
        raise UnknownStream(f"There is no stream {id!r} here.")

    def admit(self, id: str, number: int, xs: np.ndarray, digest: bytes) -> Any:
        """Accepts a chunk; returns the future of its :class:`Result`."""
        stream = self.find(id)
        if number != stream.number:
            return self._repeated(stream, number, digest)
        if stream.closing:
            raise Gone(f"Stream {id!r} is being closed.")
        if self.draining:
            raise Unavailable("The server is going down: no new chunks.", 5.0)
        if stream.pending >= self.limits.queue_per_stream:
            raise Overloaded(
                f"Stream {id!r} has {stream.pending} chunks that are not answered, "
                "and may not have more.",
                self.limits.linger_s,
            )
        if self._queued >= self.limits.queue:
            raise Overloaded(
                f"{self._queued} chunks wait, and no more are accepted.", 1.0
            )
        now = self.clock()
        chunk = Chunk(stream, number, xs, digest, self.make_future(), now)
        stream.number += 1
        stream.waiting.append(chunk)
        self._queued += 1
        self.metrics.accepted += 1
        self._idle.pop(id, None)
        if stream.pending == 1:
            self._waiting.add(chunk, now)
        return chunk.future

    def _repeated(self, stream: Stream, number: int, digest: bytes) -> Any:
        """The answer to the last chunk once more, or what is wrong with the number."""
        newest, last, expected = stream.newest, stream.last, stream.number
        stored = newest or last
        if stored is None or number != stored.number:
            gap = number > expected
            raise OutOfOrder(
                f"number: expected {expected}, the next chunk of stream "
                f"{stream.id!r}, got {number}. "
                f"{'Chunks are missing' if gap else 'It was sent before'}.",
                expected,
            )
        if digest != (newest.digest if newest else stream.digest):
            raise OutOfOrder(
                f"number: expected {expected}, the next chunk of stream "
                f"{stream.id!r}, got {number} again, with other values.",
                expected,
            )
        self.metrics.repeated += 1
        if newest is not None:
            return newest.future
        self._rest(stream)
        future = self.make_future()
        future.set_result(last)
        return future

    def _rest(self, stream: Stream) -> None:
        """Notes that there was something to do for a stream, and is nothing now."""
        stream.idle_since = self.clock()
        self._idle[stream.id] = stream
        self._idle.move_to_end(stream.id)

    @property
    def _at_once(self) -> bool:
        """Whether no more chunks are worth waiting for."""
        return self.draining or len(self._waiting) >= len(self.streams)

    def cut(self) -> Batch | None:
        """The chunks to run next; None where none is, or more are worth waiting for."""
        now = self.clock()
        taken = self._waiting.take(now, self._at_once)
        if taken is None:
            return None
        steps, chunks = taken
        for chunk in chunks:
            first = chunk.stream.waiting.popleft()
            assert first is chunk and chunk.stream.running is None
            chunk.stream.running = chunk
        self._queued -= len(chunks)
        self._running += len(chunks)
        return Batch(steps, chunks, now)

    def due_in(self) -> float | None:
        """Seconds until a batch is worth cutting; None where nothing waits."""
        due = self._waiting.due(self._at_once)
        return None if due is None else max(due - self.clock(), 0.0)

    def finish(self, batch: Batch, outputs: Sequence[np.ndarray]) -> None:
        """Answers the chunks of a batch with the outputs of each."""
        now = self.clock()
        self.metrics.batches += 1
        self.metrics.busy_s += now - batch.started
        for chunk, ys in zip(batch.chunks, outputs, strict=True):
            stream = self._leave(chunk)
            self.metrics.steps += len(chunk.xs)
            if stream is None:
                continue
            stream.fresh = False
            stream.last, stream.digest = Result(chunk.number, ys), chunk.digest
            self.metrics.answered += 1
            self.metrics.observe(now - chunk.arrived)
            settle(chunk.future, stream.last)
            self._go_on(stream)

    def fail(self, batch: Batch, error: BaseException) -> None:
        """Answers the chunks of a batch that raised; each may be sent again."""
        self.metrics.busy_s += self.clock() - batch.started
        for chunk in batch.chunks:
            stream = self._leave(chunk)
            if stream is None:
                continue
            stream.number = chunk.number
            failed = f"the step raised {type(error).__name__}: {error}"
            messages = [f"Chunk {chunk.number} was not run: {failed}"]
            later = self._take_waiting(stream)
            messages += [
                f"Chunk {one.number} was not run, since in chunk {chunk.number}, "
                f"before it, {failed}"
                for one in later
            ]
            for one, message in zip((chunk, *later), messages, strict=True):
                failure = StepFailed(message)
                failure.__cause__ = error
                settle(one.future, error=failure)
            self.metrics.failed += len(messages)
            self._go_on(stream)

    def _take_waiting(self, stream: Stream) -> list[Chunk]:
        """Takes the chunks of a stream that are in no batch out of the queue."""
        chunks = list(stream.waiting)
        stream.waiting.clear()
        self._queued -= len(chunks)
        self._waiting.remove(stream.id)
        return chunks

    def _leave(self, chunk: Chunk) -> Stream | None:
        """Takes a chunk out of its batch; its stream, unless that is gone."""
        stream = chunk.stream
        stream.running = None
        self._running -= 1
        if stream.end is None:
            assert self.slots.holds(stream.lease)
            return stream
        # Only now is nothing of this stream on its way to the row.
        self.slots.release(stream.lease)
        return None

    def _go_on(self, stream: Stream) -> None:
        """Lets the next chunk of a stream run, if there is one."""
        if stream.waiting:
            self._waiting.add(stream.waiting[0], self.clock())
        else:
            self._rest(stream)

    def evict(self) -> None:
        """Ends streams for which there was nothing to do for too long."""
        limit, now = self.limits.idle_s, self.clock()
        while self._idle:
            stream = next(iter(self._idle.values()))
            if stream.idle_since + limit > now:
                break
            reason = f"Stream {stream.id!r} was evicted: no chunk for {limit:g} s."
            self.end(stream, Gone(reason), "evicted")

    def _next_eviction(self) -> float:
        """Seconds until a slot may be free."""
        if len(self.streams) < len(self.slots):
            return 0.1  # That of a stream which is gone, but still in a batch.
        if not self._idle:
            return self.limits.idle_s
        first = next(iter(self._idle.values()))
        return max(first.idle_since + self.limits.idle_s - self.clock(), 0.0)

    def end(self, stream: Stream, why: ServingError, count: str) -> bool:
        """Ends a stream, once; its row is free when its last step is out of a batch.

        Args:
            stream: the stream.
            why: what whoever still waits, and who asks for it later, is told.
            count: the name of the counter.

        Returns:
            Whether it was open.
        """
        if stream.end is not None:
            return False
        stream.end = why
        del self.streams[stream.id]
        self._idle.pop(stream.id, None)
        if stream.client:
            self._clients[stream.client] -= 1
            if not self._clients[stream.client]:
                del self._clients[stream.client]
        self._remember(stream.id, why)
        pending = self._take_waiting(stream)
        if stream.running is None:
            self.slots.release(stream.lease)
        else:
            pending.append(stream.running)
        for chunk in pending:
            settle(chunk.future, error=type(why)(str(why), why.retry_after))
        self.metrics.discarded += len(pending)
        setattr(self.metrics, count, getattr(self.metrics, count) + 1)
        settle(stream.ended, why)
        return True

    def refuse_waiting(self, why: ServingError) -> None:
        """Refuses chunks that are in no batch; their streams stand before them."""
        for stream in self.streams.values():
            refused = self._take_waiting(stream)
            for chunk in refused:
                settle(chunk.future, error=type(why)(str(why), why.retry_after))
            stream.number -= len(refused)
            if refused and stream.running is None:
                self._rest(stream)

    def end_all(self, why: ServingError) -> None:
        """Ends every stream."""
        for stream in list(self.streams.values()):
            self.end(stream, why, "lost")

    def _remember(self, id: str, why: ServingError) -> None:
        self._gone[id] = why
        if len(self._gone) > self.limits.remembered:
            self._gone.popitem(last=False)

    @contextlib.contextmanager
    def refusals_counted(self) -> Iterator[None]:
        """Counts what is refused within."""
        try:
            yield
        except ServingError:
            self.metrics.refused += 1
            raise

    def measure(self) -> Metrics:
        """What has been counted, with what stands now."""
        now = self.metrics.copy()
        now.streams, now.slots_free = len(self.streams), self.slots.free
        now.queued, now.running = self._queued, self._running
        return now
