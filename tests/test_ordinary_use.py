"""Around an LSTM: rollouts, ragged batches, both directions, ensembles."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from tests.common import assert_close, normal, random_like

B, T = 3, 12
XS = normal(1, (B, T, 3))


def build(model):
    return random_like(2, model.init(jax.random.key(0)))


@pytest.mark.parametrize("learned", [False, True], ids=["zeros", "learned"])
def test_a_rollout_by_steps_is_the_sequence_with_resets(learned):
    """The ratio of policies in the first epoch is 1, whatever episodes start from."""
    model = lj.LSTM(3, 5, num_layers=2, learn_initial_state=learned)
    params = build(model)
    first = random_like(3, model.zero_state((B,)))
    done = np.random.default_rng(0).random((B, T)) < 0.3
    starts = np.zeros_like(done)
    starts[:, 1:] = done[:, :-1]
    state, outputs = first, []
    for t in range(T):
        state, y = model.step(params, state, XS[:, t], reset=starts[:, t])
        outputs.append(y)
    assert_close(
        (state, jnp.stack(outputs, 1)), model.apply(params, XS, first, reset=starts)
    )
    # A reset at the end of an episode, one step early, is another sequence.
    late = model.apply(params, XS, first, reset=done)[1]
    assert np.abs(late - jnp.stack(outputs, 1)).max() > 1e-2


@pytest.mark.parametrize("bidirectional", [False, True])
def test_ragged_rows_stay_in_their_places(bidirectional):
    model = lj.LSTM(3, 5, num_layers=2, bidirectional=bidirectional)
    params = build(model)
    lengths = [4, T, 7]
    state, ys = model.apply(params, XS, lengths=lengths)
    for row, length in enumerate(lengths):
        alone, ys_alone = model.apply(params, XS[row, :length])
        assert_close(ys[row, :length], ys_alone)
        assert_close(jax.tree.map(lambda leaf: leaf[row], state), alone)


def test_the_last_outputs_of_two_directions():
    """The backward half has seen its whole row at the first step, not at the last."""
    model = lj.LSTM(3, 5, bidirectional=True)
    params = build(model)
    state, ys = model.apply(params, XS[:2], lengths=[T, 4])
    assert_close(ys[1, 3, :5], state[0].forward.h[1])
    assert_close(ys[1, 0, 5:], state[0].backward.h[1])
    one_step = lj.scan(model.cells[0], params[0].backward, XS[1, 3:4])[1]
    assert_close(ys[1, 3, 5:], one_step[0])
    last = jnp.concatenate([ys[1, 3, :5], ys[1, 0, 5:]])
    assert_close(model.last(state)[1], last)


def test_numpy_states_in_float64_are_taken_without_a_word():
    model = lj.LSTM(3, 5)
    params = build(model)
    wide = jax.tree.map(lambda leaf: np.float64(leaf) + 0.1, model.zero_state((B,)))
    narrow = jax.tree.map(np.float32, wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        actual = model.apply(params, XS, wide)
    assert_close(actual, model.apply(params, XS, narrow))


def test_another_utterance_starts_anew():
    model = lj.LSTM(3, 5, num_layers=2)
    params = build(model)
    for utterance in (XS, XS[:, ::-1]):
        chunks = (utterance[:, t : t + 5] for t in range(0, T, 5))
        results = list(lj.stream(model, params, chunks))
        state, ys = model.apply(params, utterance)
        assert_close(jnp.concatenate([ys for _, ys in results], 1), ys)
        assert_close(results[-1][0], state)


def test_an_ensemble_of_modules_has_masks_of_its_own():
    nnx = pytest.importorskip("flax.nnx")

    @nnx.split_rngs(splits=5)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return lj.nnx.LSTM(3, 5, num_layers=2, dropout=0.5, rngs=rngs)

    @nnx.vmap(in_axes=(0, None), out_axes=0)
    def call(module, xs):
        return module(xs)[1]

    modules = make(nnx.Rngs(0))
    modules.eval()
    quiet = call(modules, XS)
    assert quiet.shape == (5, B, T, 5)
    assert np.abs(quiet[1:] - quiet[:-1]).max() > 1e-2
    modules.train()
    noisy = call(modules, XS)
    differences = noisy - quiet
    for one in range(4):
        assert np.abs(differences[one] - differences[one + 1]).max() > 1e-3


@pytest.mark.parametrize("name", ["last", "bridge"])
def test_states_are_taken_and_checked_where_they_are_read(name):
    model = lj.LSTM(3, 5, bidirectional=True)
    state = jax.tree.map(np.array, random_like(1, model.zero_state((2,))))
    read = getattr(model, name)
    expected = jax.tree.map(np.array, read(state))
    actual = read(state)
    for leaf in jax.tree.leaves(state):
        leaf[...] = 0
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    other = lj.LSTM(3, 9, bidirectional=True).zero_state((2,))
    with pytest.raises(ValueError, match=r"state\[0\].forward.h: expected shape"):
        read(other)
    (layer,) = model.zero_state((4,))
    uneven = (layer._replace(backward=model.zero_state((1,))[0].backward),)
    with pytest.raises(ValueError, match=r"state\[0\].backward.h: expected shape"):
        read(uneven)


def test_the_last_output_has_the_dtype_of_its_layer():
    narrow = lj.LSTMCell(3, 4, dtype="bfloat16")
    model = lj.Stack((narrow, lj.LSTMCell(4, 5, dtype="float32")))
    state, ys = model.apply(build(model), XS)
    np.testing.assert_array_equal(model.last(state), ys[:, -1])
    assert model.last(state).dtype == ys.dtype == jnp.float32


def test_flags_of_numpy():
    cell, yes = lj.LSTMCell(3, 5), np.bool_(True)
    params = random_like(2, cell.init(jax.random.key(0)))
    actual = lj.scan(cell, params, XS, reverse=yes, time_major=yes)
    assert_close(actual, lj.scan(cell, params, XS, reverse=True, time_major=True))


def test_an_implementation_is_chosen_for_a_function():
    cell = lj.LSTMCell(3, 5)
    params = build(cell)

    @lj.implementation("xla")
    def resolve():
        return lj.resolve_implementation(cell, params, XS)

    usual = lj.resolve_implementation(cell, params, XS)
    assert [resolve(), resolve()] == ["xla", "xla"]
    assert lj.resolve_implementation(cell, params, XS) == usual


def test_blocks_of_a_number_of_numpys():
    model = lj.LSTM(3, 5)
    params = build(model)
    actual = model.apply(params, XS, checkpoint_every=np.int64(5))
    assert_close(actual, model.apply(params, XS))
