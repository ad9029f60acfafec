"""Trains on all devices of all processes. Ctrl-C saves, --resume goes on.

python examples/distributed.py         # ten seconds; mean squared error below 0.002
mpirun -n 2 python examples/distributed.py
srun -n 8 python examples/distributed.py --out /shared/run

The task is the adding problem (Hochreiter & Schmidhuber 1997): the sum of two numbers
that are marked among 10 to 50 from 0 to 1. Guessing their mean has an error of 0.167.
However many devices and processes there are, losses are the same but for rounding:
every batch is planned as one, and each process brings its share of the rows.
"""

import dataclasses
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lstm_jax as lj
from lstm_jax import data, distributed, training

try:
    import tyro
except ImportError as error:
    sys.exit(f'distributed: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"out", "resume", "steps", "initialization_timeout", "heartbeat_timeout"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7)}


@dataclasses.dataclass(frozen=True)
class Config:
    out: pathlib.Path = pathlib.Path("out/distributed")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 1500  # batches to train on
    batch_size: int = 64  # sequences of one batch, over all processes
    hidden_size: int = 64  # units
    learning_rate: float = 5e-3  # of Adam; falls along a cosine to 0
    evaluate_every: int = 500  # steps from one evaluation to the next
    seed: int = 0  # of the weights and the sequences
    initialization_timeout: float = 300.0  # seconds within which all processes come
    heartbeat_timeout: float = 45.0  # seconds after which a silent one is lost


class Model(NamedTuple):
    lstm: lj.LSTM
    readout: nn.Dense

    def init(self, key):
        keys = jax.random.split(key)
        readout = self.readout.init(keys[1], jnp.zeros((1, self.lstm.output_size)))
        return {"lstm": self.lstm.init(keys[0]), "readout": readout}

    def loss(self, params, carry, batch, key):
        xs, lengths, sums = batch
        state, _ = self.lstm.apply(params["lstm"], xs, lengths=lengths)
        answers = self.readout.apply(params["readout"], self.lstm.last(state))
        answers = jnp.asarray(answers)[:, 0]
        there = lengths > 0  # Rows that fill batches have none.
        return training.squared_error(answers, sums, there, weighted=True), (carry, {})


def problems(seed, count):
    """Sequences of different lengths, numbers beside their marks, and their sums."""
    rng, sequences = np.random.default_rng(seed), []
    for length in rng.integers(10, 51, count):
        marks = np.zeros(length, np.float32)
        marks[rng.choice(length, 2, replace=False)] = 1
        sequences.append(np.stack([rng.random(length, np.float32), marks], -1))
    return sequences, np.array([(xs[:, 0] * xs[:, 1]).sum() for xs in sequences])


def batches(config, seed, count, cut):
    """Batches of all processes: planned as one, of which each brings its rows."""
    mine = {"batch_size": config.batch_size, "process": distributed.share(cut)}
    planned = data.bucket_batches(*problems(seed, count), buckets=2, **mine)
    return lambda epoch: (distributed.global_batch(b, cut) for b in planned(epoch))


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 10_000) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    distributed.initialize_from_env(
        initialization_timeout=config.initialization_timeout,
        heartbeat_timeout=config.heartbeat_timeout,
    )
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    cut = NamedSharding(mesh, PartitionSpec("data"))
    model = Model(lj.LSTM(2, config.hidden_size), nn.Dense(1))
    result = training.fit(
        model.loss,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)),
        model.init(jax.random.key(config.seed)),
        batches(config, (config.seed, 0), 5000, cut),
        valid=batches(config, (config.seed, 1), 500, cut),
        clip_norm=1.0,
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
        **{n: getattr(config, n) for n in ("out", "resume", "steps", "evaluate_every")},
    )
    training.save_weights(config.out / "weights.safetensors", result.state.params)
    if jax.process_index() == 0 and result.best_step is not None:
        print(f"held-out error {result.best_value:.6f} at step {result.best_step}")
    return result.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"distributed: {error}")
