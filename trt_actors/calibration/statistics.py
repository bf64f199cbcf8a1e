"""What calibration knows of an activation: extremes, zeros and a histogram, all of which merge exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .histogram import Histogram, exponent_for
from .scan import Scratch, blocks, look
from .statistics_bytes import Columns, pack, unpack

__all__ = ["Statistics", "TensorStatistics", "decode", "encode", "merge_all"]


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """What is known of the values of one tensor, over any number of batches.

    Attributes:
        count: Finite values, zeros included.
        zeros: Of these, how many are zero.
        non_finite: Further values that are NaN or infinite; no threshold can be had with any.
        minimum: The least finite value; infinity when there is none, never minus zero.
        maximum: The greatest; minus infinity when there is none.
        histogram: Of the magnitudes of the non-zero finite values, its bins as narrow as the largest allows.
    """

    count: int
    zeros: int
    non_finite: int = 0
    minimum: float
    maximum: float
    histogram: Histogram

    def __post_init__(self) -> None:
        object.__setattr__(self, "minimum", float(self.minimum) + 0.0)
        object.__setattr__(self, "maximum", float(self.maximum) + 0.0)
        if wrong := self._wrong():
            raise ValueError(f"these are no statistics of a tensor: {wrong}")

    def _wrong(self) -> str:
        if not 0 <= self.zeros <= self.count or self.non_finite < 0:
            return f"{self.count} values, {self.zeros} zeros, {self.non_finite} not finite"
        if self.histogram.total != self.count - self.zeros:
            return f"{self.count - self.zeros} values are not zero, the histogram has {self.histogram.total}"
        if not self.count:
            is_empty = (self.minimum, self.maximum, self.histogram.exponent) == (math.inf, -math.inf, None)
            return "" if is_empty else "no values, but a range"
        if not -math.inf < self.minimum <= self.maximum < math.inf:
            return f"a range from {self.minimum} to {self.maximum}"
        if self.zeros and (self.minimum > 0 or self.maximum < 0):
            return f"zeros outside of {self.minimum} to {self.maximum}"
        return self._wrong_grid()

    def _wrong_grid(self) -> str:
        largest = self.largest
        wanted = exponent_for(largest) if largest else None
        if self.histogram.exponent != wanted:
            return f"the exponent {self.histogram.exponent} for magnitudes up to {largest}"
        if wanted is None:
            return ""
        used = np.flatnonzero(self.histogram.counts)
        top = int(math.ldexp(largest, -wanted))
        is_right = used.size and used[-1] == top
        return "" if is_right else f"the largest magnitude {largest} is not in the last bin that has any"

    @classmethod
    def empty(cls) -> Self:
        """The statistics of nothing."""
        return cls(count=0, zeros=0, minimum=math.inf, maximum=-math.inf, histogram=Histogram.empty())

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """Reads an array.

        Args:
            values: float32, float16 or bfloat16, any shape; is only read.

        Raises:
            TypeError: The values are of another type.
        """
        scratch = Scratch(values.size)
        seen = [look(block, scratch) for block in blocks(values)]
        non_finite = sum(block.non_finite for block in seen)
        return cls(
            count=values.size - non_finite,
            zeros=sum(block.zeros for block in seen),
            non_finite=non_finite,
            minimum=min((block.minimum for block in seen), default=math.inf),
            maximum=max((block.maximum for block in seen), default=-math.inf),
            histogram=Histogram.of(values),
        )

    @property
    def largest(self) -> float:
        """The largest finite magnitude; 0.0 when there is none."""
        return max(abs(self.minimum), abs(self.maximum)) if self.count else 0.0

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """The statistics of both: exact, associative and commutative."""
        return TensorStatistics(
            count=self.count + other.count,
            zeros=self.zeros + other.zeros,
            non_finite=self.non_finite + other.non_finite,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            histogram=self.histogram.merge(other.histogram),
        )


Statistics = dict[str, TensorStatistics]
"""By the names of tensors."""


def merge_all(parts: Iterable[Mapping[str, TensorStatistics]]) -> Statistics:
    """The statistics of all parts, sorted by name; a tensor may be missing in some.

    One part at a time is held, when ``parts`` makes them as it goes.
    """
    merged: Statistics = {}
    for part in parts:
        for name, statistics in part.items():
            merged[name] = merged[name].merge(statistics) if name in merged else statistics
    return dict(sorted(merged.items()))


def encode(statistics: Mapping[str, TensorStatistics]) -> bytes:
    """Statistics as bytes, the same for equal ones whatever the order of their names."""
    names = sorted(statistics)
    every = [statistics[name] for name in names]
    columns = Columns(
        names=names,
        counts=[one.count for one in every],
        zeros=[one.zeros for one in every],
        non_finite=[one.non_finite for one in every],
        minima=[one.minimum for one in every],
        maxima=[one.maximum for one in every],
        exponents=[one.histogram.exponent for one in every],
        histograms=[one.histogram.counts for one in every],
    )
    return pack(columns)


def decode(data: bytes, name: str = "the calibration statistics") -> Statistics:
    """Reads what ``encode`` gave.

    Args:
        data: From anywhere; what it makes this process allocate is bounded.
        name: Of the file, for messages.

    Raises:
        CalibrationError: It is damaged, or a later version of trtfleet wrote it.
    """
    return unpack(data, name, _from_columns)


def _from_columns(columns: Columns) -> Statistics:
    found: Statistics = {}
    for i, name in enumerate(columns.names):
        found[name] = TensorStatistics(
            count=columns.counts[i],
            zeros=columns.zeros[i],
            non_finite=columns.non_finite[i],
            minimum=columns.minima[i],
            maximum=columns.maxima[i],
            histogram=Histogram(exponent=columns.exponents[i], counts=columns.histograms[i]),
        )
    return found
