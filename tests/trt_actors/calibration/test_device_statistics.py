"""The kernels that count on a GPU: their arithmetic and their order, executed on the host."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trtfleet.tests.trt_actors.calibration.kernels_double import KernelDevice, compiled, compiler
from trtfleet.trt_actors.calibration import device_statistics
from trtfleet.trt_actors.calibration.device_statistics import DeviceStatistics, DeviceValues
from trtfleet.trt_actors.calibration.histogram import BINS, Histogram, exponent_for
from trtfleet.trt_actors.calibration.statistics import TensorStatistics, merge_all

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = sorted((REPOSITORY / "trt_actors").rglob("*.cu"))

needs_compiler = pytest.mark.skipif(
    compiler is None and not os.environ.get("CI"),
    reason="there is no g++ for the kernels",
)

finite_bits = st.integers(0, 0x7F7FFFFF)
any_bits = st.one_of(
    st.integers(0, 0xFFFFFFFF),
    finite_bits,
    st.sampled_from([0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]),
    st.floats(-10, 10, width=32).map(lambda value: int(np.float32(value).view(np.uint32))),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(params=[True, False], ids=["late", "early"])
def device(library: ctypes.CDLL, request: pytest.FixtureRequest) -> Iterator[KernelDevice]:
    made = KernelDevice(library, lazy=request.param).open()
    with made.current():
        yield made
        made.close()


def address(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def values_of(name: str, array: NDArray[np.generic]) -> DeviceValues:
    return DeviceValues(name=name, pointer=array.ctypes.data, dtype=array.dtype, count=array.size)


def counted(library: ctypes.CDLL, *batches: NDArray[np.generic], threads: int = 3) -> TensorStatistics:
    """What the kernels make of one tensor's batches."""
    device = KernelDevice(library, threads=threads).open()
    with device.current():
        stream = device.stream()
        statistics = DeviceStatistics(device, stream, ["x"])
        for batch in batches:
            statistics.add("x", batch.ctypes.data, batch.dtype, batch.size)
        found = statistics.statistics()["x"]
        statistics.close()
        stream.close()
        device.close()
    return found


def floats(bits: list[int]) -> NDArray[np.float32]:
    return np.array(bits, np.uint32).view(np.float32)


def test_there_are_kernels_to_look_at() -> None:
    assert "histogram.cu" in [path.name for path in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_committed_kernels_were_made_of_the_committed_source(source: Path) -> None:
    ptx = source.with_suffix(".ptx").read_text()
    digest = re.search(r"^// SHA-256 of the source: ([0-9a-f]{64})$", ptx, re.MULTILINE)
    assert digest is not None
    assert digest[1] == hashlib.sha256(source.read_bytes()).hexdigest(), "run scripts/make-ptx"
    assert ".version 8.0\n" in ptx
    assert ".target sm_80\n" in ptx


def test_the_kernels_and_the_host_agree_on_numbers() -> None:
    source = (REPOSITORY / "trt_actors" / "calibration" / "histogram.cu").read_text()
    numbers = dict(re.findall(r"^#define (\w+) (\d+)$", source, re.MULTILINE))
    assert int(numbers["BINS"]) == BINS == 1 << int(numbers["BINS_LOG2"])
    assert int(numbers["MAX_ITEMS"]) == device_statistics._MAX_ITEMS
    assert int(numbers["MAX_THREADS"]) == device_statistics._THREADS
    assert int(numbers["RANGE_BIAS"]) == device_statistics._RANGE_BIAS


@needs_compiler
def test_the_structures_have_the_same_size_on_both_sides(library: ctypes.CDLL) -> None:
    work_bytes = device_statistics._MAX_ITEMS * device_statistics._ITEM.itemsize
    assert library.size_of_tensor() == device_statistics._TENSOR.itemsize
    assert library.size_of_work() == work_bytes
    # What a launch may take of arguments on every GPU.
    assert work_bytes + 16 <= 4096


@needs_compiler
def test_every_half_becomes_the_same_float(library: ctypes.CDLL) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    bits = np.empty(halves.size, np.uint32)
    library.halves_to_bits(address(halves), address(bits), ctypes.c_uint64(halves.size))
    values, expected = bits.view(np.float32), halves.view(np.float16).astype(np.float32)
    nan = np.isnan(expected)
    assert np.isnan(values[nan]).all()
    np.testing.assert_array_equal(bits[~nan], expected.view(np.uint32)[~nan])


@needs_compiler
@settings(max_examples=200)
@given(st.lists(any_bits, min_size=2, max_size=50))
def test_keys_keep_the_order_of_values_and_are_never_zero(library: ctypes.CDLL, bits: list[int]) -> None:
    values = np.sort(floats(bits)[np.isfinite(floats(bits))] + np.float32(0))
    keys, back = np.empty(values.size, np.uint32), np.empty(values.size, np.uint32)
    library.keys_of(address(values), address(keys), address(back), ctypes.c_uint64(values.size))
    np.testing.assert_array_equal(back, values.view(np.uint32))
    assert (np.diff(keys.astype(np.int64)) >= 0).all()
    assert (keys > 0).all()
    assert (~keys > 0).all()


@needs_compiler
@settings(max_examples=300)
@given(st.lists(finite_bits.filter(bool), min_size=1, max_size=50))
def test_exponents_and_bins_are_those_of_the_host(library: ctypes.CDLL, bits: list[int]) -> None:
    magnitudes = np.array(bits, np.uint32)
    size = ctypes.c_uint64(magnitudes.size)
    ranges, bins = np.empty(magnitudes.size, np.int32), np.empty(magnitudes.size, np.uint32)
    library.ranges_of(address(magnitudes), address(ranges), size)
    assert ranges.tolist() == [exponent_for(float(value)) + 12 for value in magnitudes.view(np.float32)]
    library.bins_of(address(magnitudes), ctypes.c_int(int(ranges.max())), address(bins), size)
    histogram = Histogram.of(magnitudes.view(np.float32))
    np.testing.assert_array_equal(np.bincount(bins, minlength=BINS), histogram.counts)


@needs_compiler
@settings(max_examples=150)
@given(
    st.lists(st.lists(any_bits, max_size=40), min_size=1, max_size=5),
    st.integers(1, 4),
)
def test_any_batches_count_as_on_the_host(
    library: ctypes.CDLL, batches: list[list[int]], threads: int
) -> None:
    arrays = [floats(batch) for batch in batches]
    expected = TensorStatistics.of(np.concatenate(arrays))
    assert counted(library, *arrays, threads=threads) == expected


@needs_compiler
@settings(max_examples=100)
@given(st.lists(st.integers(0, 0xFFFF), max_size=100), st.integers(0, 8))
def test_any_halves_count_as_on_the_host(library: ctypes.CDLL, halves: list[int], skipped: int) -> None:
    values = np.array(halves, np.uint16).view(np.float16)[skipped:]
    assert counted(library, values) == TensorStatistics.of(values)


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("skipped", range(9))
def test_prefixes_of_any_length_and_alignment_are_counted_and_no_more(
    library: ctypes.CDLL, dtype: type[np.generic], skipped: int
) -> None:
    values = np.random.default_rng(skipped).normal(size=400).astype(dtype)
    for length in [*range(20), 63, 64, 65, 127, 300]:
        # Neither what lies before nor what lies behind may show.
        values[:skipped] = values[skipped + length :] = np.inf
        part = values[skipped : skipped + length].copy()
        view = values[skipped : skipped + length]
        assert counted(library, view) == TensorStatistics.of(part)
        values = np.random.default_rng(length).normal(size=400).astype(dtype)


@needs_compiler
@pytest.mark.parametrize("exponents", [(-140, 0, 127), (127, -140), (0, 1, 2, 13, 60), (-3, -3, -3)])
def test_growing_ranges_lose_nothing(library: ctypes.CDLL, exponents: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    batches = [np.ldexp(rng.uniform(-1, 1, 5000), exponent).astype(np.float32) for exponent in exponents]
    found = counted(library, *batches)
    assert found == TensorStatistics.of(np.concatenate(batches))
    merged = merge_all({"x": TensorStatistics.of(batch)} for batch in batches)
    assert found == merged["x"]


@needs_compiler
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, 1e-45, 3.4e38, np.nan, np.inf, -np.inf])
def test_constants_and_nothing_but_what_is_not_finite(library: ctypes.CDLL, value: float) -> None:
    values = np.full(1000, value, np.float32)
    found = counted(library, values)
    assert found == TensorStatistics.of(values)
    assert not np.signbit(found.minimum) or found.minimum < 0
    assert found.count + found.non_finite == 1000


@needs_compiler
def test_many_blocks_share_a_large_tensor(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_statistics, "_VALUES_PER_BLOCK", 1000)
    values = np.maximum(np.random.default_rng(1).standard_t(3, 200_001), 0).astype(np.float32)
    assert counted(library, values) == TensorStatistics.of(values)
    assert counted(library, values.astype(np.float16)) == TensorStatistics.of(values.astype(np.float16))


@needs_compiler
def test_hundreds_of_tensors_take_few_launches_and_do_not_mix(device: KernelDevice) -> None:
    rng = np.random.default_rng(2)
    names = [f"tensor {i}" for i in range(300)]
    dtypes = [np.float16 if i % 3 else np.float32 for i in range(300)]
    stream = device.stream()
    statistics = DeviceStatistics(device, stream, names)
    seen: dict[str, list[NDArray[np.generic]]] = {name: [] for name in names}
    for _ in range(3):
        batch = {
            name: rng.normal(scale=i + 1, size=rng.integers(0, 300)).astype(dtype)
            for i, (name, dtype) in enumerate(zip(names, dtypes, strict=True))
        }
        statistics.add_all(values_of(name, array) for name, array in batch.items())
        for name, array in batch.items():
            seen[name].append(array)
    found = statistics.statistics()
    assert len(device.launches) == 1 + 3 * 3 * 3
    assert list(found) == names
    for name in names:
        assert found[name] == TensorStatistics.of(np.concatenate(seen[name])), name
    statistics.close()
    stream.close()


@needs_compiler
def test_a_tensor_may_come_twice_in_one_batch(device: KernelDevice) -> None:
    stream = device.stream()
    statistics = DeviceStatistics(device, stream, ["x", "x", "y"])
    small, large = np.full(10, 0.5, np.float32), np.full(7, 1e6, np.float32)
    statistics.add_all([values_of("x", small), values_of("y", small), values_of("x", large)])
    found = statistics.statistics()
    assert found["x"] == TensorStatistics.of(np.concatenate([small, large]))
    assert found["y"] == TensorStatistics.of(small)
    statistics.close()
    stream.close()


@needs_compiler
def test_a_reset_begins_anew_and_reading_changes_nothing(device: KernelDevice) -> None:
    stream = device.stream()
    statistics = DeviceStatistics(device, stream, ["x", "unseen"])
    first, second = np.arange(100, dtype=np.float32), np.full(3, 0.25, np.float32)
    statistics.add("x", first.ctypes.data, first.dtype, first.size)
    assert statistics.statistics() == statistics.statistics()
    assert statistics.statistics()["unseen"] == TensorStatistics.empty()
    statistics.reset()
    statistics.add("x", second.ctypes.data, second.dtype, second.size)
    assert statistics.statistics()["x"] == TensorStatistics.of(second)
    statistics.close()
    statistics.close()
    stream.close()


@needs_compiler
def test_no_tensors_are_no_statistics(device: KernelDevice) -> None:
    stream = device.stream()
    statistics = DeviceStatistics(device, stream, [])
    statistics.add_all([])
    assert statistics.statistics() == {}
    statistics.close()
    stream.close()


@needs_compiler
def test_a_device_without_memory_keeps_nothing(library: ctypes.CDLL) -> None:
    device = KernelDevice(library, limit_bytes=1000).open()
    with device.current():
        stream = device.stream()
        with pytest.raises(MemoryError):
            DeviceStatistics(device, stream, ["x"])
        stream.close()
        device.close()


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(TypeError, match="float32 or float16 values, got int8 for x"):
        DeviceValues(name="x", pointer=0, dtype=np.dtype(np.int8), count=1)
    with pytest.raises(ValueError, match="x has 1 values at address 0x2"):
        DeviceValues(name="x", pointer=2, dtype=np.dtype(np.float32), count=1)
    with pytest.raises(ValueError, match="x has -1 values"):
        DeviceValues(name="x", pointer=0, dtype=np.dtype(np.float32), count=-1)
