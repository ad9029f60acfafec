"""Beam search against every sequence there is, on a model with memory and attention."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import decoding

V, H, LENGTH = 4, 5, 4
MODEL = lj.LSTM(V + H, H)
PARAMS = {
    "lstm": MODEL.init(jax.random.key(0)),
    "readout": 2 * jax.random.normal(jax.random.key(1), (2 * H, V)),
}
SOURCES = np.random.default_rng(0).normal(size=(3, 6, H)).astype(np.float32)
LENGTHS = np.array([6, 2, 3], np.int32)
PROMPTS = [[1, 2, 3], [2], [3, 1]]
STOP = 0


def start(rows=slice(None)):
    return {
        "lstm": MODEL.zero_state((len(LENGTHS[rows]),)),
        "memory": jnp.asarray(SOURCES[rows]),
        "lengths": jnp.asarray(LENGTHS[rows]),
        "context": jnp.zeros((len(LENGTHS[rows]), H)),
    }


def step(params, state, tokens):
    """An LSTM that looks at a source of its own length."""
    xs = jnp.concatenate([jax.nn.one_hot(tokens, V), state["context"]], -1)
    lstm, ys = MODEL.step(params["lstm"], state["lstm"], xs)
    scores = jnp.einsum("bsh,bh->bs", 3 * state["memory"], ys)
    valid = jnp.arange(scores.shape[1])[None] < state["lengths"][:, None]
    weights = jax.nn.softmax(jnp.where(valid, scores, jnp.full_like(scores, -1e9)))
    context = jnp.einsum("bs,bsh->bh", weights, state["memory"])
    logits = jnp.concatenate([ys, context], -1) @ params["readout"]
    return state | {"lstm": lstm, "context": context}, logits


def every_hypothesis(row, stop=(STOP,), length=LENGTH):
    """All of them with their log-probabilities, by teacher forcing."""
    found = {}
    one = jax.jit(step)
    for tokens in itertools.product(range(V), repeat=length):
        ends = [n for n, token in enumerate(tokens) if token in stop]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        if tokens in found:
            continue
        state, total = start(slice(row, row + 1)), 0.0
        whole = [*PROMPTS[row], *tokens]
        for n, token in enumerate(whole[:-1]):
            state, logits = one(PARAMS, state, jnp.array([token]))
            if n >= len(PROMPTS[row]) - 1:
                logs = np.asarray(logits[0], np.float64)
                total += logs[whole[n + 1]] - np.log(np.exp(logs).sum())
        found[tokens] = total
    return found


TRUTH = [every_hypothesis(row) for row in range(3)]


def search(rows=slice(None), **options):
    options = {"width": 300, "stop": STOP, "fill": 9} | options
    prompts = PROMPTS[rows]
    return decoding.beam_search(step, PARAMS, start(rows), prompts, LENGTH, **options)


def listed(found, row):
    """The hypotheses of a row as tuples, with their figures."""
    for n, size in enumerate(np.asarray(found.lengths[row])):
        if size:
            tokens = np.asarray(found.tokens[row, n])
            assert (tokens[size:] == 9).all()
            yield tuple(tokens[:size].tolist()), n


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.6, 1.0, 2.0])
def test_a_full_beam_finds_the_best_of_all(penalty):
    found = search(n_best=300, length_penalty=penalty)
    for row, truth in enumerate(TRUTH):
        score = lambda tokens, all=truth: all[tokens] / len(tokens) ** penalty
        expected = sorted(truth, key=score, reverse=True)
        got = [tokens for tokens, _ in listed(found, row)]
        assert len(got) == len(set(got)) == len(expected)
        for (tokens, n), wanted in zip(listed(found, row), expected, strict=True):
            assert float(found.scores[row, n]) == pytest.approx(score(wanted), 1e-4)
            assert float(found.log_probs[row, n]) == pytest.approx(truth[tokens], 1e-4)
            assert bool(found.finished[row, n]) == (tokens[-1] == STOP)
        rest = np.asarray(found.scores[row, len(expected) :])
        assert (rest == -np.inf).all() and not found.finished[
            row, len(expected) :
        ].any()


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_a_narrow_beam_is_the_search_by_hand(width, penalty):
    found = search(width=width, n_best=width, length_penalty=penalty)
    for row, truth in enumerate(TRUTH):
        whole = {}
        for tokens in truth:
            for n in range(len(tokens) + 1):
                whole.setdefault(tokens[:n], set()).add(tokens)
        log_prob = lambda beginning, of=whole, all=truth: np.log(
            sum(np.exp(all[tokens]) for tokens in of[beginning])
        )
        live, ended = [()], []
        for _ in range(LENGTH):
            longer = [(*b, v) for b in live for v in range(V)]
            ended += [b for b in longer if b[-1] == STOP]
            going = [b for b in longer if b[-1] != STOP]
            live = sorted(going, key=log_prob, reverse=True)[:width]
        score = lambda b: log_prob(b) / len(b) ** penalty  # noqa: B023
        best = sorted(ended + live, key=score, reverse=True)[:width]
        assert [tokens for tokens, _ in listed(found, row)] == best


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 2.0])
def test_the_first_does_not_depend_on_how_many_are_asked_for(penalty):
    one, five = (search(width=5, n_best=n, length_penalty=penalty) for n in (1, 5))
    for few, many in zip(one, five, strict=True):
        np.testing.assert_array_equal(few[:, 0], many[:, 0])


def test_a_row_is_as_it_is_alone():
    together = search(width=3, n_best=3)
    for row in range(3):
        alone = search(slice(row, row + 1), width=3, n_best=3)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.scores[0], together.scores[row], rtol=1e-5)


def test_several_stop_tokens_and_none():
    two = search(stop=(STOP, 2), n_best=300)
    for row in range(3):
        truth = every_hypothesis(row, (STOP, 2))
        got = [tokens for tokens, _ in listed(two, row)]
        assert got[0] == max(truth, key=truth.get) and set(got) == set(truth)
    none = search(stop=(), n_best=256)
    assert not none.finished.any() and (none.lengths == LENGTH).all()


def test_a_beam_of_one_is_greedy_where_nothing_stops():
    greedy = decoding.generate(step, PARAMS, start(), PROMPTS, LENGTH, temperature=0.0)
    found = search(width=1, stop=())
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
    np.testing.assert_allclose(found.scores[:, 0], greedy.scores, rtol=1e-5)


def test_the_search_ends_where_nothing_can_be_better():
    """Certain of its end, it does not go on to the limit: a step counts itself."""
    seen = []

    def counted(params, state, tokens):
        jax.debug.callback(lambda: seen.append(1))
        logits = jnp.where(jnp.arange(3) == 0, 20.0, 0.0)
        return state, jnp.broadcast_to(logits, (len(tokens), 3))

    found = decoding.beam_search(counted, None, (), [[1]], 500, width=2, stop=0)
    jax.effects_barrier()
    assert found.lengths.tolist() == [[1]] and len(seen) < 20


def table(logits):
    """A step whose logits depend on the last token alone."""
    return lambda params, state, tokens: (state, jnp.asarray(logits)[tokens])


def test_a_row_with_a_nan_says_so_and_the_others_are_as_alone():
    logits = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    logits[4] = np.nan
    logits[:4, 4] = -np.inf  # Only the prompt leads there.
    given = {"width": 3, "n_best": 3, "stop": 0, "fill": 9}
    run = lambda prompts: decoding.beam_search(
        table(logits), None, (), prompts, 4, **given
    )
    found, alone = run([[1], [4], [2]]), run([[1], [2]])
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one[np.array([0, 2])], other)
    assert np.isnan(found.scores[1]).all() and np.isnan(found.log_probs[1]).all()
    assert not found.finished[1].any() and not found.lengths[1].any()
    assert (found.tokens[1] == 9).all()
    logits[1, 2] = np.nan  # Seen on the way.
    assert np.isnan(run([[3]]).scores).all() or 1 not in run([[3]]).tokens


def test_where_no_class_is_possible_nothing_goes_on():
    """1 leads nowhere; 2 is the likelier beginning, and leads to 1 or the end."""
    never = -np.inf
    logits = np.array([[never] * 3, [never] * 3, [-5.0, -0.5, never]], np.float32)
    found = decoding.beam_search(
        table(logits), None, (), [[2]], 3, width=3, stop=0, n_best=3
    )
    assert found.lengths.tolist() == [[1, 0, 0]] and found.tokens[0, 0, 0] == 0
    logs = logits[2, :2] - np.log(np.exp(logits[2, :2]).sum())
    assert float(found.scores[0, 0]) == pytest.approx(logs[0], rel=1e-5)


@pytest.mark.parametrize("penalty", [-30.0, 30.0])
def test_a_large_penalty_is_exact_or_refused(penalty):
    """A power that float32 does not hold would make all scores alike."""
    found = search(n_best=300, length_penalty=penalty)
    for row, truth in enumerate(TRUTH):
        score = lambda tokens, all=truth: all[tokens] / len(tokens) ** penalty
        tokens, _ = next(listed(found, row))
        assert tokens == max(truth, key=score)
    with pytest.raises(ValueError, match="length_penalty: expected from -43.3 to 43.3"):
        search(length_penalty=2 * penalty)


@pytest.mark.parametrize(
    "shape, words", [((3, 2, V), "B = 3"), ((V,), "B = 3"), ((3, V), "6 rows")]
)
def test_logits_have_a_row_for_each_beginning(shape, words):
    step = lambda params, state, tokens: (state, jnp.zeros(shape))
    with pytest.raises(ValueError, match=f"step: expected logits .* {words}"):
        decoding.beam_search(step, None, (), PROMPTS, 3, width=2)


@pytest.mark.parametrize("stop", [-1, V, 99, [0, V], [-1]])
def test_a_stop_token_is_in_the_vocabulary(stop):
    with pytest.raises(ValueError, match="stop: expected tokens"):
        search(stop=stop)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="n_best: expected at most width, 2, got 3"):
        search(width=2, n_best=3)
    with pytest.raises(ValueError, match="width: expected at least 1"):
        search(width=0)
    with pytest.raises(ValueError, match="length_penalty: expected a finite number"):
        search(length_penalty=float("nan"))
    with pytest.raises(TypeError, match="stop: expected a token or several"):
        search(stop=0.5)
    with pytest.raises(TypeError, match="fill: expected an integer, got 1.5"):
        search(fill=1.5)
