"""Over which devices a model's parameters, states and batches lie, as specs.

Three layouts, and what they make together. *Data*: rows of the batch are over mesh
axes. *FSDP*: so are the rows of every weight as it is stored; it is gathered once,
where its layer begins. *Model*: hidden units are over an axis, and a step gathers h.
What is stored is ``[I, 4H]``, gate by gate, on every mesh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from lstm_jax import meshes
from lstm_jax.cells.base import as_cell
from lstm_jax.checks import options, slips, trees
from lstm_jax.recurrence import units
from lstm_jax.stack import Layers
from lstm_jax.types import Directions, PyTree

__all__ = ("Layout", "use")


@slips.explained
@dataclasses.dataclass(frozen=True)
class Layout:
    """Which mesh axes a batch, weights and hidden units are over.

    Its methods make a ``PartitionSpec`` for every array; ``jax.device_put`` puts them
    there::

        put = lambda tree, specs: jax.device_put(
            tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
        )
        params = put(params, layout.params(model))

    Args:
        mesh: the mesh, of automatic or of explicit axes.
        data: the axes that rows of the batch are over: a name, or several for one
            batch axis, such as ``("data", "fsdp")``; a ``PartitionSpec`` has an entry
            for each of several batch axes. None where every device has all rows.
        fsdp: the axis that the rows of every weight are over, mostly one of ``data``.
        model: the axis that hidden units are over, which is in no other place. Calls
            then run under :func:`use`; cells are :class:`lstm_jax.LSTMCell` without
            ``layer_norm``, heads and "FGR".

    Raises:
        ValueError: if an axis is not one of the mesh, or is asked for twice.
        TypeError: if ``mesh`` is none.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> from jax.sharding import NamedSharding
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> layout = lj.sharding.Layout(mesh, data="data", model="model")
        >>> model = lj.LSTM(3, 5, num_layers=2)
        >>> specs = layout.params(model)
        >>> tuple(specs[0].forward.kernel), tuple(specs[0].forward.bias)
        (('model',), ())
        >>> tuple(layout.inputs()), tuple(layout.state(model)[0].forward.c)
        (('data',), ('data', 'model'))
        >>> put = lambda spec: NamedSharding(mesh, spec)
        >>> params = model.init(jax.random.key(0))
        >>> params = jax.device_put(params, jax.tree.map(put, specs))
        >>> xs = jax.device_put(jnp.ones((2, 7, 3)), put(layout.inputs()))
        >>> with jax.set_mesh(mesh), lj.sharding.use(layout):
        ...     state, ys = jax.jit(model.apply)(params, xs)
        >>> ys.shape
        (2, 7, 5)
    """

    mesh: Mesh | AbstractMesh
    _: dataclasses.KW_ONLY
    data: str | tuple[str, ...] | P | None = None
    fsdp: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Checks the axes."""
        if not isinstance(self.mesh, Mesh | AbstractMesh):
            raise TypeError(
                f"mesh: expected one such as jax.make_mesh makes, got "
                f"{type(self.mesh).__name__}."
            )
        data = [("data", name) for name in meshes.names_in(self._batch)]
        rows = [
            (name, getattr(self, name))
            for name in ("fsdp", "model")
            if getattr(self, name) is not None
        ]
        for argument, name in (*data, *rows):
            options.check_choice(argument, name, self.mesh.axis_names)
        names = [name for _, name in data]
        if len(set(names)) < len(names):
            raise ValueError(f"data: expected every axis once, got {self.data}.")
        if self.model is not None and self.model in (*names, self.fsdp):
            raise ValueError(
                f"model: expected an axis of its own, since the devices along it share "
                f"rows, got {self.model!r}, which is in data or fsdp too."
            )

    def params(self, model: Any) -> PyTree:
        """Returns the specs of a model's parameters, and of whatever is like them.

        Weights that inputs or units go into have their rows, the last axis but one,
        over ``fsdp`` and ``model``. The rest is small and whole on every device.

        Args:
            model: a cell, or a stack such as :class:`lstm_jax.LSTM`.

        Raises:
            ValueError: if an axis does not divide the rows of a weight, or the hidden
                units of a cell; if units of such a cell can't be apart.
        """
        return _of_layers(model, self._params_of_cell)

    def state(self, model: Any) -> PyTree:
        """Returns the specs of a model's state: rows over ``data``, c over ``model``.

        Args:
            model: see :meth:`params`.
        """

        def of_cell(cell, name):
            self._check_units(cell)
            specs = jax.tree.map(
                lambda leaf: P(*self._batch), trees.state_template(cell)
            )
            if self.model is None:
                return specs
            rest = (None,) * max(1 - len(self._batch), 0)
            return specs._replace(c=P(*self._batch, *rest, self.model))

        return _of_layers(model, of_cell)

    def inputs(self, *, time_major: bool = False) -> P:
        """Returns the spec of xs, mask, reset and outputs; time is whole.

        Lengths have no time axis: theirs is the one for batch-first inputs.

        Args:
            time_major: whether the first axis is time.
        """
        return P(None, *self._batch) if time_major else P(*self._batch)

    @property
    def _batch(self) -> tuple:
        """For each batch axis its mesh axes."""
        if self.data is None:
            return ()
        return tuple(self.data) if isinstance(self.data, P) else (self.data,)

    def _params_of_cell(self, cell: Any, name: str) -> PyTree:
        self._check_units(cell)
        axes = tuple(axis for axis in (self.model, self.fsdp) if axis is not None)
        parts = math.prod(self.mesh.shape[axis] for axis in axes)

        def of_leaf(path, leaf):
            field = jax.tree_util.keystr(path)
            letters = cell.param_letters.get(field, "")
            if not axes or leaf.ndim < 2 or _FEW_ROWS.search(letters):
                return P()
            rows = leaf.shape[-2]
            if rows % parts:
                raise ValueError(
                    f"{name}{field}: expected rows that the {parts} parts of "
                    f"{' and '.join(map(repr, axes))} divide, got {rows} of "
                    f"{list(leaf.shape)}{letters and f' = {letters}'}. Inputs can have "
                    "zeros for features that are not there, and units can be more."
                )
            over = axes[0] if len(axes) == 1 else axes
            return P(*(None for _ in leaf.shape[:-2]), over)

        template = jax.eval_shape(cell.init, jax.eval_shape(jax.random.key, 0))
        return jax.tree.map_with_path(of_leaf, template)

    def _check_units(self, cell: Any) -> None:
        if self.model is not None:
            units.check(units.lstm_of(cell), self.model, self.mesh.shape[self.model])


# Such as [3, H] of peepholes: a row for each gate, or for scale and shift.
_FEW_ROWS = re.compile(r"^\[\d+, [^,]+\]$")


def _of_layers(model: Any, of_cell: Any) -> PyTree:
    """What is made of every cell, nested as the model's parameters are."""
    if not isinstance(model, Layers):
        return of_cell(as_cell(model, "model"), "params")
    return tuple(
        Directions(
            *(
                of_cell(as_cell(cell), f"params[{index}].{name}")
                for name in Directions._fields[: 1 + model.bidirectional]
            )
        )
        for index, cell in enumerate(model.cells)
    )


def use(layout: Layout | None) -> contextlib.AbstractContextManager[None]:
    """Runs the layers of a ``with`` block, or of a function, as a layout says.

    Needed where hidden units are over a mesh axis, which XLA would otherwise gather:
    within, each device runs its own units of every step, and what a step exchanges is
    h. Rows and weights that are sharded need no word.

    :func:`lstm_jax.parallel_scan`, and single steps, have no such form: the former is
    refused within, and XLA cuts the latter as it sees fit.

    Args:
        layout: the layout; None for none.

    Raises:
        TypeError: if ``layout`` is none.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> cell, xs = lj.LSTMCell(3, 5), jnp.ones((2, 7, 3))
        >>> params = cell.init(jax.random.key(0))
        >>> with lj.sharding.use(lj.sharding.Layout(mesh, model="model")):
        ...     lj.resolve_implementation(cell, params, xs)
        'xla'
    """
    if layout is None:
        return meshes.running_over(None)
    if not isinstance(layout, Layout):
        raise TypeError(f"layout: expected a Layout, got {type(layout).__name__}.")
    if layout.model is None:
        return meshes.running_over(None)
    return meshes.running_over(meshes.Units(layout.mesh, layout._batch, layout.model))
