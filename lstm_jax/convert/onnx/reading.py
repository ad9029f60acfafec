"""The LSTMs of an ONNX file as models."""

from __future__ import annotations

import collections
import dataclasses
import os
import warnings
from typing import TYPE_CHECKING, Any

import jax

from lstm_jax.convert.onnx import chains, folding, library, nodes
from lstm_jax.convert.onnx.wiring import Wiring
from lstm_jax.layers import LSTM, Params
from lstm_jax.stack import Stack

if TYPE_CHECKING:
    import onnx

_RECURRENT = ("GRU", "RNN", "DynamicQuantizeLSTM")


def from_onnx(
    model: onnx.ModelProto | str | os.PathLike[str] | bytes, *, reverse: bool = False
) -> dict[str, tuple[LSTM | Stack, Params]]:
    """Takes over the LSTMs of an ONNX file, whoever wrote it.

    Nodes that feed each other, through the operators that exporters put between layers,
    become one model; so do a node that runs forward and one that runs backward, where
    their outputs are made one; one that runs backward alone is a layer in ``reverse``.
    Two biases become their sum. Nothing is run: weights behind operators that only move
    values are put together by NumPy.

    A model holds what the LSTMs compute. Everything else is an argument of its
    ``apply``: ``lengths`` (the node's ``sequence_lens``), ``time_major`` (unless the
    node's layout is 1), and a state that the graph is given or computes. An initial
    state that the file holds becomes a learned one, which has to be the same for each
    row of a batch; zeros are left out. ``clip`` is taken as onnxruntime does, with a
    warning, since the specification has it limit c too.

    Args:
        model: a file by its path, its content, or what ``onnx.load`` returned. External
            data is read only from plain files beside the one whose path is given.
        reverse: whether a model whose nodes all run backward is to run forward.
            Whoever runs it gives it inputs reversed in time (within each length), and
            reverses the outputs.

    Returns:
        For each stack, by the name of its first node (or of its first output, if the
        node has none of its own), ``(model, params)``: an :class:`LSTM`, or a
        :class:`Stack` where its layers have different options.

    Raises:
        ValueError: if there is no LSTM, a weight is no constant, a size, attribute or
            initial state is one that ONNX or this library does not know, or the file is
            damaged.
        TypeError: if ``model`` is nothing that holds a model.
        OSError: if the file can't be opened.
        ImportError: if ``onnx`` is not installed.

    Example:
        >>> import jax, lstm_jax as lj
        >>> from lstm_jax.convert.onnx import from_onnx, to_onnx
        >>> model = lj.LSTM(3, 5, num_layers=2, bidirectional=True)
        >>> file = to_onnx(model, model.init(jax.random.key(0)))
        >>> read = from_onnx(file.SerializeToString())
        >>> list(read), read["lstm_l0"][0] == model
        (['lstm_l0'], True)
    """
    library.load("from_onnx")
    return _take(*_open(model), reverse)


def _take(
    proto: Any, folder: str | None, reverse: bool
) -> dict[str, tuple[LSTM | Stack, Params]]:
    graph = proto.graph
    _check_text(graph)
    constants = folding.Constants(graph, folder)
    starts = folding.Constants(graph, folder, through_expand=True)
    layers = {
        key: nodes.read(node, name, constants, starts)
        for key, name, node in _named(proto)
    }
    taken = {}
    for chain in chains.join(Wiring(graph, layers, constants)):
        first = chain.layers[0]
        _warn_of_width(first)
        made, params = chains.build(chain)
        if reverse and made.reverse is True:
            made = dataclasses.replace(made, reverse=False)
        taken[first.names[0]] = made, params
    return taken


def _open(model: Any) -> tuple[Any, str | None]:
    """A model as a message, and the folder that it lies in."""
    import onnx
    from google.protobuf.message import DecodeError

    if isinstance(model, onnx.ModelProto):
        return model, None
    folder = None
    if isinstance(model, (str, os.PathLike)):
        folder = os.path.dirname(os.path.abspath(os.fsdecode(model)))
        with open(model, "rb") as file:
            model = file.read()
    if not isinstance(model, (bytes, bytearray, memoryview)):
        raise TypeError(
            "model: expected the path of an ONNX file, its content or an "
            f"onnx.ModelProto, got {type(model).__name__}."
        )
    try:
        return onnx.ModelProto.FromString(bytes(model)), folder
    except DecodeError as error:
        raise ValueError(
            f"model: expected an ONNX file, got {len(model)} bytes that are none: "
            f"{error}. It may be cut off."
        ) from error


def _check_text(graph: Any) -> None:
    """Checks that names are text: protobuf hands on as bytes what is none."""
    texts = []
    for node in graph.node:
        texts += [node.name, node.op_type, node.domain, *node.input, *node.output]
        texts += [attribute.name for attribute in node.attribute]
    for tensor in graph.initializer:
        texts.append(tensor.name)
        for entry in tensor.external_data:
            texts += [entry.key, entry.value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"model: expected names that are text, got {text[:20]!r}. The file may "
                "be damaged."
            )


def _named(proto: Any) -> list[tuple[str, str, Any]]:
    """The LSTM nodes of a graph, each with one of its outputs and its name."""
    found = [n for n in proto.graph.node if folding.operator(n) == "LSTM"]
    inside = [n for n in folding.elsewhere(proto) if folding.operator(n) == "LSTM"]
    if not found:
        raise ValueError(_no_lstm(proto, inside))
    if inside:
        warnings.warn(
            f"model: {len(inside)} LSTM nodes in branches or functions of the file "
            f"({', '.join(repr(node.name) for node in inside[:5])}) are not taken.",
            stacklevel=4,
        )
    names = collections.Counter(node.name for node in found)
    outputs = [next(filter(None, node.output), "") for node in found]
    used = collections.Counter(outputs)
    for node, output in zip(found, outputs, strict=True):
        if not output or used[output] > 1:
            raise ValueError(
                f"node {node.name!r} (LSTM): expected outputs that no other node has, "
                f"got {list(node.output)}."
            )
    # A name counts that no other node has, be it as the name of its output.
    taken = names + used
    own = lambda name, output: name and taken[name] - (name == output) == 1
    return [
        (output, node.name if own(node.name, output) else output, node)
        for output, node in zip(outputs, found, strict=True)
    ]


def _no_lstm(proto: Any, inside: list[Any]) -> str:
    """Says that there is no LSTM, and what there is instead."""
    if inside:
        return (
            "model: expected LSTM nodes in the graph itself, got them in its branches "
            f"or functions alone: {inside[0].name!r}. Inline those."
        )
    others = [
        f"{node.name!r} ({node.op_type})"
        for node in proto.graph.node
        if node.op_type in _RECURRENT
    ]
    if others:
        return (
            f"model: expected LSTM nodes, got none but {', '.join(others[:5])}, which "
            "are other cells."
        )
    kinds = sorted({folding.operator(node) for node in proto.graph.node})
    return (
        "model: expected LSTM nodes, got none. Its operators are: "
        f"{', '.join(kinds[:20]) or 'none'}. A loop over steps that an exporter has "
        "unrolled is no LSTM any more."
    )


def _warn_of_width(layer: nodes.Layer) -> None:
    dtype = layer.params[0].kernel.dtype
    if dtype.itemsize > jax.dtypes.canonicalize_dtype(dtype).itemsize:
        warnings.warn(
            f"{layer.where}: its {dtype} weights are rounded to float32, since 64-bit "
            "types are off. jax.enable_x64 turns them on.",
            stacklevel=4,
        )
