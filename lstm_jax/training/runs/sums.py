"""Figures added up over batches on the host: exact counts, sums in float64."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from lstm_jax.training.losses.weighted import Weighted
from lstm_jax.types import PyTree

_TERM = "loss[{}]"


class Sums:
    """Totals and weights by name. JSON holds them to the last bit."""

    def __init__(self, sums: dict[str, list] | None = None):
        """Starts from nothing, or from what :attr:`plain` was."""
        self.plain: dict[str, list] = {} if sums is None else dict(sums)

    def add(self, loss: Any, metrics: PyTree) -> None:
        """Adds what one batch gave; all on the host already."""
        for name, figure in named(loss, metrics).items():
            total, weight = figure if isinstance(figure, Weighted) else (figure, 1)
            before = self.plain.get(name, [0.0, 0])
            self.plain[name] = [
                before[0] + float(np.asarray(total, np.float64)),
                before[1] + _number(weight),
            ]

    def means(self) -> dict[str, float]:
        """Every mean; the loss is the sum of its terms."""
        means = {name: _mean(*pair) for name, pair in self.plain.items()}
        terms = [name for name in means if name.startswith("loss[")]
        if not terms:
            return means
        loss = sum(means[name] for name in terms)
        if len(terms) == 1:
            del means[terms[0]]
        return {"loss": loss, **means}

    @property
    def tokens(self) -> int | float | None:
        """The weight of the loss; None where it is a mean."""
        first = self.plain.get(_TERM.format(0))
        return None if first is None else first[1]


def named(loss: Any, metrics: PyTree) -> dict[str, Any]:
    """Scalars and Weighted figures by name."""
    figures: dict[str, Any] = {"loss": loss}
    if isinstance(loss, tuple):
        figures = {_TERM.format(n): term for n, term in enumerate(loss)}
    is_figure = lambda value: isinstance(value, Weighted)
    for path, leaf in jax.tree.leaves_with_path(metrics, is_leaf=is_figure):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "metric"
        if not is_figure(leaf) and np.shape(leaf):
            raise ValueError(
                f"metrics: expected scalars or Weighted figures from loss_fn, got "
                f"{name} of shape {list(np.shape(leaf))}."
            )
        name = "metric_loss" if name == "loss" else name
        if name in figures or name.startswith(_TERM.partition("{")[0]):
            raise ValueError(
                f"metrics: expected names that are no other figure's, got {name!r}, "
                "which is one already, or that of a term of the loss."
            )
        figures[name] = leaf
    return figures


def _number(weight: Any) -> int | float:
    """An integer as one of any size."""
    return np.asarray(weight).item()


def _mean(total: float, weight: int | float) -> float:
    if not weight:
        return math.nan
    return total / weight
