"""The threshold that loses the least information: TensorRT's entropy method.

After S. Migacz, "8-bit Inference with TensorRT", GTC 2017. For every candidate, the first ``i`` bins of the
histogram with all that lies beyond put into the last of them (P) are compared with what is left of the same
bins after they are summed to 128 levels and each level is spread over its non-empty bins (Q). The candidate
with the smallest Kullback-Leibler divergence of Q from P is taken.

Zeros are no part of the histogram: they are represented exactly by any scale, and the peak they make after a
ReLU would drown what the threshold is to preserve.

A candidate that would clip more than one in MOST_CLIPPED of the other values is not looked at. P has its
outliers clipped as well, so that clipping costs nothing where the last bin holds a peak: of pixels that are
mostly background, or of a few shades, everything beyond the peak would be cut off. Activations without such a
peak have a minimum far below this bound.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from .histogram import BINS

__all__ = ["LEVELS", "MOST_CLIPPED", "best_bins", "divergences"]

LEVELS = 128
"""Levels that the magnitudes are summed to."""

MOST_CLIPPED = 100
"""One value in so many may lie beyond the threshold."""

# Divergences are sums of thousands of terms of about one; nearer than this they are the same.
_SAME = 1e-12


@functools.cache
def _level_starts() -> NDArray[np.int16]:
    """Where levels begin, int16[BINS + 1 - LEVELS, LEVELS + 1]; row ``i`` is of ``LEVELS + i`` bins.

    Bin ``b`` of ``i`` bins belongs to level ``floor(b * LEVELS / i)``.
    """
    bins = np.arange(LEVELS, BINS + 1)[:, None]
    return (-(-np.arange(LEVELS + 1) * bins // LEVELS)).astype(np.int16)


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.maximum(values, 1.0))


def _before(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of all that comes before each position, one more than there are values."""
    return np.concatenate(([0.0], np.cumsum(values)))


def divergences(counts: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The divergence for every candidate.

    Args:
        counts: uint64[BINS], at least one of them above zero.

    Returns:
        float64[BINS + 1 - LEVELS] for thresholds after LEVELS, LEVELS + 1, ... bins. Infinite where values
        beyond the threshold would have to be put into an empty bin, and after the last bin that has any.
    """
    inner = counts.astype(np.float64)
    total = inner.sum()
    sums, used, entropies = _before(inner), _before((inner > 0).astype(np.float64)), _before(_x_log_x(inner))
    is_candidate = inner[LEVELS - 1 :] > 0
    if counts[:LEVELS].any() and not counts[LEVELS:].any():
        is_candidate[0] = True
    starts = _level_starts()[is_candidate]
    bins = LEVELS + np.flatnonzero(is_candidate)

    level_sums = np.diff(sums[starts], axis=1)
    level_logs = np.log(np.maximum(level_sums, 1.0) / np.maximum(np.diff(used[starts], axis=1), 1.0))
    kept, last = sums[bins], inner[bins - 1]
    clipped = total - kept
    of_p = entropies[bins] - _x_log_x(last) + _x_log_x(last + clipped)
    of_q = np.einsum("il,il->i", level_sums, level_logs) + clipped * level_logs[:, -1]
    found = np.full(BINS + 1 - LEVELS, np.inf)
    found[is_candidate] = (of_p - of_q) / total + np.log(kept / total)
    return found


def best_bins(counts: NDArray[np.uint64]) -> int:
    """After how many bins the threshold lies; of equally good ones the most.

    Args:
        counts: uint64[BINS], at least one of them above zero.
    """
    found = divergences(counts)
    kept = np.cumsum(counts)
    found[kept[-1] - kept[LEVELS - 1 :] > kept[-1] // MOST_CLIPPED] = np.inf
    return LEVELS + int(np.flatnonzero(found <= found.min() + _SAME)[-1])
