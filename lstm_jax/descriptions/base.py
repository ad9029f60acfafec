"""Descriptions as values: they are copied, pickled and compared as numbers are.

Two descriptions that say the same are equal, whichever spelling they were made with and
whichever process they come from, and what is compiled for one serves the other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.checks import options
from lstm_jax.descriptions import config as configs
from lstm_jax.descriptions.functions import (
    FUNCTION_TYPES,
    canonical,
    describe,
    reference,
    resolve,
)

# The classes of descriptions that were seen inside others: what a dict may come from.
_seen_inside: weakref.WeakSet[type] = weakref.WeakSet()


Class = TypeVar("Class", bound=type)


def without_functions(cls: Class) -> Class:
    """Takes the functions among a dataclass's defaults off the class.

    Each instance has its own. On the class ``help`` would take them for methods, and
    show what JAX says of ``tanh`` before it comes to the methods that there are.
    """
    for field in dataclasses.fields(cls):
        if callable(vars(cls).get(field.name)) and callable(field.default):
            delattr(cls, field.name)
    return cls


class Description:
    """What cells and stacks are: a subclass is a frozen dataclass that holds no arrays.

    Its ``__post_init__`` calls :meth:`_normalise` before it checks any field. What is
    made from it by ``dataclasses.replace``, ``copy``, ``pickle`` or
    ``dataclasses.asdict`` and back is equal, and so is what another process makes of
    the same options. A function that pickle can't name, such as a lambda, can be in a
    description that is not pickled.

    Attributes:
        INIT_ONLY: the fields that only ``init`` reads. It is not inherited: the steps
            of a subclass may read what those of its parent do not.
    """

    INIT_ONLY: ClassVar[tuple[str, ...]] = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Gives the class, before ``dataclass`` would write its own, what is below."""
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__hash__", "__repr__"):
            if name not in vars(cls):
                setattr(cls, name, getattr(Description, name))
        if cls.__module__.startswith("lstm_jax."):
            configs.CLASSES[cls.__name__] = cls

    def _normalise(self) -> None:
        """Gives every field its one spelling; leaves what it doesn't know."""
        defaults = _defaults(type(self))
        for name, value in list(vars(self).items()):
            if value is defaults.get(name, _NOTHING):
                continue
            spelled = _one_spelling(name, value)
            if spelled is not value:
                object.__setattr__(self, name, spelled)

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` is of the same class and says the same."""
        if self is other:
            return True
        if not isinstance(other, Description) or type(self) is not type(other):
            return NotImplemented
        return self._compared() == other._compared()

    def __hash__(self) -> int:
        """Returns a hash that fits ``==``, computed once."""
        try:
            return vars(self)["_hash"]
        except KeyError:
            made = hash(self._compared())
            object.__setattr__(self, "_hash", made)
            return made

    def _compared(self) -> Any:
        """The values of the fields that make two descriptions equal."""
        try:
            return vars(self)["_values"]
        except KeyError:
            names = _compared_names(type(self))
            made = tuple(_comparable(getattr(self, name)) for name in names)
            object.__setattr__(self, "_values", made)
            return made

    def __repr__(self) -> str:
        """Returns the call that makes the description, without what is the default."""
        shown, defaults = [], _defaults(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in defaults and not field.kw_only:
                shown.append(_show(value))
            elif field.repr and differs(defaults.get(field.name, _NOTHING), value):
                shown.append(f"{field.name}={_show(value)}")
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def __copy__(self) -> Self:
        """Returns the description itself, which never changes."""
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        """Returns the description itself, which never changes."""
        return self

    def __reduce__(self) -> Any:
        """Pickles the fields, functions by their names."""
        fields = {
            field.name: _to_pickle(getattr(self, field.name))
            for field in dataclasses.fields(self)
            if field.init
        }
        return _rebuild, (type(self), fields)

    def for_program(self) -> Self:
        """Returns the description with the same steps that programs are compiled for.

        What only :meth:`init` reads has its default there, in cells inside too, so that
        descriptions which differ in nothing else share what is compiled.

        Example:
            >>> import jax, lstm_jax as lj
            >>> cell = lj.LSTMCell(3, 5, kernel_init=jax.nn.initializers.normal(0.02))
            >>> cell.for_program() == lj.LSTMCell(3, 5)
            True
        """
        if "_program" not in vars(self):
            # None is for itself: a reference to itself would keep it alive for longer.
            object.__setattr__(self, "_program", self._make_program())
        made = vars(self)["_program"]
        return self if made is None else made

    def _make_program(self) -> Self | None:
        changes, defaults = {}, _defaults(type(self))
        init_only = vars(type(self)).get("INIT_ONLY", ())
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            made = defaults[field.name] if field.name in init_only else _program(value)
            if field.init and differs(made, value):
                changes[field.name] = made
        return dataclasses.replace(self, **changes) if changes else None

    def to_config(
        self, functions: Mapping[str, Callable[..., Any]] | None = None
    ) -> dict[str, Any]:
        """Returns the description as plain data, for ``json.dumps``.

        Args:
            functions: names for the functions that are neither JAX's nor this
                package's. :func:`lstm_jax.from_config` takes the same.

        Returns:
            A dict with the class, the format's version and every field.

        Raises:
            ValueError: if a function or a class has no name.
            TypeError: if ``functions`` is no dict of functions.

        Example:
            >>> import lstm_jax as lj
            >>> config = lj.SLSTMCell(3, 4, num_heads=2).to_config()
            >>> config["class"], config["num_heads"], config["kernel_init"]
            ('SLSTMCell', 2, {'function': 'lstm_jax.initializers.glorot_uniform'})
        """
        return configs.to_config(self, functions)

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        functions: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Self:
        """Returns the description of this class that :meth:`to_config` wrote.

        The arguments and errors are those of :func:`lstm_jax.from_config`, which takes
        a config of any class.
        """
        made = configs.from_config(config, functions=functions)
        if type(made) is not cls:
            raise ValueError(
                f"config['class']: expected {cls.__name__!r}, got "
                f"{type(made).__name__!r}. lstm_jax.from_config takes any."
            )
        return made

    def count_params(self) -> int:
        """Returns how many numbers the parameters hold; makes none.

        Example:
            >>> import lstm_jax as lj
            >>> lj.LSTM(3, 5).count_params()  # 3 * 20 + 5 * 20 + 20
            180
        """
        made = jax.eval_shape(lambda: self.init(jax.random.key(0)))  # pyright: ignore
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))


def differs(one: Any, other: Any) -> bool:
    """Whether two values of a field say something else."""
    return _comparable(one) != _comparable(other)


def program_of(cell: Any) -> Any:
    """The description that programs are compiled for; any other cell as it is."""
    return cell.for_program() if isinstance(cell, Description) else cell


# No field's default.
_NOTHING = object()


@functools.cache
def _defaults(cls: type) -> dict[str, Any]:
    """The default of every field that has one, as descriptions hold it."""
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = _one_spelling(field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = _one_spelling(field.name, field.default_factory())
    return defaults


@functools.cache
def _compared_names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls) if field.compare)


def _comparable(value: Any) -> Any:
    """What is equal only where ``value`` is: NumPy's float64 is equal to None."""
    return (np.dtype, value.name) if isinstance(value, np.dtype) else value


def _one_spelling(name: str, value: Any) -> Any:
    """One object or value for all that say the same; anything unknown as it is."""
    if value is None:
        return value
    if name.endswith("dtype"):
        return _as_dtype(value)
    options.check_plain(name, value)
    if isinstance(value, np.generic):
        plain = value.item()
        return plain if isinstance(plain, (bool, int, float, str)) else value
    if isinstance(value, FUNCTION_TYPES):
        return canonical(value)
    if type(value) in (tuple, list):
        made = tuple(_one_spelling(name, one) for one in value)
        same = type(value) is tuple and all(map(operator.is_, made, value))
        return value if same else made
    if type(value) is dict:
        return _from_dict(name, value)
    if isinstance(value, Description):
        _seen_inside.add(type(value))
    return value


def _as_dtype(value: Any) -> Any:
    if value is float:
        return jnp.result_type(float)  # As everywhere in JAX: the one of its mode.
    if not isinstance(value, (str, type)):
        return value
    try:
        dtype = np.dtype(value)
    except TypeError:
        return value
    return value if dtype.kind == "O" else dtype


def _from_dict(name: str, fields: dict[str, Any]) -> Any:
    """The description that ``dataclasses.asdict`` made a dict of; any other as it is.

    Raises:
        ValueError: if it can be of several classes.
    """
    found = {
        cls
        for cls in {*configs.CLASSES.values(), *_seen_inside}
        if dataclasses.is_dataclass(cls)
        and fields.keys() == {field.name for field in dataclasses.fields(cls)}
    }
    if len(found) > 1:
        names = " and of ".join(sorted(cls.__qualname__ for cls in found))
        raise ValueError(
            f"{name}: expected a description, got a dict with the fields of {names}. "
            "dataclasses.asdict drops the class of what is inside: make it one first."
        )
    return found.pop()(**fields) if found else fields


def _show(value: Any) -> str:
    if isinstance(value, np.dtype):
        return repr(value.name)
    if isinstance(value, FUNCTION_TYPES):
        return describe(value)
    if type(value) is tuple:
        return f"({', '.join(map(_show, value))}{',' * (len(value) == 1)})"
    return repr(value)


def _program(value: Any) -> Any:
    if type(value) is not tuple:
        return program_of(value)
    return tuple(map(_program, value))


def _to_pickle(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_to_pickle, value))
    return reference(value)


def _from_pickle(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_from_pickle, value))
    return resolve(value)


def _rebuild(cls: type, fields: dict[str, Any]) -> Any:
    return cls(**{name: _from_pickle(value) for name, value in fields.items()})
