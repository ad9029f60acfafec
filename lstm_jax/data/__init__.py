"""Sequences as batches, in NumPy."""

from lstm_jax.data.sequences import pad_sequences as pad_sequences
from lstm_jax.data.text import Vocabulary as Vocabulary
from lstm_jax.data.text import stream_batches as stream_batches

__all__ = ("Vocabulary", "pad_sequences", "stream_batches")
