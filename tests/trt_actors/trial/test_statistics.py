"""What times of runs say."""

from __future__ import annotations

import numpy as np
import pytest
from trtfleet.trt_actors.trial.statistics import (
    Steadiness,
    median_estimate,
    quantile_estimate,
    rank_interval,
    rate_estimate,
)


def test_ranks_of_a_median_are_those_of_the_tables() -> None:
    # Published 95% intervals for the median of n values: the 6th to 15th of 20, the 1st to 6th of 6.
    assert rank_interval(20, 0.5) == (5, 14)
    assert rank_interval(6, 0.5) == (0, 5)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_values_bound_nothing(count: int) -> None:
    assert rank_interval(count, 0.5) == (None, None)


def test_a_hundred_runs_do_not_bound_the_last_percent_from_above() -> None:
    found = quantile_estimate(np.arange(100.0), 0.99)
    assert found.low is not None
    assert found.high is None


@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_the_interval_holds_the_truth_in_95_of_100_cases(quantile: float) -> None:
    rng = np.random.default_rng(0)
    truth = -np.log(1 - quantile)
    held = 0
    for _ in range(1000):
        found = quantile_estimate(rng.exponential(size=1000), quantile)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert held >= 935


def test_slow_changes_widen_the_interval_of_a_median() -> None:
    rng = np.random.default_rng(0)
    still = 1 + 0.01 * rng.standard_normal(2000)
    drifting = still + np.repeat(0.1 * rng.standard_normal(20), 100)

    def width(values: np.ndarray) -> float:
        found = median_estimate(values)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
        return found.high - found.low

    assert width(drifting) > 20 * width(still)


def test_a_constant_rate_has_no_noise() -> None:
    found = rate_estimate(np.arange(101) / 10, rows=8, streams=1)
    assert found.value == pytest.approx(80)
    assert found.low == pytest.approx(80)
    assert found.high == pytest.approx(80)


def test_streams_that_end_together_are_no_noise() -> None:
    ends = np.repeat(np.arange(100) / 10, 4) + np.tile([0.0, 1e-4, 2e-4, 3e-4], 100)
    found = rate_estimate(ends, rows=8, streams=4)
    assert found.value == pytest.approx(320, rel=0.02)
    assert found.low == pytest.approx(320, rel=0.01)
    assert found.high == pytest.approx(320, rel=0.02)


def runs_until_steady(seconds: np.ndarray) -> int | None:
    steadiness = Steadiness(tolerance=0.05, window_s=0.01, window_runs=5)
    return next((place for place, one in enumerate(seconds) if steadiness.add(float(one))), None)


def test_equal_runs_are_steady_after_four_windows() -> None:
    assert runs_until_steady(np.full(100, 0.01)) == 19


def test_falling_times_are_waited_for() -> None:
    falling = np.concatenate([0.01 * 1.02 ** np.arange(100, 0, -1), np.full(50, 0.01)])
    found = runs_until_steady(falling)
    assert found is not None
    assert found >= 100


def test_times_that_never_settle_are_never_steady() -> None:
    assert runs_until_steady(0.01 * 1.1 ** np.arange(60)) is None
