"""From statistics to the largest magnitude that int8 is to represent, by one of four methods."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np

from ...errors import CalibrationError, UsageError
from . import entropy, squared_error
from .histogram import Histogram
from .statistics import TensorStatistics

__all__ = ["LEVELS", "NAMES", "UNIT_THRESHOLD", "Method", "scale_of", "threshold"]

NAMES = ("entropy", "percentile", "minmax", "mse")
"""Of the methods."""

LEVELS = 127
"""Steps from zero to the threshold."""

UNIT_THRESHOLD = float(LEVELS)
"""For tensors that are zero everywhere: the scale is 1, and zeros are exact with any."""

_LEAST = LEVELS * float(np.finfo(np.float32).tiny)
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,12})?")


@dataclass(frozen=True, kw_only=True)
class Method:
    """How thresholds are chosen.

    Attributes:
        name: ``entropy``, ``percentile``, ``minmax`` or ``mse``.
        percent: Of a percentile, as it was written; empty for the others.
    """

    name: str
    percent: str = ""

    def __post_init__(self) -> None:
        is_percentile = self.name == "percentile"
        is_good = self.name in NAMES and is_percentile == bool(self.percent)
        if is_percentile and is_good:
            is_good = bool(_NUMBER.fullmatch(self.percent)) and 0 < Fraction(self.percent) <= 100
        if not is_good:
            raise UsageError(
                f"method must be entropy, percentile:P with 0 < P <= 100, minmax or mse, got {str(self)!r}",
                "write --method entropy, or --method percentile:99.99",
            )

    def __str__(self) -> str:
        return f"{self.name}:{self.percent}" if self.percent else self.name

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``entropy``, ``percentile:P``, ``minmax`` or ``mse``.

        Raises:
            UsageError: It is none of these.
        """
        name, colon, percent = text.strip().partition(":")
        if colon and not percent:
            raise UsageError(
                f"method {text!r} ends with a colon", "write percentile:99.99, or another method"
            )
        return cls(name=name, percent=percent)


def threshold(statistics: TensorStatistics, method: Method) -> float:
    """The largest magnitude that int8 is to represent.

    It is the largest magnitude seen or a bin's edge below it, but at least so large that its scale is a
    normal float32. A tensor that is zero everywhere gets UNIT_THRESHOLD. Where all non-zero magnitudes lie
    in one bin, the largest of them is taken: there is nothing to weigh.

    Raises:
        CalibrationError: No value was seen, or one that is not finite.
    """
    if statistics.non_finite:
        raise CalibrationError(
            f"{statistics.non_finite:,} values are NaN or infinite",
            "look for rows that the model cannot take",
        )
    if not statistics.count:
        raise CalibrationError("no value was seen", "calibrate with data that reaches this tensor")
    histogram, largest = statistics.histogram, statistics.largest
    if not largest:
        return UNIT_THRESHOLD
    if method.name == "minmax" or np.count_nonzero(histogram.counts) == 1:
        chosen = largest
    elif method.name == "percentile":
        bins = _percentile_bins(statistics, Fraction(method.percent) / 100)
        chosen = bins * histogram.bin_width
    else:
        choose = entropy.best_bins if method.name == "entropy" else squared_error.best_bins
        chosen = choose(histogram.counts) * histogram.bin_width
    return max(min(chosen, largest), _LEAST)


def scale_of(threshold: float) -> float:
    """The width of a step of symmetric int8, a float32 value; the threshold is its 127-fold."""
    return float(np.float32(threshold / LEVELS))


def _percentile_bins(statistics: TensorStatistics, share: Fraction) -> int:
    """The number of bins below which a share of all values lie, zeros included.

    When zeros alone are that many, the share is of the non-zero values instead.
    """
    histogram: Histogram = statistics.histogram
    needed = math.ceil(share * statistics.count) - statistics.zeros
    if needed <= 0:
        needed = math.ceil(share * histogram.total)
    return 1 + int(np.searchsorted(np.cumsum(histogram.counts), needed))
