"""What accelerators' own compilers say of lstm_jax and its rivals, without a device."""
