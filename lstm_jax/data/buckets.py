"""Which lengths ragged sequences are padded to."""

from __future__ import annotations

import numpy as np

# Lengths that are told apart at most: the choice takes their square.
_FINEST = 512


def choose_bounds(sizes: np.ndarray, buckets: int) -> np.ndarray:
    """The lengths, ascending, that pad these sizes least; the last is the longest.

    By dynamic programming: the best division of the shortest sequences into k buckets
    ends with a bucket, before which is the best division into k - 1.
    """
    lengths, counts = np.unique(sizes, return_counts=True)
    if len(lengths) > _FINEST:
        step = -(-int(lengths[-1]) // _FINEST)
        rounded = np.minimum(-(-lengths // step) * step, lengths[-1])
        lengths, inverse = np.unique(rounded, return_inverse=True)
        counts = np.bincount(inverse, counts)
    number = len(lengths)
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: steps of one bucket from the i-th length on to the j-th, inclusive.
    rows = before[None, 1:] - before[:-1, None]
    cost = np.where(rows > 0, rows * lengths[None], np.inf)
    best = cost[0].copy()
    starts = [np.zeros(number, int)]
    for _ in range(1, min(buckets, number)):
        total = np.concatenate([[0.0], best[:-1]])[:, None] + cost
        starts.append(total.argmin(0))
        best = total.min(0)
    bounds, end = [], number - 1
    for start in reversed(starts):
        if end < 0:
            break
        bounds.append(lengths[end])
        end = start[end] - 1
    return np.array(bounds[::-1])
