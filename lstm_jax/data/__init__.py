"""Sequences as batches, in NumPy."""

from lstm_jax.checks import names as _names
from lstm_jax.data.batches import Batches as Batches
from lstm_jax.data.batches import bucket_batches as bucket_batches
from lstm_jax.data.batches import shuffled_batches as shuffled_batches
from lstm_jax.data.loading import from_grain as from_grain
from lstm_jax.data.loading import prefetch as prefetch
from lstm_jax.data.packing import Packed as Packed
from lstm_jax.data.packing import pack_documents as pack_documents
from lstm_jax.data.sequences import pad_sequences as pad_sequences
from lstm_jax.data.text import Vocabulary as Vocabulary
from lstm_jax.data.text import stream_batches as stream_batches
from lstm_jax.data.windows import Scaler as Scaler
from lstm_jax.data.windows import sliding_windows as sliding_windows

__all__ = (
    "Batches",
    "Packed",
    "Scaler",
    "Vocabulary",
    "bucket_batches",
    "from_grain",
    "pack_documents",
    "pad_sequences",
    "prefetch",
    "shuffled_batches",
    "sliding_windows",
    "stream_batches",
)

_names.explain(__name__)
