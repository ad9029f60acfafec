"""Programs, the thread and the loop: all compiled before, and what goes wrong."""

import asyncio
import threading
import time

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import serving
from lstm_jax.serving import Limits
from tests.common import assert_close
from tests.serving import (
    MODEL,
    I,
    inputs,
    offline,
    run,
    slow,
    stream_whole,
)


def test_callers_that_are_cancelled_leave_the_loop_alive():
    async def main(server):
        slow(server, 0.02)
        streams = [await server.open() for _ in range(50)]
        tasks = [
            asyncio.create_task(server.push(stream, 0, inputs(n, 4)))
            for n, stream in enumerate(streams)
        ]
        await asyncio.sleep(0)
        for task in tasks[:20]:  # before their batch, or in it
            task.cancel()
        await asyncio.sleep(0.01)
        for task in tasks[20:]:  # and between it and their answer
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait(tasks)
        cancelled = sum(task.cancelled() for task in tasks)
        late = [await server.push(s, 0, inputs(n, 4)) for n, s in enumerate(streams)]
        assert server.healthy and server.ready
        return cancelled, late

    cancelled, late = run(main, slots=50, batch_sizes=(8,))
    assert cancelled >= 20
    for n, result in enumerate(late):  # each was applied, once
        assert_close(result.ys, offline(inputs(n, 4)))


def fail_once(server, name, destroy=False):
    """Lets one compiled program raise the next time."""
    programs = server._programs
    real = programs._compiled[name]

    def raising(*args):
        programs._compiled[name] = real
        if destroy:
            for leaf in jax.tree.leaves(args[0]):
                leaf.delete()
        raise RuntimeError("out of memory")

    programs._compiled[name] = raising


@pytest.mark.parametrize("name", [4, "commit"])
def test_a_step_that_raises_answers_its_own_and_loses_no_state(name):
    xs = inputs(12, 8), inputs(13, 8)

    async def main(server):
        a, b = await server.open(), await server.open()
        first = await server.push(a, 0, xs[0][:4])
        await server.push(b, 0, xs[1][:4])
        fail_once(server, (1, name))
        waiting = [server.push(a, 1, xs[0][4:]), server.push(a, 2, xs[0][:1])]
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, serving.StepFailed) for error in errors)
        assert "Chunk 1 was not run: the step raised RuntimeError" in str(errors[0])
        assert "before it" in str(errors[1]) and errors[0].status == 500
        assert server.healthy
        with pytest.raises(serving.OutOfOrder, match="expected 1"):
            await server.push(a, 2, xs[0][:1])
        second = await server.push(a, 1, xs[0][4:])
        other = await server.push(b, 1, xs[1][4:])
        return first.ys, second.ys, other.ys, server.metrics

    first, second, other, metrics = run(main, batch_sizes=(1,))
    assert_close(np.concatenate([first, second]), offline(xs[0]))
    assert_close(other, offline(xs[1])[4:])
    assert metrics.failed == 2


def test_states_that_are_lost_end_their_streams_and_not_the_server():
    xs = inputs(14, 4)

    async def main(server):
        a, b = await server.open(), await server.open()
        await server.push(b, 0, xs)
        fail_once(server, (1, "commit"), destroy=True)
        with pytest.raises(serving.StepFailed, match="states of all streams are lost"):
            await server.push(a, 0, xs)
        with pytest.raises(serving.Gone, match="state of the stream was lost"):
            await server.push(b, 1, xs)
        assert server.ready and server.metrics.lost == 2
        return await stream_whole(server, xs, (4,))

    assert_close(run(main, batch_sizes=(1,)), offline(xs))


def test_a_step_of_ones_own_that_raises_is_survived():
    """A callback raises on the host, in the middle of the program."""
    broken = [False]

    def check(x):
        if broken[0]:
            raise OSError("the disk is full")
        return x

    def step(params, state, x, reset):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        x = jax.pure_callback(check, shape, x)
        return MODEL.step(params, state, x, reset=reset)

    xs = inputs(15, 6)

    async def main(server):
        stream = await server.open()
        first = await server.push(stream, 0, xs[:3])
        broken[0] = True
        with pytest.raises(serving.StepFailed, match="the disk is full"):
            await server.push(stream, 1, xs[3:])
        broken[0] = False
        second = await server.push(stream, 1, xs[3:])
        return np.concatenate([first.ys, second.ys])

    options = {"state": MODEL.zero_state(), "inputs": jax.ShapeDtypeStruct((I,), "f4")}
    assert_close(run(main, model=step, **options), offline(xs))


def test_a_device_that_hangs_is_not_healthy_and_does_not_stop_the_end():
    release, now = threading.Event(), [0.0]

    async def main(server):
        server._programs.run = lambda *args: release.wait(60)
        stream = await server.open()
        task = asyncio.create_task(server.push(stream, 0, inputs(23, 1)))
        await asyncio.sleep(0.01)
        assert server.healthy and server.ready
        now[0] = 1.0
        assert not server.healthy and not server.ready
        start = time.perf_counter()
        assert await server.drain(0.2) == {}
        assert time.perf_counter() - start < 10
        with pytest.raises(serving.Unavailable):
            await task

    try:
        run(main, limits=Limits(stuck_s=0.1, linger_s=0.0), clock=lambda: now[0])
    finally:
        release.set()


def test_a_loop_that_ends_is_not_healthy_and_answers_whoever_waits():
    async def main(server):
        stream = await server.open()

        def broken(*args):
            raise AssertionError("a mistake of ours")

        server._core.finish = broken
        with pytest.raises(serving.Unavailable, match="has broken"):
            await server.push(stream, 0, inputs(24, 1))
        assert not server.healthy and not server.ready
        with pytest.raises(serving.Unavailable, match="a mistake of ours"):
            await server.open()

    run(main)


def test_the_event_loop_is_not_blocked_by_a_step():
    async def main(server):
        slow(server, 0.5)
        task, turns = asyncio.create_task(stream_whole(server, xs, (1, 1))), 0
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        return await task, turns

    xs = inputs(25, 2)
    ys, turns = run(main)
    assert turns > 20
    assert_close(ys, offline(xs))


def test_every_program_is_compiled_before_the_server_is_ready():
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    async def main(server):
        compiled.clear()
        rng, streams = np.random.default_rng(5), []
        for count in range(1, 6):
            streams.append(await server.open())
            for _ in range(4):
                sizes = rng.integers(1, 5, count)
                await asyncio.gather(
                    *(
                        server.push(s, server._core.find(s).number, inputs(0, int(n)))
                        for s, n in zip(streams, sizes, strict=True)
                    )
                )
        state = await server.state(streams[0])
        await server.restore(state)
        await server.close(streams[0])
        await server.drain()
        return list(compiled), server.metrics

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(17))
        assert compiled  # the listener hears
        during, metrics = run(main, slots=6, batch_sizes=(1, 2, 6), chunk_sizes=(1, 4))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert during == []
    # For each size of batches: two sizes of chunks and what writes; and in and out.
    assert metrics.compiled == 3 * (2 + 1) + 2
