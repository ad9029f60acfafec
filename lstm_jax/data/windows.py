"""Windows that slide over series, and their scale."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lstm_jax.checks import options, slips
from lstm_jax.data import taking

# Numbers that are so many roundings apart are the same, computed in other ways.
_ROUNDINGS = 8


class Scaler(NamedTuple):
    """Means and standard deviations, of each feature.

    Fit it on the training part alone: those of all the series tell of the future.

    Attributes:
        mean: ``[F]``.
        std: ``[F]``; 1 where a feature never changes.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import data
        >>> series = np.array([[1.0, 5.0], [3.0, 5.0]])
        >>> scaler = data.Scaler.fit(series)
        >>> scaler.scale(series).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
        >>> scaler.unscale(scaler.scale(series)).tolist()
        [[1.0, 5.0], [3.0, 5.0]]
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, series: Any) -> Scaler:
        """Measures one series ``[T, F]``, or several, in float64.

        Raises:
            ValueError: if there is no step, features differ, or numbers are not finite.
            TypeError: if a series is no array, or a masked one.
        """
        whole = np.concatenate([one.astype(np.float64) for one in _several(series)])
        if not len(whole):
            raise ValueError("series: expected at least one step, got none.")
        if not np.isfinite(whole).all():
            raise ValueError("series: expected finite numbers, got NaN or infinity.")
        least, most = whole.min(0), whole.max(0)
        # A sum of equal numbers rounds: neither their mean nor deviation is exact.
        rounding = _ROUNDINGS * np.finfo(np.float64).eps * np.abs(whole).max(0)
        mean, std = whole.mean(0), whole.std(0)
        same = (most - least <= rounding) | (std == 0)
        return cls(np.where(same, least, mean), np.where(same, 1.0, std))

    def scale(self, values: Any) -> np.ndarray:
        """Values ``[..., F]`` with mean 0 and deviation 1, in their floating dtype.

        Raises:
            ValueError: if they have another number of features.
            TypeError: if they are no array of real numbers, or a masked one.
        """
        values = self._taken(values)
        return ((values - self.mean) / self.std).astype(values.dtype)

    def unscale(self, values: Any) -> np.ndarray:
        """The values that were scaled to these.

        Raises:
            ValueError: if they have another number of features.
            TypeError: if they are no array of real numbers, or a masked one.
        """
        values = self._taken(values)
        return (values * self.std + self.mean).astype(values.dtype)

    def _taken(self, values: Any) -> np.ndarray:
        """Values in their floating dtype, float64 for integers."""
        values = taking.array("values", values)
        features = np.shape(self.mean)[-1:]
        if features and values.shape[-1:] != features:
            raise ValueError(
                f"values: expected shape [..., F] with F = {features[0]}, as the "
                f"scaler has, got {list(values.shape)}."
            )
        if values.dtype.kind in "biu":
            return values.astype(np.float64)
        options.check_floating("values", values.dtype)
        return values


@slips.explained
def sliding_windows(
    series: Any, length: int, horizon: int, *, stride: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts series into what is seen and what follows it.

    A window lies within one series, and every one that does is there. Cut the series
    into training and test parts first, and windows of each part then: no target of one
    is an input of the other.

    Args:
        series: ``[T, F]``, or several with one F.
        length: steps that are seen.
        horizon: steps that follow and are to be forecast.
        stride: from the start of a window to that of the next.

    Returns:
        ``(inputs, targets)``, ``[N, length, F]`` and ``[N, horizon, F]``; of one series
        views that take no memory, so do not write to them.

    Raises:
        ValueError: if no series is as long as a window, or features differ.
        TypeError: if a number is not an integer.

    Example:
        >>> import numpy as np
        >>> from lstm_jax import data
        >>> inputs, targets = data.sliding_windows(np.arange(6.0)[:, None], 3, 2)
        >>> inputs[..., 0].tolist(), targets[..., 0].tolist()
        ([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]], [[3.0, 4.0], [4.0, 5.0]])
    """
    sizes = {"length": length, "horizon": horizon, "stride": stride}
    for name, size in sizes.items():
        options.check_positive(name, size)
    whole = length + horizon
    cut = [
        np.lib.stride_tricks.sliding_window_view(one, whole, 0)[::stride]
        for one in _several(series)
        if len(one) >= whole
    ]
    if not cut:
        raise ValueError(
            f"series: expected at least length + horizon = {whole} steps, got none as "
            "long."
        )
    windows = np.moveaxis(cut[0] if len(cut) == 1 else np.concatenate(cut), -1, 1)
    return windows[:, :length], windows[:, length:]


def _several(series: Any) -> list[np.ndarray]:
    """Series as a list of ``[T, F]``."""
    if hasattr(series, "__array__"):
        whole = taking.array("series", series)
        arrays = [*whole] if whole.ndim == 3 else [whole]
    else:
        given = series if hasattr(series, "__iter__") else [series]
        arrays = [taking.array(f"series[{n}]", one) for n, one in enumerate(given)]
    shapes = [array.shape for array in arrays]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ValueError(
            "series: expected shape [T, F], or several of them, got "
            f"{', '.join(str(list(shape)) for shape in shapes) or 'none'}. One feature "
            "is series[:, None]."
        )
    if len({shape[1] for shape in shapes}) > 1:
        raise ValueError(
            "series: expected one number of features, got "
            f"{sorted({shape[1] for shape in shapes})}."
        )
    return arrays
