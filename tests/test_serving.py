"""Serving in one process: each stream is what one call on the whole of it gives."""

import asyncio

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import serving
from lstm_jax.serving import Limits
from tests.common import assert_close, relative_error
from tests.serving import (
    MODEL,
    MODELS,
    PARAMS,
    H,
    I,
    inputs,
    offline,
    opened,
    random_stack,
    run,
    slow,
    stream_whole,
)


@pytest.mark.parametrize("kind", MODELS)
def test_chunks_of_any_sizes_are_the_stream_in_one_piece(kind):
    model = MODELS[kind]
    params = random_stack(model)
    xs = inputs(1, 12)
    options = {"model": model, "params": params, "chunk_sizes": (1, 4)}
    ys = run(stream_whole, xs, (1, 4, 3, 1, 2, 1), **options)
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    assert_close(ys.astype(np.float32), offline(xs, model, params), dtype)


PLACES = {
    "another device": lambda: jax.devices()[1],
    "two devices": lambda: jax.NamedSharding(
        jax.make_mesh((2,), ("rows",), devices=jax.devices()[:2]), jax.P()
    ),
}


@pytest.mark.parametrize("where", PLACES)
def test_states_are_where_the_parameters_are(where):
    params, xs = jax.device_put(PARAMS, PLACES[where]()), inputs(30, 6)

    async def main(server):
        stream = await server.open()
        first = await server.push(stream, 0, xs[:4])
        other = await server.restore(await server.state(stream))
        second = await server.push(other, 1, xs[4:])
        leaves = jax.tree.leaves(server._programs._table)
        return np.concatenate([first.ys, second.ys]), leaves[0].devices()

    ys, devices = run(main, params=params)
    assert_close(ys, offline(xs))
    assert devices == params[0].forward.kernel.devices()


def test_images_are_steps_too():
    model = lj.Stack((lj.ConvLSTMCell((4, 3, 2), 3, (3, 3)),))
    params = random_stack(model)
    xs = np.random.default_rng(31).standard_normal((5, 4, 3, 2)).astype(np.float32)
    ys = run(stream_whole, xs, (4, 1), model=model, params=params)
    assert ys.shape == (5, 4, 3, 3)
    assert_close(ys, offline(xs, model, params))


async def crowd(server, count, seed):
    """Streams that come, go, leave, are cancelled and come again, all at once."""
    rng = np.random.default_rng(seed)
    answered, left = [], []
    room = asyncio.Semaphore(len(server._core.slots))

    async def one(index):
        xs = inputs([seed, index], int(rng.integers(2, 12)), 1 + index % 7)
        sizes, leaves = [], rng.random() < 0.2
        while sum(sizes) < len(xs):
            sizes.append(int(min(rng.integers(1, 5), len(xs) - sum(sizes))))
        async with room:
            stream, ys, at = await opened(server), [], 0
            for number, size in enumerate(sizes):
                if leaves and number == len(sizes) - 1:
                    task = asyncio.create_task(server.push(stream, number, xs[at:]))
                    await asyncio.sleep(0)
                    server.drop(stream)  # while its chunk waits or runs
                    left.append((await asyncio.gather(task, return_exceptions=True))[0])
                    return
                chunk = xs[at : at + size]
                ys.append(await patient(server, stream, number, chunk, rng))
                at += size
            last = await server.close(stream)
            assert last.number == len(sizes) - 1
            answered.append((xs, np.concatenate(ys)))

    await asyncio.gather(*(one(index) for index in range(count)))
    return answered, left, server.metrics, server._core


async def patient(server, stream, number, chunk, rng):
    """A chunk's outputs, asked for again where whoever waited was cancelled."""
    if rng.random() < 0.3:
        task = asyncio.create_task(server.push(stream, number, chunk))
        await asyncio.sleep(rng.choice((0.0, 0.0, 0.002)))
        task.cancel()
        await asyncio.wait([task])
    return (await server.push(stream, number, chunk)).ys


def assert_offline(answered):
    longest = max(len(xs) for xs, _ in answered)
    batch = np.zeros((len(answered), longest, I), np.float32)
    lengths = np.array([len(xs) for xs, _ in answered], np.int32)
    for row, (xs, _) in zip(batch, answered, strict=True):
        row[: len(xs)] = xs
    _, expected = MODEL.apply(PARAMS, batch, lengths=lengths)
    for (xs, ys), right in zip(answered, np.asarray(expected), strict=True):
        assert relative_error(ys, right[: len(xs)]) < 1e-5


def test_a_thousand_streams_at_once_are_each_as_if_alone():
    answered, left, metrics, core = run(
        crowd, 1000, 0, slots=1000, batch_sizes=(16, 256), limits=Limits()
    )
    assert len(answered) + len(left) == 1000 and len(left) > 100
    assert_offline(answered)
    assert all(isinstance(error, serving.Gone) for error in left)
    assert metrics.streams == 0 and metrics.slots_free == 1000 and metrics.failed == 0
    assert metrics.closed == len(answered) and metrics.dropped == len(left)
    core.slots.check()


def test_slots_used_again_hold_nothing_of_before():
    answered, left, metrics, core = run(crowd, 300, 1, slots=7, batch_sizes=(1, 7))
    assert len(answered) + len(left) == 300
    assert_offline(answered)
    assert metrics.slots_free == 7 and metrics.opened == 300
    core.slots.check()


@pytest.mark.parametrize("kind", ["stack", "learned start"])
def test_a_reused_slot_starts_from_the_start_whatever_was_left_in_it(kind):
    model = MODELS[kind]
    params = random_stack(model)
    xs = inputs(3, 6)

    async def main(server):
        for spoiled in (100.0, np.nan, np.inf):
            stream = await server.open()
            await server.push(stream, 0, np.full((3, I), spoiled, np.float32))
            await server.close(stream)
        ys = await stream_whole(server, xs, (4, 1, 1))
        return ys

    one = {"slots": 1, "batch_sizes": (1,), "finite": False}
    ys = run(main, model=model, params=params, **one)
    assert_close(ys, offline(xs, model, params))


def test_a_start_touches_one_row_only():
    xs = [inputs(n, 8) for n in (5, 6)]

    async def main(server):
        b = await server.open()
        first = await server.push(b, 0, xs[1][:4])
        ys = await stream_whole(server, xs[0], (4, 4))
        second = await server.push(b, 1, xs[1][4:])
        return ys, np.concatenate([first.ys, second.ys])

    for ys, right in zip(run(main), xs, strict=True):
        assert_close(ys, offline(right))


def test_results_of_a_client_that_left_reach_no_one():
    """A's five chunks are on their way when it vanishes; B gets its slot."""
    xs = inputs(8, 4)

    async def main(server):
        slow(server, 0.02)
        a = await server.open()
        waiting = [
            asyncio.create_task(server.push(a, n, inputs([9, n], 4, 50.0)))
            for n in range(5)
        ]
        await asyncio.sleep(0.001)
        assert server.drop(a) and not server.drop(a)
        b = await opened(server)
        result = await server.push(b, 0, xs)
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        return result.ys, errors, server.metrics

    ys, errors, metrics = run(main, slots=1, batch_sizes=(1,))
    assert_close(ys, offline(xs))
    assert {type(error) for error in errors} <= {serving.Gone, serving.Result}
    assert metrics.discarded == sum(isinstance(e, serving.Gone) for e in errors) > 0


def test_numbers_order_the_chunks_of_a_stream():
    xs = inputs(10, 12)

    async def main(server):
        stream = await server.open()
        push = lambda n, chunk: server.push(stream, n, chunk)
        first = await push(0, xs[:4])
        again = await push(0, xs[:4])
        assert again.ys is first.ys
        for number, chunk in ((0, xs[4:8]), (2, xs[4:8]), (7, xs[:1])):
            with pytest.raises(serving.OutOfOrder, match="expected 1") as error:
                await push(number, chunk)
            assert error.value.expected == 1 and error.value.status == 409
        # The last one twice at once is run once, and all that wait run in order.
        waiting = [push(1, xs[4:8]), push(1, xs[4:8]), push(2, xs[8:])]
        second, same, third = await asyncio.gather(*waiting)
        assert second is same
        with pytest.raises(serving.OutOfOrder, match="sent before"):
            await push(1, xs[4:8])
        assert (await server.flush(stream)) is third
        return np.concatenate([r.ys for r in (first, second, third)]), server.metrics

    ys, metrics = run(main)
    assert_close(ys, offline(xs))
    assert metrics.repeated == 2 and metrics.accepted == 3 and metrics.refused == 4


def test_twenty_chunks_sent_at_once_are_applied_in_order_or_refused():
    xs = inputs(11, 20)

    async def main(server):
        stream, rng, ys = await server.open(), np.random.default_rng(0), {}

        async def one(number):
            refusals = 0
            while True:
                await asyncio.sleep(rng.random() / 500)
                try:
                    result = await server.push(stream, number, xs[number : number + 1])
                except serving.OutOfOrder as error:
                    assert error.expected < number
                    refusals += 1
                except serving.Overloaded:
                    refusals += 1
                else:
                    ys[number] = result.ys
                    return refusals

        refusals = await asyncio.gather(*map(one, range(20)))
        return np.concatenate([ys[n] for n in range(20)]), sum(refusals)

    ys, refusals = run(main)
    assert_close(ys, offline(xs))
    assert refusals > 0


def test_a_step_with_tokens_and_a_state_of_any_kind():
    """A stack between an embedding and a readout, as a stack and as a step."""
    rng = np.random.default_rng(3)
    table = jnp.asarray(rng.standard_normal((11, I)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((H, 7)), jnp.float32)
    tokens = rng.integers(0, 11, 9)
    expected = offline(np.asarray(table)[tokens]) @ np.asarray(kernel)

    def step(params, state, token, reset):
        lstm, count = state
        lstm, y = MODEL.step(params["lstm"], lstm, params["table"][token], reset=reset)
        logits = y @ params["kernel"]
        return (lstm, count + 1), jnp.concatenate(
            [logits, count[:, None].astype(logits.dtype)], -1
        )

    token = jax.ShapeDtypeStruct((), jnp.int32)
    ys = run(
        stream_whole,
        tokens,
        (4, 1, 3, 1),
        inputs=token,
        embedding=(lambda table, xs: table[xs], table),
        readout=(lambda kernel, ys: ys @ kernel, kernel),
    )
    assert_close(ys, expected)
    params = {"lstm": PARAMS, "table": table, "kernel": kernel}
    start = MODEL.zero_state(), jnp.int32(10)
    ys = run(
        stream_whole,
        tokens,
        (4, 1, 3, 1),
        model=step,
        params=params,
        state=start,
        inputs=token,
    )
    assert_close(ys[:, :7], expected)
    assert ys[:, 7].tolist() == list(range(10, 19))


def test_an_evicted_stream_is_told_and_never_begun_anew():
    now = [0.0]

    async def main(server):
        busy, idle = await server.open(), await server.open()
        ended, xs = asyncio.create_task(server.ended(idle)), inputs(16, 40)
        await server.push(idle, 0, xs[:1])
        ys = []
        for number in range(40):
            ys.append((await server.push(busy, number, xs[number : number + 1])).ys)
            now[0] += 0.05
        assert isinstance(await ended, serving.Gone)
        with pytest.raises(serving.Gone, match="evicted: no chunk for"):
            await server.push(idle, 1, xs[1:2])
        assert server.metrics.evicted == 1 and server.metrics.streams == 1
        return np.concatenate(ys), xs

    limits = Limits(idle_s=0.2, linger_s=0.0)
    ys, xs = run(main, limits=limits, clock=lambda: now[0])
    assert_close(ys, offline(xs))


def test_closing_answers_what_waits_and_takes_no_more():
    xs = inputs(17, 9)

    async def main(server):
        stream = await server.open()
        waiting = [
            asyncio.create_task(server.push(stream, n, xs[3 * n : 3 * n + 3]))
            for n in range(3)
        ]
        await asyncio.sleep(0)
        closing = asyncio.create_task(server.close(stream))
        await asyncio.sleep(0)
        with pytest.raises(serving.Gone, match="being closed"):
            await server.push(stream, 3, xs[:1])
        last = await closing
        results = await asyncio.gather(*waiting)
        assert last is results[2]
        for call in (server.close(stream), server.flush(stream), server.state(stream)):
            with pytest.raises(serving.Gone, match="was closed"):
                await call
        with pytest.raises(serving.UnknownStream):
            await server.push("nothing", 0, xs[:1])
        assert await server.flush(await server.open()) is None
        return np.concatenate([result.ys for result in results])

    assert_close(run(main), offline(xs))


def test_a_chunk_is_copied_when_it_is_sent():
    xs = inputs(27, 4)

    async def main(server):
        stream, buffer = await server.open(), xs.copy()
        task = asyncio.create_task(server.push(stream, 0, buffer))
        await asyncio.sleep(0)
        buffer[:] = 0
        return (await task).ys

    assert_close(run(main), offline(xs))
