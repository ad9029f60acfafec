"""Noise inside the recurrence, for any cell: dropout, DropConnect, zoneout."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstm_jax.cells.base import Cell, as_cell
from lstm_jax.cells.dropout import inverted_dropout
from lstm_jax.checks import arrays, options, slips
from lstm_jax.numerics import accumulation_dtype, as_last_axes
from lstm_jax.types import Array, PyTree

RATES: tuple[str, ...] = (
    "input_dropout",
    "output_dropout",
    "recurrent_dropout",
    "drop_connect",
    "zoneout_h",
    "zoneout_c",
)

# Those that change the steps themselves, or what comes out of them.
_IN_THE_LOOP = ("output_dropout", "recurrent_dropout", "zoneout_h", "zoneout_c")


def _of_inside(name: str, words: str) -> Any:
    """A property of a cell that is that of the cell inside."""
    return property(lambda self: getattr(self._inside, name), doc=words)


@slips.explained
@dataclasses.dataclass(frozen=True, repr=False)
class Regularized(Cell):
    """A cell with noise in its recurrence while it is trained.

    Parameters, states and options are those of the cell inside. Noise needs a key:
    ``scan(Regularized(cell, ...), params, xs, key=key)``. Without one there is no
    dropout, and zoneout takes its expectation. Each mask is drawn once for each row and
    kept over all steps, resets included; only zoneout draws anew at each step. The same
    key gives the same masks.

    Args:
        cell: any cell of the protocol whose state has a field ``h``.
        input_dropout: rate of the dropout of inputs; what Keras calls ``dropout``.
        output_dropout: rate of the dropout of outputs. The state is left as it is.
        recurrent_dropout: rate of the dropout of h on its way into the recurrent
            product, one mask for all gates (Keras draws one for each).
        drop_connect: rate at which recurrent weights are dropped, once for a call and
            for all rows (AWD-LSTM's "weight drop").
        zoneout_h: probability that a unit keeps its h of the step before.
        zoneout_c: the same of c.

    All dropout is inverted: what is kept is divided by 1 - rate.

    Raises:
        ValueError: if a rate is not in [0, 1).
        TypeError: if a rate is no number, or ``cell`` has no such state or parameters.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> cell = lj.Regularized(lj.LSTMCell(3, 5), recurrent_dropout=0.2)
        >>> params, xs = cell.init(jax.random.key(0)), jnp.ones((2, 7, 3))
        >>> state, ys = lj.scan(cell, params, xs, key=jax.random.key(1))
        >>> plain = lj.scan(cell.cell, params, xs)[1]
        >>> bool((lj.scan(cell, params, xs)[1] == plain).all())
        True
        >>> bool((ys == plain).all())
        False

    References:
        Gal and Ghahramani 2016, arXiv:1512.05287; Merity et al. 2017, arXiv:1708.02182;
        Krueger et al. 2017, arXiv:1606.01305.
    """

    cell: Any
    _: dataclasses.KW_ONLY
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    drop_connect: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0

    def __post_init__(self) -> None:
        """Checks the rates, and that the cell has what they apply to."""
        self._normalise()
        for name in RATES:
            options.check_rate(name, getattr(self, name))
        state = jax.eval_shape(self.cell.zero_state)
        fields = getattr(state, "_fields", ())
        needs = {"recurrent_dropout": "h", "zoneout_h": "h", "zoneout_c": "c"}
        if self.recurrent_dropout and self._inside.affine_steps is not None:
            raise TypeError(
                "recurrent_dropout: expected a cell whose gates see h, got "
                f"{type(self.cell).__name__}, whose gates see the inputs alone."
            )
        for name, field in needs.items():
            if getattr(self, name) and field not in fields:
                raise TypeError(
                    f"{name}: expected a cell whose state has a field {field}, got "
                    f"{type(self.cell).__name__} with {fields or 'no fields'}."
                )

    def __getattr__(self, name: str) -> Any:
        """Returns what else the cell inside has, such as its sizes."""
        if name == "cell" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.cell, name)

    standard = _of_inside("standard", "Whether it is the standard LSTM.")
    dtype = _of_inside("dtype", "The compute dtype.")
    input_shape = _of_inside("input_shape", "The shape of one input.")
    additive = _of_inside("additive", "Whether it depends on z and r through z + r.")
    convolves = _of_inside("convolves", "Whether its products are convolutions.")
    unitwise = _of_inside("unitwise", "Whether units do not see one another.")
    param_letters = _of_inside("param_letters", "The letters of parameters' shapes.")
    state_letters = _of_inside("state_letters", "The letters of the state's shapes.")

    @property
    def affine_steps(self) -> Any:
        """Those of the cell inside, where there is no zoneout."""
        zoneout = self.zoneout_h or self.zoneout_c
        return None if zoneout else self._inside.affine_steps

    @property
    def input_dtypes(self) -> Any:
        """The dtypes that inputs may have."""
        return self._inside.input_dtypes

    @property
    def output_size(self) -> int:
        """The size of one output."""
        return self.cell.output_size

    @property
    def noisy(self) -> bool:
        """Whether a key changes anything."""
        return self._inside.noisy or any(getattr(self, name) for name in RATES)

    @property
    def _inside(self) -> Cell:
        return as_cell(self.cell)

    def initial_state(
        self, params: PyTree, batch_shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Any:
        """Returns the state that sequences of the cell inside start from."""
        return self._inside.initial_state(params, batch_shape, dtype)

    @slips.explained
    def init(self, key: Array) -> PyTree:
        """Returns new parameters of the cell inside."""
        return self.cell.init(key)

    def zero_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Any:
        """Returns the state of zeros of the cell inside."""
        return self.cell.zero_state(batch_shape, dtype)

    def params_of_steps(self, params: PyTree) -> PyTree:
        """Returns the parameters without those that only sequences start from."""
        return self._inside.params_of_steps(params)

    def params_by_row(self, params: PyTree) -> PyTree:
        """Returns, for each leaf of the parameters, whether it has the batch axes."""
        return self._inside.params_by_row(params)

    def project(self, params: PyTree, xs: Array) -> PyTree:
        """Returns what the inputs contribute."""
        return self.cell.project(params, xs)

    def recur(self, params: PyTree, state: Any) -> PyTree:
        """Returns what the state contributes."""
        return self.cell.recur(params, state)

    def update(
        self, params: PyTree, state: Any, z: PyTree, r: PyTree
    ) -> tuple[Any, PyTree]:
        """Returns ``(state, y)``, with the expectation of zoneout."""
        after, y = self.cell.update(params, state, z, r)
        return self.zone_out(state, after, y, (None, None))

    def zone_out(
        self, before: Any, after: Any, y: PyTree, keep: tuple[Array | None, ...]
    ) -> tuple[Any, PyTree]:
        """Keeps part of the state of the step before.

        Args:
            before: the state before the step.
            after: the state after it.
            y: the step's output.
            keep: where h and c are kept; None for the expectation.
        """
        if self.zoneout_c:
            after = after._replace(c=_mix(self.zoneout_c, keep[1], before.c, after.c))
        if self.zoneout_h:
            y = _mix(self.zoneout_h, keep[0], before.h, after.h)
            after = after._replace(h=y)
        return after, y

    @property
    def without_noise(self) -> Any:
        """What runs where there is no key: the cell inside, but for zoneout."""
        if self.zoneout_h or self.zoneout_c:
            return self
        return self._inside.without_noise

    def perturb(
        self, key: Array, params: PyTree, xs: Any
    ) -> tuple[Any, PyTree, PyTree]:
        """Draws the noise of one call: what runs instead of this cell.

        Args:
            key: a random key.
            params: the parameters, in the compute dtype.
            xs: ``[T, *batch, *input_shape]``.

        Returns:
            ``(cell, params, xs)`` for the loop.
        """
        keys = dict(zip(RATES, jax.random.split(key, len(RATES)), strict=True))
        length, *batch = xs.shape[: xs.ndim - arrays.input_ndim(self._inside)]
        h = jax.eval_shape(lambda: self.cell.zero_state(tuple(batch)))

        def mask(name: str, shape: tuple[int, ...]) -> Array | None:
            rate = getattr(self, name)
            ones = jnp.ones(shape, accumulation_dtype(xs.dtype))
            return inverted_dropout(keys[name], rate, ones) if rate else None

        def keep(name: str, field: str) -> Array | None:
            rate = getattr(self, name)
            if not rate:
                return None
            shape = (length, *getattr(h, field).shape)
            return jax.random.bernoulli(keys[name], rate, shape)

        params = self._drop_connect(keys["drop_connect"], params)
        input_mask = mask("input_dropout", xs.shape[1:])
        if not any(getattr(self, name) for name in _IN_THE_LOOP):
            # All there is is done: the steps are the cell's own.
            if input_mask is not None:
                xs = xs * as_last_axes(input_mask, xs)
            return self.without_noise, params, xs
        noise = Noise(
            params,
            input_mask,
            mask("recurrent_dropout", h.h.shape) if hasattr(h, "h") else None,
            mask("output_dropout", h.h.shape) if hasattr(h, "h") else None,
        )
        if self.zoneout_h or self.zoneout_c:
            xs = (xs, (keep("zoneout_h", "h"), keep("zoneout_c", "c")))
        return Noisy(self), noise, xs

    def _drop_connect(self, key: Array, params: PyTree) -> PyTree:
        if not self.drop_connect:
            return params
        if not hasattr(params, "recurrent_kernel"):
            raise TypeError(
                "drop_connect: expected parameters with a field recurrent_kernel, got "
                f"{type(params).__name__}."
            )
        kernel = inverted_dropout(key, self.drop_connect, params.recurrent_kernel)
        return params._replace(recurrent_kernel=kernel)


class Noise(NamedTuple):
    """The parameters of a noisy cell: the cell's own, and masks of one row each."""

    params: PyTree
    input_mask: Array | None
    recurrent_mask: Array | None
    output_mask: Array | None


@slips.explained
@dataclasses.dataclass(frozen=True, repr=False)
class Noisy(Cell):
    """A regularized cell while it is trained, as the loop takes it."""

    regularized: Regularized

    @property
    def _zones(self) -> bool:
        return bool(self.regularized.zoneout_h or self.regularized.zoneout_c)

    @property
    def additive(self) -> bool:
        """Whether a step depends on inputs and state through their sum alone."""
        return self.regularized.additive

    @property
    def convolves(self) -> bool:
        """That of the cell."""
        return self.regularized.convolves

    @property
    def outputs_hidden(self) -> bool:
        """Whether an output is the h that enters the next product: without masks."""
        rates = self.regularized
        return not (rates.recurrent_dropout or rates.output_dropout)

    @property
    def dtype(self) -> Any:
        """That of the cell inside."""
        return self.regularized.dtype

    def zero_state(self, batch_shape: tuple[int, ...] = (), dtype: Any = None) -> Any:
        """Returns the state of zeros of the cell inside."""
        return self.regularized.zero_state(batch_shape, dtype)

    def params_by_row(self, params: Noise) -> Noise:
        """Returns the same of the cell inside; masks have a row for each."""
        return Noise(
            self.regularized.params_by_row(params.params),
            *jax.tree.map(lambda mask: True, tuple(params[1:])),
        )

    def project(self, params: Noise, xs: PyTree) -> PyTree:
        """Returns what the inputs contribute, and what zoneout keeps."""
        keep = None
        if self._zones:
            xs, keep = xs
        if params.input_mask is not None:
            xs = xs * as_last_axes(params.input_mask, xs)
        z = self.regularized.cell.project(params.params, xs)
        return (z, keep) if self._zones else z

    def recur(self, params: Noise, state: Any) -> PyTree:
        """Returns what the state contributes."""
        if params.recurrent_mask is not None:
            h = state.h * as_last_axes(params.recurrent_mask, state.h)
            state = state._replace(h=h)
        r = self.regularized.cell.recur(params.params, state)
        return (r, None) if self._zones else r

    def update(
        self, params: Noise, state: Any, z: PyTree, r: PyTree
    ) -> tuple[Any, PyTree]:
        """Returns ``(state, y)``."""
        keep = (None, None)
        if self._zones:
            (z, keep), (r, _) = z, r
        after, y = self.regularized.cell.update(params.params, state, z, r)
        after, y = self.regularized.zone_out(state, after, y, keep)
        if params.output_mask is not None:
            y = y * as_last_axes(params.output_mask, y)
        return after, y


def _mix(rate: float, keep: Array | None, before: Array, after: Array) -> Array:
    if keep is None:
        return rate * before + (1 - rate) * after
    return jnp.where(keep, before, after)
