"""A whole step of a language model against the same in PyTorch, and its parts.

    python -m benchmarks.language_model

Embedding, two layers of LSTM, softmax over 10,000 words, the carry handed on, clipping
by the global norm and SGD: what word-level examples train on the Penn Treebank, at the
sizes of Zaremba et al. 2014 (arXiv:1409.2329). Both libraries are timed in turn; the
ratio is PyTorch's median time over ours.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import lstm_jax as lj
from benchmarks.timing import measure
from lstm_jax import training

WORDS, BATCH, RATE, CLIP = 10_000, 20, 0.1, 0.25
CASES = {"2 x 200, T 20": (200, 20), "2 x 650, T 35": (650, 35)}


class Ours:
    """The step, and each part of it with its gradient."""

    def __init__(self, size, length, weights):
        self.lstm = lj.LSTM(size, size, num_layers=2)
        params = {
            "embedding": weights["embedding"],
            "lstm": self.lstm.init(jax.random.key(0)),
            "kernel": weights["kernel"],
            "bias": np.zeros(WORDS, np.float32),
        }
        tx = optax.sgd(RATE)
        self.state = training.create(params, tx, self.lstm.zero_state((BATCH,)))
        self.train_step = training.make_train_step(self.loss, tx, clip_norm=CLIP)
        self.copy = jax.tree.map(jnp.copy, self.state.params)
        self.ys = jnp.ones((BATCH, length, size)) * 0.1

    def loss(self, params, carry, batch, key):
        xs = params["embedding"][batch[0]]
        carry, ys = self.lstm.apply(params["lstm"], xs, carry)
        loss = training.linear_cross_entropy(
            ys, params["kernel"], params["bias"], batch[1]
        )
        return loss, (carry, loss)

    def step(self, batch):
        self.state, loss = self.train_step(self.state, batch)
        return jax.block_until_ready(loss)

    def parts(self, batch):
        copy = self.copy
        embed = lambda table, words: jnp.sum(table[words] * self.ys)
        recur = lambda params, xs: jnp.sum(self.lstm.apply(params, xs)[1])
        soft = lambda ys, kernel, bias: training.linear_cross_entropy(
            ys, kernel, bias, batch[1]
        )
        update = lambda params: _clipped(params)
        programs = {
            "embedding": (
                jax.jit(jax.grad(embed)),
                (copy["embedding"], jnp.asarray(batch[0])),
            ),
            "LSTM": (jax.jit(jax.grad(recur, (0, 1))), (copy["lstm"], self.ys)),
            "softmax": (
                jax.jit(jax.value_and_grad(soft, (0, 1, 2))),
                (self.ys, copy["kernel"], copy["bias"]),
            ),
            "clipping and SGD": (jax.jit(update), (copy,)),
        }
        return {
            name: lambda run=run, args=args: jax.block_until_ready(run(*args))
            for name, (run, args) in programs.items()
        }


def _clipped(params):
    norm = optax.tree.norm(params)
    factor = RATE * CLIP / jnp.maximum(norm, CLIP)
    return jax.tree.map(lambda leaf: leaf - leaf * factor, params)


class Theirs:
    """The same in PyTorch."""

    def __init__(self, size, length, weights):
        self.embedding = torch.nn.Embedding(WORDS, size)
        self.lstm = torch.nn.LSTM(size, size, 2, batch_first=True)
        self.readout = torch.nn.Linear(size, WORDS)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.from_numpy(weights["embedding"]))
            self.readout.weight.copy_(torch.from_numpy(weights["kernel"].T.copy()))
        modules = self.embedding, self.lstm, self.readout
        self.params = [p for module in modules for p in module.parameters()]
        self.optimizer = torch.optim.SGD(self.params, RATE)
        self.carry = None
        self.ys = torch.full((BATCH, length, size), 0.1, requires_grad=True)

    def step(self, batch):
        inputs, targets = (torch.from_numpy(array).long() for array in batch)
        self.optimizer.zero_grad()
        ys, carry = self.lstm(self.embedding(inputs), self.carry)
        logits = self.readout(ys).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, CLIP)
        self.optimizer.step()
        self.carry = tuple(part.detach() for part in carry)
        return loss.item()

    def parts(self, batch):
        inputs, targets = (torch.from_numpy(array).long() for array in batch)

        def softmax():
            logits = self.readout(self.ys).flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, targets.flatten()).backward()

        def update():
            torch.nn.utils.clip_grad_norm_(self.params, CLIP)
            self.optimizer.step()

        return {
            "embedding": lambda: (self.embedding(inputs) * self.ys).sum().backward(),
            "LSTM": lambda: self.lstm(self.ys)[0].sum().backward(),
            "softmax": softmax,
            "clipping and SGD": update,
        }


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", type=float, default=10.0, help="seconds a figure")
    seconds = parser.parse_args().budget
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    random = np.random.default_rng(0)
    print(f"jax {jax.__version__}, torch {torch.__version__}, B {BATCH}, {WORDS} words")
    for name, (size, length) in CASES.items():
        normal = lambda *shape: 0.1 * random.standard_normal(shape, np.float32)
        weights = {"embedding": normal(WORDS, size), "kernel": normal(size, WORDS)}
        tokens = random.integers(0, WORDS, (BATCH, length + 1)).astype(np.int32)
        batch = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        ours, theirs = Ours(size, length, weights), Theirs(size, length, weights)
        whole = (lambda: ours.step(batch)), (lambda: theirs.step(batch))
        print(f"\n{name:18} {'ours ms':>9} {'PyTorch ms':>11} {'ratio':>6}")
        rows = {"whole step": whole}
        mine, others = ours.parts(batch), theirs.parts(batch)
        rows |= {part: (mine[part], others[part]) for part in mine}
        for row, runs in rows.items():
            for run in runs * 3:
                run()
            times = measure(dict(zip("ab", runs, strict=True)), seconds)
            first, second = (times[name].median_ms for name in "ab")
            print(f"{row:18} {first:9.2f} {second:11.2f} {second / first:6.2f}")


if __name__ == "__main__":
    main()
