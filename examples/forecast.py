"""Forecasts many steps of a series at once. Ctrl-C saves, --resume goes on.

python examples/forecast.py              # a made series of 6,000 hours
python examples/forecast.py --data FILE  # any CSV; columns without numbers are skipped

Two LSTMs, one reads --length steps, one corrects the last --season ones, said again.
"""

import csv
import dataclasses
import pathlib
import re
import sys
from collections import namedtuple

import jax
import numpy as np
import optax
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import data, training

try:
    import tyro
    from matplotlib.figure import Figure
except ImportError as error:
    sys.exit(f'forecast: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"data", "steps", "patience", "out", "resume"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7)}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path | None = None  # a CSV; of a line of names, none is a number
    out: pathlib.Path = pathlib.Path("out/forecast")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 1000  # batches to train on, at most
    season: int = 24  # steps of one season
    length: int = 168  # steps that are seen
    horizon: int = 48  # steps that are forecast
    batch_size: int = 64  # windows of one batch
    hidden_size: int = 64  # units of each LSTM
    learning_rate: float = 3e-3  # of Adam; falls along a cosine to 0
    patience: int = 5  # epochs without a gain until the run stops
    seed: int = 0  # of the weights and the order of the windows


class Model(namedtuple("Model", "lstm readout")):
    def init(self, key):
        keys = jax.random.split(key, 3)
        encoder, decoder = map(self.lstm.init, keys[:2])
        readout = self.readout.init(keys[2], np.zeros((1, self.lstm.output_size)))
        return {"encoder": encoder, "decoder": decoder, "readout": readout}

    def apply(self, params, seen, naive):
        level = seen.mean(1, keepdims=True)
        state, _ = self.lstm.apply(params["encoder"], seen - level)
        _, ys = self.lstm.apply(params["decoder"], naive - level, state)
        return naive + self.readout.apply(params["readout"], ys)

    def loss(self, params, carry, batch, key):
        seen, naive, truth = batch
        both = self.apply(params, seen, naive), naive
        losses = [training.squared_error(one, truth, weighted=True) for one in both]
        return losses[0], (carry, {"naive_loss": losses[1]})


def read(path):
    """The columns of a CSV that have numbers, ``[T, F]``."""
    lines = csv.reader((text := path.read_text("utf-8-sig")).splitlines())
    if other := re.search(r'.*[;\t] *[-+]?\.?\d.*|.*"[-+]?\d+(,\d+)+".*', text):
        raise ValueError(f"{path}: expected 1.5,2 and not 1,5;2, got {other[0]!r}.")
    at, rows = zip(*[(lines.line_num, r) for r in lines if r] or [(1, [])], strict=True)
    rows = [row if len(row) == len(rows[0]) else [""] * len(rows[0]) for row in rows]
    cells = [[c if NUMBER.fullmatch(c.strip()) else "nan" for c in row] for row in rows]
    there = np.isfinite(values := np.array(cells, float, ndmin=2))
    headed, kept = not there[:1].any(), there.any(0) | (not there.any())
    for row, _ in np.argwhere(~there[headed:, kept]) + headed:
        raise ValueError(f"{path}, line {at[row]}: expected {np.sum(kept)} numbers.")
    return values[headed:, kept]


def made(steps=6000):
    """Hours: days and weekends that swell and fade, a slow rise, noise that lasts."""
    time, rng = np.arange(steps), np.random.default_rng(0)
    day, weekend = time * (2 * np.pi / 24), time // 24 % 7 >= 5
    swing = (2 + 0.6 * np.sin(time / 140)) * np.where(weekend, 0.4, 1.0)
    daily = swing * (np.sin(day - 2) + 0.4 * np.sin(2 * day)) - 1.5 * weekend
    noise = np.convolve(rng.normal(0, 0.25, steps), 0.8 ** np.arange(50))[:steps]
    return (20 + time / 1500 + daily + noise)[:, None]


def split(series, config):
    """Scaled windows of three parts, seen, naive forecast and truth; and the scaler."""
    length, season, horizon = config.length, config.season, config.horizon
    end, test = int(0.7 * len(series)), int(0.85 * len(series))
    fits = {"season": length, "length": end - horizon, "horizon": test - end}
    for name, most in fits.items():
        if not 1 <= getattr(config, name) <= most:
            raise ValueError(f"--{name}: expected 1 to {most} of {len(series)} steps.")
    scaler = data.Scaler.fit(series[:end])
    scaled = scaler.scale(series).astype(np.float32)
    # What is seen may reach back into the part before; what is forecast may not.
    parts = scaled[:end], scaled[end - length : test], scaled[test - length :]
    windows = [data.sliding_windows(part, length, horizon) for part in parts]
    again = np.arange(horizon) % season + length - season
    return [(seen, seen[:, again], truth) for seen, truth in windows], scaler


def draw(path, seen, *lines):
    figure = Figure(figsize=(12, 7), layout="constrained")
    for n, axes in enumerate(figure.subplots(2, 2).flat[: len(seen)]):
        axes.plot(np.arange(-seen.shape[1], 0), seen[n, :, 0], "k")
        axes.plot(np.stack([line[n, :, 0] for line in lines], 1))
    figure.suptitle("black: seen, blue: seasonal naive, orange: truth, green: LSTM")
    figure.savefig(path)


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    parts, scaler = split(made() if config.data is None else read(config.data), config)
    size, seed, features = config.batch_size, config.seed, parts[0][0].shape[-1]
    batches, valid, test = (data.shuffled_batches(p, size, seed=seed) for p in parts)
    model = Model(lj.LSTM(features, config.hidden_size), nn.Dense(features))
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    settings = {k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE}
    how = {k: getattr(config, k) for k in MAY_CHANGE - {"data"}}
    how |= {"valid": valid, "clip_norm": 1.0, "settings": settings}
    run = training.fit(model.loss, tx, model.init(jax.random.key(seed)), batches, **how)
    best = run.state.params if run.best is None else run.best
    ours, naive = training.evaluate(model.loss, best, test).values()
    less = 1 - ours / (naive or np.nan)  # A series may repeat itself exactly.
    print(f"test MSE {ours:.4f}, naive {naive:.4f}: {less:.1%} less")
    training.save_weights(config.out / "weights.safetensors", best)
    some = next(data.shuffled_batches(parts[2], 4)(0))
    lines = map(scaler.unscale, (*some, model.apply(best, *some[:2])))
    draw(config.out / "forecasts.png", *lines)
    return run.exit_status


if __name__ == "__main__":
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError, csv.Error) as error:
        sys.exit(f"forecast: {error}")
