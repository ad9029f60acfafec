"""Initializers that say how a parameter is divided: Flax's boxes around new values.

``flax.linen.with_partitioning`` and ``flax.nnx.with_partitioning`` make initializers
that put a value in a box with metadata. A cell computes with what its initializers
return, so it is made with ones that open the box; which parameter a box belongs to is
read from the program that ``cell.init`` traces to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from lstm_jax.types import Array, PyTree

_MARK = "lstm_jax.boxes/"


@dataclasses.dataclass(frozen=True)
class Boxes:
    """The boxes of one library.

    Attributes:
        made_by: the function that makes initializers with boxes.
        open: ``open(value) -> (array, box)``, the box without the array; None for none.
        close: ``close(box, array, axes)`` puts an array in; it has as many new axes in
            front as ``axes``.
    """

    made_by: str
    open: Callable[[Any], tuple[Any, Any]]
    close: Callable[[Any, Array, int], Any]

    def take(self, name: str, value: Any) -> tuple[Array, Any]:
        """Opens what the initializer ``name`` has returned."""
        array, box = self.open(value)
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            raise TypeError(
                f"{name}: expected a function that returns an array, with metadata if "
                f"{self.made_by} made it, got one that returns {type(value).__name__}."
            )
        return array, box


@dataclasses.dataclass(frozen=True)
class _Opened:
    """An initializer that returns what is in the box."""

    boxes: Boxes
    name: str
    initializer: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        return self.boxes.take(self.name, self.initializer(*args, **kwargs))[0]


@functools.lru_cache(maxsize=256)
def opened(description: Any, boxes: Boxes) -> Any:
    """A cell or stack whose initializers return arrays; itself if all do by default."""
    return _replace(description, functools.partial(_Opened, boxes))


def boxed(cell: Any, boxes: Boxes, params: PyTree) -> PyTree:
    """A cell's new parameters in the boxes that its initializers put them in.

    Raises:
        ValueError: if a box can't be told to be one parameter's.
        TypeError: if an initializer returns something else than an array.
    """
    if opened(cell, boxes) is cell:
        return params
    arrays, structure = jax.tree.flatten(params)
    around = _boxes_of(cell, boxes)
    return structure.unflatten(
        array if found is None else boxes.close(found.box, array, found.new_axes(array))
        for array, found in zip(arrays, around, strict=True)
    )


def _replace(description: Any, wrap: Callable[[str, Any], Any]) -> Any:
    """Wraps all initializers of a description but the defaults, which make no boxes."""
    if type(description) is tuple:
        return tuple(_replace(one, wrap) for one in description)
    if not dataclasses.is_dataclass(description) or isinstance(description, type):
        return description
    changes = {}
    for field in dataclasses.fields(description):
        value = getattr(description, field.name)
        if not field.name.endswith("_init"):
            new = _replace(value, wrap)
        elif callable(value) and value != field.default:
            new = wrap(field.name, value)
        else:
            continue
        if new != value:
            changes[field.name] = new
    return dataclasses.replace(description, **changes) if changes else description


@dataclasses.dataclass(frozen=True)
class _Found:
    """A box, the initializer that made it, and how many axes its array had."""

    name: str = dataclasses.field(compare=False)
    box: Any
    ndim: int

    def new_axes(self, array: Array) -> int:
        """How many axes were put in front since: one where there are heads."""
        if array.ndim < self.ndim:
            raise ValueError(
                f"{self.name}: expected a parameter of the {self.ndim} axes that the "
                f"metadata is for, or more, got {array.ndim}: {self.box}."
            )
        return array.ndim - self.ndim


@functools.lru_cache(maxsize=256)
def _boxes_of(cell: Any, boxes: Boxes) -> list[_Found | None]:
    """The box of each parameter, or None."""
    found: list[_Found] = []

    def mark(name: str, initializer: Callable[..., Any]) -> Callable[..., Array]:
        def marked(*args: Any, **kwargs: Any) -> Array:
            array, box = boxes.take(name, initializer(*args, **kwargs))
            if box is None:
                return array
            found.append(_Found(name, box, array.ndim))
            return checkpoint_name(array, f"{_MARK}{len(found) - 1}")

        return marked

    key = jax.eval_shape(jax.random.key, 0)
    jaxpr = jax.make_jaxpr(_replace(cell, mark).init)(key).jaxpr
    origins = _origins(jaxpr, [set() for _ in jaxpr.invars])
    for index in set(range(len(found))).difference(*origins):
        raise ValueError(
            f"{found[index].name}: expected it to be called by the cell's init for a "
            f"parameter, found none that comes of {found[index].box}."
        )
    return [_one([found[index] for index in sorted(marks)]) for marks in origins]


def _one(found: list[_Found]) -> _Found | None:
    for other in found[1:]:
        if other != found[0]:
            raise ValueError(
                f"{other.name}: expected the metadata of the whole parameter, got "
                f"{other.box} for a part and {found[0].box} for another."
            )
    return found[0] if found else None


def _origins(jaxpr: Any, given: list[set[int]]) -> list[set[int]]:
    """The marks on what each output of a program was computed from."""
    marks = dict(zip(jaxpr.invars, given, strict=True))

    def of(var: Any) -> set[int]:
        return set() if isinstance(var, Literal) else marks.get(var, set())

    for equation in jaxpr.eqns:
        read = [of(var) for var in equation.invars]
        name = str(equation.params.get("name"))
        if name.startswith(_MARK):
            written = [{int(name.removeprefix(_MARK))}]
        elif equation.primitive.name in ("jit", "pjit"):
            written = _origins(equation.params["jaxpr"].jaxpr, read)
        else:
            written = [set().union(*read)] * len(equation.outvars)
        marks.update(zip(equation.outvars, written, strict=True))
    return [of(var) for var in jaxpr.outvars]
