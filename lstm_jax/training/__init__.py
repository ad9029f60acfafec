"""Training: truncated backpropagation through time, losses, penalties, weights."""

from lstm_jax.checks import names as _names
from lstm_jax.training.disk.checkpoints import Checkpoints as Checkpoints
from lstm_jax.training.disk.weights import load_weights as load_weights
from lstm_jax.training.disk.weights import save_weights as save_weights
from lstm_jax.training.losses.ctc import ctc_alignable as ctc_alignable
from lstm_jax.training.losses.ctc import ctc_loss as ctc_loss
from lstm_jax.training.losses.elementwise import absolute_error as absolute_error
from lstm_jax.training.losses.elementwise import (
    binary_cross_entropy as binary_cross_entropy,
)
from lstm_jax.training.losses.elementwise import huber_error as huber_error
from lstm_jax.training.losses.elementwise import squared_error as squared_error
from lstm_jax.training.losses.linear import linear_cross_entropy as linear_cross_entropy
from lstm_jax.training.losses.metrics import accuracy as accuracy
from lstm_jax.training.losses.metrics import bits as bits
from lstm_jax.training.losses.metrics import perplexity as perplexity
from lstm_jax.training.losses.penalties import activation_penalty as activation_penalty
from lstm_jax.training.losses.penalties import l1_penalty as l1_penalty
from lstm_jax.training.losses.penalties import l2_penalty as l2_penalty
from lstm_jax.training.losses.penalties import (
    temporal_activation_penalty as temporal_activation_penalty,
)
from lstm_jax.training.losses.spans import span_f1 as span_f1
from lstm_jax.training.losses.tokens import cross_entropy as cross_entropy
from lstm_jax.training.losses.weighted import Weighted as Weighted
from lstm_jax.training.runs.evaluation import evaluate as evaluate
from lstm_jax.training.runs.evaluation import predict as predict
from lstm_jax.training.runs.loop import Result as Result
from lstm_jax.training.runs.loop import fit as fit
from lstm_jax.training.runs.monitor import Plateau as Plateau
from lstm_jax.training.runs.run import Diverged as Diverged
from lstm_jax.training.steps.state import Cursor as Cursor
from lstm_jax.training.steps.state import TrainState as TrainState
from lstm_jax.training.steps.state import create as create
from lstm_jax.training.steps.state import reset_rows as reset_rows
from lstm_jax.training.steps.step import make_train_step as make_train_step
from lstm_jax.training.steps.truncated import (
    truncated_value_and_grad as truncated_value_and_grad,
)

__all__ = (
    "Checkpoints",
    "Cursor",
    "Diverged",
    "Plateau",
    "Result",
    "TrainState",
    "Weighted",
    "absolute_error",
    "accuracy",
    "activation_penalty",
    "binary_cross_entropy",
    "bits",
    "create",
    "cross_entropy",
    "ctc_alignable",
    "ctc_loss",
    "evaluate",
    "fit",
    "huber_error",
    "l1_penalty",
    "l2_penalty",
    "linear_cross_entropy",
    "load_weights",
    "make_train_step",
    "perplexity",
    "predict",
    "reset_rows",
    "save_weights",
    "span_f1",
    "squared_error",
    "temporal_activation_penalty",
    "truncated_value_and_grad",
)

_names.explain(__name__)
