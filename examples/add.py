"""Learns to add from examples, "123+45" to "168". Ctrl-C saves, --resume goes on.

python examples/add.py  # a minute; 0.99 of the held-out sums are right in every digit

An encoder reads a sum in both directions. A decoder writes the answer, the last digit
first, and looks back by attention (Luong and others, 2015): attention.png shows where.
"""

import dataclasses
import pathlib
import sys
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import data, decoding, training

try:
    import tyro
    from matplotlib.figure import Figure
except ImportError as error:
    sys.exit(f'add: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"out", "resume", "steps"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7)}
VOCABULARY, END = data.Vocabulary("\n+0123456789"), 0  # An answer ends with "\n".
CHOSEN = np.random.default_rng(0).random((1000, 1000)) < 0.025
HELD_OUT = CHOSEN | CHOSEN.T  # One pair in twenty, whichever comes first.


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("out/add")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 2000  # batches to train on
    batch_size: int = 256  # sums of one batch
    hidden_size: int = 64  # units of each direction; the decoder has twice as many
    learning_rate: float = 1e-2  # of Adam; falls along a cosine to 0
    seed: int = 0  # of the weights and the sums


class Model(namedtuple("Model", "encoder decoder readout")):
    def init(self, key):
        keys, both = jax.random.split(key, 3), jnp.zeros(2 * self.decoder.output_size)
        lstms = self.encoder.init(keys[0]), self.decoder.init(keys[1])
        readout = self.readout.init(keys[2], both)
        return {"encoder": lstms[0], "decoder": lstms[1], "readout": readout}

    def encode(self, params, sums, lengths):
        xs = jax.nn.one_hot(sums, len(VOCABULARY))
        state, memory = self.encoder.apply(params["encoder"], xs, lengths=lengths)
        return self.encoder.bridge(state), memory, lengths

    def attend(self, params, ys, memory, lengths):
        """Logits ``[B, T, V]``, and where each of the T steps looks, ``[B, T, S]``."""
        there = jnp.arange(memory.shape[1]) < lengths[:, None, None]
        weights = jax.nn.softmax(jnp.where(there, ys @ memory.mT, -jnp.inf))
        both = jnp.concatenate([ys, weights @ memory], -1)
        return self.readout.apply(params["readout"], both), weights

    def decode(self, params, encoded, tokens):
        state, *memory = encoded
        xs = jax.nn.one_hot(tokens, len(VOCABULARY))
        _, ys = self.decoder.apply(params["decoder"], xs, state)
        return self.attend(params, ys, *memory)

    def step(self, params, encoded, tokens):
        state, *memory = encoded
        x = jax.nn.one_hot(tokens, len(VOCABULARY))
        state, y = self.decoder.step(params["decoder"], state, x)
        logits, _ = self.attend(params, y[:, None], *memory)
        return (state, *memory), logits[:, 0]

    def loss(self, params, carry, batch, key):
        sums, lengths, answers, ends = batch
        encoded, targets = self.encode(params, sums, lengths), answers[:, 1:]
        logits, _ = self.decode(params, encoded, answers[:, :-1])
        given = {"lengths": ends - 1, "weighted": True}
        return training.cross_entropy(logits, targets, **given), (carry, {})


def pairs(seed, count, held_out):
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 10 ** rng.integers(1, 4, (40 * count, 2)))
    return drawn[HELD_OUT[*drawn.T] == held_out][:count]


def encode(pairs):
    sums = [VOCABULARY.encode(f"{a}+{b}") for a, b in pairs]
    answers = [VOCABULARY.encode("\n" + f"{a + b}"[::-1] + "\n") for a, b in pairs]
    return *data.pad_sequences(sums, length=7), *data.pad_sequences(answers, length=6)


def draw(path, pair, weights):
    read, written = "{}+{}".format(*pair), [*reversed(str(pair.sum())), "end"]
    figure = Figure((4, 3), layout="constrained")
    axes = figure.subplots()
    axes.imshow(weights[: len(written), : len(read)], vmin=0, vmax=1)
    axes.set_xticks(range(len(read)), read)
    axes.set_yticks(range(len(written)), written)
    axes.set(xlabel="read", ylabel="written, from the top down")
    figure.savefig(path, dpi=150)


def test(model, params, out):
    asked = np.unique(pairs(1, 4000, True), axis=0)
    sums, lengths, answers, _ = encode(asked)
    encoded = model.encode(params, sums, lengths)
    given = model.step, params, encoded, answers[:, :1], answers.shape[1] - 1
    written = decoding.generate(*given, temperature=0.0, stop=END).tokens
    for pair, row in [*zip(asked, written, strict=True)][::250]:
        print("{}+{}=".format(*pair) + VOCABULARY.decode(row).split("\n")[0][::-1])
    _, weights = model.decode(params, encoded, answers[:, :-1])
    draw(out / "attention.png", asked[1250], weights[1250])
    right = np.all(written == answers[:, 1:], 1).mean()
    print(f"right in every digit: {right:.4f} of {len(asked)} held-out sums")


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    width, size = len(VOCABULARY), config.hidden_size
    lstms = lj.LSTM(width, size, bidirectional=True), lj.LSTM(width, 2 * size)
    layers = nn.Dense(2 * size), jnp.tanh, nn.Dense(width)
    model = Model(*lstms, nn.Sequential(layers))
    batch = lambda *of: encode(pairs((config.seed, *of), config.batch_size, False))
    result = training.fit(
        model.loss,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)),
        model.init(jax.random.key(config.seed)),
        lambda epoch: (batch(epoch, n) for n in range(100)),
        **{name: getattr(config, name) for name in MAY_CHANGE},
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
    )
    training.save_weights(config.out / "weights.safetensors", result.state.params)
    test(model, result.state.params, config.out)
    return result.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"add: {error}")
