"""How other JAX libraries nest their weights: layers, directions, and trees of names.

One rule serves all of them, in and out, and their states (``carries.py``). A layer is
what the library's own ``init`` returns, two directions that it has no layer for are a
tuple ``(forward, backward)``, a stack is a list of layers, first to last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lstm_jax import connections
from lstm_jax.checks import arrays as shapes
from lstm_jax.checks import border
from lstm_jax.convert import layers as records
from lstm_jax.convert import targets
from lstm_jax.layers import LSTM, Params
from lstm_jax.types import Array, LSTMParams

MERGES = tuple(connections.MERGES)


class Part(NamedTuple):
    """Arrays by name: those of one layer, or of a tree that it is in.

    Attributes:
        name: what their names begin with in errors.
        leaves: by the names of all dicts on the way, with "/" between them.
    """

    name: str
    leaves: Mapping[str, Any]

    @property
    def shown(self) -> str:
        """What errors call the whole of it."""
        return self.name.rstrip("/") or "the tree"

    def heads(self) -> list[str]:
        """The first keys, sorted."""
        return sorted({name.split("/")[0] for name in self.leaves})

    def has(self, *keys: str) -> bool:
        """Whether there is anything under one of some keys."""
        return any(
            name.startswith(tuple(f"{key}/" for key in keys)) for name in self.leaves
        )

    def under(self, path: Any) -> Part:
        """What is under a path.

        Raises:
            ValueError: if there is nothing.
        """
        part = self
        for key in keys_of(path):
            begin = f"{key}/"
            found = {
                name.removeprefix(begin): leaf
                for name, leaf in part.leaves.items()
                if name.startswith(begin)
            }
            if not found:
                raise _not_there(part.shown, part.heads(), key)
            part = Part(part.name + begin, found)
        return part

    def shape(self, name: str) -> list[int]:
        """That of an array, for errors."""
        return list(getattr(self.leaves[name], "shape", ()))

    def take(
        self, letters: Mapping[str, str], needed: Iterable[str] = ()
    ) -> dict[str, Array]:
        """The arrays, as JAX's own.

        Args:
            letters: of the shapes of those that there may be.
            needed: the names of those that there have to be.

        Raises:
            ValueError: if one is missing, or has another name.
            TypeError: if one is no floating array.
        """
        for name in needed:
            if name not in self.leaves:
                raise ValueError(
                    f"{self.name}{name}: expected shape {letters[name]}, got none."
                )
        for name in sorted(set(self.leaves).difference(letters)):
            raise ValueError(
                f"{self.name}{name}: expected nothing but {', '.join(letters)}, got an "
                f"array of shape {self.shape(name)}."
            )
        return {
            name: take(self.name + name, leaf) for name, leaf in self.leaves.items()
        }


def _not_there(place: str, there: Iterable[str], key: str) -> ValueError:
    listed = ", ".join(sorted(there)) or "nothing"
    return ValueError(f"path: expected what is in {place}, {listed}, got {key!r}.")


def keys_of(path: Any) -> tuple[str, ...]:
    """The keys of a path, a string with "/" or "." between them or a tuple.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(path, str):
        return tuple(filter(None, re.split(r"[/.]", path)))
    if not isinstance(path, tuple):
        raise TypeError(
            "path: expected a string such as 'encoder/rnn', a tuple of keys, or for a "
            f"stack a list of such, got {type(path).__name__}."
        )
    return tuple(key for one in path for key in str(one).split("/"))


def flatten(name: str, tree: Any) -> Part:
    """Dicts in dicts as one :class:`Part`.

    Raises:
        TypeError: if it is no dict.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{name}: expected a dict of arrays, got {type(tree).__name__}."
        )
    leaves: dict[str, Any] = {}
    _collect("", tree, leaves)
    return Part("", leaves)


def _collect(begin: str, tree: Mapping[Any, Any], leaves: dict[str, Any]) -> None:
    for key, value in tree.items():
        name = begin + ("/".join(map(str, key)) if type(key) is tuple else str(key))
        if isinstance(value, Mapping):
            _collect(f"{name}/", value, leaves)
        else:
            leaves[name] = value


def walk(argument: str, module: Any, path: Any) -> Any:
    """What is under a path of attributes, keys and positions.

    Raises:
        ValueError: if there is nothing.
    """
    place = argument
    for key in keys_of(path):
        there = members(module)
        if key not in there:
            raise _not_there(place, there, key)
        place, module = f"{place}.{key}", there[key]
    return module


def members(module: Any) -> dict[str, Any]:
    """What is in a module, dict or list, by attribute, key or position."""
    if isinstance(module, Mapping):
        return {str(key): value for key, value in module.items()}
    if isinstance(module, Sequence) and not isinstance(module, str):
        return {str(index): value for index, value in enumerate(module)}
    own = getattr(module, "__dict__", {})
    return {name: value for name, value in own.items() if not name.startswith("_")}


def layers_of(
    argument: str, weights: Any, path: Any, opened: Callable[[str, Any], Part]
) -> list[tuple[Part, ...]]:
    """The parts of each layer: one, or two where directions come as a tuple.

    Args:
        argument: what ``weights`` are called.
        weights: a tree, a pair of trees, or a list of either.
        path: where in the one tree the layer is, or a list that says so of each.
        opened: makes a part of a tree, with a name for errors.

    Raises:
        ValueError: if they are nested otherwise, or there is nothing under the path.
        TypeError: if one is no tree.
    """
    if not isinstance(weights, (list, tuple)):
        whole = opened(argument, weights)
        places = path if isinstance(path, list) else [path]
        if not places:
            raise ValueError("path: expected at least one place, got an empty list.")
        return [(whole.under(place),) for place in places]
    if path not in ((), "", []):
        raise ValueError(
            f"path: expected none where {argument} is a {type(weights).__name__}, got "
            f"{path!r}. It says where in one tree layers are."
        )
    if not weights:
        raise ValueError(f"{argument}: expected at least one layer, got none.")
    if isinstance(weights, tuple):
        return [_layer(argument, weights, opened)]
    return [_layer(f"{argument}[{n}]", one, opened) for n, one in enumerate(weights)]


def _layer(name: str, layer: Any, opened: Callable[[str, Any], Part]) -> tuple:
    """The parts of one layer in a list, called by where they are in it."""
    if not isinstance(layer, tuple):
        return (opened(name, layer)._replace(name=f"{name}/"),)
    if len(layer) != 2:
        raise ValueError(
            f"{name}: expected two directions in a tuple, (forward, backward), got "
            f"{len(layer)}. A stack of layers is a list."
        )
    return tuple(_layer(f"{name}[{n}]", one, opened)[0] for n, one in enumerate(layer))


def expand(layers: Sequence[tuple[Part, ...]], pattern: str) -> list[tuple[Part, ...]]:
    """The layers of a sequence of layers, where there is one in place of one layer.

    Args:
        layers: as from :func:`layers_of`.
        pattern: of the keys of such a sequence, with the number in parentheses.

    Raises:
        ValueError: if a number is left out.
    """
    (part, *others), *more = layers
    found = [re.match(f"({pattern})/", name) for name in part.leaves]
    keys = {int(match[2]): match[1] for match in found if match}
    if others or more or not keys or not all(found):
        return list(layers)
    if sorted(keys) != list(range(len(keys))):
        raise ValueError(
            f"{part.shown}: expected layers 0 to {max(keys)} without a gap, got "
            f"{', '.join(keys[number] for number in sorted(keys))}. What is applied "
            "between them is not in the weights: pass a list of places as path."
        )
    return [(part.under(keys[number]),) for number in range(len(keys))]


def elsewhere(
    part: Part,
    ends: Sequence[str],
    around: Sequence[str] = (),
    fits: Callable[[Any], bool] = lambda leaf: True,
) -> str:
    """Says where in a tree layers are.

    Args:
        part: the tree.
        ends: names of which a layer has one.
        around: keys between that name and the layer's.
        fits: whether the array of that name may be a layer's.
    """
    places = set()
    for name, leaf in part.leaves.items():
        end = next((end for end in ends if name.endswith(f"/{end}")), None)
        if end is not None and fits(leaf):
            keys = name.removesuffix(f"/{end}").split("/")
            while keys and keys[-1] in around:
                keys.pop()
            places.add("/".join(keys))
    listed = ", ".join(map(repr, sorted(filter(None, places))))
    if not listed:
        return f"There is {', '.join(part.heads()) or 'nothing'}."
    return (
        f"LSTM layers are at {listed}: pass the place of one as path, a list of places "
        "for a stack, or in place of the tree a tuple of two, (forward, backward)."
    )


def take(name: str, value: Any) -> Array:
    """Takes an array of weights, out of what Flax may have boxed it in.

    Raises:
        TypeError: if it is no floating array.
    """
    for inside in ("unbox", "get_value"):
        value = getattr(value, inside)() if hasattr(value, inside) else value
    taken = records.take_weight(name, value)
    shapes.check_array(name, taken)
    return taken


def own(array: Any) -> Array:
    """A new array for others: one that is donated, or changed, is no other's."""
    return jnp.array(array, copy=True)


def give(
    target: targets.Target,
    model: Any,
    params: Params,
    layer: Callable[[int, list[LSTMParams]], Any],
) -> Any:
    """Returns what another library has of the one layer, or a list of several.

    Args:
        target: the library.
        model: the stack.
        params: its parameters.
        layer: makes a layer of its index and its one or two directions.

    Raises:
        ValueError: if the library cannot say it, or ``params`` are not the model's.
        TypeError: if ``model`` is no stack.
    """
    targets.check(target, model, params)
    layers = [
        layer(index, [one for one in directions if one is not None])
        for index, directions in enumerate(border.take_leaves("params", params))
    ]
    return layers[0] if len(layers) == 1 else layers


def bias_of(one: LSTMParams) -> Array:
    """The bias, for a library whose layers all have one."""
    if one.bias is None:
        return jnp.zeros(one.kernel.shape[-1:], one.kernel.dtype)
    return one.bias


def build(
    argument: str,
    layers: Sequence[Sequence[LSTMParams]],
    called: Callable[[int, int, str], str],
    **options: Any,
) -> tuple[LSTM, Params]:
    """:func:`layers.build`, of layers that may differ in their number of directions.

    Raises:
        ValueError: if they do, or do not fit together otherwise.
    """
    for index, layer in enumerate(layers):
        if len(layer) != len(layers[0]):
            raise ValueError(
                f"{argument}: expected as many directions in each layer as in the "
                f"first, {len(layers[0])}, got {len(layer)} in layer {index}."
            )
    return records.build(layers, called, **options)
