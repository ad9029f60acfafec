"""Functions as values: one object for each, and a name that other processes know.

JAX's functions are compiled objects: pickle refuses them, and a copy, which
``copy.deepcopy`` and ``dataclasses.asdict`` make, is another object without a name.
"""

from __future__ import annotations

import functools
import importlib
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy import special

# Where functions have public names, and in which order one with two is looked for.
_MODULES = (
    "jax.numpy",
    "jax.nn",
    "jax.lax",
    "jax.scipy.special",
    "jax.nn.initializers",
    "jax.random",
    "lstm_jax.activations",
    "lstm_jax.initializers",
)
# Others that compute the same.
_ALIASES = {
    jax.lax.tanh: jnp.tanh,
    jax.lax.logistic: jax.nn.sigmoid,
    special.expit: jax.nn.sigmoid,
}
_COMPILED = type(jax.jit(lambda x: x))
_RULES = (jax.custom_jvp, jax.custom_vjp)
# What :func:`canonical` knows.
FUNCTION_TYPES = (types.FunctionType, functools.partial, _COMPILED, *_RULES)
_OF_A_RULE = ("fun", "jvp", "fwd", "bwd", "nondiff_argnums", "symbolic_zeros")
# Functions with a rule of differentiation that no module knows, by what they wrap.
_local_rules: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class Partial(functools.partial):
    """A ``functools.partial`` that equals another of the same function and arguments.

    Example:
        >>> import jax
        >>> from lstm_jax.descriptions.functions import Partial
        >>> leaky = Partial(jax.nn.leaky_relu, negative_slope=0.2)
        >>> leaky == Partial(jax.nn.leaky_relu, negative_slope=0.2)
        True
    """

    def _key(self) -> tuple:
        # With the types: a number of NumPy gives results its dtype, an equal one of
        # Python does not.
        args = tuple((type(value), value) for value in self.args)
        keywords = {(name, type(v), v) for name, v in self.keywords.items()}
        return self.func, args, frozenset(keywords)

    def __eq__(self, other: object) -> bool:
        """Whether ``other`` calls the same function with the same arguments."""
        return isinstance(other, Partial) and self._key() == other._key()

    def __hash__(self) -> int:
        """Returns a hash that fits ``==``."""
        return hash(self._key())

    def __reduce__(self) -> Any:
        """Pickles functions by their names."""
        keywords = {name: reference(v) for name, v in self.keywords.items()}
        args = tuple(map(reference, (self.func, *self.args)))
        return _rebuild_partial, (args, keywords)


class Reference(NamedTuple):
    """Where a function is found that pickle cannot name by itself."""

    module: str
    qualname: str


def canonical(function: Any) -> Any:
    """The one object for a function, however it was copied, compiled or rebuilt.

    It is the object found in the function's own module under its own name, if that one
    computes the same; for a function that has no such place, such as a lambda, the
    function itself without ``jax.jit`` around it. A ``functools.partial`` becomes a
    :class:`Partial`. Anything else comes back as it is.
    """
    if type(function) in (functools.partial, Partial):
        return _canonical_partial(function)
    if not isinstance(function, FUNCTION_TYPES):
        return function
    found = _at_home(function)
    if found is not None:
        return _ALIASES.get(found, found)
    function, plain = _compiled_from(function), _plain(function)
    if plain is None or not isinstance(function, _RULES):
        return function
    first = _local_rules.setdefault(id(plain), function)
    return first if _same(first, function) else function


def reference(function: Any) -> Any:
    """What to pickle for a function: a :class:`Reference` where pickle needs one.

    Anything else comes back as it is.
    """
    if name := public_name(function):
        return Reference(*name.rsplit(".", 1))
    if isinstance(function, (_COMPILED, *_RULES)) and _at_home(function) is function:
        plain: Any = _plain(function)
        return Reference(plain.__module__, plain.__qualname__)
    return function


def resolve(value: Any) -> Any:
    """The function that a :class:`Reference` is of; anything else as it is.

    Raises:
        AttributeError: if there is none of that name.
        ImportError: if there is no such module.
    """
    if not isinstance(value, Reference):
        return value
    module = importlib.import_module(value.module)
    return operator.attrgetter(value.qualname)(module)


def public_name(function: Callable[..., Any]) -> str | None:
    """The name of a function of JAX or of this package, such as "jax.nn.sigmoid"."""
    return _names().get(id(function))


def by_public_name(name: str) -> Callable[..., Any] | None:
    """The function of JAX or of this package with a name; None if there is none."""
    return _table().get(name)


def describe(function: Callable[..., Any]) -> str:
    """The name of any function, for a reader; its ``repr`` if it has none."""
    if name := public_name(function):
        return name
    if isinstance(function, functools.partial):
        given = [repr(value) for value in function.args]
        given += [f"{name}={value!r}" for name, value in function.keywords.items()]
        return f"functools.partial({', '.join([describe(function.func), *given])})"
    plain = _plain(function)
    if plain is None or plain.__name__ == "<lambda>":
        return repr(function)
    return f"{plain.__module__}.{plain.__qualname__}"


@functools.cache
def _table() -> dict[str, Callable[..., Any]]:
    """Every function of JAX and of this package by its public names."""
    return dict(_public_functions())


def _public_functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    for module in _MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            if name.startswith("_") or isinstance(value, type) or not callable(value):
                continue
            yield f"{module}.{name}", value


@functools.cache
def _names() -> dict[int, str]:
    """The public name of each function by its id; the table keeps them all alive."""
    names: dict[int, str] = {}
    for name, function in _table().items():
        own = name.rsplit(".", 1)[1] == getattr(function, "__name__", None)
        first = names.setdefault(id(function), name)
        if own and first.rsplit(".", 1)[1] != function.__name__:
            names[id(function)] = name
    return names


def _canonical_partial(partial: functools.partial) -> functools.partial:
    """A :class:`Partial`; what came if that is equal, or an argument has no hash."""
    keywords = {name: canonical(value) for name, value in partial.keywords.items()}
    made = Partial(canonical(partial.func), *map(canonical, partial.args), **keywords)
    try:
        hash(made)
    except TypeError:
        return partial
    return partial if made == partial else made


def _rebuild_partial(args: tuple, keywords: dict[str, Any]) -> Partial:
    keywords = {name: resolve(value) for name, value in keywords.items()}
    return Partial(*map(resolve, args), **keywords)


def _compiled_from(function: Any) -> Any:
    """What ``jax.jit`` was given; the function itself if it is not compiled."""
    while isinstance(function, _COMPILED):
        inner = getattr(function, "__wrapped__", None)
        # A copy has lost all but what pickle would write.
        function = function.__getstate__()["fun"] if inner is None else inner  # pyright: ignore
    return function


def _plain(function: Any) -> types.FunctionType | None:
    """The function of Python inside; None if there is none."""
    function = _compiled_from(function)
    while isinstance(function, _RULES):
        function = _compiled_from(function.fun)
    return function if isinstance(function, types.FunctionType) else None


def _at_home(function: Any) -> Any:
    """What stands at a function's own place, if it is the same; None if nothing is."""
    plain = _plain(function)
    if plain is None or plain.__module__ not in sys.modules:
        return None
    first, *rest = plain.__qualname__.split(".")
    # Not getattr, which would ask a module's own __getattr__.
    found = vars(sys.modules[plain.__module__]).get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found if found is not None and _same(found, function) else None


def _same(one: Any, other: Any, assumed: tuple[tuple[Any, Any], ...] = ()) -> bool:
    """Whether two functions compute the same: equal code, of one module and name.

    A rule of differentiation that is not the same makes another function. ``assumed``
    are the pairs that are being compared, since functions refer to themselves.
    """
    one, other = _compiled_from(one), _compiled_from(other)
    if one is other or any(one is a and other is b for a, b in assumed):
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, (int, float, str, types.CodeType)):
        return one == other
    mine, others = _parts(one), _parts(other)
    if mine is None or others is None or len(mine) != len(others):
        return False
    assumed = (*assumed, (one, other))
    return all(_same(a, b, assumed) for a, b in zip(mine, others, strict=True))


def _parts(value: Any) -> list[Any] | None:
    """What makes two values the same where it is; None if only identity does."""
    if isinstance(value, (tuple, list)):
        return list(value)
    if isinstance(value, _RULES):
        return [getattr(value, name, None) for name in _OF_A_RULE]
    if not isinstance(value, types.FunctionType):
        return None
    return [
        value.__module__,
        value.__qualname__,
        value.__code__,
        value.__defaults__,
        sorted((value.__kwdefaults__ or {}).items()),
        [cell.cell_contents for cell in value.__closure__ or ()],
    ]
