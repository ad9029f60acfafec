"""Files of weights for PyTorch."""

from __future__ import annotations

import os

from lstm_jax.convert.files import safetensors
from lstm_jax.convert.torch import to_torch
from lstm_jax.layers import LSTM, Params


def save_torch(
    path: str | os.PathLike[str], model: LSTM, params: Params, *, prefix: str = ""
) -> None:
    """Writes the weights as a safetensors file that PyTorch loads.

    There ``module.load_state_dict(safetensors.torch.load_file(path))`` takes them, with
    their dtype, bfloat16 too. :func:`from_torch` reads the file, and those that PyTorch
    has written.

    Args:
        path: the file; one that is there is replaced at once.
        model: a stack that PyTorch has too, as for :func:`to_torch`.
        params: its parameters.
        prefix: what the names begin with, such as ``"lstm."`` where the LSTM is the
            attribute ``lstm`` of a larger module.

    Raises:
        ValueError: as :func:`to_torch` does.
        TypeError: if ``model`` is no stack.
        OSError: if the file can't be written.
        ImportError: if safetensors is not installed.

    Example:
        >>> import pathlib, tempfile, jax, lstm_jax as lj
        >>> from safetensors.numpy import load_file
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "lstm.safetensors"
        >>> model = lj.LSTM(3, 5)
        >>> lj.convert.save_torch(path, model, model.init(jax.random.key(0)))
        >>> load_file(path)["weight_ih_l0"].shape
        (20, 3)
    """
    weights = to_torch(model, params)
    arrays = {f"{prefix}{name}": value for name, value in weights.items()}
    safetensors.write(path, arrays, format="pt")
