"""Finds names in sentences, and of what kind they are. Ctrl-C saves, --resume goes on.

python examples/tag.py                          # made sentences: F1 about 0.99
python examples/tag.py --no-bidirectional       # read forwards alone: F1 0.4
python examples/tag.py --data FILE --test FILE  # the word first, its tag last, as CoNLL
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
    sys.exit(f'tag: {error.name} is missing: pip install "lstm_jax[examples]"')
MAY_CHANGE = {"data", "test", "out", "resume", "steps"}
LIMITS = {"seed": (0, 2**31 - 1), "steps": (1, 10**7)}
KINDS = "met smiled PER", "met closed ORG", "saw smiled MISC", "saw closed LOC"
FILLING = "today then and when it had rained for days as they say near us".split()
SYLLABLES = "an ber cor dal el fin gar hal im jo ka lor man nis or tal".split()


@dataclasses.dataclass(frozen=True)
class Config:
    data: pathlib.Path | None = None  # CoNLL columns to train on
    test: pathlib.Path | None = None  # and to test with; without a tenth is held out
    out: pathlib.Path = pathlib.Path("out/tag")  # the folder of the run
    resume: bool = False  # go on with the run in --out
    steps: int = 1000  # batches to train on
    batch_size: int = 32  # sentences of one batch
    least_count: int = 2  # how often a word has to occur to be known
    hidden_size: int = 64  # features of one word, and units of each direction
    bidirectional: bool = True  # whether it reads backwards too
    dropout: float = 0.3  # of words' features
    learning_rate: float = 5e-3  # of Adam; falls along a cosine to 0
    seed: int = 0  # of the weights, the dropout and the order of the sentences


class Model(namedtuple("Model", "embed lstm readout")):
    def init(self, key):
        keys = jax.random.split(key, 3)
        embed = self.embed.init(keys[0], jnp.zeros(1, int))
        readout = self.readout.init(keys[1], jnp.zeros(self.lstm.output_size))
        return {"embed": embed, "lstm": self.lstm.init(keys[2]), "readout": readout}

    def logits(self, params, batch, key=None):
        xs = self.embed.apply(params["embed"], batch[0])
        _, ys = self.lstm.apply(params["lstm"], xs, lengths=batch[1], key=key)
        return self.readout.apply(params["readout"], ys)

    def loss(self, params, carry, batch, key):
        logits = self.logits(params, batch, key)
        counted = {"lengths": batch[1], "weighted": True}
        return training.cross_entropy(logits, batch[2], **counted), (carry, {})


def read(path, least=1):
    """The sentences of a file of CoNLL columns, each its words and their tags."""
    sentences = [[]]
    for number, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            sentences.append([])
        elif len(columns) > 1 and columns[-1][:2] in ("O", "B-", "I-"):
            sentences[-1].append((columns[0], columns[-1]))
        elif columns[0] != "#":  # Else it is a comment.
            raise ValueError(f"{path}, line {number}: expected a word and B-, I- or O.")
    sentences = [tuple(zip(*one, strict=True)) for one in sentences if one]
    if len(sentences) < least or all(w[-1] == str(len(w)) for w, _ in sentences):
        raise ValueError(f"{path}: expected {least} or more, words first, no numbers.")
    return sentences


def made(count):
    """Sentences of one or two clauses with a name each, as ``read`` returns them."""
    rng = np.random.default_rng(0)
    names = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]
    draw = lambda words, low, high: rng.choice(words, rng.integers(low, high)).tolist()
    for _ in range(count):
        words, tags = [], []
        for before, behind, kind in map(str.split, draw(KINDS, 1, 3)):
            start, name = [*draw(FILLING, 0, 4), before], draw(names, 1, 4)
            end = [*draw(FILLING, 4, 11), "the", *draw(names, 1, 2), behind, "."]
            inside = ["B-" + kind] + ["I-" + kind] * (len(name) - 1)
            words += start + name + end
            tags += ["O"] * len(start) + inside + ["O"] * len(end)
        yield tuple(words), tuple(tags)


def train(config):
    for name, n in vars(config).items():
        low, high = LIMITS.get(name, (0, 100) if type(n) is float else (1, 10_000))
        if type(n) in (int, float) and not low <= n <= high:
            raise ValueError(f"--{name}: expected {low} to {high}, got {n}.")
    least = 1 if config.test else 2
    every = [*dict.fromkeys(read(config.data, least) if config.data else made(3000))]
    count = len(every) if config.test else len(every) * 9 // 10
    sentences, test = every[:count], read(config.test) if config.test else every[count:]
    least = {"least_count": config.least_count, "unknown": "<unk>"}
    known = data.Vocabulary.of((words for words, _ in sentences), **least)
    labels = data.Vocabulary.of(tags for _, tags in sentences + test)
    options = {"bidirectional": config.bidirectional, "input_dropout": config.dropout}
    lstm = lj.LSTM(config.hidden_size, config.hidden_size, **options)
    model = Model(nn.Embed(len(known), lstm.input_size), lstm, nn.Dense(len(labels)))

    def batches(sentences, **options):
        xs = [known.encode(words) for words, _ in sentences]
        tags = [labels.encode(tags) for _, tags in sentences]
        return data.bucket_batches(xs, tags, batch_size=config.batch_size, **options)

    held_out = batches(test, buckets=4, seed=None, index=True)
    given = {"key": jax.random.key(config.seed), "clip_norm": 1.0}
    result = training.fit(
        model.loss,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps)),
        model.init(given["key"]),
        batches(sentences, buckets=4, seed=config.seed),
        **given,
        **{name: getattr(config, name) for name in MAY_CHANGE - {"data", "test"}},
        settings={k: str(v) for k, v in vars(config).items() if k not in MAY_CHANGE},
    )
    places = {"lengths": lambda batch: batch[1], "index": lambda batch: batch[3]}
    logits = training.predict(model.logits, result.state.params, held_out, **places)
    found = [labels.decode(one.argmax(-1)) for one in logits]
    for (words, _), tags in list(zip(test, found, strict=True))[:3]:
        print(*map(lambda w, t: w if t == "O" else f"{w}/{t}", words, tags))
    spans = found, [tags for _, tags in test]
    for m in ("precision", "recall", "f1"):
        print(m, f"{training.span_f1(*spans, scheme='conll', measure=m):.4f}", end="  ")
    print(f"of the names in {len(test)} test sentences")
    training.save_weights(config.out / "weights.safetensors", result.state.params)
    return result.exit_status


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore
    try:
        sys.exit(train(tyro.cli(Config, description=__doc__)))
    except (ValueError, OSError) as error:
        sys.exit(f"tag: {error}")
