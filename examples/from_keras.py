"""A Keras classifier taken over with its weights: same input, same output.

    python examples/from_keras.py

The original is ``LSTM(64)`` followed by ``Dense(10)``, run on 32 sequences of 20 steps
of 100 features.
"""

import os
import sys

import jax.numpy as jnp
import numpy as np

import lstm_jax as lj

os.environ.setdefault("KERAS_BACKEND", "jax")
try:
    import keras
except ImportError:
    sys.exit('This example runs the original too: pip install "lstm_jax[peers]"')


def classify(model, params, kernel, bias, xs):
    """``return_sequences=False`` is the last state's h."""
    state, _ = model.apply(params, xs)
    return state[-1].forward.h @ kernel + bias


def main() -> None:
    keras.utils.set_random_seed(0)
    original = keras.Sequential(
        [
            keras.layers.Input((None, 100)),
            keras.layers.LSTM(units=64, return_sequences=False),
            keras.layers.Dense(10),
        ]
    )
    xs = np.random.default_rng(0).standard_normal((32, 20, 100), np.float32)
    expected = np.asarray(original(xs))

    layer, dense = original.layers
    model, params = lj.convert.from_keras(layer.get_weights())
    kernel, bias = map(jnp.asarray, dense.get_weights())
    actual = classify(model, params, kernel, bias, jnp.asarray(xs))

    difference = np.abs(actual - expected).max()
    print(f"Keras {expected.shape}, lstm_jax {actual.shape}")
    print(f"largest difference {difference:.1e}")
    if difference > 1e-5:
        sys.exit("They differ by more than 1e-5.")


if __name__ == "__main__":
    main()
