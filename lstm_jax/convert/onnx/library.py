"""The ``onnx`` package, which need not be installed."""

from __future__ import annotations

from typing import Any


def load(caller: str) -> Any:
    """Returns the package ``onnx``.

    Raises:
        ImportError: if it is not installed; the error says what to install.
    """
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError(
            f'{caller} needs onnx: pip install "lstm_jax[onnx]"'
        ) from error
    return onnx
