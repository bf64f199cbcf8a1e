"""What times of runs say: quantiles and rates, how sure these are, and whether a device runs steadily."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Estimate", "Steadiness", "median_estimate", "quantile_estimate", "rank_interval", "rate_estimate"]

_BLOCKS = 20
_TAIL = 0.025
_WINDOWS = 4


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 95% interval, which holds it.

    Attributes:
        value: Of all that was measured.
        low: Lower end; None where too little was measured to say.
        high: Upper end; likewise.
    """

    value: float
    low: float | None
    high: float | None


def rank_interval(count: int, quantile: float) -> tuple[int | None, int | None]:
    """Between which of ``count`` sorted independent values a quantile lies in 95 of 100 cases.

    Exact for any distribution: the number of values below a quantile is binomial.

    Returns:
        Places from 0; None for an end that lies beyond the values.
    """
    if count < 1:
        return None, None
    numbers = np.arange(count + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    chances = logs[-1] - logs - logs[::-1] + numbers * math.log(quantile)
    below = np.cumsum(np.exp(chances + (count - numbers) * math.log1p(-quantile)))
    low = int(np.searchsorted(below, _TAIL, side="right")) - 1
    high = int(np.searchsorted(below, 1 - _TAIL, side="left"))
    return (low if low >= 0 else None), (high if high < count else None)


def quantile_estimate(values: np.ndarray, quantile: float) -> Estimate:
    """A quantile with the interval of its order statistics, which takes the values for independent.

    Args:
        values: float64[n], n > 0, in any order.
        quantile: Above 0 and below 1.
    """
    ordered = np.sort(values)
    low, high = rank_interval(len(ordered), quantile)
    value = float(np.quantile(ordered, quantile))
    return Estimate(
        value=value,
        low=None if low is None else min(value, float(ordered[low])),
        high=None if high is None else max(value, float(ordered[high])),
    )


def median_estimate(values: np.ndarray) -> Estimate:
    """The median with the noise of slow changes in it.

    Neighbouring runs are alike (clocks, temperature, other work on the machine), so that the interval of
    single runs would be far too narrow: the one given is that of the medians of twenty consecutive blocks.

    Args:
        values: float64[n], n > 0, in the order in which they were measured.
    """
    blocks = np.array_split(values, min(_BLOCKS, len(values)))
    return _around(float(np.median(values)), [float(np.median(block)) for block in blocks])


def rate_estimate(ends_s: np.ndarray, rows: int | np.ndarray, streams: int) -> Estimate:
    """Rows per second with their noise, from the times at which batches ended.

    Args:
        ends_s: float64[n], n > 1, by one clock, in any order.
        rows: Of a batch, or of each of the n batches.
        streams: Batches that may end together; a block has a multiple of them.
    """
    order = np.argsort(ends_s, kind="stable")
    ends = ends_s[order]
    done = np.cumsum(np.broadcast_to(rows, ends.shape)[order])
    size = max(1, (len(ends) - 1) // _BLOCKS)
    size = -(-size // streams) * streams
    # The time that the first batch took is not known: its rows do not count.
    value = float(done[-1] - done[0]) / max(float(ends[-1] - ends[0]), 1e-9)
    return _around(value, list(np.diff(done[::size]) / np.maximum(np.diff(ends[::size]), 1e-9)))


def _around(value: float, blocks: Sequence[float]) -> Estimate:
    ordered = sorted(map(float, blocks))
    low, high = rank_interval(len(ordered), 0.5)
    if low is None or high is None:
        return Estimate(value=value, low=None, high=None)
    return Estimate(value=value, low=min(value, ordered[low]), high=max(value, ordered[high]))


class Steadiness:
    """Watches the times of runs until the medians of windows settle.

    Args:
        tolerance: By how much the last windows' medians may differ, as a share.
        window_s: Least seconds of a window.
        window_runs: Least runs of a window.
    """

    def __init__(self, *, tolerance: float = 0.05, window_s: float = 0.05, window_runs: int = 5) -> None:
        self._tolerance = tolerance
        self._window_s = window_s
        self._window_runs = window_runs
        self._window: list[float] = []
        self._medians: list[float] = []

    def add(self, seconds: float) -> bool:
        """Takes note of a run; returns whether it ends a window after which the device runs steadily."""
        self._window.append(seconds)
        if len(self._window) < self._window_runs or sum(self._window) < self._window_s:
            return False
        self._medians.append(float(np.median(self._window)))
        self._window = []
        last = self._medians[-_WINDOWS:]
        return len(last) == _WINDOWS and max(last) <= min(last) * (1 + self._tolerance)
