"""A whole run: its loop, its figures, how it stops, what it hands back."""

import math
import os
import signal
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lstm_jax import data, training
from tests import runs


def leaves_equal(one, other):
    one, other = (jax.tree.leaves(tree) for tree in (one, other))
    for a, b in zip(one, other, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_a_run_is_a_loop_of_steps():
    result = runs.run(steps=23)
    step = training.make_train_step(runs.loss_fn, runs.tx())
    state, losses = runs.state(), []
    stream = (batch for epoch in range(9) for batch in runs.batches()(epoch))
    for _ in range(23):
        state, metrics = step(state, next(stream))
        losses.append(metrics["error"])
    leaves_equal(result.state.params, state.params)
    assert result.reason == "done" and result.exit_status == 0
    assert [row["step"] for row in result.history] == [4, 8, 12, 16, 20, 23]
    last = losses[20:]
    mean = sum(float(w.total) for w in last) / sum(int(w.weight) for w in last)
    assert result.history[-1]["loss"] == pytest.approx(mean, rel=1e-12)
    assert result.history[-1]["tokens"] == 23 * 4
    assert [int(part) for part in result.state.cursor] == [4, 3]


def test_epochs_are_passes_and_the_state_that_came_lives_on():
    state = runs.state()
    result = runs.run(of=state, epochs=3, valid=runs.VALID)
    assert int(result.state.step) == 15
    evaluated = [row["step"] for row in result.history if "valid_loss" in row]
    assert evaluated == [5, 10, 15]
    np.testing.assert_array_equal(state.params["w"], [1.0, -2.0, 0.5])


def test_two_seeds_differ_and_one_repeats():
    one, same = runs.run(), runs.run()
    other = runs.run(of=runs.state(key=jax.random.key(2)))
    leaves_equal(one.state, same.state)
    assert (one.state.params["w"] != other.state.params["w"]).all()


def test_evaluation_touches_nothing_of_training():
    carry = jnp.zeros((4, 2))
    options = {"continues": True, "steps": 12}
    bare = runs.run(of=runs.state(carry), **options)
    evaluated = runs.run(
        of=runs.state(carry), valid=runs.VALID, evaluate_every=1, **options
    )
    leaves_equal(bare.state, evaluated.state)


def test_the_carry_starts_anew_each_epoch_and_not_over_unrelated_batches():
    carry = jnp.zeros((4, 2))
    result = runs.run(of=runs.state(carry), continues=True, steps=12)
    assert np.all(np.asarray(result.state.carry) == 2)  # 12 = 2 epochs of 5, and 2
    result = runs.run(of=runs.state(carry), continues=False, steps=12)
    assert np.all(np.asarray(result.state.carry) == 1)
    with pytest.raises(ValueError, match=r"carry: expected \(\).*continues=True"):
        runs.run(of=runs.state(carry))


def test_a_stream_says_that_its_rows_go_on():
    stream = data.stream_batches(np.arange(100, dtype=np.int32), 2, 7)
    assert [len(list(stream)), len(list(stream)), len(stream)] == [7, 7, 7]

    def loss_fn(params, carry, batch, key):
        return params * jnp.mean(batch[0].astype(jnp.float32)), (carry + 1.0, {})

    state = training.create(jnp.ones(()), optax.sgd(0.0), jnp.zeros((2, 1)))
    result = training.fit(loss_fn, optax.sgd(0.0), state, stream, steps=10, show=False)
    assert result.state.carry[0, 0] == 3


def test_a_learned_start_is_not_left_out():
    state = training.create(
        {"initial_h": jnp.ones(2), "w": jnp.ones(3)}, runs.tx(), jnp.zeros((4, 2))
    )
    with pytest.raises(ValueError, match="start: expected lambda params, rows"):
        runs.run(of=state, continues=True)


def test_fewer_batches_than_asked_are_an_error():
    with pytest.raises(ValueError, match="ended after 5"):
        runs.run(data=iter(runs.batches()(0)))
    with pytest.raises(ValueError, match="batches: expected some, got none"):
        runs.run(data=[])
    assert runs.run(data=iter(runs.batches()(0)), steps=5).reason == "done"


# What is monitored.


def test_nan_batches_from_some_step_on_end_the_run(tmp_path):
    def poisoned(epoch):
        for n, batch in enumerate(runs.batches(50)(epoch)):
            yield batch if n < 9 else batch * np.nan

    good = runs.run(data=runs.batches(50), steps=9)
    with pytest.raises(
        training.Diverged, match=r"step 13: the loss .* 4 last"
    ) as error:
        runs.run(tmp_path, poisoned, steps=40, max_skipped=4, save_every=2)
    result = error.value.result
    assert result.reason == "diverged" and result.exit_status == 1
    leaves_equal(result.state.params, good.state.params)
    leaves_equal(result.state.opt_state, good.state.opt_state)
    assert training.Checkpoints(tmp_path / "checkpoints").steps()[-1] == 8
    assert isinstance(error.value, FloatingPointError)


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


def test_the_average_is_evaluated_and_training_goes_on_from_the_raw_weights():
    options = {"steps": 12, "valid": runs.VALID, "evaluate_every": 3}
    result = runs.run(of=runs.state(ema=True), ema_decay=0.9, **options)
    bare = runs.run(**options)
    leaves_equal(result.state.params, bare.state.params)
    assert result.weights == "ema" and bare.weights == "params"
    figures = training.evaluate(runs.loss_fn, result.state.ema, runs.VALID)
    assert result.history[-1]["ema_valid_loss"] == figures["loss"]
    assert "valid_loss" not in result.history[-1]
    best = training.evaluate(runs.loss_fn, result.best, runs.VALID)["loss"]
    assert best == result.best_value


# What a figure is.


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


# Models of Flax.


def test_an_nnx_module_is_trained_in_place():
    from flax import nnx

    import lstm_jax as lj

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.lstm = lj.nnx.LSTM(3, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, xs):
            return self.head(self.dropout(self.lstm(xs)[1]))

    seen = []

    def loss_fn(model, carry, batch, key):
        ys = model(batch)
        seen.append(model.dropout.deterministic)
        return training.squared_error(ys, 0 * ys + 1, weighted=True), (carry, {})

    xs = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    model = Model(nnx.Rngs(0))
    before = training.evaluate(loss_fn, model, [xs])["loss"]
    assert seen == [True]

    def train(key):
        model = Model(nnx.Rngs(0))
        result = training.fit(
            *(loss_fn, optax.sgd(0.3), model, [xs]),
            steps=40,
            key=jax.random.key(key),
            valid=[xs],
            show=False,
        )
        return model, result

    model, result = train(0)
    assert training.evaluate(loss_fn, model, [xs])["loss"] < 0.5 * before
    assert (
        result.history[-1]["valid_loss"]
        == training.evaluate(loss_fn, model, [xs])["loss"]
    )
    leaves_equal(train(0)[1].state.params, result.state.params)
    other = train(1)[1].state.params  # dropout draws from the key
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(other), jax.tree.leaves(result.state.params), strict=True
        )
    )


def test_linen_variables_are_trained():
    import lstm_jax as lj

    model = lj.linen.LSTM(3, 4)
    xs = jnp.ones((2, 5, 3))
    variables = model.init(jax.random.key(0), xs)

    def loss_fn(variables, carry, batch, key):
        ys = model.apply(variables, batch)[1]
        return training.squared_error(ys, 0 * ys + 0.5, weighted=True), (carry, {})

    result = training.fit(
        loss_fn, optax.sgd(1.0), variables, [xs], steps=30, log_every=10, show=False
    )
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    with pytest.raises(ValueError, match="got the collections batch_stats"):
        training.evaluate(loss_fn, {"params": {}, "batch_stats": {}}, [xs])


# Signals, hooks and errors.


def test_a_run_off_the_main_thread_and_handlers_that_come_back():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    results = []
    thread = threading.Thread(target=lambda: results.append(runs.run()))
    thread.start()
    thread.join()
    assert results[0].reason == "done"

    def fail(state, row):
        raise RuntimeError("hook")

    with pytest.raises(RuntimeError, match="hook"):
        runs.run(hooks=[fail])
    assert {n: signal.getsignal(n) for n in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_hands_back_last_and_best(number, monkeypatch):
    from lstm_jax.training.runs import signals

    def interrupt(state, row):
        if row["step"] == 8:
            os.kill(os.getpid(), number)

    result = runs.run(
        valid=runs.VALID, evaluate_every=2, steps=1000, log_every=4, hooks=[interrupt]
    )
    signals.end_with(None)  # or this process would end with that status
    assert result.reason == "interrupted" and result.exit_status == 128 + number
    assert int(result.state.step) in (8, 9)
    figures = training.evaluate(runs.loss_fn, result.best, runs.VALID)
    assert (
        figures["loss"]
        == result.best_value
        == min(row["valid_loss"] for row in result.history if "valid_loss" in row)
    )


PROGRAM = """
import os, signal, sys
from tests import runs
def interrupt(state, row):
    os.kill(os.getpid(), int(sys.argv[1]))
runs.run(hooks=[interrupt], steps=10**6)
print("and code after it", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_was_interrupted_does_not_report_success(number):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "and code after it\n", done.stderr
    assert done.returncode == 128 + number


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


def test_bad_options_are_refused_before_the_first_step():
    for options, words in (
        ({"steps": 5, "epochs": 2}, "steps, epochs: expected one of them"),
        ({"log_every": 0}, "log_every: expected at least 1"),
        ({"evaluate_every": 5}, "evaluate_every: expected valid= data"),
        ({"resume": "yes"}, "resume: expected one of"),
        ({"carry": jnp.ones(3)}, "expected none beside a TrainState"),
        ({"max_skipped": 0}, "max_skipped: expected at least 1"),
    ):
        calls = {"steps": 23} | options
        with pytest.raises(ValueError, match=words):
            training.fit(
                runs.loss_fn,
                runs.tx(),
                runs.state(),
                runs.batches(),
                show=False,
                **calls,
            )
    with pytest.raises(TypeError, match="unknown argument: clip"):
        runs.run(clip=1.0)
    with pytest.raises(TypeError, match="batches: expected batches, or a function"):
        runs.run(data=3)
