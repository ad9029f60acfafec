"""Names that come from other libraries' habits, and the word that helps."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

_APPLY = (
    "A model is a description without weights: params = model.init(key), then "
    "state, ys = model.apply(params, xs)."
)
_START = "model.zero_state(batch_shape) is where sequences start; None does too."
_OTHER_LAYERS = (
    "LSTMs are all that is here. Of other layers a few lines of jax.numpy do (ys @ "
    "kernel, table[ids]), or Flax's beside lstm_jax.nnx.LSTM and lstm_jax.linen.LSTM."
)
_CONVERT = "Weights go from and to other libraries by lstm_jax.convert."
_FILES = (
    "Of parameters that is lstm_jax.training.save_weights and load_weights, of the "
    "description model.to_config and lstm_jax.from_config; lstm_jax.export writes both "
    "as one file that runs."
)
_FIT = "lstm_jax.training.fit is a whole run, make_train_step one step."

# What stands here for names that there are none of, by who is asked for them.
_WORDS: dict[str, dict[tuple[str, ...], str]] = {
    "model": {
        ("forward", "call"): _APPLY,
        ("parameters", "weights", "get_weights", "set_weights", "params"): _APPLY,
        ("state_dict", "load_state_dict"): f"{_APPLY} {_CONVERT}",
        ("fit", "train", "compile"): _FIT,
        ("eval",): "Noise is on only where apply is given a key.",
        ("predict", "evaluate"): "It is a function of lstm_jax.training.",
        ("save", "load", "save_weights", "load_weights"): _FILES,
        ("summary", "num_params", "n_params"): "model.count_params() is a number.",
        (
            "init_state",
            "init_hidden",
            "init_carry",
            "initialize_carry",
            "get_initial_state",
            "reset_states",
            "reset_state",
        ): _START,
        ("last_output", "last_hidden"): "model.last(state) is the last output.",
    },
    "lstm_jax": {
        ("GRU", "GRUCell", "RNN", "SimpleRNN", "RNNCell"): (
            "LSTMs are all that is here; a cell of your own derives from lstm_jax.Cell "
            "and runs under lstm_jax.scan and in a lstm_jax.Stack."
        ),
        ("Linear", "Dense", "Embedding", "Embed", "Dropout"): _OTHER_LAYERS,
        ("Bidirectional",): "lstm_jax.LSTM(..., bidirectional=True) runs both ways.",
        ("save", "load", "save_model", "load_model"): _FILES,
        ("fit", "train", "Trainer"): _FIT,
        ("from_torch", "from_pytorch", "from_keras", "to_onnx", "onnx"): _CONVERT,
        ("pack_padded_sequence", "pad_packed_sequence"): (
            "Nothing is packed: lengths=, given to the call, in any order."
        ),
        ("dynamic_rnn", "static_rnn", "dynamic_unroll"): (
            "lstm_jax.scan runs a cell over time."
        ),
        ("ctc_loss", "cross_entropy"): "It is a function of lstm_jax.training.",
        ("generate", "beam_search"): "It is a function of lstm_jax.decoding.",
    },
    "lstm_jax.training": {
        ("mse", "mse_loss", "MSELoss", "mean_squared_error", "l2_loss"): (
            "squared_error is its name."
        ),
        ("mae", "l1_loss", "L1Loss", "mean_absolute_error"): (
            "absolute_error is its name."
        ),
        ("bce", "BCELoss", "BCEWithLogitsLoss", "binary_crossentropy"): (
            "binary_cross_entropy is its name, and it takes logits."
        ),
        (
            "CrossEntropyLoss",
            "NLLLoss",
            "cross_entropy_loss",
            "softmax_cross_entropy",
            "softmax_cross_entropy_with_integer_labels",
            "sparse_categorical_crossentropy",
        ): "cross_entropy is its name: of logits and integer targets.",
        ("ctc", "CTCLoss"): "ctc_loss is its name.",
        ("f1", "f1_score"): "span_f1 is of labelled spans; accuracy is of tokens.",
        ("Trainer", "train", "train_step"): _FIT,
        ("EarlyStopping",): "patience=, given to fit, stops early.",
        ("ModelCheckpoint",): "out= and save_every=, given to fit, save.",
        ("ReduceLROnPlateau",): "fit takes plateau=Plateau(...).",
        ("save", "load", "save_checkpoint", "restore"): (
            "save_weights and load_weights are of parameters, Checkpoints of a "
            "TrainState; fit keeps its own in out=."
        ),
        ("clip_grad_norm", "clip_grad_norm_"): (
            "clip_norm= is an option of fit and of make_train_step."
        ),
    },
    "lstm_jax.data": {
        ("DataLoader", "Dataset", "TensorDataset"): (
            "shuffled_batches cuts arrays, bucket_batches sequences of different "
            "lengths, stream_batches one long text, pack_documents many short ones."
        ),
        ("pad", "pad_sequence", "pad_batch"): "pad_sequences is its name.",
        ("Tokenizer", "Vocab", "CharVocabulary"): "Vocabulary is its name.",
        ("StandardScaler", "normalize", "standardize"): "Scaler is its name.",
        ("sliding_window", "make_windows"): "sliding_windows is its name.",
    },
    "lstm_jax.distributed": {
        ("initialize", "init", "init_process_group", "setup"): (
            "initialize_from_env is its name: who started the process, it reads."
        ),
    },
    "lstm_jax.decoding": {
        ("greedy", "greedy_search", "greedy_decode"): (
            "generate(..., temperature=0.0) takes the likeliest token; of frames "
            "ctc_greedy."
        ),
        ("ctc_beam", "ctc_prefix_beam_search", "prefix_beam_search"): (
            "ctc_beam_search is its name; its hypotheses are prefixes."
        ),
        ("sample_tokens", "top_k", "top_p", "nucleus"): (
            "generate and sample take temperature=, top_k= and top_p=."
        ),
    },
    "lstm_jax.convert": {
        ("from_pytorch", "load_torch", "load_pytorch", "from_state_dict"): (
            "from_torch is its name, and it takes a state dict or a safetensors file."
        ),
        ("to_pytorch", "to_state_dict"): "to_torch is its name.",
    },
}
_WORD = {
    owner: {name: words for names, words in table.items() for name in names}
    for owner, table in _WORDS.items()
}


def missing(module: str, name: str) -> AttributeError:
    """The error of a name that a module does not have, with the word that helps.

    Example:
        >>> from lstm_jax import training
        >>> training.mse
        Traceback (most recent call last):
        AttributeError: module 'lstm_jax.training' has no attribute 'mse'. squared_...
    """
    message = f"module {module!r} has no attribute {name!r}"
    if name in _WORD[module]:
        message += f". {_WORD[module][name]}"
    # With both, Python looks for names that are alike.
    return AttributeError(message, name=name, obj=sys.modules[module])


def explain(module: str) -> None:
    """Makes a module say what is meant by names that it does not have.

    Type checkers do not see it: to them, such a name is an error as before.
    """

    def words(name: str) -> Any:
        raise missing(module, name)

    vars(sys.modules[module])["__getattr__"] = words


class Guessed:
    """What makes a model say what is meant by names that it does not have."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raises the error; of a property that failed, its own."""
            if name in _WORD["model"]:
                words = f"{type(self).__name__} has no {name}. {_WORD['model'][name]}"
                raise AttributeError(words, name=name, obj=self)
            return object.__getattribute__(self, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Raises a TypeError that says how a model is run."""
            raise TypeError(
                f"{type(self).__name__}: it can't be called. {_APPLY} One step is "
                "state, y = model.step(params, state, x)."
            )
