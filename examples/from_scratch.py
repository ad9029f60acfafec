"""A hand-written LSTM loop, and the same as one function.

    python examples/from_scratch.py

Ten steps of 100 features give ten outputs of 50. There is no batch, and none is needed.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import lstm_jax as lj


class SimpleLSTM:
    """The loop: one set of weights for each gate, in NumPy."""

    def __init__(self, input_size, hidden_size, seed=0):
        rng = np.random.default_rng(seed)
        self.hidden_size = hidden_size
        draw = lambda *shape: rng.normal(0, 0.1, shape).astype(np.float32)
        self.W = {gate: draw(input_size, hidden_size) for gate in "ifgo"}
        self.R = {gate: draw(hidden_size, hidden_size) for gate in "ifgo"}
        self.b = {gate: draw(hidden_size) for gate in "ifgo"}

    def forward(self, input_sequence):
        sigmoid = lambda x: 1 / (1 + np.exp(-x))
        h = np.zeros(self.hidden_size, np.float32)
        c = np.zeros(self.hidden_size, np.float32)
        outputs = []
        for x in input_sequence:
            i, f, g, o = (x @ self.W[k] + h @ self.R[k] + self.b[k] for k in "ifgo")
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            outputs.append(h)
        return np.stack(outputs)


def main() -> None:
    input_sequence = np.random.default_rng(1).standard_normal((10, 100), np.float32)
    original = SimpleLSTM(100, 50)
    expected = original.forward(input_sequence)

    beside = lambda gates: jnp.concatenate([gates[k] for k in "ifgo"], axis=-1)
    params = lj.LSTMParams(beside(original.W), beside(original.R), beside(original.b))
    xs = jnp.asarray(input_sequence)
    _, ys = lj.lstm(params, xs)

    # The loop is still there for whoever wants it: a cell is a function of one step.
    cell = lj.LSTMCell(100, 50)
    state, outputs = cell.zero_state(), []
    for x in xs:
        state, y = cell(params, state, x)
        outputs.append(y)

    # And the whole can be differentiated, which the loop cannot.
    grads = jax.grad(lambda params: lj.lstm(params, xs)[1].sum())(params)

    difference = max(
        np.abs(ys - expected).max(), np.abs(np.stack(outputs) - expected).max()
    )
    print(f"hand-written {expected.shape}, lstm_jax {ys.shape}")
    print(f"gradient of the recurrent kernel {grads.recurrent_kernel.shape}")
    print(f"largest difference {difference:.1e}")
    if difference > 1e-5:
        sys.exit("They differ by more than 1e-5.")


if __name__ == "__main__":
    main()
