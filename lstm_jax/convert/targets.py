"""What each way out can say of a model. What it cannot say is refused by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.cells.regularized import RATES, Regularized
from lstm_jax.descriptions.base import differs
from lstm_jax.layers import LSTM, Params

# The rates that change what is computed without a key too. All others are training's.
_EXPECTED = ("zoneout_h", "zoneout_c")
# What every library has, what its parameters show, and what only training reads.
EVERYWHERE = (
    *("input_size", "hidden_size", "num_layers", "use_bias", "dtype"),
    *("bidirectional", "dropout", *LSTMCell.INIT_ONLY),
    *(name for name in RATES if name not in _EXPECTED),
)
OPTIONS = tuple(
    field.name for field in dataclasses.fields(LSTM) if field.name not in EVERYWHERE
)
ACTIVATIONS = ("gate_activation", "candidate_activation", "output_activation")
_OF_THE_STACK = ("reverse", "residual", "skip")


@dataclasses.dataclass(frozen=True)
class Target:
    """A library or format that models are written for.

    Attributes:
        name: as its users write it.
        options: those of :class:`LSTM` that it can say, each with True for any value or
            with the tuple of values that it can say. Sizes, biases and what only
            training reads go without saying.
        each_size: whether layers may have different sizes.
        one_activation: whether candidate and output have one and the same.
        merges: how it merges two directions; none if it has one direction alone.
        cells: the cells whose layers it has.
        whole_cells: further ones, which it has with all their options.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    each_size: bool = True
    one_activation: bool = False
    merges: tuple[str, ...] = ("concat",)
    cells: tuple[type, ...] = (LSTMCell,)
    whole_cells: tuple[type, ...] = ()

    def says(self, option: str, value: Any) -> bool:
        """Whether it can say that an option has a value other than the default."""
        said = self.options.get(option, ())
        return said is True or any(not differs(value, one) for one in said)


def check(target: Target, model: Any, params: Params) -> None:
    """Checks that a target has all that a model has, and whose params these are.

    Raises:
        ValueError: if the model has something that the target lacks, by name; or if
            ``params`` are not its own.
        TypeError: if it is no stack.
    """
    check_stack(model)
    for index, cell in enumerate(model.cells):
        _check_cell(target, index, cell)
    if not target.each_size:
        check_one_size(target.name, [_sizes(cell) for cell in model.cells])
    for name in _OF_THE_STACK:
        if getattr(model, name) and not target.says(name, True):
            raise ValueError(
                f"{name}: expected False, since {target.name} has none, got "
                f"{getattr(model, name)}."
            )
    if model.bidirectional:
        _check_merge(target, model.merge)
    model.check_params(params)


def _check_cell(target: Target, index: int, cell: Any) -> None:
    inside = cell
    if isinstance(cell, Regularized):
        for name in _EXPECTED:
            _check_option(target, index, name, getattr(cell, name), 0.0)
        inside = cell.cell
    if type(inside) in target.whole_cells:
        return
    if type(inside) not in target.cells:
        known = target.cells + target.whole_cells
        cells = " or ".join(cell.__name__ for cell in known)
        raise ValueError(
            f"model: expected layers of {cells}, all that {target.name} has, got "
            f"{inside!r} as layer {index}."
        )
    for field in dataclasses.fields(inside):
        if field.name in OPTIONS:
            value = getattr(inside, field.name)
            _check_option(target, index, field.name, value, field.default)
    both = [getattr(inside, name, None) for name in ACTIVATIONS[1:]]
    if target.one_activation and differs(*both):
        raise ValueError(
            "output_activation: expected that of the candidate, since "
            f"{target.name} has one activation for both, got another in layer {index}."
        )


def _check_option(
    target: Target, index: int, name: str, value: Any, default: Any
) -> None:
    if not differs(value, default) or target.says(name, value):
        return
    said = target.options.get(name, ())
    wanted, reason = repr(_shown(default)), f"{target.name} has none"
    if said:
        wanted = "one of " + ", ".join(repr(_shown(one)) for one in (default, *said))
        reason = f"{target.name} has no other"
    raise ValueError(
        f"{name}: expected {wanted}, since {reason}, got {_shown(value)!r} in layer "
        f"{index}."
    )


def _check_merge(target: Target, merge: str) -> None:
    if not target.merges:
        raise ValueError(
            f"bidirectional: expected False, since a layer of {target.name} has one "
            "direction, got True."
        )
    if merge not in target.merges:
        listed = ", ".join(map(repr, target.merges))
        raise ValueError(
            f"merge: expected {listed}, which is all that {target.name} has, got "
            f"{merge!r}."
        )


def _shown(value: Any) -> Any:
    """A value as errors show it: functions by their names."""
    return getattr(value, "__name__", value) if callable(value) else value


def _sizes(cell: Any) -> tuple[int, Any]:
    return cell.hidden_size, getattr(cell, "proj_size", None)


def check_stack(model: Any) -> None:
    """Checks that a model is a stack."""
    if not hasattr(model, "cells"):
        raise TypeError(
            "model: expected a stack such as lstm_jax.LSTM, got "
            f"{type(model).__name__}. One cell is lstm_jax.Stack((cell,)), its params "
            "are (lstm_jax.Directions(params),)."
        )


def check_one_size(library: str, sizes: list[tuple[int, Any]]) -> None:
    """Checks that all layers have the same sizes."""
    if len(set(sizes)) > 1:
        raise ValueError(
            f"hidden_size: expected one size for all layers, as {library} has, got "
            f"{tuple(hidden for hidden, _ in sizes)}."
        )


def table(all_targets: tuple[Target, ...]) -> str:
    """Returns what each target can say, a row an option, as a table of Markdown."""
    rows: list[tuple[str, ...]] = [("", *(target.name for target in all_targets))]
    rows.append(("---",) * len(rows[0]))
    for option in OPTIONS:
        if option != "merge":
            said = [_said(target.options.get(option)) for target in all_targets]
            rows.append((f"`{option}`", *said))
    rows += [
        ("two directions, merged by", *(_said(one.merges) for one in all_targets)),
        ("layers of several sizes", *(_said(one.each_size) for one in all_targets)),
        ("cells", *(_said(one.cells + one.whole_cells) for one in all_targets)),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _said(values: Any) -> str:
    if isinstance(values, tuple) and values not in ((), (True,)):
        return ", ".join(f"`{getattr(one, '__name__', one)}`" for one in values)
    return "yes" if values else "–"
