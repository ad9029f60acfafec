"""Trains a character model on text and writes more of it.

    python examples/char_lm.py              # CPython's documentation, three minutes
    python examples/char_lm.py --text FILE  # any UTF-8 file
    python examples/char_lm.py --sample out/char_lm --prompt "The class "

Truncated backpropagation through time: the text is read in windows, the LSTM's state
is handed on from each window to the next, the gradient is not. Ctrl-C ends the
training and keeps what was learned. The output folder holds metrics.csv, loss.png,
samples.txt, weights.safetensors and model.json, which `--sample` reads.
"""

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import pydoc_data.topics
import signal
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich import progress

import lstm_jax as lj
from lstm_jax import data, training

try:
    import safetensors  # noqa: F401  (training.save_weights needs it, after training)
    import tyro
    from matplotlib.figure import Figure
except ImportError as error:
    sys.exit(f'char_lm: {error.name} is missing: pip install "lstm_jax[examples]"')


@dataclasses.dataclass(frozen=True)
class Config:
    text: pathlib.Path | None = None
    """A UTF-8 file to learn from; by default CPython's own documentation."""
    out: pathlib.Path = pathlib.Path("out/char_lm")
    """The folder for what was learned."""
    sample: pathlib.Path | None = None
    """Write text with the model of this folder instead of training."""
    prompt: str = ""
    """What samples begin with; by default the first character of the text."""
    temperature: float = 0.5
    """Of the samples: towards 0 always the likeliest character, 1 as the model says."""
    length: int = 800
    """Characters of the sample at the end."""
    hidden_size: int = 512
    """Units of each LSTM layer."""
    num_layers: int = 1
    """LSTM layers."""
    embedding_size: int = 64
    """Features of one character."""
    dropout: float = 0.0
    """Between layers."""
    batch_size: int = 32
    """Parallel streams of text."""
    window: int = 64
    """Steps that the gradient goes back."""
    steps: int = 1200
    """Windows to train on."""
    learning_rate: float = 4e-3
    """Of Adam, after the warm-up; it then falls along a cosine to a hundredth."""
    warmup: int = 50
    """Steps over which the learning rate rises from 0."""
    clip: float = 1.0
    """Largest global norm of a gradient."""
    validation: float = 0.05
    """Share of the text, at its end, that is held out."""
    log_every: int = 20
    """Steps from one row of metrics.csv to the next."""
    sample_every: int = 300
    """Steps from one short sample and validation to the next."""
    seed: int = 0
    """Of the weights, the dropout and the samples."""


class Model(NamedTuple):
    """Embedding, LSTM, softmax."""

    vocabulary: data.Vocabulary
    embedding_size: int
    lstm: lj.LSTM

    def init(self, key):
        keys = jax.random.split(key, 3)
        shape = (len(self.vocabulary), self.embedding_size)
        readout = (self.lstm.output_size, len(self.vocabulary))
        return {
            "embedding": jax.random.normal(keys[0], shape),
            "lstm": self.lstm.init(keys[1]),
            "kernel": jax.nn.initializers.glorot_uniform()(keys[2], readout),
            "bias": jnp.zeros(len(self.vocabulary)),
        }

    def logits(self, params, state, tokens, key=None):
        xs = params["embedding"][tokens]
        state, ys = self.lstm.apply(params["lstm"], xs, state, key=key)
        return state, ys @ params["kernel"] + params["bias"]

    def loss(self, params, state, batch, key=None):
        inputs, targets = batch
        state, logits = self.logits(params, state, inputs, key)
        loss = training.cross_entropy(logits, targets)
        return loss, (state, loss)

    @functools.partial(jax.jit, static_argnums=0)
    def next_token(self, params, state, token, temperature, key):
        x = params["embedding"][token]
        state, y = self.lstm.step(params["lstm"], state, x)
        logits = y @ params["kernel"] + params["bias"]
        return state, jax.random.categorical(key, logits / temperature)

    def stream(self, params, prompt, temperature, key):
        """Yields one character after the other, without end."""
        state, token = self.lstm.zero_state(), 0
        for given in self.vocabulary.encode(prompt):
            key, now = jax.random.split(key)
            state, token = self.next_token(params, state, given, temperature, now)
        while True:
            yield self.vocabulary.decode([token])
            key, now = jax.random.split(key)
            state, token = self.next_token(params, state, token, temperature, now)


def build(config, vocabulary):
    lstm = lj.LSTM(
        config.embedding_size,
        config.hidden_size,
        config.num_layers,
        dropout=config.dropout,
    )
    return Model(vocabulary, config.embedding_size, lstm)


def read_text(path):
    if path is None:
        topics = pydoc_data.topics.topics
        return "\n\n".join(topics[name] for name in sorted(topics))
    if not path.is_file():
        raise ValueError(f"--text: {path} is no file.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text: {path} is not UTF-8: {error}") from None


def split_text(text, config):
    """The text to learn from and the text held out, both long enough for a window."""
    held_out = max(int(len(text) * config.validation), config.window + 1)
    needed = config.batch_size * (config.window + 1) + held_out
    if len(text) < needed:
        raise ValueError(
            f"--text: expected at least {needed} characters for --batch-size "
            f"{config.batch_size} and --window {config.window}, got {len(text)}."
        )
    return text[:-held_out], text[-held_out:]


class Stop:
    """Becomes true at the first Ctrl-C or SIGTERM; the second ends the program."""

    def __init__(self):
        self.asked = False
        self.before = {
            sign: signal.signal(sign, self.ask)
            for sign in (signal.SIGINT, signal.SIGTERM)
        }

    def ask(self, *_):
        self.asked = True
        for sign, handler in self.before.items():
            signal.signal(sign, handler)

    def __bool__(self):
        return self.asked


class Row(NamedTuple):
    """Losses in nats per character; on the held-out text not at every row."""

    step: int
    loss: float
    held_out: float | None


class Log:
    """The bar on the terminal, the rows of metrics.csv and the text of samples.txt."""

    def __init__(self, config):
        config.out.mkdir(parents=True, exist_ok=True)
        self.steps, self.rows = config.steps, []
        self.samples = (config.out / "samples.txt").open("w", encoding="utf-8")
        self.file = (config.out / "metrics.csv").open("w", newline="")
        self.csv = csv.writer(self.file)
        self.csv.writerow(
            [
                "step",
                "loss_nats_per_character",
                "bits_per_character",
                "characters_per_second",
                "validation_loss_nats_per_character",
                "validation_perplexity_per_character",
            ]
        )
        self.bar = progress.Progress(
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
        )
        self.task = self.bar.add_task("compiling", total=config.steps)
        self.live = sys.stdout.isatty()

    def row(self, step, loss, speed, validation=None):
        """Logs a mean loss in nats per character, and one on the held-out text."""
        self.rows.append(Row(step, loss, validation))
        held_out = (
            ["", ""] if validation is None else [validation, math.exp(validation)]
        )
        self.csv.writerow([step, loss, loss / math.log(2), round(speed), *held_out])
        self.file.flush()
        line = (
            f"loss {loss:.3f} nats, {loss / math.log(2):.3f} bits, {speed:,.0f} char/s"
        )
        if validation is not None:
            line += f"; held out: perplexity {math.exp(validation):.2f} a character"
        self.bar.update(self.task, completed=step, description=line)
        if not self.live:
            print(f"step {step}/{self.steps}: {line}", flush=True)

    @contextlib.contextmanager
    def running(self):
        try:
            with self.bar if self.live else contextlib.nullcontext():
                yield
        finally:
            self.file.close()
            self.samples.close()

    def sample(self, title, characters, prompt):
        """Streams characters to the terminal and to samples.txt."""
        if self.live:
            self.bar.stop()
        print(f"\n--- {title} ---\n{prompt}", end="")
        self.samples.write(f"--- {title} ---\n{prompt}")
        for character in characters:
            print(character, end="", flush=True)
            self.samples.write(character)
        print("\n")
        self.samples.write("\n\n")
        self.samples.flush()
        if self.live:
            self.bar.start()


def windows(tokens, config):
    """Endless windows, each with whether the text begins anew before it."""
    while True:
        batches = data.stream_batches(tokens, config.batch_size, config.window)
        for n, batch in enumerate(batches):
            yield batch, n == 0


def optimizer(config):
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        config.learning_rate,
        min(config.warmup, config.steps - 1),
        config.steps,
        config.learning_rate / 100,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(schedule))


def evaluator(model, text):
    """A function from parameters to the loss on a text, read as one stream."""
    tokens = model.vocabulary.encode(text)
    batch = jnp.asarray(tokens[None, :-1]), jnp.asarray(tokens[None, 1:])
    loss = jax.jit(lambda params: model.loss(params, None, batch)[0])
    return lambda params: float(loss(params))


def train(config):
    text = read_text(config.text)
    train_text, held_out = split_text(text, config)
    model = build(config, data.Vocabulary.of(text))
    prompt = config.prompt or text[0]
    model.vocabulary.encode(prompt)
    batches = windows(model.vocabulary.encode(train_text), config)
    key = jax.random.key(config.seed)
    params, tx = model.init(key), optimizer(config)
    print(
        f"{len(text):,} characters, {len(model.vocabulary)} different; "
        f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters; "
        f"{config.steps} steps of {config.batch_size} x {config.window} characters"
    )

    zeros = model.lstm.zero_state((config.batch_size,))
    state = training.create(params, tx, zeros)
    train_step = training.make_train_step(model.loss, tx)
    evaluate = evaluator(model, held_out)
    log, stop = Log(config), Stop()
    losses, since = [], time.perf_counter()

    def write(title, length):
        characters = model.stream(
            state.params, prompt, config.temperature, jax.random.key(config.seed)
        )
        log.sample(title, itertools.islice(characters, length), prompt)

    with log.running():
        for step in range(1, config.steps + 1):
            batch, anew = next(batches)
            if anew:
                state = state._replace(
                    carry=model.lstm.zero_state((config.batch_size,))
                )
            state, loss = train_step(state, batch, jax.random.fold_in(key, step))
            losses.append(float(loss))
            last = step == config.steps or bool(stop)
            pause = last or step % config.sample_every == 0
            if pause or step % config.log_every == 0:
                speed = batch[0].size * len(losses) / (time.perf_counter() - since)
                validation = evaluate(state.params) if pause else None
                log.row(step, sum(losses) / len(losses), speed, validation)
                losses = []
                if pause and not last:
                    write(f"step {step}", 160)
                since = time.perf_counter()
            if last:
                break
        save(config, model, state.params, log.rows)
        if not stop:
            log.live = False
            write(
                f"after {step} steps, temperature {config.temperature}", config.length
            )
    if stop:
        print(f"Stopped after {step} steps. ", end="")
    names = sorted(path.name for path in config.out.iterdir())
    print(f"Saved in {config.out}: {', '.join(names)}")


def save(config, model, params, rows):
    training.save_weights(config.out / "weights.safetensors", params)
    settings = {
        "characters": model.vocabulary.characters,
        "embedding_size": config.embedding_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
    }
    (config.out / "model.json").write_text(json.dumps(settings, indent=2) + "\n")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row.step for row in rows], [row.loss for row in rows], label="training")
    held_out = [(row.step, row.held_out) for row in rows if row.held_out is not None]
    axes.plot(*zip(*held_out, strict=True), "o-", label="held out")
    axes.set(xlabel="step", ylabel="loss (nats per character)", title="Character model")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(config.out / "loss.png", dpi=150)


def sample(config):
    path = config.sample / "model.json"
    if not path.is_file():
        raise ValueError(f"--sample: {path} is not there; is this what --out was?")
    settings = json.loads(path.read_text())
    vocabulary = data.Vocabulary(settings.pop("characters"))
    model = build(dataclasses.replace(config, **settings), vocabulary)
    like = jax.eval_shape(model.init, jax.random.key(0))
    params = training.load_weights(config.sample / "weights.safetensors", like)
    prompt = config.prompt or vocabulary.characters[0]
    vocabulary.encode(prompt)
    key = jax.random.key(config.seed)
    characters = model.stream(params, prompt, config.temperature, key)
    print(prompt, end="")
    for character in itertools.islice(characters, config.length):
        print(character, end="", flush=True)
    print()


def check(config):
    positive = "temperature length batch_size window steps log_every sample_every clip"
    for name in positive.split():
        if getattr(config, name) <= 0:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option}: expected above 0, got {getattr(config, name)}."
            )
    if config.warmup < 0:
        raise ValueError(f"--warmup: expected at least 0, got {config.warmup}.")
    if not 0 < config.validation < 1:
        raise ValueError(f"--validation: expected in (0, 1), got {config.validation}.")


def main():
    config = tyro.cli(Config, description=__doc__)
    try:
        check(config)
        train(config) if config.sample is None else sample(config)
    except (ValueError, OSError) as error:
        sys.exit(f"char_lm: {error}")


if __name__ == "__main__":
    main()
