"""The layers of a Keras model by its configuration, which is JSON.

Nothing that a configuration names is imported or run: classes and functions are
compared with the names of those that are known, and refused otherwise.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

# Models inside each other.
_DEPTH = 30
_LSTM = ("LSTM", "CuDNNLSTM")
_KERAS = ("keras", "tf_keras", "tensorflow", "builtins")


class Half(NamedTuple):
    """One direction of a layer."""

    name: str
    activation: Any
    recurrent_activation: Any
    go_backwards: bool
    use_bias: bool
    cudnn: bool


class Spec(NamedTuple):
    """A layer of a model, or what stands in place of one.

    Attributes:
        places: for the models it is in and for itself the name, the class and how many
            that are stored as the same class come before it in its model. Weights are
            stored under the last two in ``.keras``, under the outermost name in
            ``.h5``.
        wrapped: groups that wrappers add.
        halves: of an LSTM one, of a ``Bidirectional`` two; none of all other layers.
        merge_mode: of two halves.
        refusal: why it has no halves.
    """

    places: tuple[tuple[str, str, int], ...]
    wrapped: tuple[str, ...] = ()
    halves: tuple[Half, ...] = ()
    merge_mode: Any = None
    refusal: str = ""

    @property
    def name(self) -> str:
        """All names, with "/" between."""
        return "/".join(name for name, _, _ in self.places)


class Unknown(Exception):
    """A configuration says something that is not known, in words."""


def parse(text: str) -> list[Spec]:
    """All layers, those of models inside models too.

    Raises:
        ValueError: if it is no configuration of a model.
    """
    try:
        return _of_model(json.loads(text), ())
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"its configuration can't be read: {type(error).__name__}: {error}"
        ) from error


def version_in(metadata: str) -> str:
    """The version of Keras in a ``metadata.json``.

    Raises:
        ValueError: if it is none.
    """
    try:
        return checked_version(json.loads(metadata)["keras_version"])
    except (KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"its metadata.json can't be read: {error!r}") from error


def checked_version(told: Any) -> str:
    """A version of Keras.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(told, str) or not re.match(r"[0-9]{1,3}(\.|$)", told):
        raise ValueError(f"keras_version: expected such as '3.6.0', got {told!r:.60}.")
    return told


def _of_model(model: Any, places: tuple[tuple[str, str, int], ...]) -> list[Spec]:
    if len(places) > _DEPTH:
        raise ValueError(f"more than {_DEPTH} models are inside each other")
    specs, counts = [], {}
    for layer in _layers(model):
        kind, config = layer["class_name"], layer["config"]
        # Keras 1 and 2.0 give a Sequential's list of layers, and no name.
        name = config.get("name") if isinstance(config, dict) else None
        name = name or layer.get("name") or kind.lower()
        if not isinstance(name, str) or not isinstance(kind, str):
            raise ValueError("a layer's name or class is no text")
        # Groups are counted by their names, which classes of other names may share.
        group = stem(kind)
        count = counts[group] = counts.get(group, -1) + 1
        here = (*places, (name, kind, count))
        if _layers(layer) and _is_known(layer, kind):
            specs += _of_model(layer, here)
        else:
            specs.append(_spec(layer, Spec(here)))
    return specs


def _layers(model: Any) -> list[Any]:
    config = model["config"]
    layers = config.get("layers") if isinstance(config, dict) else config
    if isinstance(layers, list) and all(isinstance(one, dict) for one in layers):
        return layers
    return []


def _is_known(layer: Any, kind: str) -> bool:
    """Whether a class is Keras's own."""
    module, registered = layer.get("module"), layer.get("registered_name")
    own = module is None or str(module).split(".")[0] in _KERAS
    return own and registered in (None, kind)


def _spec(layer: Any, spec: Spec) -> Spec:
    """What a layer is, if it is an LSTM or wraps one."""
    try:
        return _unwrapped(layer, spec)
    except Unknown as error:
        return spec._replace(refusal=str(error))


def _unwrapped(layer: Any, spec: Spec) -> Spec:
    kind, config = layer["class_name"], layer["config"]
    if not _is_known(layer, kind):
        raise Unknown(f"is a {kind}, which is not Keras's own")
    if kind == "TimeDistributed":
        return _unwrapped(
            config["layer"], spec._replace(wrapped=(*spec.wrapped, "layer"))
        )
    if kind != "Bidirectional":
        return spec._replace(halves=(_half(layer),))
    forward = _half(config["layer"])
    if "backward_layer" in config:
        backward = _half(config["backward_layer"])
    else:
        # The name is of the layer before it was wrapped, or of its forward copy.
        plain = forward.name.removeprefix("forward_")
        flipped = not forward.go_backwards
        backward = forward._replace(name=f"backward_{plain}", go_backwards=flipped)
        forward = forward._replace(name=f"forward_{plain}")
    if forward.go_backwards or not backward.go_backwards:
        raise Unknown("has a forward layer that goes backwards")
    for field in ("activation", "recurrent_activation", "use_bias"):
        ones = getattr(forward, field), getattr(backward, field)
        if ones[0] != ones[1]:
            raise Unknown(f"has two directions whose {field} differ: {ones}")
    return spec._replace(
        halves=(forward, backward), merge_mode=config.get("merge_mode", "concat")
    )


def _half(layer: Any) -> Half:
    """An ``LSTM``, a ``CuDNNLSTM``, or an ``RNN`` with an ``LSTMCell``."""
    kind, config = layer["class_name"], layer["config"]
    if not _is_known(layer, kind):
        raise Unknown(f"is a {kind}, which is not Keras's own")
    cell = config
    if kind == "RNN":
        cell = config["cell"]["config"]
        kind = config["cell"]["class_name"]
        if kind != "LSTMCell" or not _is_known(config["cell"], kind):
            raise Unknown(f"is an RNN of {kind}, not of one LSTMCell")
    elif kind not in _LSTM:
        raise Unknown(f"is a {kind}, no LSTM")
    if kind == "CuDNNLSTM":
        functions = ("tanh", "sigmoid")
    else:
        # Keras 1 calls the second inner_activation.
        gates = "recurrent_activation"
        gates = gates if gates in cell else "inner_activation"
        functions = (_function(cell["activation"]), _function(cell[gates]))
    return Half(
        config["name"],
        *functions,
        bool(config.get("go_backwards", False)),
        bool(cell.get("use_bias", True)),
        kind == "CuDNNLSTM",
    )


def _function(value: Any) -> Any:
    """The name of an activation; of what has no name its description."""
    if value is None:
        return "linear"
    if isinstance(value, dict):
        named = value.get("class_name") == "function" and _is_known(value, "function")
        return value["config"] if named else value
    return value


def stem(kind: str) -> str:
    """The name of the group that a class is stored in: CuDNNLSTM is cu_dnnlstm.

    Example:
        >>> from lstm_jax.convert.files.configs import stem
        >>> stem("LSTM"), stem("CuDNNLSTM"), stem("TimeDistributed")
        ('lstm', 'cu_dnnlstm', 'time_distributed')
    """
    return re.sub(r"(?<=.)(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", kind).lower()
