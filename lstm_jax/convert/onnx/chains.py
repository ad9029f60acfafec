"""Layers of an ONNX graph that feed each other as stacks."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

import numpy as np

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.checks import border
from lstm_jax.convert.onnx.nodes import Layer
from lstm_jax.convert.onnx.wiring import Out, Parts, Wiring
from lstm_jax.layers import LSTM, Params
from lstm_jax.stack import Stack
from lstm_jax.types import Directions, LSTMParams

# Which counts where outputs are made one in several ways. A mean is made of a sum.
_MERGES = ("concat", "mean", "sum", "mul")


@dataclasses.dataclass
class Chain:
    """Layers that run one after the other.

    Attributes:
        layers: first to last.
        parts: of each the numbers of its nodes.
        merge: how directions are merged; None where that is not known.
        residual: the same of what is added; it shows from the second layer on.
        skip: whether later layers also take the inputs.
    """

    layers: list[Layer]
    parts: list[Parts]
    merge: str | None = None
    residual: bool | None = None
    skip: bool = False

    def takes(self, layer: Layer, fed: Out) -> bool:
        """Whether a layer that the last one feeds goes on with the same stack."""
        first, last = self.layers[0], self.layers[-1]
        only = len(self.layers) == 1
        return (
            self.parts[-1] == fed.parts
            and len(layer.params) == len(last.params)
            and layer.inputs.get("sequence_lens") == first.inputs.get("sequence_lens")
            and layer.options["param_dtype"] == first.options["param_dtype"]
            and fed.skip in (None, first.inputs.get("X"))
            and (only or (self.merge, self.skip) == (fed.merge, fed.skip is not None))
            and self._adds(fed.residual)
        )

    def _adds(self, residual: bool) -> bool:
        """Whether the last layer's outputs are made as those below it are."""
        if len(self.layers) == 1:
            return not residual
        return self.residual in (None, residual)

    def add(self, layer: Layer, parts: Parts, fed: Out) -> None:
        """Puts a layer on top."""
        if len(self.layers) > 1:
            self.residual = fed.residual
        self.merge, self.skip = fed.merge, fed.skip is not None
        self.layers.append(layer)
        self.parts.append(parts)

    def without_last(self, made: Iterable[Out]) -> Chain | None:
        """Takes the last layer off if what it puts out is not made as the others' is.

        Args:
            made: what is made of the last layer's outputs.

        Returns:
            The last layer as a chain of its own; None if it stays.
        """
        merges = [merge for merge in _MERGES for out in made if out.merge == merge]
        merge = merges[0] if merges else None
        residual = any(out.residual for out in made)
        if len(self.layers) == 1:
            self.merge = self.merge or merge
            return None
        if self.residual is None:
            self.residual = residual
        fits = not merges or self.merge in merges
        if fits and (residual or not self.residual):
            return None
        return Chain([self.layers.pop()], [self.parts.pop()], merge)


def join(wiring: Wiring) -> list[Chain]:
    """The layers of a graph as stacks, in the order of their first nodes."""
    groups = _groups(wiring)
    fed = {parts: wiring.fed.get(parts[0][0]) for parts in groups}
    eaters: dict[Parts, int] = {}
    for below in filter(None, fed.values()):
        eaters[below.parts] = eaters.get(below.parts, 0) + 1
    chains: list[Chain] = []
    by_last: dict[Parts, Chain] = {}
    for parts, layer in groups.items():
        below = fed[parts]
        chain = by_last.pop(below.parts, None) if below else None
        if chain and below and eaters[below.parts] == 1 and chain.takes(layer, below):
            chain.add(layer, parts, below)
        else:
            chain = Chain([layer], [parts])
            chains.append(chain)
        by_last[parts] = chain
    made: dict[Parts, list[Out]] = {}
    for out in wiring.outs:
        made.setdefault(out.parts, []).append(out)
    for chain in list(chains):
        while last := chain.without_last(made.get(chain.parts[-1], ())):
            chains.append(last)
    return sorted(chains, key=lambda chain: chain.parts[0])


def _groups(wiring: Wiring) -> dict[Parts, Layer]:
    """The layers by their parts: nodes, or pairs of them that run both ways."""
    pairs = {out.parts for out in wiring.outs if len(out.parts) == 2}
    pairs = {parts for parts in pairs if parts[0][0] != parts[1][0]}
    # A node that makes a layer with each of two others makes one with neither.
    used = collections.Counter(number for parts in pairs for number, _ in parts)
    pairs = {
        parts[0][0]: parts
        for parts in pairs
        if all(used[number] == 1 for number, _ in parts)
    }
    backward = {parts[1][0] for parts in pairs.values()}
    groups = {}
    for number, layer in enumerate(wiring.layers):
        if number in pairs:
            parts = pairs[number]
            groups[parts] = _both(layer, wiring.layers[parts[1][0]])
        elif number not in backward:
            groups[tuple((number, n) for n in range(len(layer.params)))] = layer
    return groups


def _both(forward: Layer, backward: Layer) -> Layer:
    """Two nodes as one layer of two directions."""
    options = dict(forward.options)
    params = [*forward.params, *backward.params]
    starts = [layer.options["learn_initial_state"] for layer in (forward, backward)]
    if any(starts):
        options["learn_initial_state"] = True
        params = [_with_start(one) for one in params]
    return forward._replace(
        names=(*forward.names, *backward.names), params=tuple(params), options=options
    )


def _with_start(one: LSTMParams) -> LSTMParams:
    """Parameters with a start at zeros, if they have none."""
    if one.initial_h is not None:
        return one
    zeros = np.zeros(one.recurrent_kernel.shape[0], one.recurrent_kernel.dtype)
    return one._replace(initial_h=zeros, initial_c=zeros)


def build(chain: Chain) -> tuple[LSTM | Stack, Params]:
    """The model of a chain, and its parameters.

    Raises:
        ValueError: if a layer does not take what the one below puts out.
    """
    _check_sizes(chain)
    first = chain.layers[0]
    connected = {
        "bidirectional": len(first.params) == 2,
        "reverse": tuple(layer.reverse for layer in chain.layers),
        "merge": chain.merge or "concat",
        "residual": bool(chain.residual) and len(chain.layers) > 1,
        "skip": chain.skip and len(chain.layers) > 1,
    }
    cells = [LSTMCell(**layer.options) for layer in chain.layers]
    alike, hidden = [], [cell.hidden_size for cell in cells]
    for layer in chain.layers:
        options = dict(layer.options)
        del options["input_size"], options["hidden_size"]
        alike.append(options)
    if all(options == alike[0] for options in alike):
        size = hidden[0] if len(set(hidden)) == 1 else tuple(hidden)
        inputs = cells[0].input_size
        model = LSTM(inputs, size, len(cells), **connected, **alike[0])
    else:
        model = Stack(tuple(cells), **connected)
    params = tuple(
        Directions(*(_taken(layer.where, one) for one in layer.params))
        for layer in chain.layers
    )
    return model, model.check_params(params)


def _taken(where: str, one: LSTMParams) -> LSTMParams:
    """Parameters as JAX's own arrays."""
    return LSTMParams(
        *(None if leaf is None else border.take(where, leaf) for leaf in one)
    )


def _check_sizes(chain: Chain) -> None:
    first, size = chain.layers[0], 0
    widening = len(first.params) if chain.merge == "concat" else 1
    for layer in chain.layers:
        expected = size * widening
        if chain.skip:
            expected += first.options["input_size"]
        got = layer.options["input_size"]
        if size and got != expected:
            raise ValueError(
                f"{layer.where}: W: expected I = {expected}, what the layer below puts "
                f"out, got {got}."
            )
        if size and chain.residual and layer.options["hidden_size"] != size:
            raise ValueError(
                f"{layer.where}: expected {size} units, since what the layer below "
                f"puts out is added, got {layer.options['hidden_size']}."
            )
        size = layer.options["hidden_size"]
