"""Sequences written by a model, a token at a time, in one program."""

from lstm_jax.checks import names as _names
from lstm_jax.decoding.beams import Hypotheses as Hypotheses
from lstm_jax.decoding.beams import beam_search as beam_search
from lstm_jax.decoding.ctc import Transcripts as Transcripts
from lstm_jax.decoding.ctc import ctc_beam_search as ctc_beam_search
from lstm_jax.decoding.ctc import ctc_greedy as ctc_greedy
from lstm_jax.decoding.generation import Generated as Generated
from lstm_jax.decoding.generation import generate as generate
from lstm_jax.decoding.sampling import sample as sample

__all__ = (
    "Generated",
    "Hypotheses",
    "Transcripts",
    "beam_search",
    "ctc_beam_search",
    "ctc_greedy",
    "generate",
    "sample",
)

_names.explain(__name__)
