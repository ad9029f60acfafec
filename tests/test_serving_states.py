"""Streams that go from one server to another, and servers that go down."""

import asyncio
import time

import numpy as np
import pytest

from lstm_jax import serving
from tests.common import assert_close
from tests.serving import (
    MODEL,
    MODELS,
    inputs,
    offline,
    random_stack,
    run,
    slow,
)


@pytest.mark.parametrize("through", ["arrays", "bytes"])
@pytest.mark.parametrize("kind", ["learned start", "bfloat16"])
def test_a_stream_goes_on_in_another_server(kind, through):
    model = MODELS[kind]
    params = random_stack(model)
    xs, options = inputs(18, 8), {"model": model, "params": params}

    async def before(server):
        stream = await server.open()
        first = server.push(stream, 0, xs[:4])
        task = asyncio.create_task(server.push(stream, 1, xs[4:5]))
        ys = [(await first).ys]
        state = await server.state(stream)  # after all that was sent
        ys.append((await task).ys)
        await server.push(stream, 2, inputs(0, 4))  # which changes nothing in it
        fresh = await server.open()
        return ys, state, await server.state(fresh)

    async def after(server, state, fresh):
        await server.open()
        stream = await server.restore(state)
        again = await server.push(stream, 1, xs[4:5])
        ys = (await server.push(stream, 2, xs[5:])).ys
        begun = await server.push(await server.restore(fresh), 0, xs[:4])
        return again.ys, ys, begun.ys

    ys, state, fresh = run(before, **options)
    assert state.number == 2 and fresh.number == 0 and not fresh.arrays
    if through == "bytes":
        read = lambda one: serving.StreamState.from_bytes(one.to_bytes())
        state, fresh = read(state), read(fresh)
    again, rest, begun = run(after, state, fresh, **options)
    dtype = "bfloat16" if kind == "bfloat16" else "float32"
    right = offline(xs, model, params)
    assert (again == ys[1]).all()
    whole = np.concatenate([*ys, rest]).astype(np.float32)
    assert_close(whole, right, dtype)
    assert_close(begun.astype(np.float32), right[:4], dtype)


def test_a_state_that_does_not_fit_is_refused():
    async def main(server):
        stream = await server.open()
        await server.push(stream, 0, inputs(19, 3))
        state = await server.state(stream)
        name = "[1].forward.c"
        wrong = {
            "fingerprint": state._replace(weights="0" * 32),
            "arrays": state._replace(arrays={"h": np.zeros(5, np.float32)}),
            r"\[5\] of float32": state._replace(
                arrays={**state.arrays, name: np.zeros(4, np.float32)}
            ),
            "float64": state._replace(arrays={**state.arrays, name: np.zeros(5)}),
            "got none": state._replace(arrays={}),
            "integer from 0, got -1": state._replace(number=-1),
            "integer from 0, got 1.5": state._replace(number=1.5),
        }
        for message, one in wrong.items():
            with pytest.raises(serving.BadRequest, match=message):
                await server.restore(one)
        with pytest.raises(TypeError, match="from_bytes"):
            await server.restore(state.to_bytes())
        assert server.metrics.streams == 1 and server.metrics.slots_free == 3
        return state.to_bytes()

    data = run(main)
    read = serving.StreamState.from_bytes
    rng = np.random.default_rng(4)
    for cut in (0, 7, 8, 60, len(data) - 1):
        with pytest.raises(serving.BadRequest):
            read(data[:cut])
    for bad in (b"\x80\x04", (1 << 63).to_bytes(8, "little") + data[8:]):
        with pytest.raises(serving.BadRequest):
            read(bad)
    for _ in range(500):  # Any byte may be wrong: refused, or a state all the same.
        mutated = bytearray(data)
        mutated[rng.integers(len(data))] = rng.integers(256)
        try:
            assert isinstance(read(mutated), serving.StreamState)
        except serving.BadRequest:
            pass


def test_weights_of_the_same_shape_do_not_take_over_a_stream():
    async def before(server):
        stream = await server.open()
        await server.push(stream, 0, inputs(20, 1))
        return await server.state(stream)

    async def after(server, state):
        with pytest.raises(serving.BadRequest, match="other weights"):
            await server.restore(state)

    run(after, run(before), params=random_stack(MODEL, seed=1))


def test_draining_answers_what_is_queued_and_hands_streams_out():
    xs = inputs(21, 8)

    async def before(server):
        slow(server, 0.03)
        stream, silent = await server.open(), await server.open()
        tasks = [
            asyncio.create_task(server.push(stream, n, xs[2 * n : 2 * n + 2]))
            for n in range(3)
        ]
        await asyncio.sleep(0.01)
        draining = asyncio.create_task(server.drain(5.0))
        await asyncio.sleep(0.01)
        assert not server.ready and server.healthy
        for refused in (server.open(), server.push(stream, 3, xs[6:])):
            with pytest.raises(serving.Unavailable, match="going down") as error:
                await refused
            assert error.value.retry_after > 0 and error.value.status == 503
        states = await draining
        assert set(states) == {stream, silent} and states[silent].number == 0
        with pytest.raises(serving.Unavailable):
            await server.push(stream, 3, xs[6:])
        return [result.ys for result in await asyncio.gather(*tasks)], states[stream]

    async def after(server, state):
        assert await server.restore(state, name="as before") == "as before"
        with pytest.raises(serving.BadRequest, match="open already"):
            await server.restore(state, name="as before")
        return (await server.push("as before", 3, xs[6:])).ys

    ys, state = run(before)
    assert_close(np.concatenate([*ys, run(after, state)]), offline(xs))


def test_draining_ends_in_time_and_stands_before_what_it_did_not_run():
    xs = inputs(22, 8)

    async def before(server):
        slow(server, 0.2)
        stream = await server.open()
        tasks = [
            asyncio.create_task(server.push(stream, n, xs[n : n + 1])) for n in range(8)
        ]
        await asyncio.sleep(0.01)
        start = time.perf_counter()
        states = await server.drain(2.0)
        assert time.perf_counter() - start < 4.0
        results = await asyncio.gather(*tasks, return_exceptions=True)
        ran = [r.ys for r in results if isinstance(r, serving.Result)]
        refused = results[len(ran) :]
        assert ran and all(isinstance(r, serving.Unavailable) for r in refused)
        assert refused and states[stream].number == len(ran)
        return ran, states[stream]

    async def after(server, state):
        stream, ys = await server.restore(state), []
        for n in range(state.number, 8):
            ys.append((await server.push(stream, n, xs[n : n + 1])).ys)
        return ys

    ran, state = run(before)
    assert_close(np.concatenate([*ran, *run(after, state)]), offline(xs))
