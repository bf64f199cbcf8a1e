"""Histograms on the dyadic grid: exact bins, and merging that loses and shifts nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from trtfleet.trt_actors.calibration.histogram import (
    BINS,
    MAX_EXPONENT,
    MIN_EXPONENT,
    Histogram,
    exponent_for,
)
from trtfleet.trt_actors.calibration.scan import BLOCK

TINIEST = float(np.finfo(np.float32).smallest_subnormal)
TINY = float(np.finfo(np.float32).tiny)
HUGE = float(np.finfo(np.float32).max)

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
arrays = stn.arrays(np.float32, st.integers(0, 60), elements=finite)
near = stn.arrays(np.float32, st.integers(0, 60), elements=st.floats(-8, 8, width=32))
subnormal = stn.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, TINY * 4, width=32))


def by_fractions(values: Sequence[float]) -> Histogram:
    """The definition, in exact arithmetic."""
    magnitudes = [abs(Fraction(float(value))) for value in values if value]
    if not magnitudes:
        return Histogram.empty()
    exponent = MIN_EXPONENT
    while max(magnitudes) >= BINS * Fraction(2) ** exponent:
        exponent += 1
    counts = np.zeros(BINS, np.uint64)
    for magnitude in magnitudes:
        counts[int(magnitude / Fraction(2) ** exponent)] += np.uint64(1)
    return Histogram(exponent=exponent, counts=counts)


@given(arrays | near | subnormal)
@example(np.array([TINIEST, -TINIEST, 0.0, -0.0], np.float32))
@example(np.array([HUGE, -HUGE, TINIEST, TINY, 1.0], np.float32))
@example(np.array([2.0**-114, 2.0**-115, TINY, TINY - TINIEST], np.float32))
@example(np.array([2.0**-137, 2.0**-137 - TINIEST, 4095 * TINIEST, 4096 * TINIEST], np.float32))
def test_every_value_is_in_the_bin_that_the_definition_says(values: np.ndarray) -> None:
    assert Histogram.of(values) == by_fractions(values.tolist())


@given(st.integers(MIN_EXPONENT + 12, MAX_EXPONENT + 11), st.floats(1, 2, width=32, exclude_max=True))
def test_values_next_to_the_edges_of_bins(power: int, largest: float) -> None:
    top = np.float32(math.ldexp(largest, power))
    width = np.float32(math.ldexp(1.0, exponent_for(float(top))))
    edges = (width * np.arange(1, 2048, 97)).astype(np.float32)
    values = np.concatenate([edges, np.nextafter(edges, np.float32(0)), [top]]).astype(np.float32)
    assert Histogram.of(values) == by_fractions(values.tolist())


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [
        (1.0, -11),
        (math.nextafter(1.0, 0), -12),
        (4095.5, 0),
        (4096.0, 1),
        (HUGE, MAX_EXPONENT),
        (TINIEST, MIN_EXPONENT),
        (4095 * TINIEST, MIN_EXPONENT),
        (4096 * TINIEST, MIN_EXPONENT + 1),
    ],
)
def test_the_exponent_is_the_smallest_that_holds_the_largest(largest: float, exponent: int) -> None:
    assert exponent_for(largest) == exponent


@given(st.lists(arrays | near | subnormal, min_size=1, max_size=4), st.randoms())
def test_merging_in_any_order_equals_the_histogram_of_all_values(parts: list[np.ndarray], random) -> None:
    whole = Histogram.of(np.concatenate(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)
    merged = Histogram.empty()
    for part in shuffled:
        merged = merged.merge(Histogram.of(part))
    assert merged == whole


@given(arrays, near, subnormal)
def test_merging_is_associative_and_commutative(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    x, y, z = Histogram.of(a), Histogram.of(b), Histogram.of(c)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    assert x.merge(y) == y.merge(x)
    assert x.merge(Histogram.empty()) == x


@given(near, st.integers(0, 20))
def test_widening_loses_nothing_and_steps_may_be_taken_together(values: np.ndarray, steps: int) -> None:
    histogram = Histogram.of(values)
    if histogram.exponent is None:
        return
    at_once = histogram.widened(histogram.exponent + steps)
    one_by_one = histogram
    for exponent in range(histogram.exponent, histogram.exponent + steps + 1):
        one_by_one = one_by_one.widened(exponent)
    assert at_once == one_by_one
    assert at_once.total == histogram.total == np.count_nonzero(values)


def test_bins_do_not_become_narrower() -> None:
    with pytest.raises(ValueError, match=r"bins of 2\*\*-11 cannot become 2\*\*-12 wide"):
        Histogram.of(np.ones(1, np.float32)).widened(-12)


def test_the_range_grows_between_and_within_blocks() -> None:
    values = np.random.default_rng(0).standard_normal(3 * BLOCK + 17).astype(np.float32)
    values *= np.exp2(np.arange(values.size) // (BLOCK // 2)).astype(np.float32)
    found = Histogram.of(values)
    width = np.float32(found.bin_width)
    assert np.array_equal(found.counts, np.bincount((np.abs(values) / width).astype(int), minlength=BINS))
    assert found.exponent == exponent_for(float(np.abs(values).max()))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_counted_as_the_float32_values_that_it_is(dtype: type) -> None:
    values = (np.random.default_rng(1).standard_normal(10_000) * 3).astype(dtype)
    values[:3] = [np.finfo(np.float16).smallest_subnormal, -0.0, 65504]
    assert Histogram.of(values) == Histogram.of(values.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool"])
def test_other_types_are_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"float32, float16 or bfloat16 values, got {dtype}"):
        Histogram.of(np.zeros(2, dtype))


def test_arrays_of_any_shape_order_and_byte_order() -> None:
    values = np.random.default_rng(2).standard_normal((40, 30, 20)).astype(np.float32)
    expected = Histogram.of(values)
    assert Histogram.of(np.asfortranarray(values)) == expected
    assert Histogram.of(values.astype(">f4")) == expected
    assert Histogram.of(values[::-1, ::-1]) == expected
    assert Histogram.of(values[:, ::2]).merge(Histogram.of(values[:, 1::2])) == expected
    assert Histogram.of(np.full((), 3, np.float32)).total == 1


def test_what_is_not_finite_and_zeros_are_left_out() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5], np.float32)
    assert Histogram.of(values) == Histogram.of(np.array([1.5, 1.5], np.float32))
    assert Histogram.of(values[:5]) == Histogram.empty()


def test_values_are_not_changed() -> None:
    values = np.random.default_rng(3).standard_normal(1000).astype(np.float32)
    values.flags.writeable = False
    assert Histogram.of(values).total == 1000


def test_a_histogram_is_immutable_and_keeps_its_own_counts() -> None:
    counts = np.zeros(BINS, np.uint64)
    histogram = Histogram(exponent=0, counts=counts)
    counts[0] = 1
    assert histogram.total == 0
    with pytest.raises(ValueError, match="read-only"):
        histogram.counts[0] = 1


@pytest.mark.parametrize(
    ("exponent", "size", "says"),
    [
        (0, BINS - 1, "has 4096 bins"),
        (None, BINS, "needs an exponent"),
        (MAX_EXPONENT + 1, BINS, "is between -149 and 116, got 117"),
        (MIN_EXPONENT - 1, BINS, "got -150"),
    ],
)
def test_a_histogram_that_cannot_be_is_refused(exponent: int | None, size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Histogram(exponent=exponent, counts=np.ones(size, np.uint64))
