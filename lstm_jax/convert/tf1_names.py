"""The names of TensorFlow 1's variables: which layer, which direction, which weight.

``tf.nn.dynamic_rnn`` and its like put names around that of a cell: ``rnn``,
``multi_rnn_cell/cell_0``, ``bidirectional_rnn/fw``, ``stack_bidirectional_rnn/cell_0``.
Of these only ``cell_0`` and ``fw`` or ``bw`` say anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PEEPHOLES = ("w_i_diag", "w_f_diag", "w_o_diag")
# What a cell's variables are called, in TensorFlow 1.0 and 1.1 by other words.
_VARIABLES = {
    "kernel": "kernel",
    "weights": "kernel",
    "bias": "bias",
    "biases": "bias",
    "projection/kernel": "projection",
    "projection/weights": "projection",
    **{name: name for name in PEEPHOLES},
}
_NEEDED = ("kernel", "bias")
# Other cells by what is in their names. Some have the same variables.
_OTHER_CELLS = {
    "layer_norm": "is layer normalised, in a way that no cell here is",
    "gru": "is a GRU",
    "basic_rnn": "is a plain RNN",
    "coupled": "couples its gates in a way of its own",
    "grid|time_freq|phased|conv|glstm|indy|weight_norm|nas|ugrnn|sru|cfn|minimal|"
    "intersection|indrnn": "is no LSTM of the standard kind",
}
CUDNN_COMPATIBLE = "cudnn_compatible"


class Cell(NamedTuple):
    """The variables of one cell.

    Attributes:
        name: its whole name, with that of what is around it.
        keys: of its variables, by our words for them.
    """

    name: str
    keys: dict[str, str]


class _Place(NamedTuple):
    """Where a cell stands; ``around`` is the same for all cells of one stack."""

    around: str
    layer: int
    direction: int
    inside_out: bool


def find(weights: Any, path: str | Sequence[str]) -> list[list[Cell]]:
    """The cells of each layer, one or two, forward first.

    Raises:
        ValueError: if a variable is missing or unknown, or is another cell's.
        TypeError: if ``weights`` is no mapping.
    """
    _check_mapping(weights)
    path = "/".join([path] if isinstance(path, str) else path).strip("/")
    names = _below(weights, path)
    places: dict[_Place, dict[str, Cell]] = {}
    unknown = []
    for name, key in names.items():
        scope, variable = _split(name)
        whole = "/".join(part for part in (path, scope) if part)
        _check_cell(whole, key)
        if variable is None:
            unknown.append(key)
            continue
        cells = places.setdefault(_place(scope), {})
        cells.setdefault(scope, Cell(whole, {})).keys[variable] = key
    _check_alone(places, unknown, path)
    for cells in places.values():
        for cell in cells.values():
            _check_complete(cell)
    return _layers({place: next(iter(c.values())) for place, c in places.items()})


def _check_mapping(weights: Any) -> None:
    if isinstance(weights, Mapping):
        return
    hint = "Pass {variable.name: value for each variable}."
    if hasattr(weights, "get_tensor"):
        hint = (
            "Pass {name: reader.get_tensor(name) for name in "
            "reader.get_variable_to_shape_map()}."
        )
    elif isinstance(weights, (str, os.PathLike)):
        hint = (
            "Read the checkpoint first: reader = tf.train.load_checkpoint(path), and "
            "reader.get_tensor(name) for each name."
        )
    raise TypeError(
        f"weights: expected a dict of arrays by name, got {type(weights).__name__}. "
        f"{hint}"
    )


def _below(weights: Mapping[str, Any], path: str) -> dict[str, str]:
    """Keys by what follows the path in them, without what hangs below a variable."""
    begin = f"{path}/" if path else ""
    names = {}
    for key in weights:
        name = str(key).removesuffix(":0")
        if name.startswith(begin):
            names[name.removeprefix(begin)] = key
    if not names:
        begins = sorted({str(key).split("/")[0] for key in weights})
        raise ValueError(
            f"path: expected where in weights an LSTM is, got {path!r}, where nothing "
            f"is. Names begin with {', '.join(begins) or 'nothing'}."
        )
    return {
        name: key
        for name, key in names.items()
        if not any(name[: at.start()] in names for at in re.finditer("/", name))
    }


def _split(name: str) -> tuple[str, str | None]:
    """A cell's name, and our word for a variable; None for one that it has not."""
    for end, variable in sorted(_VARIABLES.items(), key=lambda pair: -len(pair[0])):
        if name == end or name.endswith(f"/{end}"):
            return name.removesuffix(end).rstrip("/"), variable
    return name.rpartition("/")[0], None


def _check_cell(name: str, key: str) -> None:
    """Refuses other cells by their names."""
    if re.search(r"opaque_kernel(:0)?$", str(key)):
        raise ValueError(
            f"{key}: it is cuDNN's own vector, which holds no sizes: take it with "
            "lstm_jax.convert.from_cudnn(vector, input_size=..., hidden_size=...)."
        )
    for part in name.split("/"):
        for pattern, words in _OTHER_CELLS.items():
            if re.search(rf"(^|_)({pattern})\w*_cell(_\d+)?$", part):
                raise ValueError(
                    f"{key}: expected a BasicLSTMCell's or an LSTMCell's, got {part}, "
                    f"which {words}."
                )


def _place(scope: str) -> _Place:
    parts, said, marks = scope.split("/"), {"layer": 0, "direction": 0}, []
    for n, part in enumerate(parts):
        if match := re.fullmatch(r"cell_(\d+)", part):
            kind, value = "layer", int(match[1])
        elif part in ("fw", "bw"):
            kind, value = "direction", ("fw", "bw").index(part)
        else:
            continue
        if kind not in marks:
            said[kind], parts[n] = value, kind
            marks.append(kind)
            last = n
    if not marks:
        return _Place(scope, 0, 0, False)
    # Behind the last mark is the cell's own name.
    around = "/".join(parts[: last + 1])
    return _Place(around, **said, inside_out=marks == ["direction", "layer"])


def _check_alone(
    places: dict[_Place, dict[str, Cell]], unknown: list[str], path: str
) -> None:
    """Checks that there is one LSTM, and nothing else."""
    cells = [cell for found in places.values() for cell in found.values()]
    one = len({place.around for place in places}) == 1 and len(cells) == len(places)
    if one and not unknown:
        return
    if not unknown and not cells:
        raise ValueError(f"weights: there is no LSTM at {path!r}.")
    inside = {os.path.dirname(c.name) for c in cells if "lstm" in c.name.lower()}
    paths = sorted({_trunk(name) for name in inside} - {path, ""})
    hint = ""
    if paths:
        hint = f" Pass path={' or '.join(map(repr, paths))}."
    if unknown:
        listed = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"weights: unknown names {listed}.{hint}")
    listed = ", ".join(sorted(cell.name for cell in cells))
    raise ValueError(
        f"weights: expected the variables of one LSTM, got those of {listed}.{hint}"
    )


def _trunk(name: str) -> str:
    """A name as far as it says nothing of layers and directions."""
    return re.split(r"/?(?:cell_\d+|fw|bw)(?=/|$)", name)[0]


def _check_complete(cell: Cell) -> None:
    """Checks that a cell has all its variables."""
    peepholes = PEEPHOLES if any(name in cell.keys for name in PEEPHOLES) else ()
    for variable in (*_NEEDED, *peepholes):
        if variable not in cell.keys:
            there = ", ".join(map(str, cell.keys.values()))
            raise ValueError(
                f"{cell.name}/{variable}: it is missing; there are {there}."
            )


def _layers(cells: dict[_Place, Cell]) -> list[list[Cell]]:
    """Cells in their order, if they are one stack's."""
    count = 1 + max(place.layer for place in cells)
    both = len({place.direction for place in cells}) == 2
    by_place = {(place.layer, place.direction): cell for place, cell in cells.items()}
    first = next(iter(cells))
    if first.inside_out and both and count > 1:
        raise ValueError(
            f"weights: {count} cells run in each direction by themselves ("
            f"{by_place[0, 0].name}); here a layer sees both directions of the one "
            "before. Take the cells below fw and those below bw as two models, by path."
        )
    if "direction" in first.around.split("/") and not both:
        raise ValueError(
            "weights: expected cells below fw and below bw, got one direction alone, "
            f"{cells[first].name}. With path as far as fw or bw it is a model of its "
            "own."
        )
    for layer in range(count):
        for direction in range(1 + both):
            if (layer, direction) not in by_place:
                side = ("fw", "bw")[direction] if both else "one direction"
                raise ValueError(
                    f"weights: cell_{layer} of {side} is missing; there are "
                    f"{', '.join(sorted(cell.name for cell in cells.values()))}."
                )
    return [
        [by_place[layer, direction] for direction in range(1 + both)]
        for layer in range(count)
    ]
