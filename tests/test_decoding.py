"""Decoding against a loop in NumPy, and what is drawn against its probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstm_jax as lj
from lstm_jax import decoding
from lstm_jax.decoding import sampling

V, H = 7, 6
MODEL = lj.LSTM(V, H, num_layers=2)
PARAMS = {
    "lstm": MODEL.init(jax.random.key(0)),
    "readout": 3 * jax.random.normal(jax.random.key(1), (H, V)),
}
PROMPTS = [[1, 2, 3, 4, 5, 6, 0, 1, 2, 3], [4], [5, 5, 2]]
KEY = jax.random.key(2)


def step(params, state, tokens):
    xs = jax.nn.one_hot(tokens, V)
    state, ys = MODEL.step(params["lstm"], state, xs)
    return state, ys @ params["readout"]


def generate(prompts=PROMPTS, length=11, **options):
    state = MODEL.zero_state((len(prompts),))
    return decoding.generate(step, PARAMS, state, prompts, length, **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def step_by_hand(state, token):
    """One row in float64."""
    x, after = np.eye(V)[token], []
    for layer, (h, c) in zip(PARAMS["lstm"], state, strict=True):
        p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), layer.forward)
        z = x @ p.kernel + h @ p.recurrent_kernel + p.bias
        i, f, g, o = np.split(z, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        x = sigmoid(o) * np.tanh(c)
        after.append((x, c))
    return after, x @ np.asarray(PARAMS["readout"], np.float64)


def greedily_by_hand(prompt, length, stop=()):
    state = [(np.zeros(H), np.zeros(H))] * 2
    for token in prompt[:-1]:
        state, _ = step_by_hand(state, token)
    token, tokens, score = prompt[-1], [], 0.0
    while len(tokens) < length:
        state, logits = step_by_hand(state, token)
        token = int(logits.argmax())
        score += logits[token] - np.log(np.exp(logits).sum())
        tokens.append(token)
        if token in stop:
            break
    return tokens, score, state


@pytest.mark.parametrize("stop", [(), 3, (0, 5)])
def test_greedy_decoding_is_the_loop(stop):
    written = generate(temperature=0.0, stop=stop, fill=9)
    for b, prompt in enumerate(PROMPTS):
        tokens, score, state = greedily_by_hand(prompt, 11, np.atleast_1d(stop))
        filled = tokens + [9] * (11 - len(tokens))
        assert written.tokens[b].tolist() == filled
        assert written.lengths[b] == len(tokens)
        assert float(written.scores[b]) == pytest.approx(score, rel=1e-4)
        for layer, (h, c) in zip(written.state, state, strict=True):
            np.testing.assert_allclose(layer.forward.h[b], h, atol=1e-5)
            np.testing.assert_allclose(layer.forward.c[b], c, atol=1e-5)


def test_what_was_written_is_gone_on_with():
    whole = generate(length=11, temperature=0.0)
    first = generate(length=4, temperature=0.0)
    last = first.tokens[:, -1:]
    rest = decoding.generate(step, PARAMS, first.state, last, 7, temperature=0.0)
    both = jnp.concatenate([first.tokens, rest.tokens], 1)
    assert both.tolist() == whole.tokens.tolist()


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.7, "stop": 2}])
def test_a_row_is_as_it_is_alone(options):
    keys = jax.random.split(KEY, 3)
    together = generate(key=KEY, temperature=1.3, **options)
    for b, prompt in enumerate(PROMPTS):
        alone = generate([prompt], key=keys[b : b + 1], temperature=1.3, **options)
        assert alone.tokens[0].tolist() == together.tokens[b].tolist()
        assert alone.lengths[0] == together.lengths[b]


def test_padding_of_prompts_is_not_read():
    array = np.array([[1, 2, 3], [4, 5, 6]])
    for length in (1, 2, 8, 9, 16):
        one = generate(array, length=length, key=KEY)
        for same in (array.tolist(), jnp.asarray(array), array.astype(np.int8)):
            two = generate(same, length=length, key=KEY)
            assert one.tokens.tolist() == two.tokens.tolist()
        assert one.tokens.shape == (2, length)


def test_nothing_is_compiled_anew_within_a_bucket(capfd):
    generate([[1] * 9, [2]], 9, key=KEY)
    with jax.log_compiles():
        generate([[1] * 16, [2] * 3], 16, key=jax.random.key(9), temperature=0.3)
    assert "_written" not in capfd.readouterr().err


def test_under_jit_and_vmap_over_weights():
    @jax.jit
    def run(params, prompts, key, temperature):
        state = MODEL.zero_state((2,))
        return decoding.generate(
            step, params, state, prompts, 5, key=key, temperature=temperature
        ).tokens

    prompts = jnp.array([[1, 2], [3, 4]])
    one = generate(prompts, 5, key=KEY, temperature=0.8).tokens
    assert run(PARAMS, prompts, KEY, 0.8).tolist() == one.tolist()
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    both = jax.vmap(run, (0, None, None, None))(two, prompts, KEY, 0.8)
    assert both[0].tolist() == one.tolist() != both[1].tolist()


LOGITS = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"top_p": 0.0}, {1}),
        ({"top_p": 0.4}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.7}, {1, 3}),
        ({"top_p": 0.8}, {1, 2, 3}),
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_k": 5}, {0, 1, 2, 3}),
        # Of the two that are kept the first has 4 / 7.
        ({"top_k": 2, "top_p": 0.5}, {1}),
        ({"temperature": 0.0}, {1}),
        ({"temperature": 1e-3}, {1}),
    ],
)
def test_what_is_drawn_from(options, kept):
    draw = lambda key: decoding.sample(LOGITS, key, **options)
    tokens = jax.vmap(draw)(jax.random.split(KEY, 400))
    assert set(np.asarray(tokens).tolist()) == kept


def test_of_equal_ones_the_first_are_kept():
    flat = jnp.zeros((300, 5))
    tokens = decoding.sample(flat, jax.random.split(KEY, 300), top_k=2)
    assert set(np.asarray(tokens).tolist()) == {0, 1}
    assert decoding.sample(flat, temperature=0.0).tolist() == [0] * 300


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_probabilities(dtype, temperature):
    """A chi-squared test over 10,000 classes, those with few expected put together."""
    stats = pytest.importorskip("scipy.stats")
    number, classes = 5_000, 10_000
    logits = (3 * jax.random.normal(KEY, (classes,))).astype(dtype)
    draw = jax.jit(functools.partial(decoding.sample, temperature=temperature))
    rows = jnp.broadcast_to(logits, (1000, classes))
    tokens = [draw(rows, key) for key in jax.random.split(jax.random.key(5), 5)]
    counts = np.bincount(np.concatenate(tokens), minlength=classes)
    wide = np.asarray(logits, np.float64) / temperature
    expected = number * np.exp(wide) / np.exp(wide).sum()
    rare = expected < 10
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(seen, wanted).pvalue > 1e-3
    assert 0.8 < counts[rare].sum() / expected[rare].sum() < 1.2


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}])
def test_a_row_is_as_it_is_alone_with_any_kind_of_keys(implementation, options):
    """rbg draws other numbers for a row of several keys under vmap."""
    keys = jax.random.split(jax.random.key(3, impl=implementation), 3)
    together = generate(key=keys, temperature=1.3, **options)
    logits = jax.random.normal(KEY, (3, 2, 50))
    both = jax.random.split(keys[0], (3, 2))
    drawn = decoding.sample(logits, both, **options)
    for b, prompt in enumerate(PROMPTS):
        alone = generate([prompt], key=keys[b : b + 1], temperature=1.3, **options)
        assert alone.tokens[0].tolist() == together.tokens[b].tolist()
        for n in range(2):
            one = decoding.sample(logits[b, n], both[b, n], **options)
            assert int(one) == int(drawn[b, n])


def test_a_temperature_may_be_an_array_and_logits_be_large():
    logits = jax.random.normal(KEY, (50, V))
    for temperature in (jnp.float32(0.7), jnp.int32(2)):
        one, two = (
            decoding.sample(logits, KEY, temperature=t)
            for t in (temperature, temperature.item())
        )
        assert one.tolist() == two.tolist()
    cold = decoding.sample(logits, temperature=jnp.float32(0))
    assert cold.tolist() == logits.argmax(-1).tolist()
    large = jnp.array([2e38, 2.0000002e38, -3e38, -jnp.inf])
    for temperature in (0.5, 1e-30):
        tokens = decoding.sample(
            jnp.broadcast_to(large, (50, 4)), KEY, temperature=temperature
        )
        assert set(tokens.tolist()) == {1}
    # What overflows is counted from the largest; the others are as they were.
    equal = jnp.full((200, 3), 3e38).at[:, 2].set(0.0)
    tokens = decoding.sample(equal, jax.random.split(KEY, 200), temperature=0.5)
    assert set(tokens.tolist()) == {0, 1}


def test_a_top_p_of_1_leaves_nothing_out():
    """The sum of so many probabilities comes to 1 before the last."""
    logits = jnp.zeros(200_000).at[:1000].set(8.0)
    every, one = (sampling._kept(logits, None, p) for p in (None, 1.0))
    assert (every == one).all()


def one_step(logits):
    return lambda params, state, tokens: (state, logits)


@pytest.mark.parametrize(
    "logits, words",
    [
        (jnp.zeros((3, 1, V)), r"logits \[B, V\] with B = 3, .* got \[3, 1, 7\]"),
        (jnp.zeros(V), r"got \[7\]"),
        (jnp.zeros((1, V)), r"got \[1, 7\]"),
        (jnp.zeros((3, 0)), r"got \[3, 0\]"),
    ],
)
def test_logits_have_a_row_for_each_prompt(logits, words):
    with pytest.raises(ValueError, match=f"step: expected .*{words}"):
        decoding.generate(one_step(logits), None, (), PROMPTS, 3, temperature=0.0)


def test_a_step_returns_two_things():
    with pytest.raises(TypeError, match=r"step: expected it to return \(state, log"):
        decoding.generate(
            lambda params, state, tokens: jnp.zeros((3, V)),
            *(None, (), PROMPTS, 3),
            temperature=0.0,
        )


def test_prompts_of_unlike_dtypes_are_one_batch():
    mixed = [np.array(PROMPTS[0], np.int8), PROMPTS[1], jnp.array(PROMPTS[2])]
    one, two = (generate(prompts, key=KEY) for prompts in (mixed, PROMPTS))
    assert one.tokens.tolist() == two.tokens.tolist()


def test_decoding_goes_over_a_batch_of_starts():
    """Under vmap over states and keys as one after the other."""
    states = jax.random.normal(KEY, (2, 1, H))
    layer = lambda h: jax.tree.map(lambda leaf: leaf * 0 + h, MODEL.zero_state((1,)))
    run = lambda h, key: (
        decoding.generate(step, PARAMS, layer(h), [[1, 2]], 5, key=key, stop=3).tokens
    )
    keys = jax.random.split(KEY, 2)
    both = jax.vmap(run)(states, keys)
    for n in range(2):
        assert run(states[n], keys[n]).tolist() == both[n].tolist()


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: generate(), ValueError, "key: expected one, since tokens are drawn"),
        (lambda: generate([[1], []], key=KEY), ValueError, r"prompts\[1\]: .* none"),
        (lambda: generate([], key=KEY), ValueError, "prompts: expected at least one"),
        (lambda: generate([[1.5]], key=KEY), TypeError, r"prompts\[0\]: .* integers"),
        (lambda: generate([[-1]], key=KEY), ValueError, r"prompts\[0\]: .* got -1"),
        (lambda: generate([1, 2], key=KEY), ValueError, r"prompts\[0\]: .* \[prompt\]"),
        (lambda: generate("ab", key=KEY), TypeError, "Vocabulary.encode"),
        (
            lambda: decoding.generate(
                step, PARAMS, MODEL.zero_state((2,)), PROMPTS, 3, key=KEY
            ),
            ValueError,
            "expected 3 rows, as prompts has",
        ),
        (
            lambda: generate(length=0, key=KEY),
            ValueError,
            "length: expected at least 1",
        ),
        (lambda: generate(key=KEY, top_k=0), ValueError, "top_k: expected at least 1"),
        (lambda: generate(key=KEY, top_p=1.5), ValueError, "top_p: expected from 0"),
        (lambda: generate(key=KEY, temperature=-1), ValueError, "temperature: .* -1"),
        (lambda: generate(key=3), TypeError, r"key: expected jax.random.key"),
        (
            lambda: generate(key=jax.random.split(KEY, 2)),
            ValueError,
            "one for each of 3 rows",
        ),
        (lambda: decoding.sample(jnp.arange(3), KEY), TypeError, "logits: .* floating"),
        (lambda: decoding.sample(jnp.float32(3), KEY), ValueError, r"logits: .* \[\]"),
        (lambda: decoding.sample(jnp.zeros((2, 0)), KEY), ValueError, r"got \[2, 0\]"),
        (lambda: generate(key=KEY, stop=-1), ValueError, "stop: expected .* got -1"),
        (lambda: generate(key=KEY, stop=[0, V]), ValueError, "below 7, .* got 7"),
        (lambda: generate(key=KEY, stop=2**40), ValueError, "stop: expected .* got"),
        (lambda: generate(key=KEY, fill=1.5), TypeError, "fill: .* got 1.5"),
        (lambda: generate(key=KEY, fill=2**40), ValueError, "fill: expected from -"),
        (
            lambda: generate([np.array([2**32 + 1])], key=KEY),
            ValueError,
            r"prompts\[0\]: expected tokens .* got 4294967297",
        ),
        (
            lambda: generate(jnp.array([[1, -1]]), key=KEY),
            ValueError,
            "prompts: expected tokens .* got -1",
        ),
        (
            lambda: generate(key=KEY, temperature=jnp.float32(-1)),
            ValueError,
            "temperature: expected at least 0",
        ),
        (
            lambda: generate(key=KEY, temperature=jnp.float32(jnp.nan)),
            ValueError,
            "temperature: expected a finite number",
        ),
        (
            lambda: generate(key=KEY, temperature=jnp.ones((3, 1))),
            TypeError,
            r"temperature: .* for all rows, got an array of float32 \[3, 1\]",
        ),
    ],
)
def test_what_does_not_fit_is_told(call, error, words):
    with pytest.raises(error, match=words):
        call()
