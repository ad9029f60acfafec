"""Weights and states from and to other libraries, which need not be installed."""

from lstm_jax.checks import names as _names
from lstm_jax.convert import targets as _targets
from lstm_jax.convert.cudnn import CUDNN as _CUDNN
from lstm_jax.convert.cudnn import from_cudnn as from_cudnn
from lstm_jax.convert.cudnn import state_from_cudnn as state_from_cudnn
from lstm_jax.convert.cudnn import state_to_cudnn as state_to_cudnn
from lstm_jax.convert.cudnn import to_cudnn as to_cudnn
from lstm_jax.convert.equinox import EQUINOX as _EQUINOX
from lstm_jax.convert.equinox import from_equinox as from_equinox
from lstm_jax.convert.equinox import state_from_equinox as state_from_equinox
from lstm_jax.convert.equinox import state_to_equinox as state_to_equinox
from lstm_jax.convert.equinox import to_equinox as to_equinox
from lstm_jax.convert.files.keras import load_keras as load_keras
from lstm_jax.convert.files.torch import save_torch as save_torch
from lstm_jax.convert.haiku import HAIKU as _HAIKU
from lstm_jax.convert.haiku import from_haiku as from_haiku
from lstm_jax.convert.haiku import state_from_haiku as state_from_haiku
from lstm_jax.convert.haiku import state_to_haiku as state_to_haiku
from lstm_jax.convert.haiku import to_haiku as to_haiku
from lstm_jax.convert.keras import KERAS as _KERAS
from lstm_jax.convert.keras import from_keras as from_keras
from lstm_jax.convert.keras import state_from_keras as state_from_keras
from lstm_jax.convert.keras import state_to_keras as state_to_keras
from lstm_jax.convert.keras import to_keras as to_keras
from lstm_jax.convert.linen import LINEN as _LINEN
from lstm_jax.convert.linen import from_linen as from_linen
from lstm_jax.convert.linen import state_from_linen as state_from_linen
from lstm_jax.convert.linen import state_to_linen as state_to_linen
from lstm_jax.convert.linen import to_linen as to_linen
from lstm_jax.convert.nnx import NNX as _NNX
from lstm_jax.convert.nnx import from_nnx as from_nnx
from lstm_jax.convert.nnx import state_from_nnx as state_from_nnx
from lstm_jax.convert.nnx import state_to_nnx as state_to_nnx
from lstm_jax.convert.nnx import to_nnx as to_nnx
from lstm_jax.convert.onnx import ONNX as _ONNX
from lstm_jax.convert.onnx import from_onnx as from_onnx
from lstm_jax.convert.onnx import to_onnx as to_onnx
from lstm_jax.convert.tf1 import TF1 as _TF1
from lstm_jax.convert.tf1 import from_tf1 as from_tf1
from lstm_jax.convert.tf1 import to_tf1 as to_tf1
from lstm_jax.convert.tf1_states import state_from_tf1 as state_from_tf1
from lstm_jax.convert.tf1_states import state_to_tf1 as state_to_tf1
from lstm_jax.convert.torch import PYTORCH as _PYTORCH
from lstm_jax.convert.torch import from_torch as from_torch
from lstm_jax.convert.torch import state_from_torch as state_from_torch
from lstm_jax.convert.torch import state_to_torch as state_to_torch
from lstm_jax.convert.torch import to_torch as to_torch
from lstm_jax.convert.xlstm import XLSTM as _XLSTM
from lstm_jax.convert.xlstm import from_xlstm as from_xlstm
from lstm_jax.convert.xlstm import state_from_xlstm as state_from_xlstm
from lstm_jax.convert.xlstm import state_to_xlstm as state_to_xlstm
from lstm_jax.convert.xlstm import to_xlstm as to_xlstm

# What a table of the documentation is made of.
TARGETS: tuple[_targets.Target, ...] = (
    *(_PYTORCH, _KERAS, _LINEN, _NNX, _HAIKU, _EQUINOX),
    *(_CUDNN, _TF1, _XLSTM, _ONNX),
)

__all__ = (
    "from_cudnn",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "from_tf1",
    "from_torch",
    "from_xlstm",
    "load_keras",
    "save_torch",
    "state_from_cudnn",
    "state_from_equinox",
    "state_from_haiku",
    "state_from_keras",
    "state_from_linen",
    "state_from_nnx",
    "state_from_tf1",
    "state_from_torch",
    "state_from_xlstm",
    "state_to_cudnn",
    "state_to_equinox",
    "state_to_haiku",
    "state_to_keras",
    "state_to_linen",
    "state_to_nnx",
    "state_to_tf1",
    "state_to_torch",
    "state_to_xlstm",
    "to_cudnn",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_tf1",
    "to_torch",
    "to_xlstm",
)

_names.explain(__name__)
