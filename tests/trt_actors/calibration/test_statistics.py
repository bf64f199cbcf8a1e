"""Statistics of tensors: exact, mergeable in any order, and the same bytes for the same values."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from trtfleet.errors import CalibrationError
from trtfleet.trt_actors.calibration.collector import Collector, non_finite_rows
from trtfleet.trt_actors.calibration.histogram import BINS, Histogram
from trtfleet.trt_actors.calibration.statistics import TensorStatistics, decode, encode, merge_all
from trtfleet.trt_actors.calibration.statistics_bytes import Columns, pack

any_float = st.floats(width=32)
arrays = stn.arrays(np.float32, st.integers(0, 50), elements=any_float)


def reference(values: np.ndarray) -> TensorStatistics:
    """Statistics by plain numpy."""
    finite = values[np.isfinite(values)]
    return TensorStatistics(
        count=finite.size,
        zeros=int((finite == 0).sum()),
        non_finite=values.size - finite.size,
        minimum=float(finite.min()) if finite.size else math.inf,
        maximum=float(finite.max()) if finite.size else -math.inf,
        histogram=Histogram.of(finite),
    )


def sample(seed: int = 0, scale: float = 1.0, size: int = 1000) -> TensorStatistics:
    return TensorStatistics.of((np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32))


@given(arrays)
def test_statistics_equal_those_by_plain_numpy(values: np.ndarray) -> None:
    assert TensorStatistics.of(values) == reference(values)


@given(st.lists(arrays, max_size=5), st.randoms())
def test_any_division_and_order_gives_the_same_statistics(parts: list[np.ndarray], random) -> None:
    whole = TensorStatistics.of(np.concatenate([np.empty(0, np.float32), *parts]))
    random.shuffle(parts)
    merged, collector, one_by_one = TensorStatistics.empty(), Collector(["x"]), Collector(["x"])
    for part in parts:
        merged = merged.merge(TensorStatistics.of(part))
        collector.add("x", part)
        one_by_one.add_counts("x", TensorStatistics.of(part))
    assert merged == whole
    assert collector.statistics() == one_by_one.statistics() == {"x": whole}


@given(arrays, arrays, arrays)
def test_merging_is_associative_and_commutative(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    x, y, z = (TensorStatistics.of(values) for values in (a, b, c))
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    assert x.merge(y) == y.merge(x)
    assert x.merge(TensorStatistics.empty()) == x


def test_which_zero_came_first_does_not_show() -> None:
    negative, positive = np.array([-0.0, 2], np.float32), np.array([0.0, 2], np.float32)
    assert encode({"x": TensorStatistics.of(negative)}) == encode({"x": TensorStatistics.of(positive)})
    assert math.copysign(1, TensorStatistics.of(np.array([-0.0], np.float32)).minimum) == 1


@pytest.mark.parametrize("values", [[-3, -1.5], [1.5, 3], [-1, 2], [-0.0, -1], [0.0], [5]])
def test_extremes_of_either_sign(values: list[float]) -> None:
    found = TensorStatistics.of(np.array(values, np.float32))
    assert (found.minimum, found.maximum) == (min(values), max(values))
    assert found.largest == max(map(abs, values))


def test_what_is_not_finite_is_counted_apart() -> None:
    values = np.array([np.nan, 1, np.inf, 0, -np.inf, -2], np.float32)
    found = TensorStatistics.of(values)
    assert (found.count, found.zeros, found.non_finite) == (3, 1, 3)
    assert (found.minimum, found.maximum) == (-2, 1)
    collector = Collector()
    assert [collector.add("x", values), collector.add("x", values[1:2])] == [3, 0]


def test_the_rows_that_are_not_finite_are_found() -> None:
    values = np.zeros((5, 2, 3), np.float16)
    values[1, 1, 2], values[4, 0, 0] = np.nan, -np.inf
    assert non_finite_rows(values).tolist() == [1, 4]
    assert non_finite_rows(np.float32(np.nan) * np.ones((), np.float32)).tolist() == [0]
    assert non_finite_rows(np.empty((0, 3), np.float32)).tolist() == []


def test_a_tensor_that_never_came_is_there_with_no_values() -> None:
    assert Collector(["b", "a"]).statistics() == {
        "a": TensorStatistics.empty(),
        "b": TensorStatistics.empty(),
    }


def test_memory_does_not_grow_with_the_values() -> None:
    collector, values = Collector(), np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    collector.add("x", values)
    tracemalloc.start()
    for factor in range(40):
        collector.add("x", values)
        collector.add("x", values[:1000] * np.float32(factor))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 50_000
    assert collector.statistics()["x"].count == 41 * 200_000 + 40 * 1000


def test_parts_are_merged_by_name() -> None:
    a, b = sample(0), sample(1, 100)
    merged = merge_all(iter([{"y": a}, {"x": b, "y": b}, {}]))
    assert list(merged) == ["x", "y"]
    assert merged == {"x": b, "y": a.merge(b)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"count": 999}, "values are not zero"),
        ({"zeros": -1}, "-1 zeros"),
        ({"minimum": -50.0}, "the exponent"),
        ({"minimum": math.nan}, "a range from nan"),
        ({"maximum": math.inf}, "to inf"),
        ({"maximum": -9.0}, "a range from"),
        ({"histogram": sample(9).histogram}, "not in the last bin"),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(change: dict, says: str) -> None:
    good = sample()
    fields = ("count", "zeros", "non_finite", "minimum", "maximum", "histogram")
    with pytest.raises(ValueError, match=says):
        TensorStatistics(**{**{name: getattr(good, name) for name in fields}, **change})


SEVERAL = {
    "conv_1": sample(0),
    "名/relu:0": TensorStatistics.of(np.maximum(np.float32([0, 2, -1]), 0)),
    "never": TensorStatistics.empty(),
    "zeros": TensorStatistics.of(np.zeros(7, np.float32)),
    "bad": TensorStatistics.of(np.array([np.nan, 3e38, 1e-45], np.float32)),
}


@pytest.mark.parametrize("statistics", [{}, SEVERAL])
def test_bytes_give_the_statistics_back_whatever_the_order_of_names(statistics: dict) -> None:
    data = encode(statistics)
    assert decode(data) == statistics
    assert encode(dict(reversed(statistics.items()))) == data
    assert encode(decode(data)) == data


def test_empty_bins_cost_next_to_nothing() -> None:
    assert len(encode({f"t{i}": sample(i) for i in range(100)})) < 100 * BINS


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_flipped_bits_are_taken_for_statistics(position: int, flip: int) -> None:
    data = bytearray(encode({"x": sample(size=10)}))
    data[position % len(data)] ^= flip
    with pytest.raises(CalibrationError, match=r"x\.bin (is damaged|has format)"):
        decode(bytes(data), "x.bin")


@pytest.mark.parametrize("size", [0, 7, 51, 60, -1])
def test_bytes_that_end_early_are_damaged(size: int) -> None:
    with pytest.raises(CalibrationError, match="is damaged"):
        decode(encode({"x": sample()})[:size])


def test_bytes_of_a_later_version_say_so() -> None:
    data = bytearray(encode({}))
    data[8] = 3
    with pytest.raises(CalibrationError, match="x has format 3, this trtfleet reads format 1") as raised:
        decode(bytes(data), "x")
    assert raised.value.hint == "upgrade"


def test_bytes_that_claim_to_be_huge_are_refused_before_anything_is_allocated() -> None:
    data = bytearray(encode({}))
    data[12:20] = (2**60).to_bytes(8, "little")
    with pytest.raises(CalibrationError, match="1,152,921,504,606,846,976 bytes, at most"):
        decode(bytes(data))


def columns(**changes: object) -> Columns:
    plain = {
        "names": ["x"],
        "counts": [1],
        "zeros": [0],
        "non_finite": [0],
        "minima": [1.0],
        "maxima": [1.0],
        "exponents": [-11],
        "histograms": [np.eye(1, BINS, 2048, dtype=np.uint64)[0]],
    }
    return Columns(**{**plain, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"counts": [2]}, "values are not zero"),
        ({"maxima": [math.inf]}, "a range from 1.0 to inf"),
        ({"exponents": [3000]}, "between -149 and 116, got 3000"),
        ({"exponents": [None]}, "needs an exponent"),
    ],
)
def test_columns_that_contradict_themselves_are_damage(changes: dict, says: str) -> None:
    assert decode(pack(columns()))["x"].largest == 1
    with pytest.raises(CalibrationError, match=f"is damaged: .*{says}"):
        decode(pack(columns(**changes)))


def test_names_that_come_twice_are_damage() -> None:
    once = columns()
    twice = Columns(**{name: list(getattr(once, name)) * 2 for name in once.__dataclass_fields__})
    with pytest.raises(CalibrationError, match="one comes twice"):
        decode(pack(twice))


def test_another_arrow_table_is_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    from trtfleet.trt_actors.calibration import statistics_bytes

    fields = list(statistics_bytes._SCHEMA)
    fields[1] = pa.field("counted", pa.uint64(), nullable=False)
    with monkeypatch.context() as patch:
        patch.setattr(statistics_bytes, "_SCHEMA", pa.schema(fields))
        data = pack(columns())
    with pytest.raises(CalibrationError, match="it has other columns"):
        decode(data)
