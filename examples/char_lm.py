"""Trains a character model on text, and writes more. Ctrl-C saves, --resume goes on.

python examples/char_lm.py              # CPython's documentation, three minutes
python examples/char_lm.py --data FILE  # any UTF-8 file
python examples/char_lm.py --sample out/char_lm --prompt "The class "
"""

import dataclasses
import json
import pydoc_data.topics
import sys
from collections import namedtuple
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import lstm_jax as lj
from lstm_jax import data, decoding, training

try:
    import tyro
except ImportError as error:
    sys.exit(f'char_lm: {error.name} is missing: pip install "lstm_jax[examples]"')
PASSED_ON = ("out", "resume", "steps", "log_every", "save_every", "reset_rate")
UNIT: Any = {"embedding_init": jax.nn.initializers.normal(1.0)}
LIMITS = dict(seed=(0, 10**9), steps=(1, 10**7), validation=(0, 0.9), warmup=(0, 10**4))
MAY_CHANGE = {"out", "resume", "sample", "prompt", "temperature", "length", "steps"}


@dataclasses.dataclass(frozen=True)
class Config:
    data: Annotated[Path | None, tyro.conf.arg(aliases=["--text"])] = None  # in UTF-8
    out: Path = Path("out/char_lm")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    sample: Path | None = None  # write with the model of this folder instead
    prompt: str = ""  # what samples begin with; by default the first character
    temperature: float = 0.5  # of samples: towards 0 always the likeliest character
    length: int = 800  # characters of the sample at the end
    hidden_size: int = 512  # units of each LSTM layer
    num_layers: int = 1  # LSTM layers
    embedding_size: int = 64  # features of one character
    dropout: float = 0.0  # between layers
    batch_size: int = 32  # parallel streams of text
    window: int = 64  # steps that the gradient goes back
    steps: int = 1200  # windows to train on
    learning_rate: float = 4e-3  # of Adam; falls along a cosine to a hundredth
    warmup: int = 50  # steps over which the learning rate rises from 0
    clip: float = 1.0  # largest global norm of a gradient
    reset_rate: float = 1 / 16  # share of the streams that start anew before a window
    validation: float = 0.05  # share of the text, at its end, that is held out
    log_every: int = 20  # steps from one row of metrics.csv to the next
    sample_every: int = 300  # steps from one validation and short sample to the next
    save_every: int = 100  # steps from one checkpoint to the next
    seed: int = 0  # of the weights, the dropout, the resets and the samples


class Model(namedtuple("Model", "vocabulary lstm")):
    embed = property(lambda m: nn.Embed(len(m.vocabulary), m.lstm.input_size, **UNIT))
    readout = property(lambda m: nn.Dense(len(m.vocabulary)))

    def init(self, key):
        keys = jax.random.split(key, 3)
        embed = self.embed.init(keys[0], jnp.zeros(1, int))
        readout = self.readout.init(keys[2], jnp.zeros(self.lstm.output_size))
        return {"embed": embed, "lstm": self.lstm.init(keys[1]), "readout": readout}

    def loss(self, params, state, batch, key):
        xs = self.embed.apply(params["embed"], batch[0])
        state, ys = self.lstm.apply(params["lstm"], xs, state, key=key)
        logits = self.readout.apply(params["readout"], ys)
        return training.cross_entropy(logits, batch[1], weighted=True), (state, {})

    def step(self, params, state, tokens):
        x = self.embed.apply(params["embed"], tokens)
        state, y = self.lstm.step(params["lstm"], state, x)
        return state, self.readout.apply(params["readout"], y)

    def write(self, params, prompt, length, config):
        prompts, state = [self.vocabulary.encode(prompt)], self.lstm.zero_state((1,))
        noise = {"key": jax.random.key(config.seed), "temperature": config.temperature}
        written = decoding.generate(self.step, params, state, prompts, length, **noise)
        return prompt + self.vocabulary.decode(written.tokens[0])


def train(config):
    text = "\n\n".join(map(str, sorted(pydoc_data.topics.topics.values())))
    text = config.data.read_text("utf-8") if config.data else text
    held_out = max(int(len(text) * config.validation), config.window + 1)
    sizes = config.embedding_size, config.hidden_size, config.num_layers
    model = Model(data.Vocabulary.of(text), lj.LSTM(*sizes, dropout=config.dropout))
    prompt, tokens = config.prompt or text[:1], model.vocabulary.encode(text)

    def sample(state, row):
        if "valid_loss" in row:
            length = config.length if row["step"] == config.steps else 160
            written = model.write(state.params, prompt, length, config)
            print(f"\n--- step {row['step']} ---\n{written}")
            (config.out / f"sample_{row['step']}.txt").write_text(written, "utf-8")

    steps, rate = config.steps, config.learning_rate
    warmup, last = min(config.warmup, steps - 1), rate / 100
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps, last))
    key, rows = jax.random.key(config.seed), (config.batch_size,)
    model.write(model.init(key), prompt, min(config.length, 1), config)  # Errors now.
    settings = {k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE}
    result = training.fit(
        model.loss,
        tx,
        training.create(model.init(key), tx, model.lstm.zero_state(rows), key=key),
        data.stream_batches(tokens[:-held_out], config.batch_size, config.window),
        valid=data.stream_batches(tokens[-held_out:], 1, 4096, tail=True),
        evaluate_every=config.sample_every,
        clip_norm=config.clip,
        settings=settings | {"characters": model.vocabulary.symbols},
        derived={"valid_perplexity": lambda r: training.perplexity(r["valid_loss"])},
        flops_per_token=model,
        hooks=[sample],
        **{name: getattr(config, name) for name in PASSED_ON},
    )
    training.save_weights(config.out / "weights.safetensors", result.state.params)
    saved = {"characters": model.vocabulary.symbols, "lstm": model.lstm.to_config()}
    (config.out / "model.json").write_text(json.dumps(saved, indent=2))
    print(f"Saved in {config.out}:", *sorted(p.name for p in config.out.iterdir()))
    return result.exit_status


def sample(config):
    saved = json.loads((config.sample / "model.json").read_text())
    model = Model(data.Vocabulary(saved["characters"]), lj.from_config(saved["lstm"]))
    like = jax.eval_shape(model.init, jax.random.key(0))
    params = training.load_weights(config.sample / "weights.safetensors", like)
    prompt = config.prompt or saved["characters"][0]
    print(model.write(params, prompt, config.length, config))


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore
    try:
        for name, n in vars(config).items():
            low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
            if type(n) in (int, float) and not low <= n <= high:
                raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
        sys.exit(train(config) if config.sample is None else sample(config))
    except (ValueError, OSError) as error:
        sys.exit(f"char_lm: {error}")
