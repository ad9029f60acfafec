"""Models for inference in 8 bits, made of trained ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from lstm_jax.cells.base import Cell
from lstm_jax.cells.lstm_cell import LSTMCell
from lstm_jax.cells.quantized import QuantizedLSTMCell, quantized_params
from lstm_jax.cells.regularized import Regularized
from lstm_jax.checks import border, trees
from lstm_jax.descriptions.base import differs
from lstm_jax.stack import Layers, Stack
from lstm_jax.types import Directions, PyTree

_KEPT = {field.name for field in dataclasses.fields(QuantizedLSTMCell)}
_DTYPES = ("float32", "bfloat16", "float16")


def quantize(model: Any, params: PyTree) -> tuple[Any, PyTree]:
    """Returns a model and its parameters for inference in 8 bits.

    Weights become int8, with a scale for each column of each matrix: a quarter of the
    memory. Inputs and h are rounded to 8 bits by row and step as they enter a product,
    whose sums are exact; gates, c and everything else are float32. Nothing is
    calibrated. See :class:`QuantizedLSTMCell` for what follows from that.

    All that runs a model runs this one: ``apply`` with lengths, masks, resets and
    states, ``step``, :func:`stream`, :func:`export`, serving. It has no gradient, which
    is said where one is asked for. Dropout and other noise, which act only where there
    is a key, are gone.

    Args:
        model: an :class:`LSTM`, a :class:`Stack` or an :class:`LSTMCell` with the
            standard equations; of the options that change them, ``clip`` and
            ``cell_clip`` may be set.
        params: its parameters, in float32, bfloat16 or float16. Those of a Flax module
            come from ``lstm_jax.linen.params_of``, or from the attribute ``params`` of
            ``lstm_jax.nnx``'s.

    Returns:
        ``(model, params)``: a :class:`Stack` of :class:`QuantizedLSTMCell`, or one such
        cell, and :class:`QuantizedParams` in the places of :class:`LSTMParams`.

    Raises:
        ValueError: if the model has an option that products in 8 bits are not made
            for, by name, or is quantised already; or a parameter is not finite.
        TypeError: if it is no stack of :class:`LSTMCell` and no such cell, or the
            parameters are of another dtype.

    Example:
        >>> import jax, jax.numpy as jnp, lstm_jax as lj
        >>> model = lj.LSTM(3, 64, num_layers=2)
        >>> params, xs = model.init(jax.random.key(0)), jnp.ones((2, 7, 3))
        >>> small, small_params = lj.quantize(model, params)
        >>> ys, small_ys = model.apply(params, xs)[1], small.apply(small_params, xs)[1]
        >>> bool(jnp.linalg.norm(small_ys - ys) < 0.02 * jnp.linalg.norm(ys))
        True
    """
    if isinstance(model, Layers):
        params = model.check_params(params)
        made = Stack(
            tuple(
                _quantized(cell, f" in layer {index}")
                for index, cell in enumerate(model.cells)
            ),
            bidirectional=model.bidirectional,
            merge=model.merge,
            residual=model.residual,
            skip=model.skip,
            reverse=model.reverse,
        )
        quantized = tuple(
            Directions(
                *(
                    None if one is None else _rounded(f"params[{index}].{name}", one)
                    for name, one in layer._asdict().items()
                )
            )
            for index, layer in enumerate(params)
        )
        return made, quantized
    if not isinstance(model, Cell):
        raise TypeError(
            "model: expected a stack such as lstm_jax.LSTM, or an LSTMCell, got "
            f"{type(model).__name__}. Of a Flax module, quantize its model and its "
            "parameters: lstm_jax.linen.params_of(variables)."
        )
    made = _quantized(model, "")
    return made, _rounded("params", trees.check_params(model, params))


def _quantized(cell: Any, where: str) -> QuantizedLSTMCell:
    """The quantised form of a cell."""
    if isinstance(cell, Regularized):
        for name in ("zoneout_h", "zoneout_c"):
            _check(name, getattr(cell, name), 0.0, where)
        return _quantized(cell.cell, where)
    if type(cell) is QuantizedLSTMCell:
        raise ValueError(
            f"model: expected one in float32, got one that is quantised already{where}."
        )
    if type(cell) is not LSTMCell:
        raise TypeError(
            "model: expected layers of LSTMCell, the only cell with products in 8 "
            f"bits, got {type(cell).__name__}{where}."
        )
    if cell.dtype is not None and cell.dtype != np.float32:
        raise ValueError(
            "dtype: expected None or float32, in which everything but the products is "
            f"computed, got {cell.dtype.name}{where}."
        )
    kept = {}
    for field in dataclasses.fields(cell):
        value = getattr(cell, field.name)
        if field.name in _KEPT:
            kept[field.name] = value
        elif field.name not in (*cell.INIT_ONLY, "dtype"):
            _check(field.name, value, field.default, where)
    return QuantizedLSTMCell(**kept)


def _check(name: str, value: Any, default: Any, where: str) -> None:
    """Refuses an option that there are no products in 8 bits for."""
    if differs(value, default):
        shown = getattr(value, "__name__", repr(value))
        wanted = getattr(default, "__name__", repr(default))
        raise ValueError(
            f"{name}: expected {wanted}, since products in 8 bits are those of the "
            f"standard equations, got {shown}{where}."
        )


def _rounded(name: str, params: Any) -> Any:
    """The quantised form of a cell's parameters, which are checked."""
    for path, leaf in jax.tree.leaves_with_path(params):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if leaf.dtype.name not in _DTYPES:
            raise TypeError(
                f"{where}: expected {', '.join(_DTYPES[:-1])} or {_DTYPES[-1]}, which "
                f"float32 holds, got {leaf.dtype.name}. Cast it, if that is meant."
            )
        if not isinstance(leaf, core.Tracer) and not _finite(leaf):
            raise ValueError(f"{where}: expected finite numbers, got NaN or Inf.")
    return quantized_params(params)


def _finite(leaf: Any) -> bool:
    return bool(np.isfinite(border.give(jnp.asarray(leaf, jnp.float32))).all())
