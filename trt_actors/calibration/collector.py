"""Gathers the statistics of many tensors, batch by batch, in memory that does not grow with the batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .histogram import BINS, Histogram, count_into, exponent_for, halve
from .scan import Scratch, blocks, look
from .statistics import Statistics, TensorStatistics

__all__ = ["Collector", "non_finite_rows"]


class _Tally:
    """The statistics of one tensor so far."""

    def __init__(self) -> None:
        self.count = self.zeros = self.non_finite = 0
        self.minimum, self.maximum = math.inf, -math.inf
        self.exponent: int | None = None
        self.bins = np.zeros(BINS, np.int64)

    def add(self, block: NDArray[np.float32], scratch: Scratch) -> int:
        seen = look(block, scratch)
        self.count += block.size - seen.non_finite
        self.zeros += seen.zeros
        self.non_finite += seen.non_finite
        self.minimum = min(self.minimum, seen.minimum)
        self.maximum = max(self.maximum, seen.maximum)
        largest = max(-seen.minimum, seen.maximum)
        if largest > 0:
            exponent = self._grow(exponent_for(largest))
            count_into(self.bins, seen.magnitudes, exponent, scratch)
            self.bins[0] -= seen.zeros
        return seen.non_finite

    def merge(self, other: TensorStatistics) -> None:
        self.count += other.count
        self.zeros += other.zeros
        self.non_finite += other.non_finite
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        if other.histogram.exponent is not None:
            exponent = self._grow(other.histogram.exponent)
            self.bins += other.histogram.widened(exponent).counts.astype(np.int64)

    def _grow(self, exponent: int) -> int:
        if self.exponent is None:
            self.exponent = exponent
        elif exponent > self.exponent:
            self.bins[:] = halve(self.bins, exponent - self.exponent)
            self.exponent = exponent
        return self.exponent

    def statistics(self) -> TensorStatistics:
        return TensorStatistics(
            count=self.count,
            zeros=self.zeros,
            non_finite=self.non_finite,
            minimum=self.minimum,
            maximum=self.maximum,
            histogram=Histogram(exponent=self.exponent, counts=self.bins.astype(np.uint64)),
        )


class Collector:
    """Statistics under way: 32 KiB per tensor, however many values come; for one thread at a time.

    What comes out depends on the values alone, not on how they were divided among calls and collectors.

    Args:
        names: Tensors that are part of the result even when no value of them comes.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._tallies = {name: _Tally() for name in names}
        self._scratch = Scratch()

    def add(self, name: str, values: NDArray[Any]) -> int:
        """Adds values of a tensor.

        Args:
            name: Of the tensor.
            values: float32, float16 or bfloat16, any shape; is only read and not kept.

        Returns:
            How many of them are NaN or infinite; these are counted apart.

        Raises:
            TypeError: The values are of another type.
        """
        tally = self._tally(name)
        return sum(tally.add(block, self._scratch) for block in blocks(values))

    def add_counts(self, name: str, statistics: TensorStatistics) -> None:
        """Adds what was counted elsewhere, by a device or another collector."""
        self._tally(name).merge(statistics)

    def statistics(self) -> Statistics:
        """A copy of everything gathered so far, sorted by name."""
        return {name: tally.statistics() for name, tally in sorted(self._tallies.items())}

    def _tally(self, name: str) -> _Tally:
        if name not in self._tallies:
            self._tallies[name] = _Tally()
        return self._tallies[name]


def non_finite_rows(values: NDArray[Any]) -> NDArray[np.int64]:
    """Which indices of the first dimension hold a NaN or an infinite value, ascending.

    A scalar counts as one row.
    """
    rows = np.atleast_1d(values)
    if not rows.size:
        return np.empty(0, np.int64)
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    return np.flatnonzero(~finite).astype(np.int64)
