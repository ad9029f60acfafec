"""What is public: which names, that each is documented, and what loads when."""

import importlib
import inspect
import json
import pathlib
import pydoc
import re
import subprocess
import sys

import pytest

from lstm_jax.serving import ServingError

PACKAGE = pathlib.Path(__file__).parents[1] / "lstm_jax"
PUBLIC = {
    "lstm_jax": """
        LSTM Cell ConvLSTMCell Directions GateState LSTMCell LSTMParams LSTMState
        MinLSTMCell MinLSTMParams MinLSTMState ParallelReport QuantizedLSTMCell
        QuantizedParams Regularized SLSTMCell SLSTMState Stack activations convert
        embedding_dropout export from_config implementation implementations
        initializers lstm parallel_scan quantize resolve_implementation scan
        scan_states sharding stream
    """,
    "lstm_jax.activations": "affine gelu hard_sigmoid scaled_tanh thresholded_relu",
    "lstm_jax.convert": """
        from_cudnn from_equinox from_haiku from_keras from_linen from_nnx from_onnx
        from_tf1 from_torch from_xlstm load_keras save_torch state_from_cudnn
        state_from_equinox state_from_haiku state_from_keras state_from_linen
        state_from_nnx state_from_tf1 state_from_torch state_from_xlstm state_to_cudnn
        state_to_equinox state_to_haiku state_to_keras state_to_linen state_to_nnx
        state_to_tf1 state_to_torch state_to_xlstm to_cudnn to_equinox to_haiku to_keras
        to_linen to_nnx to_onnx to_tf1 to_torch to_xlstm
    """,
    "lstm_jax.data": """
        Batches Packed Scaler Vocabulary bucket_batches from_grain pack_documents
        pad_sequences prefetch shuffled_batches sliding_windows stream_batches
    """,
    "lstm_jax.decoding": """
        Generated Hypotheses Transcripts beam_search ctc_beam_search ctc_greedy generate
        sample
    """,
    "lstm_jax.distributed": "Joined global_batch initialize_from_env share",
    "lstm_jax.exporting": "Exported export load read_model",
    "lstm_jax.initializers": "chrono chrono_bias glorot_uniform orthogonal",
    "lstm_jax.linen": "LSTM Stack params_of variables_of",
    "lstm_jax.nnx": "LSTM Parameters Stack",
    "lstm_jax.serving": """
        BadRequest Gone Limits Metrics OutOfOrder Overloaded Result Server
        ServingError StepFailed StreamState Unavailable UnknownStream
    """,
    "lstm_jax.sharding": "Layout use",
    "lstm_jax.training": """
        Checkpoints Cursor Diverged Plateau Result TrainState Weighted absolute_error
        accuracy activation_penalty binary_cross_entropy bits create cross_entropy
        ctc_alignable ctc_loss evaluate fit huber_error l1_penalty l2_penalty
        linear_cross_entropy load_weights
        make_train_step perplexity predict reset_rows save_weights span_f1 squared_error
        temporal_activation_penalty truncated_value_and_grad
    """,
}
NAMES = [(module, name) for module, names in PUBLIC.items() for name in names.split()]
LAZY = ("data", "decoding", "distributed", "linen", "nnx", "serving", "training")


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_these(module):
    names = importlib.import_module(module).__all__
    assert sorted(names) == sorted(PUBLIC[module].split())


@pytest.mark.parametrize("module, name", NAMES)
def test_a_public_name_has_a_docstring_with_an_example(module, name):
    value = getattr(importlib.import_module(module), name)
    text = value.__doc__ or ""
    assert text.strip()
    is_error = inspect.isclass(value) and issubclass(value, ServingError)
    if not inspect.ismodule(value) and not is_error:
        assert "Example:" in text and ">>> " in text


@pytest.mark.parametrize("module, name", NAMES)
def test_public_methods_have_docstrings(module, name):
    value = getattr(importlib.import_module(module), name)
    if not inspect.isclass(value):
        return
    for owner in value.__mro__:
        if not owner.__module__.startswith("lstm_jax"):
            continue
        for method, function in vars(owner).items():
            if not method.startswith("_") and inspect.isfunction(function):
                assert inspect.getdoc(function), f"{owner.__name__}.{method}"


@pytest.mark.parametrize(
    "name", ["LSTM", "LSTMCell", "SLSTMCell", "ConvLSTMCell", "MinLSTMCell"]
)
def test_help_shows_no_help_of_jax(name):
    value = getattr(importlib.import_module("lstm_jax"), name)
    text = pydoc.render_doc(value, renderer=pydoc.plaintext)
    assert "trigonometric" not in text and not re.search(r"_init = \w+\(", text)


def test_help_on_a_stack_comes_to_apply_on_its_first_screen():
    value = importlib.import_module("lstm_jax").LSTM
    lines = pydoc.render_doc(value, renderer=pydoc.plaintext).splitlines()
    # From Python 3.13 on the signature, which comes first, has a line for each option.
    options = len(inspect.signature(value).parameters)
    screen = 24 + (options if sys.version_info >= (3, 13) else 0)
    assert any("model.apply(params, xs" in line for line in lines[:screen])


def test_every_public_module_has_a_page():
    pages = (PACKAGE.parent / "docs" / "api").glob("*.md")
    assert {page.stem for page in pages} == set(PUBLIC)


def test_no_module_bears_the_name_of_a_public_function():
    modules = {path.stem for path in PACKAGE.rglob("*.py")}
    modules |= {path.parent.name for path in PACKAGE.rglob("__init__.py")}
    functions = {
        name
        for module, name in NAMES
        if inspect.isroutine(getattr(importlib.import_module(module), name))
    }
    assert functions and not modules & functions


def loaded_after(program):
    """Which of some modules a new process has loaded after a program."""
    watched = ["flax", "optax", "safetensors", *(f"lstm_jax.{name}" for name in LAZY)]
    program = (
        f"import json, sys\n{program}\n"
        f"print(json.dumps([name for name in {watched} if name in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_package_loads_neither_flax_nor_optax():
    assert loaded_after("import lstm_jax") == []


def test_modules_load_when_they_are_named():
    program = "import lstm_jax as lj\nassert {!r} in dir(lj)\nlj.{}"
    assert "lstm_jax.data" in loaded_after(program.format("data", "data"))
    loaded = loaded_after(program.format("training", "training.cross_entropy"))
    assert {"optax", "lstm_jax.training"} <= set(loaded)
    loaded = loaded_after(program.format("nnx", "nnx.LSTM, lj.linen.LSTM"))
    assert {"flax", "lstm_jax.nnx", "lstm_jax.linen"} <= set(loaded)


def test_an_unknown_name_is_an_attribute_error():
    import lstm_jax

    with pytest.raises(AttributeError, match="'lstm_jax' has no attribute 'gru'"):
        lstm_jax.gru  # noqa: B018
