"""The threshold with the least expected squared error of what is quantized: clipping and rounding together.

With the scale ``s``, level ``j`` stands for magnitudes from ``(j - 1/2) s`` on; the last one for all beyond.
The squared error is the sum of ``(x - j s)**2``. Written with what lies beyond each of those 127 boundaries,
the number of values N(j) and their sum S(j), it is

    sum of x**2  -  2 s * sum of S(j)  +  s**2 * sum of (2 j - 1) N(j)

so a candidate costs 127 look-ups in running sums, whose places do not depend on the histogram. Within a bin,
values are taken to be spread evenly.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from .histogram import BINS

__all__ = ["LEVELS", "best_bins", "squared_errors"]

LEVELS = 127
"""Levels above zero of symmetric int8."""

_CHUNK = 512


@functools.cache
def _boundaries() -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """The bin that each boundary falls into, and how far into it; both [BINS, LEVELS].

    Row ``k`` is of the threshold after ``k + 1`` bins.
    """
    twice = np.arange(1, 2 * LEVELS, 2) * np.arange(1, BINS + 1)[:, None]
    whole, rest = np.divmod(twice, 2 * LEVELS)
    return whole.astype(np.int16), (rest / (2 * LEVELS)).astype(np.float32)


def _from(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of everything from each position on, one more than there are values."""
    return np.concatenate((np.cumsum(values[::-1])[::-1], [0.0]))


def squared_errors(counts: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The mean squared error for every candidate, in squared bin widths.

    Args:
        counts: uint64[BINS], at least one of them above zero.

    Returns:
        float64[n] for thresholds after 1, 2, ... n bins, of which the last one is the last that has any.
    """
    inner = counts.astype(np.float64)
    lower = np.arange(BINS)
    total = inner.sum()
    squares = float(inner @ (lower * (lower + 1.0) + 1 / 3))
    numbers, sums = _from(inner), _from(inner * (lower + 0.5))
    whole, into = _boundaries()
    weights = 2.0 * np.arange(1, LEVELS + 1) - 1
    size = int(np.flatnonzero(counts)[-1]) + 1
    found = np.empty(size)
    for start in range(0, size, _CHUNK):
        rows = slice(start, min(start + _CHUNK, size))
        at, part = whole[rows], into[rows]
        # What a boundary cuts off from its bin: of its values the share ``part``, in its lower end.
        cut = inner[at] * part
        beyond = numbers[at] - cut
        scale = np.arange(rows.start + 1, rows.stop + 1) / LEVELS
        moments = (sums[at] - cut * (at + 0.5 * part)).sum(axis=1)
        found[rows] = squares - 2 * scale * moments + scale**2 * (beyond @ weights)
    found /= total
    return found


def best_bins(counts: NDArray[np.uint64]) -> int:
    """After how many bins the threshold lies; of equally good ones the fewest.

    Args:
        counts: uint64[BINS], at least one of them above zero.
    """
    return 1 + int(np.argmin(squared_errors(counts)))
