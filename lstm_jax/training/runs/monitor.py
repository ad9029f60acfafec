"""The monitored figure: what is best, when to stop, when to take smaller steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

from lstm_jax.checks import options


@dataclasses.dataclass(frozen=True)
class Plateau:
    """Smaller updates where the monitored figure gains no more.

    Args:
        factor: what updates are multiplied by, again each time.
        patience: evaluations without a gain until then.
        min_scale: below this product of factors nothing changes.

    Example:
        >>> from lstm_jax import training
        >>> training.Plateau(factor=0.5, patience=2).min_scale
        0.0
    """

    factor: float = 0.1
    patience: int = 10
    min_scale: float = 0.0

    def __post_init__(self) -> None:
        """Checks the options."""
        options.check_rate("factor", self.factor)
        options.check_positive("patience", self.patience)
        options.check_probability("min_scale", self.min_scale)


class Standing(NamedTuple):
    """How the monitored figure stands; plain numbers, as a checkpoint holds them.

    Attributes:
        best: the best value; None before the first that is a number.
        best_step: its step.
        reference: the value that the last gain led to.
        without_gain: evaluations since.
        on_plateau: the same, begun anew at every smaller scale.
        scale: of updates.
    """

    best: float | None = None
    best_step: int | None = None
    reference: float | None = None
    without_gain: int = 0
    on_plateau: int = 0
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Monitor:
    """The one rule of best weights, early stopping and plateau.

    *Best* is the best value of all; of equal ones the first; NaN never. *A gain* is
    better by more than ``min_delta`` than the value of the last gain, so that many
    small steps in one direction are a gain once they add up. Evaluations without a gain
    are counted, those that are NaN too.
    """

    name: str
    mode: str | None = None
    min_delta: float = 0.0
    patience: int | None = None
    plateau: Plateau | None = None

    def __post_init__(self) -> None:
        """Checks the options; a loss is the smaller the better, all else is said."""
        if self.mode is None and not self.name.endswith("loss"):
            raise ValueError(
                f"mode: expected 'min' or 'max' for monitor={self.name!r}, which is no "
                "loss, got None."
            )
        if self.mode is not None:
            options.check_choice("mode", self.mode, ("min", "max"))
        options.check_finite("min_delta", self.min_delta)
        if self.min_delta < 0:
            raise ValueError(f"min_delta: expected at least 0, got {self.min_delta}.")
        if self.patience is not None:
            options.check_positive("patience", self.patience)
        if self.plateau is not None and not isinstance(self.plateau, Plateau):
            raise TypeError(
                f"plateau: expected a training.Plateau, got {self.plateau!r}."
            )

    def after(self, standing: Standing, step: int, value: float) -> Standing:
        """Returns how it stands after one more evaluation."""
        if self._better(value, standing.best, 0.0):
            standing = standing._replace(best=value, best_step=step)
        if self._better(value, standing.reference, self.min_delta):
            return standing._replace(reference=value, without_gain=0, on_plateau=0)
        standing = standing._replace(
            without_gain=standing.without_gain + 1, on_plateau=standing.on_plateau + 1
        )
        if self.plateau is None or standing.on_plateau < self.plateau.patience:
            return standing
        smaller = max(standing.scale * self.plateau.factor, self.plateau.min_scale)
        return standing._replace(scale=min(smaller, standing.scale), on_plateau=0)

    def stops(self, standing: Standing) -> bool:
        """Returns whether patience is over."""
        return self.patience is not None and standing.without_gain >= self.patience

    def _better(self, value: float, than: float | None, by: float) -> bool:
        if math.isnan(value):
            return False
        if than is None:
            return True
        gain = value - than if self.mode == "max" else than - value
        return gain > by

    def check_names(self, names: Any) -> None:
        """Checks before the first step that the figure will be there."""
        if self.name not in names:
            raise ValueError(
                f"monitor: expected one of {', '.join(sorted(names))}, got "
                f"{self.name!r}."
            )
