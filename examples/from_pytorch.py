"""A PyTorch classifier taken over with its weights: same input, same output.

    python examples/from_pytorch.py

The original is ``LSTMModel(100, 256, 10)``: an ``nn.LSTM`` and a linear layer on the
last output, run on 32 sequences of 20 steps of 100 features.
"""

import sys

import jax.numpy as jnp
import numpy as np

import lstm_jax as lj

try:
    import torch
except ImportError:
    sys.exit('This example runs the original too: pip install "lstm_jax[peers]"')


class LSTMModel(torch.nn.Module):
    """The original."""

    def __init__(self, input_size, hidden_size, output_size):
        super().__init__()
        self.lstm = torch.nn.LSTM(input_size, hidden_size, batch_first=True)
        self.fc = torch.nn.Linear(hidden_size, output_size)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])


def classify(model, params, kernel, bias, xs):
    """The same in JAX: the last output is the last state's h."""
    state, _ = model.apply(params, xs)
    return state[-1].forward.h @ kernel + bias


def main() -> None:
    torch.manual_seed(0)
    original = LSTMModel(100, 256, 10)
    xs = torch.randn(32, 20, 100)
    with torch.no_grad():
        expected = original(xs).numpy()

    weights = original.state_dict()
    model, params = lj.convert.from_torch(weights, prefix="lstm.")
    kernel = jnp.asarray(weights["fc.weight"].numpy().T)
    bias = jnp.asarray(weights["fc.bias"].numpy())
    actual = classify(model, params, kernel, bias, jnp.asarray(xs.numpy()))

    difference = np.abs(actual - expected).max()
    print(f"PyTorch {tuple(expected.shape)}, lstm_jax {actual.shape}")
    print(f"largest difference {difference:.1e}")
    if difference > 1e-5:
        sys.exit("They differ by more than 1e-5.")


if __name__ == "__main__":
    main()
