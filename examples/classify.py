"""Tells which speaker a short utterance is of. Ctrl-C saves, --resume goes on.

python examples/classify.py               # made series, about as hard: 0.98
python examples/classify.py --data FOLDER # with *_TRAIN.ts and *_TEST.ts

JapaneseVowels (timeseriesclassification.com, CC BY 4.0): about 0.975 of its 370 test
utterances are told right.
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
from lstm_jax import data, training

try:
    import tyro
except ImportError as error:
    sys.exit(f'classify: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"data", "out", "resume", "steps"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7)}


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path | None = None  # a folder with NAME_TRAIN.ts and NAME_TEST.ts
    out: pathlib.Path = pathlib.Path("out/classify")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 1500  # batches to train on
    batch_size: int = 32  # series of one batch
    hidden_size: int = 64  # units of each direction
    num_layers: int = 2  # LSTM layers
    dropout: float = 0.5  # between layers
    learning_rate: float = 2e-3  # of Adam; falls along a cosine to 0
    weight_decay: float = 1e-2  # of AdamW
    seed: int = 0  # of the weights, the dropout and the order of the series


class Model(namedtuple("Model", "lstm readout")):
    def init(self, key):
        keys = jax.random.split(key)
        readout = self.readout.init(keys[1], jnp.zeros(self.lstm.output_size))
        return {"lstm": self.lstm.init(keys[0]), "readout": readout}

    def logits(self, params, batch, key=None):
        xs, lengths, _ = batch
        _, ys = self.lstm.apply(params["lstm"], xs, lengths=lengths, key=key)
        mean = ys.sum(1) / jnp.maximum(lengths, 1).astype(ys.dtype)[:, None]
        return self.readout.apply(params["readout"], mean)

    def loss(self, params, carry, batch, key):
        _, lengths, labels = batch
        logits, there = self.logits(params, batch, key), lengths > 0
        loss = training.cross_entropy(logits, labels, mask=there, weighted=True)
        right = training.accuracy(logits, labels, mask=there, weighted=True)
        return loss, (carry, {"accuracy": right})


def read(path):
    """The series of a .ts file, ``[T_n, F]`` each with its own T, and their labels."""
    series, labels = [], []
    text = path.read_text("utf-8-sig", "surrogateescape")  # No two labels become one.
    for number, line in enumerate(text.splitlines(), 1):
        *channels, label = line.strip().split(":")
        if not line.strip() or line.lstrip()[0] in "#@":
            continue
        try:
            series.append(np.stack([np.array(c.split(","), "f4") for c in channels], 1))
            if not np.isfinite(series[-1]).all():
                raise ValueError("expected finite numbers, got NaN or infinity.")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        labels.append(label.strip())
    if not series:
        raise ValueError(f"{path}: expected a series, got none.")
    return series, labels


def made(count, seed):
    """Nine speakers: damped swings of their own in 12 channels, of 7 to 29 steps."""
    speakers = np.random.default_rng(0).normal(size=(9, 12, 3))
    rng = np.random.default_rng((1, seed))
    labels, series = rng.integers(0, 9, count), []
    for speed, phase, level in speakers[labels].transpose(0, 2, 1):
        time = np.arange(rng.integers(7, 30))[:, None] * rng.uniform(0.8, 1.25)
        clean = level / 2 + np.cos(time * (0.3 + 0.05 * speed) + phase) * 0.95**time
        series.append((clean + rng.normal(0, 1, clean.shape)).astype(np.float32))
    return series, [str(label) for label in labels]


def load(folder):
    if folder is None:
        return made(270, 0), made(370, 1)
    files = sorted(folder.glob("*_TRAIN.ts"))
    if len(files) != 1:
        raise ValueError(f"--data: expected one *_TRAIN.ts in {folder}.")
    (file,) = files
    return read(file), read(file.with_name(file.name.replace("_TRAIN", "_TEST")))


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    (series, names), (test_series, test_names) = load(config.data)
    classes = data.Vocabulary.of([names])
    labels, test_labels = classes.encode(names), classes.encode(test_names)
    scaler = data.Scaler.fit(series)
    sizes = series[0].shape[1], config.hidden_size, config.num_layers
    lstm = lj.LSTM(*sizes, bidirectional=True, dropout=config.dropout)
    model = Model(lstm, nn.Dense(len(classes)))

    def batches(series, labels, **options):
        xs = [scaler.scale(one) for one in series]
        return data.bucket_batches(xs, labels, batch_size=config.batch_size, **options)

    test = batches(test_series, test_labels, buckets=4, seed=None)
    key = jax.random.key(config.seed)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    tx = optax.adamw(rate, weight_decay=config.weight_decay)
    result = training.fit(
        model.loss,
        tx,
        model.init(key),
        batches(series, labels, buckets=4, seed=config.seed),
        key=key,
        **{name: getattr(config, name) for name in MAY_CHANGE - {"data"}},
        clip_norm=1.0,
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
    )
    figures = training.evaluate(model.loss, result.state.params, test)
    print(f"test accuracy {figures['accuracy']:.4f} of {len(test_labels)} series")
    training.save_weights(config.out / "weights.safetensors", result.state.params)
    return result.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"classify: {error}")
