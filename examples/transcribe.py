"""Writes down what is sent in Morse code. Ctrl-C saves, --resume goes on.

python examples/transcribe.py

Signals are made: tones of 200 to 800 Hz, at tempos that vary twofold, in white noise 10
dB below, others in every batch; the first are short, for on long ones CTC hardly begins
to learn. Of new ones less than 1% of letters and digits are wrong.
"""

import dataclasses
import pathlib
import sys
from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import data, decoding, training

try:
    import tyro
    from rapidfuzz.distance import Levenshtein
except ImportError as error:
    sys.exit(f'transcribe: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"out", "resume", "steps"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7)}
CODES = {
    code[0]: code[1:]
    for code in "A.- B-... C-.-. D-.. E. F..-. G--. H.... I.. J.--- K-.- L.-.. M-- N-. "
    "O--- P.--. Q--.- R.-. S... T- U..- V...- W.-- X-..- Y-.-- Z--.. 0----- 1.---- "
    "2..--- 3...-- 4....- 5..... 6-.... 7--... 8---.. 9----.".split()
}
VOCABULARY, MOST = data.Vocabulary.of("".join(CODES)), 5
RATE, FRAME, LONGEST = 2000, 64, 192  # samples a second and a frame; frames


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("out/transcribe")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 2000  # batches to train on
    batch_size: int = 16  # messages of one batch
    hidden_size: int = 64  # units of each direction
    learning_rate: float = 1e-2  # of Adam; falls along a cosine to 0
    seed: int = 0  # of the weights, the dropout and the messages


class Model(namedtuple("Model", "lstm readout")):
    def init(self, key):
        keys, ys = jax.random.split(key), jnp.zeros(self.lstm.output_size)
        readout = self.readout.init(keys[1], ys)
        return {"lstm": self.lstm.init(keys[0]), "readout": readout}

    def logits(self, params, batch, key=None):
        xs, lengths = batch[:2]
        _, ys = self.lstm.apply(params["lstm"], xs, lengths=lengths, key=key)
        return self.readout.apply(params["readout"], ys)

    def loss(self, params, carry, batch, key):
        labels, given = batch[2], {"lengths": batch[1], "label_lengths": batch[3]}
        lost = (~training.ctc_alignable(labels, **given)).sum()
        lost = training.Weighted(lost, (batch[1] > 0).sum())
        logits = self.logits(params, batch, key)
        loss = training.ctc_loss(logits, labels, **given, weighted=True)
        return loss, (carry, {"not_alignable": lost})


def send(text, rng):
    """A message as sound: dots of one unit, dashes of three, tempo and tone its own."""
    unit, pitch = rng.uniform(0.05, 0.1), rng.uniform(200, 800)
    keyed = [np.zeros(int(RATE * 3 * unit))]
    for letter in text:
        for sign in CODES[letter]:
            for on, units in ((1, 1 if sign == "." else 3), (0, 1)):
                samples = RATE * units * unit * rng.uniform(0.9, 1.1)
                keyed.append(np.full(int(samples), on))
        keyed.append(np.zeros(int(RATE * 2 * unit)))
    keyed = np.concatenate(keyed)
    tone = np.sqrt(2) * np.sin(2 * np.pi * pitch / RATE * np.arange(len(keyed)))
    return keyed * tone + rng.normal(0, 10 ** (-10 / 20), len(keyed))


def tuned(sound):
    """The loudness of every frame at the tone and beside it, ``[T, 3]``."""
    whole = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)
    spectrum = np.abs(np.fft.rfft(whole * np.hanning(FRAME)))
    tone = np.clip(spectrum.sum(0).argmax(), 1, FRAME // 2 - 1)
    loudness = np.log(spectrum + 1e-3)
    return (loudness - loudness.mean())[:, tone - 1 : tone + 2].astype(np.float32)


def made(count, most, *seed) -> Any:
    """Signals and their lengths, texts of up to so many symbols and theirs; texts."""
    rng, signals, texts = np.random.default_rng(seed), [], []
    while len(texts) < count:
        text = "".join(rng.choice(list(CODES), rng.integers(1, most + 1)))
        if len(signal := tuned(send(text, rng))) <= LONGEST:
            signals.append(signal)
            texts.append(text)
    labels = [VOCABULARY.encode(text) + 1 for text in texts]
    padded = data.pad_sequences(signals, length=LONGEST)
    return (*padded, *data.pad_sequences(labels, length=MOST)), texts


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    lstm = lj.LSTM(3, config.hidden_size, bidirectional=True)
    model = Model(lstm, nn.Dense(len(VOCABULARY) + 1))

    def batches(epoch):
        of = config.batch_size, min(epoch + 1, MOST), 1, config.seed, epoch
        return (made(*of, n)[0] for n in range(100))

    key = jax.random.key(config.seed)
    result = training.fit(
        model.loss,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)),
        model.init(key),
        data.prefetch(batches, 4),
        key=key,
        clip_norm=1.0,
        **{name: getattr(config, name) for name in MAY_CHANGE},
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
    )
    training.save_weights(config.out / "weights.safetensors", result.state.params)
    test, sent = made(500, MOST, 2, config.seed)
    logits, frames = model.logits(result.state.params, test), {"lengths": test[1]}
    greedy = decoding.ctc_greedy(logits, **frames).tokens
    beam = decoding.ctc_beam_search(logits, width=8, **frames).tokens[:, 0]
    for name, tokens in ("greedy", greedy), ("beam", beam):
        written = [VOCABULARY.decode(row[row > 0] - 1) for row in np.asarray(tokens)]
        edits = sum(map(Levenshtein.distance, written, sent))
        print(f"{name}: {edits / sum(map(len, sent)):.2%} of symbols wrong")
    print("sent, written:", *map("{} {}".format, sent[:6], written[:6]), sep="\n  ")
    return result.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"transcribe: {error}")
