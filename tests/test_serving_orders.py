"""Random orders of what may happen to streams, on a clock that is set by hand.

The device is a table of integers whose step is cheap; everything else is what serves.
"""

import collections
import concurrent.futures
import random

import numpy as np
import pytest

from lstm_jax.serving import (
    Gone,
    Limits,
    OutOfOrder,
    Overloaded,
    StepFailed,
)
from lstm_jax.serving.inputs import digest
from lstm_jax.serving.scheduling import Scheduler

START, MODULUS = 7, 1_000_003
CHUNK_SIZES = (1, 4)
LIMITS = Limits(
    idle_s=10.0, queue=6, queue_per_stream=3, linger_s=0.5, streams_per_client=3
)


def offline(xs):
    """What a stream answers: a state that depends on all steps and their order."""
    state, ys = START, []
    for x in xs:
        state = (state * 31 + x) % MODULUS
        ys.append(state)
    return ys


class Device:
    """Rows that keep what was left in them."""

    def __init__(self, slots):
        self.table = [666] * slots

    def run(self, batch, prepared):
        outputs = []
        for (slot, fresh), chunk in zip(prepared, batch.chunks, strict=True):
            state, ys = START if fresh else self.table[slot], []
            for x in chunk.xs.tolist():
                state = (state * 31 + x) % MODULUS
                ys.append(state)
            self.table[slot] = state
            outputs.append(np.array(ys))
        return outputs


class Client:
    """One stream, and what was accepted of it."""

    def __init__(self, stream):
        self.id, self.chunks, self.futures = stream.id, [], []


class World:
    """A scheduler, a device, and all that a random order does to them."""

    def __init__(self, seed):
        self.random, self.now = random.Random(seed), 0.0
        self.slots = self.random.choice((1, 2, 3, 5))
        sizes = sorted({1, min(2, self.slots), self.slots})
        self.core = Scheduler(
            self.slots,
            sizes,
            CHUNK_SIZES,
            LIMITS,
            lambda: self.now,
            concurrent.futures.Future,
        )
        self.device = Device(self.slots)
        self.clients, self.left, self.batch = [], [], None
        self.released = collections.Counter()
        release = self.core.slots.release

        def counted(lease):
            done = release(lease)
            self.released[lease] += done
            return done

        self.core.slots.release = counted
        self.answers = self.refusals = 0

    def open(self):
        try:
            stream = self.core.open(self.random.choice(("", "a", "b")))
        except Overloaded:
            self.refusals += 1
            return
        self.clients.append(Client(stream))

    def any_client(self):
        return self.random.choice(self.clients) if self.clients else None

    def push(self):
        """The next chunk, as its client counts."""
        client = self.any_client()
        if client is None:
            return
        xs = np.array([self.random.randrange(1000) for _ in range(self.steps())])
        self.send(client, len(client.chunks), xs)

    def steps(self):
        return self.random.randint(1, CHUNK_SIZES[-1])

    def send(self, client, number, xs):
        try:
            future = self.core.admit(client.id, number, xs, digest(xs))
        except Overloaded:
            self.refusals += 1
        except Gone:
            assert client.id not in self.core.streams
            self.leave(client)
        else:
            assert number == len(client.chunks)
            client.chunks.append(xs)
            client.futures.append(future)

    def leave(self, client):
        self.clients.remove(client)
        self.left.append(client)

    def push_wrong(self):
        """A gap, one long answered, or other values: always refused."""
        client = self.any_client()
        if client is None or client.id not in self.core.streams:
            return
        number = len(client.chunks)
        wrong = [number + 1, number + self.random.randint(2, 9)]
        if number > 1:
            wrong.append(self.random.randrange(number - 1))
        if number:
            wrong.append(number - 1)  # with other values
        with pytest.raises(OutOfOrder) as error:
            self.core.admit(client.id, self.random.choice(wrong), np.array([-1]), b"?")
        assert error.value.expected == number

    def push_again(self):
        """The last chunk once more: it is not applied again."""
        client = self.any_client()
        if client is None or not client.chunks or client.id not in self.core.streams:
            return
        xs, number = client.chunks[-1], len(client.chunks) - 1
        future = self.core.admit(client.id, number, xs, digest(xs))
        first = client.futures[-1]
        if future is not first and not first.cancelled():
            assert future.result() is first.result()

    def cancel(self):
        """Whoever waited no longer does; the chunk was accepted all the same."""
        client = self.any_client()
        if client is not None and client.futures:
            self.random.choice(client.futures).cancel()

    def drop(self):
        self.end("dropped")

    def close(self):
        self.end("closed")

    def end(self, how):
        client = self.any_client()
        if client is None:
            return
        stream = self.core.streams.get(client.id)
        if stream is not None:
            assert self.core.end(stream, Gone(how), how)
            assert not self.core.end(stream, Gone("again"), how)
        self.leave(client)

    def cut(self):
        if self.batch is None:
            batch = self.core.cut()
            if batch is not None:
                names = [chunk.stream.id for chunk in batch.chunks]
                assert names and len(set(names)) == len(names)
                rows = [(c.stream.lease.slot, c.stream.fresh) for c in batch.chunks]
                assert len({slot for slot, _ in rows}) == len(rows)
                self.batch = batch, rows

    def finish(self):
        if self.batch is not None:
            batch, rows = self.batch
            self.batch = None
            self.core.finish(batch, self.device.run(batch, rows))

    def fail(self):
        """The step raises: its chunks and what came after them are to be sent again."""
        if self.batch is None:
            return
        batch, _ = self.batch
        self.batch = None
        self.core.fail(batch, RuntimeError("no memory"))
        by_id = {client.id: client for client in self.clients}
        for chunk in batch.chunks:
            client = by_id.get(chunk.stream.id)
            if client is not None and chunk.stream.end is None:
                for future in client.futures[chunk.number :]:
                    if not future.cancelled():
                        assert isinstance(future.exception(), StepFailed)
                del client.futures[chunk.number :], client.chunks[chunk.number :]

    def wait(self):
        self.now += self.random.choice((0.1, 1.0, 4.0, 11.0))

    def evict(self):
        busy = [s.id for s in self.core.streams.values() if s.pending]
        self.core.evict()
        assert all(id in self.core.streams for id in busy)

    OPERATIONS = (
        *(("open", 6), ("push", 20), ("push_wrong", 3), ("push_again", 4)),
        *(("cancel", 2), ("drop", 2), ("close", 2), ("cut", 14), ("finish", 12)),
        *(("fail", 1), ("wait", 3), ("evict", 3)),
    )

    def go(self, count):
        names, weights = zip(*self.OPERATIONS, strict=True)
        for name in self.random.choices(names, weights, k=count):
            getattr(self, name)()
            self.check()
        self.core.draining = True
        while True:
            self.finish()
            self.cut()
            if self.batch is None:
                break
        self.check()
        for client in self.left + self.clients:
            self.compare(client)
        self.core.end_all(Gone("the end"))
        assert self.core.slots.free == self.slots and not self.core._clients
        assert set(self.released.values()) <= {1}

    def check(self):
        core = self.core
        core.slots.check()
        running = self.batch[0].chunks if self.batch else []
        leaving = [c.stream for c in running if c.stream.end is not None]
        leases = [s.lease for s in (*core.streams.values(), *leaving)]
        assert len({lease.slot for lease in leases}) == len(leases)
        assert core.slots.free == self.slots - len(leases)
        assert all(core.slots.holds(lease) for lease in leases)
        now = core.measure()
        assert now.queued == sum(len(s.waiting) for s in core.streams.values())
        assert now.queued <= LIMITS.queue and now.running == len(running)
        pending = {s.id for s in core.streams.values() if s.pending}
        assert set(core._idle) == set(core.streams) - pending

    def compare(self, client):
        """Every answer is that of the stream alone, in one piece."""
        steps = [x for xs in client.chunks for x in xs.tolist()]
        ys, at = offline(steps), 0
        for number, (xs, future) in enumerate(
            zip(client.chunks, client.futures, strict=True)
        ):
            assert future.done()
            if not future.cancelled() and future.exception() is None:
                result = future.result()
                assert result.number == number
                assert result.ys.tolist() == ys[at : at + len(xs)]
                self.answers += 1
            elif not future.cancelled():
                assert isinstance(future.exception(), Gone)
            at += len(xs)


@pytest.mark.parametrize("block", range(10))
def test_ten_thousand_random_orders_mix_nothing_up(block):
    answers = refusals = 0
    for seed in range(1000 * block, 1000 * block + 1000):
        world = World(seed)
        try:
            world.go(50)
        except AssertionError as error:
            raise AssertionError(f"order {seed}") from error
        answers += world.answers
        refusals += world.refusals
    assert answers > 2000 and refusals > 1000
