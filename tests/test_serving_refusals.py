"""What a server refuses: chunks, numbers, options; and what it counts."""

import asyncio

import jax
import jax.monitoring
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import serving
from lstm_jax.serving import Limits, Server
from tests.common import assert_close
from tests.serving import (
    MODEL,
    PARAMS,
    H,
    I,
    inputs,
    offline,
    run,
)

REFUSED = {
    "shape of a step": (np.ones(I, np.float32), "expected shape .T, 3."),
    "wide": (np.ones((2, I + 1), np.float32), "expected shape .T, 3., .*2, 4"),
    "no steps": (np.ones((0, I), np.float32), "1 to 4 steps in a chunk, got 0"),
    "long": (np.ones((5, I), np.float32), "1 to 4 steps in a chunk, got 5"),
    "NaN": (np.full((2, I), np.nan), "NaN or infinity at step 0"),
    "too large": (np.full((2, I), 1e300), "NaN or infinity at step 0"),
    "text": ([["a", "b", "c"]], "expected an array"),
    "ragged": ([[1, 2, 3], [1, 2]], "expected an array"),
    "nothing": (None, "expected an array"),
    "complex": (np.ones((1, I), complex), "numbers that float32 holds"),
    "bools": (np.ones((1, I), bool), "numbers that float32 holds"),
    "one byte more": (bytes(4 * I + 1), r"a multiple of 4·3 bytes, got 13"),
    "one byte less": (bytes(8 * I - 1), r"a multiple of 4·3 bytes, got 23"),
    "no bytes": (b"", "1 to 4 steps in a chunk, got 0"),
}


def test_what_is_no_chunk_is_refused_and_changes_nothing():
    xs = inputs(26, 4)

    async def main(server):
        stream, ys = await server.open(), []
        for number, (bad, message) in enumerate(REFUSED.values()):
            with pytest.raises(serving.BadRequest, match=message):
                await server.push(stream, number // 4, bad)
            if number % 4 == 3:
                n = number // 4
                ys.append((await server.push(stream, n, xs[n : n + 1].tobytes())).ys)
        for number in (-1, 1.0, "3", True, None):
            with pytest.raises(serving.BadRequest, match="number: expected"):
                await server.push(stream, number, xs[:1])
        ys.append((await server.push(stream, 3, xs[3:].tolist())).ys)
        return np.concatenate(ys)

    assert_close(run(main), offline(xs))


def test_tokens_are_integers_that_fit():
    from lstm_jax.serving.inputs import Inputs

    tokens = Inputs(jax.ShapeDtypeStruct((), np.int32), 4)
    assert tokens.read([1, 2]).dtype == np.int32
    assert tokens.read(np.array([258], "<i4").tobytes()).tolist() == [258]
    for bad, message in (
        ([1.0], "numbers that int32 holds"),
        ([2**40], "integers that fit in int32"),
        ([10**30], "expected an array"),
        (b"123", "multiple of 4·1 bytes"),
    ):
        with pytest.raises(serving.BadRequest, match=message):
            tokens.read(bad)


STEP = {"state": np.zeros(2, np.float32), "inputs": jax.ShapeDtypeStruct((2,), "f4")}


@pytest.mark.parametrize(
    "model, options, kind, message",
    [
        (lj.LSTM(I, H, bidirectional=True), {}, ValueError, "bidirectional=True"),
        (MODEL, {"slots": 0}, ValueError, "slots"),
        (MODEL, {"slots": 2, "batch_sizes": (4,)}, ValueError, "at most slots = 2"),
        (MODEL, {"batch_sizes": 4}, TypeError, "batch_sizes"),
        (MODEL, {"chunk_sizes": ()}, TypeError, "chunk_sizes"),
        (MODEL, {"chunk_sizes": (0,)}, ValueError, "chunk_sizes"),
        (MODEL, {"state": ()}, ValueError, "state: expected None"),
        (MODEL, {"embedding": (abs, ())}, ValueError, "inputs: expected the jax.Sh"),
        (MODEL, {"readout": abs}, TypeError, "readout: expected a pair"),
        (MODEL, {"inputs": (3,)}, TypeError, "inputs: expected a jax.ShapeDtypeSt"),
        ("LSTM", {}, TypeError, "model: expected a function"),
        (lambda p, s, x, r: (s, x), {}, ValueError, "expected both with a step"),
        (lambda p, s, x, r: s, STEP, TypeError, "returns .state, y."),
        (lambda p, s, x, r: (s[:, :1], x), STEP, ValueError, "a state like the one"),
        (lambda p, s, x, r: (s, x.sum()), STEP, ValueError, "one array"),
    ],
)
def test_a_server_that_can_not_be_is_refused_when_it_is_made(
    model, options, kind, message
):
    params = None
    if hasattr(model, "cells"):
        params = model.init(jax.random.key(0))
    with pytest.raises(kind, match=message):
        Server(model, params, **options)


@pytest.mark.parametrize(
    "options", [{"idle_s": 0}, {"queue": 0}, {"linger_s": -1.0}, {"stuck_s": 0.0}]
)
def test_limits_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Limits(**options)


def test_a_server_that_was_not_started_says_so():
    async def main():
        server = Server(MODEL, PARAMS, slots=1, chunk_sizes=(1,))
        assert not server.ready and server.healthy
        with pytest.raises(serving.Unavailable, match="not ready"):
            await server.open()
        await server.start()
        with pytest.raises(RuntimeError, match="started before"):
            await server.start()
        await server.stop()
        with pytest.raises(serving.Unavailable, match="not ready, or has stopped"):
            await server.open()
        await server.stop()

    asyncio.run(main())


def test_metrics_as_prometheus_reads_them():
    metrics = serving.Metrics(streams=3, busy_s=1.5)
    for seconds in (0.0001, 0.003, 0.003, 100.0):
        metrics.observe(seconds)
    lines = metrics.prometheus().splitlines()
    assert "lstm_jax_streams 3" in lines and "lstm_jax_busy_seconds_total 1.5" in lines
    assert 'lstm_jax_latency_seconds_bucket{le="0.0005"} 1' in lines
    assert 'lstm_jax_latency_seconds_bucket{le="0.004"} 3' in lines
    assert 'lstm_jax_latency_seconds_bucket{le="+Inf"} 4' in lines
    assert lines[-1] == "lstm_jax_latency_seconds_count 4"
    assert metrics.quantile(0.5) == 0.004 and metrics.quantile(1.0) == float("inf")
    assert serving.Metrics().quantile(0.5) == 0.0
