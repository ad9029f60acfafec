"""The figures of a run: means, what is monitored, evaluation, predictions, the log."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstm_jax as lj
from lstm_jax import data, training
from tests import runs


def test_rows_are_means_over_the_steps_that_were_taken():
    def poisoned(epoch):
        for n, batch in enumerate(runs.batches(8)(epoch)):
            yield batch * np.nan if n == 1 else batch

    result = runs.run(data=poisoned, steps=4)
    assert math.isfinite(result.history[0]["loss"])
    assert result.history[0]["tokens"] == 12 and result.history[0]["skipped"] == 1


def test_early_stopping_counts_evaluations_without_a_gain():
    result = runs.run_scripted([1.0, 0.9, 0.95, 0.96, 0.97, 0.1], patience=3)
    assert result.reason == "stopped early" and result.exit_status == 0
    assert int(result.state.step) == 5 and result.best_step == 2
    assert float(result.best["n"]) == 2 and result.best_value == pytest.approx(0.9)


@pytest.mark.parametrize("every", [1, 50])
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_a_plateau_counts_evaluations_of_either_sign(value, every):
    plateau = training.Plateau(factor=0.5, patience=2, min_scale=0.3)

    def train_fn(params, carry, batch, key):
        return -jnp.sum(params), (carry, {})

    def valid_fn(params, carry, batch, key):
        return training.Weighted(jnp.full((), value), 1), (carry, {})

    state = training.create(jnp.zeros(()), optax.sgd(1.0), ())
    result = training.fit(
        *(train_fn, optax.sgd(1.0), state, [np.zeros(1)]),
        steps=6 * every,
        valid=[np.zeros(1)],
        valid_fn=valid_fn,
        evaluate_every=every,
        plateau=plateau,
        show=False,
    )
    scales = [row["scale"] for row in result.history if "scale" in row]
    assert scales == [1.0, 1.0, 0.5, 0.5, 0.3, 0.3]
    moved = every * (3 + 2 * 0.5 + 0.3)
    assert float(result.state.params) == pytest.approx(moved, rel=1e-5)


def test_nan_is_never_best_and_ties_stay_with_the_first():
    nan = math.nan
    result = runs.run_scripted([nan, 1.0, 0.5, nan, 0.5, 0.6])
    assert (result.best_step, result.best_value) == (3, 0.5)
    assert runs.run_scripted([nan] * 5, patience=3).reason == "stopped early"
    assert runs.run_scripted([nan] * 2).best is None


def test_small_gains_add_up_to_one_measured_from_the_last_gain():
    values = [1 - 0.05 * n for n in range(10)]
    result = runs.run_scripted(values, min_delta=0.1, patience=3)
    assert result.reason == "done" and result.best_step == 10
    slower = [1 - 0.02 * n for n in range(10)]
    result = runs.run_scripted(slower, min_delta=0.1, patience=3)
    assert result.reason == "stopped early" and int(result.state.step) == 4
    assert result.best_step == 4  # the best of all, though no gain


def test_the_direction_is_said_and_the_name_known():
    def valid_fn(params, carry, batch, key):
        value = training.Weighted(params["w"][0], 1)
        return value, (carry, {"f1": value})

    options = {"valid": runs.VALID, "valid_fn": valid_fn, "monitor": "valid_f1"}
    with pytest.raises(ValueError, match="mode: expected 'min' or 'max'"):
        runs.run(**options)
    best = {
        mode: runs.run(evaluate_every=2, mode=mode, **options)
        for mode in ("min", "max")
    }
    values = [row["valid_f1"] for row in best["min"].history if "valid_f1" in row]
    assert best["min"].best_value == min(values) != max(values)
    assert best["max"].best_value == max(values)
    with pytest.raises(
        ValueError, match="monitor: expected one of valid_f1, valid_loss"
    ):
        runs.run(
            valid=runs.VALID, valid_fn=valid_fn, monitor="valid_accuracy", mode="max"
        )
    with pytest.raises(ValueError, match="patience: expected valid= data"):
        runs.run(patience=3)


def test_figures_are_exact_beyond_what_float32_and_int32_count():
    def loss_fn(params, carry, batch, key):
        return training.Weighted(params * 1e9, jnp.int32(2**30)), (carry, {})

    state = training.create(jnp.ones(()), optax.sgd(0.0), ())
    result = training.fit(
        loss_fn, optax.sgd(0.0), state, [np.zeros(1)] * 20, epochs=1, show=False
    )
    assert result.history[-1]["tokens"] == 20 * 2**30
    figures = training.evaluate(loss_fn, jnp.ones(()), [np.zeros(1)] * 20)
    assert figures["loss"] == pytest.approx(1e9 / 2**30, rel=1e-12)


def test_an_evaluation_does_not_depend_on_its_batches():
    xs = np.random.default_rng(3).normal(size=(64, 3)).astype(np.float32)
    params = {"w": jnp.array([0.3, -1.0, 0.5])}
    got = {
        size: training.evaluate(
            runs.loss_fn, params, [xs[n : n + size] for n in range(0, 64, size)]
        )["loss"]
        for size in (1, 3, 7, 64)
    }
    expected = float(
        (((xs.astype(float)) @ np.asarray(params["w"], float) - 1) ** 2).mean()
    )
    for size, loss in got.items():
        assert loss == pytest.approx(expected, rel=1e-6), size


@pytest.mark.parametrize("window", [1, 10, 64, 210])
def test_an_evaluation_of_a_stream_does_not_depend_on_its_windows(window):
    """210 targets are no multiple of 64: its tail counts too."""
    tokens = np.random.default_rng(4).integers(0, 5, 211)
    model = lj.LSTM(5, 7)
    params = model.init(jax.random.key(0))

    def loss_fn(params, carry, batch, key):
        carry, ys = model.apply(params, jax.nn.one_hot(batch[0], 5), carry)
        loss = training.cross_entropy(ys[..., :5], batch[1], weighted=True)
        return loss, (carry, {})

    stream = data.stream_batches(tokens, 1, window, tail=True)
    zeros = model.zero_state((1,))
    first, second = (
        training.evaluate(loss_fn, params, stream, carry=zeros)["loss"] for _ in "ab"
    )
    ys = model.apply(params, jax.nn.one_hot(tokens[None, :-1], 5))[1][0, :, :5]
    logits = np.asarray(ys, np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -logs[np.arange(210), tokens[1:]].mean()
    assert first == second == pytest.approx(expected, rel=1e-6)


def test_twenty_million_tokens_are_added_up_exactly():
    """In bfloat16, whose sums stand still from 256 on; float32's do from 2^24 on."""

    def loss_fn(params, carry, batch, key):
        losses = (batch * params).astype(jnp.bfloat16)
        return training.squared_error(losses, 0 * losses, weighted=True), (carry, {})

    batches = [np.full((1, 2_000_000, 1), n % 2, np.float32) for n in range(11)]
    figures = training.evaluate(loss_fn, jnp.ones(()), batches)
    assert figures["loss"] == pytest.approx(5 / 11, rel=1e-7)


def test_means_of_several_batches_are_refused():
    def mean(params, carry, batch, key):
        return jnp.mean(batch @ params["w"]), (carry, {})

    params = runs.state().params
    assert training.evaluate(mean, params, runs.VALID[:1])
    with pytest.raises(ValueError, match="loss: expected a Weighted .* weighted=True"):
        training.evaluate(mean, params, runs.VALID)


def test_predictions_come_in_the_order_of_the_input():
    examples = [np.arange(n, dtype=np.float32) for n in (3, 1, 5, 2, 4)]
    batches = []
    for places in ([1, 3, -1], [0, 4, 2]):
        rows = [examples[n] if n >= 0 else np.zeros(0, np.float32) for n in places]
        xs, lengths = data.pad_sequences(rows)
        batches.append({"xs": xs, "lengths": lengths, "places": np.array(places)})
    outputs = training.predict(
        lambda params, batch: {"double": 2 * batch["xs"], "sum": batch["xs"].sum(1)},
        {},
        batches,
        lengths=lambda batch: batch["lengths"],
        index=lambda batch: batch["places"],
    )
    for output, example in zip(outputs, examples, strict=True):
        np.testing.assert_array_equal(output["double"], 2 * example)
        assert output["sum"] == example.sum()
    with pytest.raises(ValueError, match="index: expected each place once, got 1"):
        training.predict(
            lambda params, batch: batch["xs"],
            {},
            batches,
            index=lambda batch: [1, 1, 1],
        )


def test_metrics_are_scalars_or_weighted():
    def loss_fn(params, carry, batch, key):
        return jnp.sum(params["w"]), (carry, {"ys": batch})

    with pytest.raises(
        ValueError, match="metrics: expected scalars .* got ys of shape"
    ):
        runs.run(loss_fn=loss_fn)


def test_the_log_shows_rows_and_the_bar_is_no_part_of_a_file(capsys, tmp_path):
    runs.run(tmp_path, show=True, steps=8, valid=runs.VALID, flops_per_token=1e3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 4/8: loss ") and "tokens/s" in lines[0]
    assert "% of the peak" in lines[0]
    assert "valid_loss" in lines[1] and lines[-1] == "done after 8 steps"
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert text[0].startswith("step,epoch,tokens,loss,error,skipped,valid_loss")
    assert len(text) == 4  # the end of the epoch at step 5 too
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_derived_figures_may_be_monitored():
    result = runs.run(
        valid=runs.VALID,
        evaluate_every=5,
        derived={"worst": lambda row: -row["valid_loss"]},
        monitor="worst",
        mode="max",
    )
    rows = [row for row in result.history if "valid_loss" in row]
    assert result.best_value == max(row["worst"] for row in rows)
    assert all("worst" not in row for row in result.history if "valid_loss" not in row)


def test_a_carry_of_numbers_counters_and_keys_is_evaluated():
    def loss_fn(params, carry, batch, key):
        total = jnp.sum(batch) + carry["t"] + carry["n"].astype(jnp.float32)
        carry = {"t": carry["t"] + 1, "n": carry["n"] + 1, "key": carry["key"]}
        return training.Weighted(total, batch.size), (carry, {})

    carry = {"t": jnp.float32(9), "n": jnp.int32(2), "key": jax.random.key(0)}
    batches = [np.zeros((2, 1)), np.zeros((2, 1))]
    figures = training.evaluate(loss_fn, {}, batches, carry=carry, continues=True)
    assert figures["loss"] == (2 + 4) / 4
    rows = training.reset_rows(
        {"key": jax.random.split(carry["key"], 3)}, carry["key"], 1
    )
    assert rows["key"].shape == (3,)
    counters = {"n": jnp.zeros(3, jnp.int32)}
    with pytest.raises(ValueError, match=r"start: .* carry\['n'\] .* has 3 rows"):
        training.evaluate(
            lambda p, c, b, k: (0.0, (c, {})), {}, batches, carry=counters
        )


@pytest.mark.parametrize("length", [-3, 6])
def test_lengths_of_predictions_are_lengths(length):
    with pytest.raises(ValueError, match=f"lengths: expected from 0 to 5, .* {length}"):
        training.predict(
            lambda p, b: b, {}, [np.ones((1, 5))], lengths=lambda b: np.array([length])
        )
