"""What a cell is: one step, cut into pieces, with defaults for what is optional."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lstm_jax import meshes
from lstm_jax.checks import arrays, slips, trees
from lstm_jax.descriptions.base import Description
from lstm_jax.numerics import as_last_axes
from lstm_jax.types import Array, PyTree


class Cell(Description):
    """One step, cut into three pure pieces, as a description that holds no arrays.

    One step is ``update(params, state, project(params, x), recur(params, state))``. The
    pieces differ in what can be done for all steps at once: ``project`` wholly, the
    parameters' gradient through ``recur`` too, ``update`` not at all. Each takes any
    leading axes.

    A subclass is a frozen dataclass (it must be hashable, to be a static argument of
    ``jax.jit``) and has the five methods ``init``, ``zero_state``, ``project``,
    ``recur`` and ``update``. All else has a default here. An object that has those five
    and does not derive from this class runs too; of the rest it may have what it wants.

    Attributes:
        dtype: the compute dtype; None for that of the inputs.
        input_shape: the shape of one input; None for a vector of any size.
        output_size: the size of one output's last axis; a stack asks for it.
        additive: whether ``update`` depends on z and r through ``z + r`` alone, so that
            less has to be kept for the backward pass. Where r is None, or a part of it,
            z stands alone.
        convolves: whether its products are convolutions.
        outputs_hidden: whether an output is the h that enters the next step's product.
        standard: whether the step is that of the standard LSTM, which has fast kernels.
        unitwise: whether what a unit holds depends on no other unit's state, every leaf
            of which is ``[*batch, H]``. The Jacobian of a step is then H small blocks,
            and :func:`parallel_scan` keeps no more.
        affine_steps: of a cell whose steps are linear in its state, leaf by leaf
            ``s' = exp(log_a) s + b``: what returns ``(log_a, b)``, two states, from
            ``(params, zs)``. :func:`parallel_scan` then needs no iterations.
        noisy: whether a key changes anything.
        without_noise: the cell that runs where there is no key, of equal steps.
        param_letters: for each parameter by its path, the letters of its shape, for
            errors.
        state_letters: the same for each leaf of the state, without batch axes.
        input_dtypes: the names of the dtypes that inputs may have; None for all
            floating ones.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, lstm_jax as lj
        >>> @dataclasses.dataclass(frozen=True)
        ... class Leaky(lj.Cell):
        ...     size: int
        ...     additive = True
        ...     def init(self, key):
        ...         return jax.random.normal(key, (2, self.size, self.size))
        ...     def zero_state(self, batch_shape=(), dtype=None):
        ...         return jnp.zeros((*batch_shape, self.size), dtype)
        ...     def project(self, params, xs):
        ...         return xs @ params[0]
        ...     def recur(self, params, state):
        ...         return state @ params[1]
        ...     def update(self, params, state, z, r):
        ...         state = 0.5 * state + 0.5 * jnp.tanh(z + r)
        ...         return state, state
        >>> cell = Leaky(3)
        >>> params, lengths = cell.init(jax.random.key(0)), jnp.array([7, 4])
        >>> state, ys = lj.scan(cell, params, jnp.ones((2, 7, 3)), lengths=lengths)
        >>> ys.shape, bool((ys[1, 4:] == 0).all())
        ((2, 7, 3), True)
    """

    dtype: Any = None
    input_shape: Any = None
    output_size: Any = None
    additive: Any = False
    convolves: Any = False
    outputs_hidden: Any = True
    standard: Any = False
    unitwise: Any = False
    affine_steps: Any = None
    noisy: Any = False
    param_letters: Any = {}
    state_letters: Any = {}
    input_dtypes: Any = None

    def init(self, key: Array) -> PyTree:
        """Returns new parameters."""
        raise NotImplementedError

    def zero_state(
        self, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> PyTree:
        """Returns the state of zeros, in the dtypes that ``update`` returns."""
        raise NotImplementedError

    def project(self, params: PyTree, xs: PyTree) -> PyTree:
        """Returns z: what the inputs contribute."""
        raise NotImplementedError

    def recur(self, params: PyTree, state: PyTree) -> PyTree:
        """Returns r: what the state contributes, linear in the parameters."""
        raise NotImplementedError

    def update(
        self, params: PyTree, state: PyTree, z: PyTree, r: PyTree
    ) -> tuple[PyTree, PyTree]:
        """Returns ``(state, y)`` after the step."""
        raise NotImplementedError

    def initial_state(
        self, params: PyTree, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> PyTree:
        """Returns the state that sequences start from, and that resets go back to."""
        del params
        return self.zero_state(batch_shape, dtype)

    @property
    def without_noise(self) -> Cell:
        """The cell that runs where there is no key."""
        return self

    def perturb(self, key: Array, params: PyTree, xs: PyTree) -> tuple:
        """Returns ``(cell, params, xs)``: what runs instead where there is a key."""
        del key
        return self, params, xs

    def params_of_steps(self, params: PyTree) -> PyTree:
        """Returns the parameters without those that only sequences start from."""
        return params

    def check_differentiable(self) -> None:
        """Raises where a gradient of the steps is asked for and there is none."""

    def params_by_row(self, params: PyTree) -> PyTree:
        """Returns, for each leaf of the parameters, whether it has the batch axes."""
        return jax.tree.map(lambda leaf: False, params)

    @slips.explained
    def __call__(
        self, params: PyTree, state: PyTree, x: Array
    ) -> tuple[PyTree, PyTree]:
        """Takes one step.

        Shapes:
            ``x`` is ``[*batch, *input_shape]``, of an LSTM ``[*batch, I]``, and
            ``state`` as from :meth:`zero_state`.

        Args:
            params: as from :meth:`init`.
            state: the state before the step.
            x: the input of the step.

        Returns:
            ``(state, y)``: the state after the step, and the output, which is its h.

        Raises:
            TypeError: if ``state`` is of another type than the cell's, or a dtype is
                wrong.
            ValueError: if a shape is wrong.
        """
        as_cell(self)
        params = trees.check_params(self, params)
        x, batch_shape = arrays.check_step_input(self, x)
        batch = 0, len(batch_shape)
        state = trees.conform_state(self, "state", state, params, x, batch, x.dtype)
        return _step(self.for_program(), params, state, x)


class LearnedStart(Cell):
    """A cell whose parameters may hold the h and c that sequences start from.

    Attributes:
        learn_initial_state: whether they do, as ``initial_h`` and ``initial_c``.
    """

    learn_initial_state: bool

    def initial_state(
        self, params: Any, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Any:
        """Returns the state that sequences start from: the learned one, or zeros."""
        state = self.zero_state(batch_shape, dtype)
        if not self.learn_initial_state:
            return state
        h = jnp.broadcast_to(as_last_axes(params.initial_h, state.h), state.h.shape)
        c = jnp.broadcast_to(as_last_axes(params.initial_c, state.c), state.c.shape)
        return state._replace(h=h, c=c)

    def params_of_steps(self, params: Any) -> Any:
        """Returns the parameters without the learned start."""
        return params._replace(initial_h=None, initial_c=None)


class ProtocolCell(Cell):
    """An object that follows the protocol without deriving from :class:`Cell`."""

    def __init__(self, cell: Any):
        """Takes what the object has; the rest are the defaults."""
        self.cell = cell
        for name in (
            *("init", "zero_state", "project", "recur", "update"),
            *("dtype", "input_shape", "additive", "initial_state", "perturb"),
            *("output_size", "params_by_row", "affine_steps", "unitwise"),
            "convolves",
        ):
            if hasattr(cell, name):
                setattr(self, name, getattr(cell, name))
        self.noisy = hasattr(cell, "perturb")

    def __hash__(self) -> int:
        """Returns the hash of the object inside."""
        return hash(self.cell)

    def __eq__(self, other: object) -> bool:
        """Returns whether the objects inside are equal."""
        return isinstance(other, ProtocolCell) and self.cell == other.cell

    def __repr__(self) -> str:
        """Returns that of the object inside."""
        return repr(self.cell)

    def for_program(self) -> ProtocolCell:
        """Returns the cell itself."""
        return self

    @property
    def without_noise(self) -> Cell:
        """The cell that runs where there is no key."""
        return as_cell(getattr(self.cell, "without_noise", self.cell))


# What a step is made of; init makes what it is given.
_METHODS = ("zero_state", "project", "recur", "update")


def as_cell(cell: Any, name: str = "cell") -> Cell:
    """Returns any cell as a :class:`Cell`.

    Raises:
        TypeError: if it is not hashable, or lacks one of the five methods.
    """
    if isinstance(cell, type):
        raise TypeError(f"{name}: expected a cell, got the class {cell.__name__}.")
    if cell.__hash__ is None:
        raise TypeError(
            f"{name}: expected a hashable description, got {type(cell).__name__}. Make "
            "it a frozen dataclass."
        )
    if isinstance(cell, Cell):
        if wrong := _wrong(type(cell)):
            raise TypeError(f"{name}: {wrong}")
        return cell
    missing = [
        method for method in _METHODS if not callable(getattr(cell, method, None))
    ]
    if missing:
        hint = "A stack is run by its own apply." if hasattr(cell, "cells") else ""
        raise TypeError(f"{name}: {_lacks(type(cell), missing)} {hint}".rstrip())
    return ProtocolCell(cell)


@functools.cache
def _wrong(cls: type) -> str:
    """What a subclass of :class:`Cell` lacks, in words; nothing where it is one."""
    if issubclass(cls, ProtocolCell):
        return ""
    made = getattr(cls, "__dataclass_params__", None)
    if made is None or not made.frozen:
        return (
            f"expected a frozen dataclass, got {cls.__name__}. Write "
            "@dataclasses.dataclass(frozen=True) above the class."
        )
    missing = [one for one in _METHODS if getattr(cls, one) is getattr(Cell, one)]
    return _lacks(cls, missing) if missing else ""


def _lacks(cls: type, missing: list[str]) -> str:
    return (
        "expected a cell with the methods init, zero_state, project, recur and update, "
        f"got {cls.__name__}, which lacks {', '.join(missing)}."
    )


def compute_dtype(cell: Cell, inputs: Any) -> jnp.dtype:
    """The dtype that a cell's products are computed in, for inputs of a dtype."""
    return jnp.dtype(inputs if cell.dtype is None else cell.dtype)


def cast_params(params: PyTree, dtype: Any) -> PyTree:
    """Casts every floating leaf of a cell's parameters to the compute dtype."""

    def cast(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(cast, params)


def step(cell: Cell, params: PyTree, state: PyTree, x: Array) -> tuple[PyTree, PyTree]:
    """One step of any cell, on checked arguments."""
    dtype = compute_dtype(cell, x.dtype)
    params = cast_params(params, dtype)
    z = cell.project(params, x.astype(dtype))
    return cell.update(params, state, z, cell.recur(params, state))


@functools.partial(jax.jit, static_argnames="cell")
def _step(cell, params, state, x):
    batch = 0, x.ndim - arrays.input_ndim(cell)
    one = functools.partial(step, cell)
    return meshes.automatic(one, (params, state, x), x, batch, (0, 0))
