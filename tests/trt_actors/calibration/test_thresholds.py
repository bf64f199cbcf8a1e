"""Thresholds against independent references: numpy on raw values, plain loops, ONNX Runtime's calibrators."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    HistogramCollector,
    MinMaxCalibrater,
)
from trtfleet.errors import CalibrationError, UsageError
from trtfleet.trt_actors.calibration import entropy, squared_error
from trtfleet.trt_actors.calibration.histogram import BINS
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.calibration.thresholds import (
    UNIT_THRESHOLD,
    Method,
    scale_of,
    threshold,
)

METHODS = ["entropy", "percentile:99.9", "percentile:100", "minmax", "mse"]
TINY = float(np.finfo(np.float32).tiny)


def draw(kind: str, size: int = 200_000) -> np.ndarray:
    """Values like those of activations, seeded."""
    rng = np.random.default_rng(len(kind))
    makers: dict[str, Callable[[], np.ndarray]] = {
        "normal": lambda: rng.standard_normal(size),
        "relu": lambda: np.maximum(rng.standard_normal(size), 0),
        "sparse": lambda: np.where(rng.random(size) < 0.98, 0, rng.gamma(2, size=size)),
        "laplace": lambda: rng.laplace(size=size),
        "gamma": lambda: rng.gamma(2, size=size),
        "student": lambda: rng.standard_t(5, size=size),
        "outlier": lambda: np.append(rng.standard_normal(size - 1), 60),
        "uniform": lambda: rng.uniform(-3, 1, size),
        "two values": lambda: np.where(rng.random(size) < 0.3, 0.7, -2.9),
        "few": lambda: rng.standard_normal(5),
    }
    return makers[kind]().astype(np.float32)


KINDS = ["normal", "relu", "sparse", "laplace", "gamma", "student", "outlier", "uniform", "two values", "few"]


def chosen(values: np.ndarray, method: str) -> float:
    return threshold(TensorStatistics.of(values), Method.parse(method))


def coarse(values: np.ndarray, bins: int) -> float:
    """The width of a bin of a grid of ``bins`` from zero to the largest magnitude."""
    return float(np.abs(values).max()) / bins


def loss(values: np.ndarray, limit: float) -> float:
    """The mean squared error of raw values that were quantized and brought back."""
    scale = limit / 127
    levels = np.clip(np.rint(values.astype(np.float64) / scale), -127, 127)
    return float(np.square(values - levels * scale).mean())


def raw_percentile(values: np.ndarray, percent: str) -> float:
    """The smallest magnitude with that share of all at or below it."""
    rank = math.ceil(Fraction(percent) / 100 * values.size)
    return float(np.sort(np.abs(values))[rank - 1])


def plain_divergences(counts: np.ndarray, stride: int) -> dict[int, float]:
    """The divergence after every ``stride`` bins, as the method's description goes, one bin at a time."""
    found = {}
    for bins in range(entropy.LEVELS, BINS + 1, stride):
        reference = counts[:bins].astype(np.float64)
        level = [bin * entropy.LEVELS // bins for bin in range(bins)]
        sums, used = np.zeros(entropy.LEVELS), np.zeros(entropy.LEVELS)
        for bin in range(bins):
            sums[level[bin]] += reference[bin]
            used[level[bin]] += reference[bin] > 0
        expanded = np.array(
            [sums[level[bin]] / used[level[bin]] if reference[bin] else 0 for bin in range(bins)]
        )
        reference[-1] += counts[bins:].sum()
        if (reference[-1] > 0) != (expanded[-1] > 0) or not counts[bins - 1 :].any():
            found[bins] = np.inf
            continue
        p, q = reference / reference.sum(), expanded / expanded.sum()
        seen = p > 0
        found[bins] = float((p[seen] * np.log(p[seen] / q[seen])).sum())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_largest_magnitude(kind: str) -> None:
    assert chosen(draw(kind), "minmax") == np.abs(draw(kind)).max()


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "gamma", "student", "outlier", "uniform"])
@pytest.mark.parametrize("percent", ["50", "99", "99.9", "99.99", "99.999", "100"])
def test_percentiles_are_within_a_bin_of_those_of_the_raw_values(kind: str, percent: str) -> None:
    values = draw(kind)
    exact = raw_percentile(values, percent) or raw_percentile(values[values != 0], percent)
    found = chosen(values, f"percentile:{percent}")
    assert exact <= found <= exact + TensorStatistics.of(values).histogram.bin_width


def test_a_percentile_counts_exactly_where_floating_point_would_not() -> None:
    values = np.arange(1, 1001, dtype=np.float32)
    # 99.9 / 100 * 1000 is a little above 999 in floating point.
    assert chosen(values, "percentile:99.9") == 999.25
    assert chosen(values, "percentile:99.90001") == 1000


def test_a_percentile_that_zeros_alone_fill_is_of_the_other_values() -> None:
    values = np.zeros(100_000, np.float32)
    values[:100] = np.arange(1, 101)
    found = chosen(values, "percentile:90")
    assert 90 <= found < 91


@pytest.mark.parametrize("kind", KINDS)
def test_mse_loses_no_more_than_any_other_threshold(kind: str) -> None:
    values = draw(kind, 20_000)
    statistics = TensorStatistics.of(values)
    best = min(loss(values, limit) for limit in np.linspace(0.02, 1, 197) * statistics.largest)
    found = loss(values, chosen(values, "mse"))
    # Within a bin the method takes values to be spread evenly, which single values are not.
    assert found <= best * 1.002 + statistics.histogram.bin_width**2


@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "uniform", "student"])
def test_squared_errors_are_those_of_the_raw_values(kind: str) -> None:
    values = draw(kind)
    histogram = TensorStatistics.of(values).histogram
    errors = squared_error.squared_errors(histogram.counts) * histogram.bin_width**2
    # Zeros add nothing to the error, and are no part of the histogram.
    errors *= histogram.total / values.size
    for bins in range(400, errors.size, 300):
        assert errors[bins - 1] == pytest.approx(loss(values, bins * histogram.bin_width), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_those_of_the_plain_description(kind: str) -> None:
    counts = TensorStatistics.of(draw(kind, 30_000)).histogram.counts
    found = entropy.divergences(counts)
    for bins, expected in plain_divergences(counts, stride=331).items():
        assert found[bins - entropy.LEVELS] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_entropy_takes_the_smallest_divergence() -> None:
    values = draw("laplace", 30_000)
    histogram = TensorStatistics.of(values).histogram
    found = chosen(values, "entropy")
    bins = round(found / histogram.bin_width)
    assert found == bins * histogram.bin_width
    best = entropy.divergences(histogram.counts)[bins - entropy.LEVELS]
    assert best < min(plain_divergences(histogram.counts, stride=173).values())


def test_of_equal_divergences_the_largest_threshold_is_taken() -> None:
    counts = np.zeros(BINS, np.uint64)
    # Without clipping, and with every level's values in one bin, nothing is lost.
    counts[[5, 900, 2000, 3000]] = 7
    found = entropy.divergences(counts)
    assert entropy.best_bins(counts) == 3001
    assert found[3001 - entropy.LEVELS] == pytest.approx(0, abs=1e-12)


def test_entropy_does_not_cut_off_what_lies_beyond_a_peak() -> None:
    rng = np.random.default_rng(4)
    pixels = np.where(rng.random(50_000) < 0.8, 0, rng.integers(0, 256, 50_000))
    background = ((pixels / 255 - 0.13) / 0.31).astype(np.float32)
    grays = (rng.integers(0, 17, 50_000) / 16).astype(np.float32)
    for values in (background, grays):
        counts = TensorStatistics.of(values).histogram.counts
        unbounded = entropy.LEVELS + int(np.argmin(entropy.divergences(counts)))
        assert counts[unbounded:].sum() > 0.1 * counts.sum()
        assert np.mean(np.abs(values) > chosen(values, "entropy")) <= 0.01


def test_entropy_and_mse_cut_off_a_single_outlier() -> None:
    values = draw("outlier")
    assert chosen(values, "minmax") == 60
    assert np.sort(np.abs(values))[-2] * 0.7 < chosen(values, "entropy") < 6
    assert chosen(values, "mse") < 60
    assert chosen(values, "percentile:99.99") < 5


@pytest.mark.parametrize("method", METHODS)
def test_zeros_after_a_relu_do_not_move_the_threshold(method: str) -> None:
    values = draw("relu")
    crowded = np.concatenate([values, np.zeros(5 * values.size, np.float32)])
    if method == "percentile:99.9":
        assert chosen(crowded, method) < chosen(values, method)
    else:
        assert chosen(crowded, method) == chosen(values, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [3.3, -3.3, 1e-30, 1e30])
def test_a_constant_is_represented_exactly(method: str, value: float) -> None:
    for size in (1, 1000):
        values = np.full(size, value, np.float32)
        assert chosen(values, method) == np.abs(values[0])
        assert chosen(np.append(values, np.float32(0)), method) == np.abs(values[0])


@pytest.mark.parametrize("method", METHODS)
def test_all_zero_tensors_get_the_scale_one(method: str) -> None:
    assert chosen(np.zeros(5, np.float32), method) == UNIT_THRESHOLD
    assert scale_of(UNIT_THRESHOLD) == 1


@given(
    stn.arrays(
        np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
def test_every_threshold_gives_a_normal_scale_and_is_no_larger_than_needed(values: np.ndarray) -> None:
    for method in METHODS:
        found = chosen(values, method)
        scale = np.float32(scale_of(found))
        assert TINY <= scale < np.inf
        assert np.float32(1) / scale < np.inf
        if values.any():
            assert found <= max(np.abs(values).max(), 127 * TINY)


@pytest.mark.parametrize("method", METHODS)
def test_scaling_the_values_by_a_power_of_two_scales_the_threshold(method: str) -> None:
    values = draw("gamma")
    for power in (-90, 3, 90):
        assert chosen(np.ldexp(values, power), method) == np.ldexp(chosen(values, method), power)


def collected(values: np.ndarray, method: str, bins: int, percentile: float = 0) -> float:
    """The threshold of ONNX Runtime's own collector."""
    collector = HistogramCollector(method, True, bins, 128, percentile, "same")
    with contextlib.redirect_stdout(io.StringIO()):
        collector.collect({"x": values})
        low, high, *_ = collector.compute_collection_result()["x"]
    return max(-float(low), float(high))


@pytest.mark.parametrize("kind", ["normal", "relu", "sparse", "laplace", "gamma", "student", "outlier"])
@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
def test_percentiles_agree_with_onnx_runtime_within_a_bin_of_its_grid(kind: str, percent: float) -> None:
    values = draw(kind)
    # It answers with the lower edge of the bin that the percentile is in.
    theirs = collected(values, "percentile", 2048, percent) + coarse(values, 2048)
    found = chosen(values, f"percentile:{percent}")
    assert found == pytest.approx(min(theirs, float(np.abs(values).max())), abs=coarse(values, 2048))


@pytest.mark.parametrize(
    ("kind", "bins_apart"), [("normal", 1), ("gamma", 2), ("student", 2), ("laplace", 5)]
)
def test_entropy_agrees_with_onnx_runtime(kind: str, bins_apart: int) -> None:
    """In bins of the 128 that ONNX Runtime sets up by default.

    It sums levels of unlike width, on both sides of zero at once, and rounds what it spreads over bins: on
    heavy tails, where divergences hardly differ, its own answers are as far apart from grid to grid.
    """
    values = draw(kind, 3_000_000)
    theirs = collected(values, "entropy", 1024)
    assert abs(chosen(values, "entropy") - theirs) <= bins_apart * 2 * coarse(values, 128)


def test_minmax_agrees_with_onnx_runtime(tmp_path: Path) -> None:
    shape = ["N", 50]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    batches = draw("student", 4000).reshape(4, 20, 50)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"x": batch}

    calibrater = MinMaxCalibrater(tmp_path / "m.onnx", ["Relu"], str(tmp_path / "augmented.onnx"))
    calibrater.augment_graph()
    calibrater.create_inference_session()
    calibrater.collect_data(Reader())
    ranges = calibrater.compute_data()
    for name, values in (("x", batches), ("y", np.maximum(batches, 0))):
        low, high = ranges[name].range_value
        assert chosen(values, "minmax") == max(-np.min(low), np.max(high))


@pytest.mark.parametrize("text", ["entropy", "minmax", "mse", "percentile:99.99", "percentile:100"])
def test_methods_are_written_as_they_are_read(text: str) -> None:
    assert str(Method.parse(f" {text} ")) == text


@pytest.mark.parametrize(
    "text",
    ["", "kl", "Entropy", "percentile", "percentile:", "mse:3", "mse:"]
    + [f"percentile:{percent}" for percent in ("0", "0.0", "-1", "100.1", "1e1", "nan", "x", "٣")],
)
def test_other_methods_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="method"):
        Method.parse(text)


@pytest.mark.parametrize("method", METHODS)
def test_no_threshold_without_finite_values(method: str) -> None:
    with pytest.raises(CalibrationError, match="no value was seen"):
        threshold(TensorStatistics.empty(), Method.parse(method))
    with pytest.raises(CalibrationError, match="2 values are NaN or infinite"):
        chosen(np.array([1, np.nan, np.inf], np.float32), method)
