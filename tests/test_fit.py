"""A whole run of training: steps and epochs, evaluation, and what a run is told."""

import os
import signal
import subprocess
import sys
import threading

import flax.core
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
    some = np.ones((2, 3), np.float32)
    for given, where in (
        ([some[:0]], "0 of epoch 0"),
        ([some, some[:0]], "1 of epoch"),
    ):
        with pytest.raises(ValueError, match=f"batches: .* got none in batch {where}"):
            runs.run(data=given)
        with pytest.raises(ValueError, match=f"valid: .* got none in batch {where}"):
            runs.run(valid=given)
        with pytest.raises(ValueError, match=f"batches: .* got none in batch {where}"):
            training.evaluate(runs.loss_fn, runs.state().params, given)
    assert runs.run(data=iter(runs.batches()(0)), steps=5).reason == "done"


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
    signals.forget()  # or this process would end with that status
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
    with pytest.raises(TypeError, match="clip: fit takes no such argument"):
        runs.run(clip=1.0)
    with pytest.raises(TypeError, match="batches: expected batches, or a function"):
        runs.run(data=3)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"valid": iter(runs.VALID)}, ValueError, "valid: .* got an iterator"),
        ({"derived": {"loss": len}}, ValueError, "derived: .* got 'loss'"),
        (
            {"derived": {"half": lambda row: row["los"] / 2}},
            ValueError,
            r"derived\['half'\]: .* got 'los'",
        ),
        (
            {"epochs": 3, "data": lambda epoch: runs.batches_of(2 - 2 * epoch)},
            ValueError,
            "batches: expected batches in epoch 1, got none",
        ),
    ],
)
def test_what_would_be_wrong_later_is_refused(options, error, words):
    with pytest.raises(error, match=words):
        runs.run(**options)


@pytest.mark.parametrize(
    "name", ["loss[0]", "loss[aux]", "step", "seconds", "grad_norm", "tokens"]
)
def test_names_that_a_row_has_are_no_metric(name):
    def loss_fn(params, carry, batch, key):
        loss, (carry, _) = runs.loss_fn(params, carry, batch, key)
        return loss, (carry, {name: jnp.float32(100)})

    with pytest.raises(ValueError, match="expected names that are no other figure's"):
        runs.run(loss_fn=loss_fn)


def test_two_metrics_of_one_name_are_refused():
    def loss_fn(params, carry, batch, key):
        loss, (carry, _) = runs.loss_fn(params, carry, batch, key)
        return loss, (carry, {"a": {"b": jnp.zeros(())}, "a.b": jnp.zeros(())})

    with pytest.raises(ValueError, match=r"got 'a\.b', which is one already"):
        runs.run(loss_fn=loss_fn)


def test_a_carry_that_becomes_another_is_refused_before_the_first_step():
    def loss_fn(params, carry, batch, key):
        loss, (carry, metrics) = runs.loss_fn(params, carry, batch, key)
        return loss, (carry.astype(jnp.bfloat16), metrics)

    with pytest.raises(ValueError, match="carry: expected .* float32 .* got bfloat16"):
        runs.run(of=runs.state(jnp.zeros(4)), continues=True, loss_fn=loss_fn)


def test_variables_with_other_collections_are_refused():
    variables = {"params": {"w": jnp.ones(3)}, "batch_stats": {"mean": jnp.ones(3)}}
    state = training.create(variables, runs.tx(), ())
    for given in (variables, flax.core.freeze(variables), state):
        with pytest.raises(ValueError, match="got the collections batch_stats"):
            runs.run(of=given)


def test_batches_of_keys_and_tensors(tmp_path):
    torch = pytest.importorskip("torch")

    def loss_fn(params, carry, batch, key):
        noise = jax.random.normal(batch["key"], (3,))
        xs = batch["xs"].astype(jnp.float32) + noise[None]
        return runs.loss_fn(params, carry, xs, None)

    xs = torch.ones(4, 3, dtype=torch.bfloat16)
    batches = [{"key": jax.random.key(n), "xs": n * xs} for n in range(3)]
    result = runs.run(tmp_path, batches, steps=5, loss_fn=loss_fn)
    assert result.reason == "done"


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(
        NotADirectoryError, match="out: expected a folder, got the file"
    ):
        runs.run(tmp_path / "out")
