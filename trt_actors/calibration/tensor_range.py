"""One tensor's line in a calibration table."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from .histogram import BINS
from .statistics import TensorStatistics
from .thresholds import scale_of

__all__ = ["COARSE_BINS", "TensorRange"]

COARSE_BINS = 64
"""Of the histogram that goes into a table."""

_TOGETHER = BINS // COARSE_BINS
_MAX_COUNT = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """What int8 represents of a tensor, and what it was chosen from.

    Attributes:
        threshold: The largest magnitude represented.
        scale: The width of a step, ``threshold / 127`` rounded to float32; a normal number.
        minimum: The least value seen.
        maximum: The greatest value seen.
        count: Values seen.
        zeros: How many of them were zero.
        clipped: The share of the values whose magnitude is beyond the threshold, 0 to 1.
        histogram: Non-zero values by magnitude, COARSE_BINS numbers; empty when all were zero.
        bin_width: Of the histogram; 0.0 when it is empty.
    """

    threshold: float
    scale: float
    minimum: float
    maximum: float
    count: int
    zeros: int = 0
    clipped: float = 0.0
    histogram: tuple[int, ...] = ()
    bin_width: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threshold", "scale", "minimum", "maximum", "clipped", "bin_width"):
            number = float(getattr(self, name))
            if not math.isfinite(number):
                raise ValueError(f"{name} is {number}")
            object.__setattr__(self, name, number)
        if self.scale < np.finfo(np.float32).tiny or self.scale != scale_of(self.threshold):
            raise ValueError(f"the scale {self.scale} is not the 127th part of a threshold {self.threshold}")
        if self.minimum > self.maximum:
            raise ValueError(f"a range from {self.minimum} to {self.maximum}")
        if not 0 <= self.clipped <= 1:
            raise ValueError(f"a share of {self.clipped} clipped")
        if not 0 <= self.zeros <= self.count <= _MAX_COUNT:
            raise ValueError(f"{self.count} values, {self.zeros} of them zero")
        if len(self.histogram) not in (0, COARSE_BINS) or bool(self.histogram) != (self.bin_width > 0):
            raise ValueError(f"a histogram of {len(self.histogram)} bins of width {self.bin_width}")
        if any(not 0 <= number <= self.count for number in self.histogram):
            raise ValueError("a number in the histogram that cannot be")

    @classmethod
    def of(cls, statistics: TensorStatistics, threshold: float) -> Self:
        """Describes a tensor.

        Args:
            statistics: Of at least one value.
            threshold: That was chosen.
        """
        counts, bin_width = statistics.histogram.counts, statistics.histogram.bin_width
        histogram: tuple[int, ...] = ()
        clipped = 0
        if bin_width:
            histogram = tuple(int(n) for n in counts.reshape(COARSE_BINS, _TOGETHER).sum(axis=1))
        if threshold < statistics.largest:
            clipped = int(counts[math.ceil(threshold / bin_width) :].sum())
        return cls(
            threshold=float(threshold),
            scale=scale_of(threshold),
            minimum=statistics.minimum,
            maximum=statistics.maximum,
            count=statistics.count,
            zeros=statistics.zeros,
            clipped=clipped / statistics.count,
            histogram=histogram,
            bin_width=bin_width * _TOGETHER,
        )

    def as_json(self) -> dict[str, Any]:
        """The fields as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "histogram": list(self.histogram)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Reads what ``as_json`` gave.

        Raises:
            ValueError: It is something else.
        """
        kinds: dict[str, type] = {f.name: float for f in fields(cls)}
        kinds |= {"count": int, "zeros": int, "histogram": list}
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise ValueError(f"a range has the fields {', '.join(sorted(kinds))}")
        for name, kind in kinds.items():
            if type(values[name]) is not kind:
                raise ValueError(f"{name} cannot be {type(values[name]).__name__}")
        if any(type(number) is not int for number in values["histogram"]):
            raise ValueError("a histogram has whole numbers")
        return cls(**{**values, "histogram": tuple(values["histogram"])})
