"""Which chunks run when, on a clock that is set by hand."""

import concurrent.futures
import pickle

import numpy as np
import pytest

from lstm_jax.serving import (
    Gone,
    Limits,
    OutOfOrder,
    Overloaded,
    ServingError,
    UnknownStream,
)
from lstm_jax.serving.inputs import digest
from lstm_jax.serving.scheduling import Scheduler
from lstm_jax.serving.slots import Slots

CHUNK_SIZES = (1, 4)


def make(slots=2, **limits):
    now = [0.0]
    core = Scheduler(
        slots,
        (1, slots),
        CHUNK_SIZES,
        Limits(**{"linger_s": 0.0, **limits}),
        lambda: now[0],
        concurrent.futures.Future,
    )
    return core, now


def admit(core, stream, number, *xs):
    xs = np.array(xs or [1])
    return core.admit(stream.id, number, xs, digest(xs))


def test_slots_are_released_once():
    slots = Slots(2)
    first, second = slots.acquire(), slots.acquire()
    assert slots.release(first) and not slots.release(first)
    again = slots.acquire()
    assert again.slot == first.slot and again.generation == first.generation + 1
    assert not slots.release(first) and slots.holds(again) and slots.acquire() is None
    assert slots.release(second)
    slots.check()


def test_a_stream_that_is_cancelled_and_then_evicted_frees_its_slot_once():
    core, now = make(idle_s=1.0)
    one = core.open()
    assert core.end(one, Gone("cancelled"), "dropped")
    now[0] = 5.0
    core.evict()
    assert not core.end(one, Gone("evicted"), "evicted")
    two, three = core.open(), core.open()
    assert two.lease.slot != three.lease.slot
    with pytest.raises(Overloaded, match="All 2 slots") as error:
        core.open()
    assert error.value.retry_after == 1.0


def test_a_slot_is_free_only_when_its_last_step_has_left_the_batch():
    core, _ = make(slots=1)
    stream = core.open()
    future = admit(core, stream, 0)
    batch = core.cut()
    core.end(stream, Gone("left"), "dropped")
    with pytest.raises(Overloaded) as error:
        core.open()
    assert error.value.retry_after < 1
    assert isinstance(future.exception(), Gone)
    core.finish(batch, [np.array([1])])
    other = core.open()
    assert other.lease.generation == 1 and other.last is None and other.fresh


def test_a_stream_with_work_is_not_idle():
    core, now = make(idle_s=0.1, queue_per_stream=1000)
    stream, accepted, batch, ends = core.open(), 0, None, 0.0
    for tick in range(2000):  # 10 s: a chunk each 20 ms, a step of 40 ms
        now[0] = tick * 0.005
        core.evict()
        if tick % 4 == 0:
            admit(core, stream, accepted)
            accepted += 1
        if batch and now[0] >= ends:
            core.finish(batch, [np.array([1])])
            batch = None
        if batch is None:
            batch = core.cut()
            ends = now[0] + 0.04
    assert stream.end is None and core.metrics.answered > 200
    while batch:
        core.finish(batch, [np.array([1])])
        batch = core.cut()
    now[0] += 0.2
    core.evict()
    for _ in range(2):
        with pytest.raises(Gone, match=r"evicted: no chunk for 0\.1 s"):
            admit(core, stream, accepted)


def test_two_chunks_of_one_stream_are_never_in_one_batch():
    core, _ = make()
    one, two = core.open(), core.open()
    for number in range(3):
        admit(core, one, number, number)
    admit(core, two, 0, 9)
    batch = core.cut()
    assert [(c.stream is one, c.number) for c in batch.chunks] == [
        (True, 0),
        (False, 0),
    ]
    assert core.cut() is None
    core.finish(batch, [np.array([1])] * 2)
    assert [chunk.number for chunk in core.cut().chunks] == [1]


def test_a_batch_holds_chunks_of_one_size_and_the_oldest_goes_first():
    core, now = make(slots=3)
    streams = [core.open() for _ in range(3)]
    admit(core, streams[0], 0, 1, 2, 3)
    now[0] = 1.0
    admit(core, streams[1], 0, 1)
    admit(core, streams[2], 0, 1, 2, 3, 4)
    first = core.cut()
    assert first.steps == 4 and [c.stream for c in first.chunks] == streams[::2]
    second = core.cut()
    assert second.steps == 1 and [c.stream for c in second.chunks] == [streams[1]]


def test_a_batch_waits_for_more_but_not_where_all_are_there():
    core, now = make(slots=3, linger_s=0.5)
    one, two = core.open(), core.open()
    admit(core, one, 0)
    assert core.cut() is None and core.due_in() == 0.5
    now[0] = 0.3
    assert core.due_in() == pytest.approx(0.2)
    admit(core, two, 0)
    assert core.due_in() == 0 and len(core.cut().chunks) == 2
    core, now = make(slots=3, linger_s=0.5)
    one, two = core.open(), core.open()
    admit(core, one, 0)
    now[0] = 0.5
    assert len(core.cut().chunks) == 1 and core.due_in() is None


def test_a_batch_is_never_more_than_half_padding():
    core = Scheduler(
        64, (1, 4, 16, 64), (1,), Limits(linger_s=0.0), float, concurrent.futures.Future
    )
    for _ in range(17):
        admit(core, core.open(), 0)
    sizes = []
    while batch := core.cut():
        sizes.append(len(batch.chunks))
    assert sizes == [16, 1]


def test_queues_are_bounded_and_say_which_is_full():
    core, _ = make(queue=3, queue_per_stream=2)
    one, two = core.open(), core.open()
    admit(core, one, 0), admit(core, one, 1)
    with pytest.raises(Overloaded, match="2 chunks that are not answered"):
        admit(core, one, 2)
    admit(core, two, 0)
    with pytest.raises(Overloaded, match="3 chunks wait"):
        admit(core, two, 1)
    core.finish(core.cut(), [np.array([1])] * 2)
    admit(core, one, 2), admit(core, two, 1)


def test_streams_of_a_client_are_counted_until_they_are_gone():
    core, _ = make(slots=4, streams_per_client=2)
    one, _ = core.open("a"), core.open("a")
    with pytest.raises(Overloaded, match="'a' has 2 streams"):
        core.open("a")
    core.open("b"), core.end(one, Gone(""), "closed")
    core.open("a")


def test_what_is_gone_is_remembered_for_a_while():
    core, _ = make(remembered=2)
    ids = []
    for _ in range(4):
        stream = core.open()
        ids.append(stream.id)
        core.end(stream, Gone("closed"), "closed")
    for id, kind in zip(ids, [UnknownStream, UnknownStream, Gone, Gone], strict=True):
        with pytest.raises(kind):
            core.find(id)
    assert len(core._gone) == 2


def test_every_error_has_a_status():
    kinds = ServingError.__subclasses__()
    assert sorted(kind.status for kind in kinds) == [400, 404, 409, 410, 429, 500, 503]


def test_errors_are_pickled_whole():
    others = [one for one in ServingError.__subclasses__() if one is not OutOfOrder]
    wholes = [kind("why", 2.0) for kind in others]
    for error in (*wholes, OutOfOrder("why", 3)):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error) and str(again) == "why"
        assert vars(again) == vars(error)
