"""Models as files that run where this package is not."""

from lstm_jax.exporting.reading import Exported as Exported
from lstm_jax.exporting.reading import load as load
from lstm_jax.exporting.reading import read_model as read_model
from lstm_jax.exporting.writing import export as export

__all__ = ("Exported", "export", "load", "read_model")
