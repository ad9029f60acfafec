"""Arguments that come from other libraries' habits, and the word that helps."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lstm_jax.types import Directions

F = TypeVar("F", bound=Callable[..., Any])

_ACTIVATIONS = (
    "candidate_activation is that of g and output_activation that of c on its way out, "
    "for which Keras has one activation; gate_activation is that of the gates."
)
_NOISE = (
    "Noise is on where a call says so: the Flax modules take deterministic=False, "
    "lstm_jax.LSTM.apply takes key=."
)
_BACKWARDS = (
    "bidirectional=True runs both ways; reverse, of lstm_jax.LSTM, lstm_jax.Stack and "
    "lstm_jax.scan, runs layers backwards."
)

# What stands here for arguments that there are none of.
_WORDS = {
    ("batch_first",): (
        "Batch is first already, xs is [*batch, T, I]; time_major=True, given to the "
        "call, takes [T, *batch, I]."
    ),
    ("return_sequences", "return_state", "return_carry"): (
        "A call always returns both: state, ys = ..., with the outputs of all steps."
    ),
    (
        "units",
        "num_units",
        "features",
        "hidden_features",
        "hidden_dim",
        "output_size",
    ): ("hidden_size is the number of units, and comes after input_size."),
    ("num_features", "in_features", "input_dim", "input_shape"): (
        "input_size is the number of features of one input, and comes first."
    ),
    ("activation", "activation_fn"): _ACTIVATIONS,
    ("recurrent_activation", "gate_fn"): f"gate_activation is its name. {_ACTIVATIONS}",
    ("go_backwards", "reverse"): _BACKWARDS,
    ("stateful",): "Hand the state that a call returns to the next call.",
    ("hx", "h0", "initial_state", "initial_carry", "carry"): (
        "The state to start from is state, given to the call."
    ),
    ("seq_lengths", "sequence_length", "sequence_lengths"): (
        "lengths, given to the call, is its name."
    ),
    ("state", "lengths", "mask", "reset", "time_major", "checkpoint_every"): (
        "It is given to the call."
    ),
    ("training", "train", "deterministic"): _NOISE,
    ("dropout",): (
        "Between layers it is an option of a stack of several: lstm_jax.LSTM(..., "
        "num_layers=2, dropout=0.5). Keras's dropout, of the inputs, is input_dropout "
        "of lstm_jax.LSTM or lstm_jax.Regularized."
    ),
    ("input_dropout", "recurrent_dropout", "zoneout_h", "zoneout_c"): (
        "It is an option of lstm_jax.LSTM and of lstm_jax.Regularized."
    ),
    ("key", "rng", "rngs", "seed"): (
        "Parameters are made by init(key), and those of lstm_jax.nnx with rngs=. "
        f"{_NOISE}"
    ),
    ("bias",): "use_bias says whether there is one.",
    ("unit_forget_bias",): "forget_bias is 1.0 by default; 0.0 is for none.",
    ("kernel_initializer",): "kernel_init is its name, and it is a function.",
    ("recurrent_initializer", "recurrent_kernel_init"): (
        "recurrent_init is its name, and it is a function."
    ),
    ("bias_initializer",): "bias_init is its name, and it is a function.",
    (
        "kernel_regularizer",
        "recurrent_regularizer",
        "bias_regularizer",
        "activity_regularizer",
    ): "Penalties are added to the loss: see lstm_jax.training.",
    ("merge_mode",): "merge is its name.",
    ("ignore_index",): "A mask says what counts: mask=targets != -100.",
    ("reduction", "label_smoothing"): (
        "The loss is a mean over valid tokens; see optax.losses for others."
    ),
    ("zero_output_for_mask",): "Outputs of steps that are not valid are always 0.",
    ("unroll", "use_cudnn"): (
        "implementation, given to the call, says how steps are run."
    ),
    ("device",): "Arrays are where JAX puts them: see jax.default_device.",
    ("time", "time_axis", "seq", "sequence", "sequence_axis", "context"): (
        "Time is never over devices: a step needs the one before it."
    ),
    ("tensor", "tp", "model_axis", "hidden"): "model is its name.",
    ("batch", "dp", "data_axis", "batch_axis"): "data is its name.",
    ("early_stopping",): "patience says after how many evaluations without a gain.",
    ("callbacks", "callback"): "hooks is its name: functions hook(state, row).",
    ("validation_data", "valid_data", "val_data", "val", "eval_data"): (
        "valid, the held-out batches, is its name."
    ),
    ("optimizer", "opt", "learning_rate", "lr"): (
        "tx is an Optax transformation, such as optax.adam(1e-3), and says how fast."
    ),
    ("batch_size",): (
        "Any batch is taken as it comes: lstm_jax.data.shuffled_batches cuts examples."
    ),
    ("verbose", "progress_bar", "progress"): (
        "show says whether rows are written to the terminal."
    ),
    ("max_norm", "grad_clip", "clip_grad", "gradient_clip_val", "gradient_clip"): (
        "clip_norm is its name."
    ),
    ("checkpoint_dir", "ckpt_dir", "save_dir", "output_dir", "logdir", "workdir"): (
        "out, the folder of the run, is its name."
    ),
    ("precision", "mixed_precision", "amp"): (
        "compute_dtype=jnp.bfloat16 computes in half precision."
    ),
    (
        "grad_accum",
        "gradient_accumulation",
        "gradient_accumulation_steps",
        "accumulate_grad_batches",
    ): "accumulate is its name: into how many parts a batch is cut.",
    ("ema",): "ema_decay keeps a moving average.",
    ("shuffle",): "Batches shuffle by themselves: lstm_jax.data.shuffled_batches.",
    ("maxlen", "max_len", "max_length"): "length is its name, and cuts nothing off.",
    ("padding", "truncating", "padding_value", "value"): (
        "Zeros stand on the right, and lengths say where they begin."
    ),
}
_WORD = {name: words for names, words in _WORDS.items() for name in names}

# What an argument that is needed stands for.
_NEEDED = {
    "input_size": "input_size is the number of features of one input.",
    "hidden_size": (
        "The size of the inputs comes first: LSTM(input_size, hidden_size). It is not "
        "found out at the first call, as in Keras."
    ),
    "rngs": "rngs goes by name and makes the parameters: rngs=nnx.Rngs(0).",
    "c": "PyTorch's pair goes in as two: state_from_torch(model, *state).",
    "x": "The state comes before it, and None is where a sequence starts.",
    "horizon": "It is how many steps are to be forecast, such as 1.",
}
# What may be meant by more arguments than a function takes.
_ALONE = {
    "init": "Sizes are options, so that it needs no inputs: init(key).",
    "export": (
        "It returns the bytes of a file: pathlib.Path('model.zip').write_bytes(...)."
    ),
}


def explained(function: F) -> F:
    """Makes a function say what is meant by arguments that it does not take.

    A class comes back itself, its ``__init__`` wrapped: what ``dataclasses``,
    ``inspect``, ``pickle`` and ``copy`` see of it stays the same.

    Args:
        function: a function, or a class that is made already, as by
            ``dataclasses.dataclass``. It takes what its signature shows, and no others
            by ``**``: give it a ``__signature__`` if it does.

    Raises:
        TypeError: by the function it returns, if a name is unknown, an argument is
            missing, or there are too many without a name.

    Example:
        >>> from lstm_jax.checks import slips
        >>> @slips.explained
        ... def call(xs, *, time_major=False): ...
        >>> call(1, batch_first=True)
        Traceback (most recent call last):
        TypeError: batch_first: call takes no such argument. Batch is first already, ...
    """
    if isinstance(function, type):
        owner: Any = function
        owner.__init__ = explained(owner.__init__)
        return owner
    parameters = inspect.signature(function).parameters
    needed = {name for name, p in parameters.items() if p.default is p.empty}
    places = [
        name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {*places[: len(args)], *kwargs}
        if not needed <= given <= parameters.keys():
            called = _name(function, places, args)
            raise TypeError(_words(called, list(parameters), needed, given))
        if len(args) > len(places):
            names = ", ".join(name for name in places if name != "self")
            raise TypeError(
                f"{_name(function, places, args)}: expected no arguments without a "
                f"name but {names}, got {len(args) - len(places)} more. "
                f"{_ALONE.get(function.__name__, '')}".rstrip()
            )
        return function(*args, **kwargs)

    return wrapper  # pyright: ignore[reportReturnType]


def _words(called: str, names: list[str], needed: set[str], given: set[str]) -> str:
    """What is wrong with the names of the arguments that were given."""
    names = [name for name in names if name != "self"]
    unknown = sorted(given.difference(names, ("self",)))
    if unknown:
        return " ".join(
            f"{name}: {called} takes no such argument. {hint(name, names)}"
            for name in unknown
        )
    missing = [name for name in names if name in needed - given]
    hints = " ".join(_NEEDED[name] for name in missing if name in _NEEDED)
    return f"{', '.join(missing)}: expected by {called}. {hints}".rstrip()


def hint(name: str, names: Sequence[str]) -> str:
    """What may be meant by an unknown name."""
    if name in _WORD:
        return _WORD[name]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"Is {near[0]} meant?" if near else f"It takes {', '.join(names)}."


def _name(function: Any, places: list[str], args: tuple) -> str:
    """What was called: of a method, as its owner's, whose class may be a subclass."""
    name = function.__qualname__
    if args and places[:1] == ["self"]:
        name = f"{type(args[0]).__name__}.{function.__name__}"
    return name.removesuffix(".__init__").lstrip("_")


def check_model(model: Any) -> None:
    """Checks that what a module is made from is a stack.

    Raises:
        TypeError: if it is not.
    """
    if not hasattr(model, "cells"):
        hint = (
            "Of one cell: lstm_jax.Stack((cell,))." if hasattr(model, "recur") else ""
        )
        raise TypeError(
            "model: expected an lstm_jax.Stack or an lstm_jax.LSTM, got "
            f"{type(model).__name__}. {hint}".rstrip()
        )


def check_inputs(xs: Any) -> None:
    """Checks that inputs are not what a call returns: a state, or with its outputs.

    Raises:
        TypeError: if they are.
    """
    if not isinstance(xs, tuple):
        return
    expected = "xs: expected an array, got"
    if xs and all(isinstance(layer, Directions) for layer in xs):
        raise TypeError(
            f"{expected} a state, a tuple of Directions. A call returns (state, ys), "
            "which Flax's Sequential hands on as two arguments: put a module around "
            "the model that returns ys alone."
        )
    if len(xs) == 2 and isinstance(xs[0], tuple) and hasattr(xs[1], "shape"):
        raise TypeError(
            f"{expected} a state and outputs, what a call returns: write state, ys = "
            "model(xs) and hand on ys."
        )
