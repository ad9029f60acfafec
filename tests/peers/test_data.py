"""Batches made in the worker processes of PyTorch's loader."""

import os
import pathlib
import subprocess
import sys

import pytest

import lstm_jax

PROGRAM = """
import sys, warnings
import jax, jax.numpy as jnp, numpy as np, torch
import lstm_jax as lj
from lstm_jax import data

class Lines(torch.utils.data.Dataset):
    def __init__(self, lines):
        self.lines, self.vocabulary = lines, data.Vocabulary.of("".join(lines))

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, index):
        return self.vocabulary.encode(self.lines[index])

def collate(rows):
    tokens, lengths = data.pad_sequences(rows, length=8)
    windows = list(data.stream_batches(np.concatenate(rows), 2, 2))
    return tokens, lengths, len(windows)

if __name__ == "__main__":
    model = lj.LSTM(3, 5)
    params = model.init(jax.random.key(0))
    model.apply(params, jnp.ones((2, 7, 3)))[1].block_until_ready()
    # JAX warns of every fork: its threads are not in the child, which uses none here.
    warnings.filterwarnings("ignore", ".*fork.*")
    lines = ["abcab", "ca", "bacabca", "b", "abc", "cabbac", "bb", "acca"]
    loader = torch.utils.data.DataLoader(
        Lines(lines), 4, num_workers=2, collate_fn=collate,
        multiprocessing_context=sys.argv[1], timeout=60,
    )
    for epoch in range(2):
        for tokens, lengths, windows in loader:
            print(tokens.shape, lengths.tolist(), windows)
    model.apply(params, jnp.ones((2, 7, 3)))[1].block_until_ready()
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_run_in_the_workers_of_a_loader(start, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    package = pathlib.Path(lstm_jax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, path, start],
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    expected = "(4, 8) [5, 2, 7, 1] 3\n(4, 8) [3, 6, 2, 4] 3\n" * 2
    assert done.stdout == expected, done.stderr
