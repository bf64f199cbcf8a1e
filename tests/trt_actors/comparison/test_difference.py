"""Sums that merge exactly, and the errors made of them, against the plain way."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtfleet.trt_actors.comparison.difference import Difference, exact, rounded

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PAIRS = st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), max_size=20)


def of(pairs: list[tuple[float, float]]) -> Difference:
    values = np.array(pairs, np.float32).reshape(-1, 2)
    return Difference.of(values[:, 0], values[:, 1])


@given(FINITE)
def test_a_number_survives_as_a_whole_one(value: float) -> None:
    assert rounded(exact(value)) == value
    assert exact(value) == Fraction(value) * 2**1074


@given(PAIRS, PAIRS, PAIRS)
def test_merging_is_associative_and_commutative(
    one: list[tuple[float, float]], other: list[tuple[float, float]], third: list[tuple[float, float]]
) -> None:
    a, b, c = of(one), of(other), of(third)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(Difference()) == a


@given(PAIRS)
def test_json_gives_it_back(pairs: list[tuple[float, float]]) -> None:
    difference = of(pairs)
    assert Difference.from_json(json.loads(json.dumps(difference.as_json()))) == difference


def test_the_errors_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    a = random.normal(size=(50, 7)).astype(np.float32)
    b = (a + random.normal(size=a.shape) / 10).astype(np.float32)
    found = Difference.of(a[:20], b[:20]).merge(Difference.of(a[20:], b[20:]))
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    error = np.linalg.norm(x - y) / np.linalg.norm(x)
    assert found.count == a.size
    assert found.relative_error == pytest.approx(error)
    assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.mean_absolute_error == pytest.approx(np.abs(x - y).mean())
    assert found.largest == np.abs(x - y).max()


def test_equal_tensors_have_no_error() -> None:
    values = np.array([1.0, math.nan, math.inf, 0.0], np.float32)
    found = Difference.of(values, values)
    assert (found.relative_error, found.sqnr_db, found.broken) == (0.0, math.inf, 0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_in_one_alone_is_broken(wrong: float) -> None:
    found = Difference.of(np.array([1.0, 2.0], np.float32), np.array([1.0, wrong], np.float32))
    assert (found.broken, found.relative_error, found.sqnr_db) == (1, math.inf, -math.inf)
    assert found.largest == 0.0


def test_an_error_of_nothing_is_infinite() -> None:
    found = Difference.of(np.zeros(3, np.float32), np.ones(3, np.float32))
    assert (found.relative_error, found.cosine) == (math.inf, None)


def test_half_precision_and_booleans_are_compared_as_numbers() -> None:
    half = Difference.of(np.array([1, 2], np.float32), np.array([1, 3], np.float16))
    assert half.largest == 1.0
    assert Difference.of(np.array([True, False]), np.array([True, True])).noise == exact(1.0)


@pytest.mark.parametrize("wrong", [{}, {"count": 1}, {**Difference().as_json(), "noise": 0.5}])
def test_other_values_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no sums"):
        Difference.from_json(wrong)
