"""The kernels that count activations on a real GPU, against the host; skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from trtfleet.errors import BackendError
from trtfleet.trt_actors.calibration.device_statistics import DeviceStatistics, DeviceValues
from trtfleet.trt_actors.calibration.statistics import TensorStatistics
from trtfleet.trt_actors.runtime.cuda import CudaDevice, cuda_missing
from trtfleet.trt_actors.runtime.device import Buffer, Stream

pytestmark = pytest.mark.skipif(cuda_missing() is not None, reason=str(cuda_missing()))

Values = NDArray[np.generic]


class Gpu:
    """A device, a stream, and values copied to the device."""

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.stream: Stream = device.stream()
        self._buffers: list[Buffer] = []

    def put(self, values: Values) -> int:
        """Copies values to the device and returns their address."""
        buffer = self.device.allocate(values.nbytes)
        self._buffers.append(buffer)
        if values.size:
            self.device.upload(buffer.pointer, np.ascontiguousarray(values), self.stream)
            self.stream.synchronize()
        return buffer.pointer

    def count(self, *batches: Values) -> TensorStatistics:
        """The statistics of one tensor over several batches."""
        statistics = DeviceStatistics(self.device, self.stream, ["x"])
        for batch in batches:
            statistics.add("x", self.put(batch), batch.dtype, batch.size)
        found = statistics.statistics()["x"]
        statistics.close()
        return found

    def close(self) -> None:
        for buffer in self._buffers:
            buffer.close()
        self.stream.close()


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    device = CudaDevice().open()
    with device.current():
        made = Gpu(device)
        yield made
        made.close()
    device.close()


def normal(rng: np.random.Generator, size: int) -> Values:
    return rng.normal(size=size)


def relu(rng: np.random.Generator, size: int) -> Values:
    return np.maximum(rng.normal(size=size), 0)


def mostly_zero(rng: np.random.Generator, size: int) -> Values:
    return np.where(rng.random(size) < 0.99, 0.0, rng.normal(size=size))


def heavy_tails(rng: np.random.Generator, size: int) -> Values:
    return np.clip(rng.standard_cauchy(size=size), -6e4, 6e4)


def one_outlier(rng: np.random.Generator, size: int) -> Values:
    values = rng.normal(size=size) * 1e-3
    values[size // 2] = 5e4
    return values


def few_values(rng: np.random.Generator, size: int) -> Values:
    return rng.integers(-3, 4, size) * 0.25


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("make", [normal, relu, mostly_zero, heavy_tails, one_outlier, few_values])
def test_values_of_any_kind_are_counted_as_on_the_host(
    gpu: Gpu, make: Callable[[np.random.Generator, int], Values], dtype: type[np.generic]
) -> None:
    values = make(np.random.default_rng(0), 3_000_001).astype(dtype)
    assert gpu.count(values) == TensorStatistics.of(values)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.37, 6.1e-5, np.nan, np.inf, -np.inf])
def test_constants(gpu: Gpu, value: float, dtype: type[np.generic]) -> None:
    values = np.full(1_000_003, value, dtype)
    found = gpu.count(values)
    assert found == TensorStatistics.of(values)
    assert not np.signbit(found.minimum) or found.minimum < 0


def test_any_bits_are_counted_as_on_the_host(gpu: Gpu) -> None:
    bits = np.random.default_rng(1).integers(0, 1 << 32, 2_000_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    found = gpu.count(values)
    assert found.non_finite > 0
    assert found == TensorStatistics.of(values)


def test_every_half_is_counted_as_on_the_host(gpu: Gpu) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert gpu.count(halves) == TensorStatistics.of(halves)
    for half in halves[1:1025:31]:
        alone = np.array([half, -half, 0], np.float16)
        assert gpu.count(alone) == TensorStatistics.of(alone)


@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -125, -100, -1, 0, 1, 100, 126])
def test_ranges_of_every_size(gpu: Gpu, exponent: int) -> None:
    values = np.ldexp(np.random.default_rng(2).uniform(-2, 2, 100_000), exponent).astype(np.float32)
    values[:3] = np.ldexp(1.0, exponent)
    assert gpu.count(values) == TensorStatistics.of(values)


@pytest.mark.parametrize("exponents", [(-140, 0, 120), (120, -140), (0, 1, 2, 13, 60), (-3, -3, -3)])
def test_growing_ranges_lose_nothing(gpu: Gpu, exponents: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    batches = [np.ldexp(rng.normal(size=70_001), exponent).astype(np.float32) for exponent in exponents]
    assert gpu.count(*batches) == TensorStatistics.of(np.concatenate(batches))


def test_batches_of_nothing_of_zeros_and_of_nothing_finite(gpu: Gpu) -> None:
    batches = [
        np.zeros(0, np.float32),
        np.full(100, np.nan, np.float32),
        np.zeros(1000, np.float32),
        np.array([np.inf, -2.5, -np.inf], np.float32),
    ]
    found = gpu.count(*batches)
    assert (found.count, found.zeros, found.non_finite) == (1001, 1000, 102)
    assert (found.minimum, found.maximum) == (-2.5, 0.0)
    assert found == TensorStatistics.of(np.concatenate(batches))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_prefixes_of_any_length_and_alignment_are_counted_and_no_more(
    gpu: Gpu, dtype: type[np.generic]
) -> None:
    size = np.dtype(dtype).itemsize
    statistics = DeviceStatistics(gpu.device, gpu.stream, ["x"])
    for skipped in range(16 // size + 1):
        for length in (0, 1, 2, 3, 5, 7, 8, 9, 31, 32, 33, 127, 1000, 4097):
            part = np.random.default_rng(length).normal(size=length).astype(dtype)
            # What lies around the part would be counted as not finite.
            values = np.full(5000, np.nan, dtype)
            values[skipped : skipped + length] = part
            statistics.add("x", gpu.put(values) + skipped * size, part.dtype, length)
            assert statistics.statistics()["x"] == TensorStatistics.of(part), (skipped, length)
            statistics.reset()
    statistics.close()


def test_hundreds_of_tensors_of_all_sizes_do_not_mix(gpu: Gpu) -> None:
    rng = np.random.default_rng(4)
    names = [f"tensor {i}" for i in range(250)]
    statistics = DeviceStatistics(gpu.device, gpu.stream, names)
    seen: dict[str, list[Values]] = {name: [] for name in names}
    for _ in range(3):
        batch = []
        for i, name in enumerate(names):
            size = int(rng.choice([0, 1, 17, 1000, 65_536, 65_537, 300_001]))
            values = rng.normal(scale=10.0 ** rng.integers(-4, 4), size=size)
            values = values.astype(np.float16 if i % 2 else np.float32)
            seen[name].append(values)
            pointer = gpu.put(values)
            batch.append(DeviceValues(name=name, pointer=pointer, dtype=values.dtype, count=size))
        statistics.add_all(batch)
    found = statistics.statistics()
    for name in names:
        assert found[name] == TensorStatistics.of(np.concatenate(seen[name])), name
    statistics.close()


def test_more_values_than_32_bits_can_count_in_one_bin(gpu: Gpu) -> None:
    values = np.full(1 << 28, 0.5, np.float16)
    statistics = DeviceStatistics(gpu.device, gpu.stream, ["x"])
    pointer = gpu.put(values)
    for _ in range(17):
        statistics.add("x", pointer, values.dtype, values.size)
    found = statistics.statistics()["x"]
    assert found.count == found.histogram.total == 17 << 28
    assert int(found.histogram.counts[2048]) == 17 << 28
    statistics.close()


def test_one_unit_after_another(gpu: Gpu) -> None:
    statistics = DeviceStatistics(gpu.device, gpu.stream, ["x", "unseen"])
    for seed in range(3):
        values = np.random.default_rng(seed).normal(scale=10.0**-seed, size=100_000).astype(np.float32)
        statistics.add("x", gpu.put(values), values.dtype, values.size)
        assert statistics.statistics() == {
            "x": TensorStatistics.of(values),
            "unseen": TensorStatistics.empty(),
        }
        statistics.reset()
    statistics.close()
    statistics.close()


def test_adding_waits_for_nothing_so_that_it_can_be_captured(gpu: Gpu) -> None:
    values = np.random.default_rng(5).normal(size=50_000).astype(np.float32)
    pointer = gpu.put(values)
    statistics = DeviceStatistics(gpu.device, gpu.stream, ["x"])
    statistics.add("x", pointer, values.dtype, values.size)
    graph = gpu.device.capture(gpu.stream, lambda: statistics.add("x", pointer, values.dtype, values.size))
    graph.launch(gpu.stream)
    gpu.stream.synchronize()
    graph.close()
    # The addition while the work was recorded and the execution of what was recorded are one.
    assert statistics.statistics()["x"] == TensorStatistics.of(np.concatenate([values, values]))
    statistics.close()


def test_kernels_that_are_none_are_refused(gpu: Gpu) -> None:
    with pytest.raises(BackendError, match="GPU 0 does not take the kernels"):
        gpu.device.module(b"this is no PTX")
    module = gpu.device.module(b".version 8.0\n.target sm_80\n.address_size 64\n")
    with pytest.raises(BackendError, match="the kernel missing cannot be launched"):
        module.launch("missing", blocks=(1,), threads=(32,), stream=gpu.stream)
    module.close()
    module.close()


@pytest.mark.parametrize("make", [normal, relu, few_values, one_outlier])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_rate_over_large_tensors_is_printed(
    gpu: Gpu, make: Callable[[np.random.Generator, int], Values], dtype: type[np.generic]
) -> None:
    part = make(np.random.default_rng(6), 1 << 22).astype(dtype)
    values = np.tile(part, 64)
    pointer = gpu.put(values)
    statistics = DeviceStatistics(gpu.device, gpu.stream, ["x"])
    start, end = gpu.device.event(), gpu.device.event()
    for turn in range(12):
        if turn == 2:
            start.record(gpu.stream)
        statistics.add("x", pointer, values.dtype, values.size)
    end.record(gpu.stream)
    found = statistics.statistics()["x"]
    rate = 10 * values.nbytes / end.seconds_since(start)
    # Each byte is read twice, for the range and for the counts.
    print(
        f"\n{make.__name__}, {part.dtype}: {rate / 1e12:.2f} TB/s of values, {2 * rate / 1e12:.2f} TB/s read"
    )
    assert found.count == 12 * values.size
    assert found.histogram.total == found.count - found.zeros
    for thing in (start, end, statistics):
        thing.close()
