"""How fast lstm_jax is beside the LSTMs that are installed."""
