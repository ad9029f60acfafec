"""Two tests of memory, on fresh sequences all along. Ctrl-C saves, --resume goes on.

python examples/memory.py --task adding
python examples/memory.py --task copy

adding (Hochreiter & Schmidhuber 1997): the sum of two numbers that are marked among 200
from 0 to 1, one in each half. Mean squared error about 0.001; always 1 has 0.167.
copy: 10 symbols of an alphabet of 8, to be said again after 50 blanks. More than 0.99
are right; guessing has 0.125. Training has 1 to 50 blanks, few at first; the test 50.
"""

import dataclasses
import pathlib
import sys
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import training

try:
    import tyro
except ImportError as error:
    sys.exit(f'memory: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"out", "resume", "steps"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7), "length": (2, 10_000)}
SYMBOLS, BLANK, MARKER = 8, 8, 9  # the alphabet is 0 to 7


@dataclasses.dataclass(frozen=True)
class Config:
    task: Literal["adding", "copy"] = "adding"  # what is to be remembered
    out: pathlib.Path | None = None  # the folder of the run; by default out/TASK
    resume: bool = False  # go on with the run in --out
    steps: int = 2000  # batches to train on
    batch_size: int = 64  # sequences of one batch
    hidden_size: int = 96  # units
    length: int = 200  # adding: numbers of a sequence
    count: int = 10  # copy: symbols of a sequence
    delay: int = 50  # copy: blanks after them
    learning_rate: float | None = None  # of Adam; by default 4e-3, for copy 1e-2
    seed: int = 0  # of the weights and the sequences


class Model(NamedTuple):
    lstm: lj.LSTM
    readout: nn.Dense

    def init(self, key):
        keys = jax.random.split(key)
        readout = self.readout.init(keys[1], jnp.zeros((1, self.lstm.output_size)))
        return {"lstm": self.lstm.init(keys[0]), "readout": readout}

    def outputs(self, params, xs):
        _, ys = self.lstm.apply(params["lstm"], xs)
        return jnp.asarray(self.readout.apply(params["readout"], ys))

    def adding_loss(self, params, carry, batch, key):
        xs, sums = batch
        answers = self.outputs(params, xs)[:, -1, 0]
        return training.squared_error(answers, sums, weighted=True), (carry, {})

    def copy_loss(self, params, carry, batch, key):
        xs, targets, asked = batch
        logits = self.outputs(params, jax.nn.one_hot(xs, MARKER + 1))
        loss = training.cross_entropy(logits, targets, asked, weighted=True)
        right = training.accuracy(logits, targets, asked, weighted=True)
        return loss, (carry, {"accuracy": right})


def adding(rng, config, epoch, test):
    """Numbers beside their marks ``[B, T, 2]``, and the sums of the marked ``[B]``."""
    rows, half = np.arange(config.batch_size), config.length // 2
    numbers = rng.random((len(rows), config.length), np.float32)
    marks = np.zeros_like(numbers)
    marks[rows, rng.integers(0, half, len(rows))] = 1
    marks[rows, rng.integers(half, config.length, len(rows))] = 1
    return np.stack([numbers, marks], -1), (numbers * marks).sum(1)


def copy(rng, config, epoch, test):
    """What is read, what to answer, and where an answer counts, ``[B, T]`` each."""
    most = config.delay if test else min(config.delay, 5 * (epoch + 1))
    rows, places = np.arange(config.batch_size)[:, None], np.arange(config.count)
    symbols = rng.integers(0, SYMBOLS, (len(rows), config.count))
    markers = rng.integers(most if test else 1, most + 1, rows.shape) + config.count
    xs = np.full((len(rows), 2 * config.count + config.delay + 1), BLANK)
    targets, asked = np.zeros_like(xs), np.zeros(xs.shape, bool)
    xs[:, : config.count], xs[rows, markers] = symbols, MARKER
    targets[rows, markers + 1 + places] = symbols
    asked[rows, markers + 1 + places] = True
    return xs, targets, asked


def task(config):
    """The model, its loss, what makes a batch, and the rate of learning."""
    if config.task == "adding":
        bias = lj.initializers.chrono(config.length)
        lstm = lj.LSTM(2, config.hidden_size, bias_init=bias, forget_bias=0.0)
        model = Model(lstm, nn.Dense(1))
        return model, model.adding_loss, adding, 4e-3
    model = Model(lj.LSTM(MARKER + 1, config.hidden_size), nn.Dense(SYMBOLS))
    return model, model.copy_loss, copy, 1e-2


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    model, loss, make, rate = task(config)

    def batches(epoch, test=False):
        rng = np.random.default_rng((int(test), config.seed, epoch))
        return (make(rng, config, epoch, test) for _ in range(100))

    rate = rate if config.learning_rate is None else config.learning_rate
    warmup = min(50, config.steps - 1)
    out = config.out or pathlib.Path("out") / config.task
    result = training.fit(
        loss,
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, warmup, config.steps)),
        model.init(jax.random.key(config.seed)),
        batches,
        out=out,
        **{name: getattr(config, name) for name in ("steps", "resume")},
        clip_norm=1.0,
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
    )
    figures = training.evaluate(loss, result.state.params, lambda n: batches(n, True))
    print(", ".join(f"test {name} {figure:.5f}" for name, figure in figures.items()))
    training.save_weights(out / "weights.safetensors", result.state.params)
    return result.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"memory: {error}")
