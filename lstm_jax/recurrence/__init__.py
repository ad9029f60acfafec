"""The hot loop: one contract, one file an implementation.

Every implementation has the signature of :func:`lstm_jax.recurrence.xla.run`, which is
the reference.
"""
