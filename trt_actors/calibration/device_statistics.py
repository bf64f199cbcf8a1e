"""Statistics of activations where they are: counted on a GPU, of which only the counts ever leave it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from ..runtime.device import Device, Stream
from .histogram import BINS, Histogram
from .statistics import Statistics, TensorStatistics

__all__ = ["DeviceStatistics", "DeviceValues"]

_BINS_LOG2 = BINS.bit_length() - 1

# The structures of histogram.cu and its numbers.
_MAX_ITEMS = 120
_RANGE_BIAS = 256
_TENSOR = np.dtype(
    [
        ("counts", np.uint64, (BINS,)),
        ("zeros", np.uint64),
        ("non_finite", np.uint64),
        ("maximum_key", np.uint32),
        ("minimum_key", np.uint32),
        ("range", np.uint32),
        ("unused", np.uint32),
    ]
)
_ITEM = np.dtype(
    [
        ("address", np.uint64),
        ("count", np.uint64),
        ("tensor", np.uint32),
        ("is_half", np.uint32),
        ("first_block", np.uint32),
        ("blocks", np.uint32),
    ]
)

_THREADS = 512
# Enough work for a block to be worth its 4096 bins; enough blocks for two rounds on a large GPU.
_VALUES_PER_BLOCK = 1 << 16
_BLOCKS = 1056
# A block counts in 32 bits.
_MOST_VALUES_PER_BLOCK = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DeviceValues:
    """Values of one tensor in device memory.

    Attributes:
        name: The tensor's.
        pointer: Address of the first value, a multiple of the size of one.
        dtype: float32 or float16.
        count: How many consecutive values; the first rows of a batch are a prefix of its memory.
    """

    name: str
    pointer: int
    dtype: np.dtype[Any]
    count: int

    def __post_init__(self) -> None:
        if self.dtype not in (np.float32, np.float16):
            raise TypeError(
                f"statistics on a device are of float32 or float16 values, got {self.dtype} for {self.name}"
            )
        if self.count < 0 or self.pointer % self.dtype.itemsize:
            raise ValueError(
                f"{self.name} has {self.count} values at address {self.pointer:#x}, aligned to {self.dtype}"
            )


class DeviceStatistics:
    """Collects the statistics of tensors in device memory, bit for bit those of ``TensorStatistics.of``.

    Nothing here but ``statistics`` waits for the device. About 32 KiB of its memory are held for each tensor
    until ``close``. Every call needs the device's context current, and one thread at a time.

    Args:
        device: Open; stays the caller's.
        stream: Where all work goes, ordered behind what writes the values; stays the caller's.
        names: Of all tensors.

    Raises:
        BackendError: The device does not take the kernels.
        MemoryError: The device has not so much memory left.
    """

    def __init__(self, device: Device, stream: Stream, names: Iterable[str]) -> None:
        self._device = device
        self._stream = stream
        self._places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self._counts = dict.fromkeys(self._places, 0)
        self._size_bytes = len(self._places) * _TENSOR.itemsize
        ptx = (files("trtfleet.trt_actors.calibration") / "histogram.ptx").read_bytes()
        self._module = device.module(ptx)
        try:
            self._memory = device.allocate(max(self._size_bytes, 1))
        except BaseException:
            self._module.close()
            raise
        self.reset()

    def reset(self) -> None:
        """Forgets everything counted so far, for the next unit of work."""
        self._counts = dict.fromkeys(self._places, 0)
        words = self._size_bytes // 4
        if words:
            self._module.launch(
                "clear",
                np.uint64(self._memory.pointer),
                np.uint64(words),
                blocks=(min(-(-words // _THREADS), _BLOCKS),),
                threads=(_THREADS,),
                stream=self._stream,
            )

    def add(self, name: str, pointer: int, dtype: np.dtype[Any], count: int) -> None:
        """Counts the values of one tensor; for many, ``add_all`` is quicker. See ``DeviceValues``."""
        self.add_all([DeviceValues(name=name, pointer=pointer, dtype=np.dtype(dtype), count=count)])

    def add_all(self, values: Iterable[DeviceValues]) -> None:
        """Counts the values of many tensors, with three launches for every 120 of them.

        Args:
            values: Borrowed until the work now put on the stream is done.

        Raises:
            KeyError: A tensor was not named at the beginning.
            BackendError: The driver refuses a launch.
        """
        chunk: dict[int, DeviceValues] = {}
        for one in values:
            place = self._places[one.name]
            if place in chunk or len(chunk) == _MAX_ITEMS:
                self._launch(chunk)
                chunk = {}
            if one.count:
                chunk[place] = one
        if chunk:
            self._launch(chunk)

    def _launch(self, chunk: dict[int, DeviceValues]) -> None:
        work = np.zeros(_MAX_ITEMS, _ITEM)
        blocks = 0
        for item, (place, one) in enumerate(chunk.items()):
            own = min(-(-one.count // _VALUES_PER_BLOCK), _BLOCKS)
            own = max(own, -(-one.count // _MOST_VALUES_PER_BLOCK))
            is_half = one.dtype == np.float16
            work[item] = (one.pointer, one.count, place, is_half, blocks, own)
            blocks += own
            self._counts[one.name] += one.count
        arguments = (np.void(work.tobytes()), np.uint32(len(chunk)), np.uint64(self._memory.pointer))
        for kernel, grid in (("range", blocks), ("grow", len(chunk)), ("count", blocks)):
            self._module.launch(kernel, *arguments, blocks=(grid,), threads=(_THREADS,), stream=self._stream)

    def statistics(self) -> Statistics:
        """What was counted since the beginning or the last ``reset``, of every tensor named; waits for it.

        Raises:
            BackendError: Work on the stream failed.
        """
        if not self._places:
            return {}
        host = self._device.host(self._size_bytes)
        try:
            self._device.download(host.array[: self._size_bytes], self._memory.pointer, self._stream)
            self._stream.synchronize()
            tensors = host.array[: self._size_bytes].view(_TENSOR).copy()
        finally:
            host.close()
        return {name: _statistics(tensors[place], self._counts[name]) for name, place in self._places.items()}

    def close(self) -> None:
        """Frees what is held on the device, once its work is done; harmless when repeated."""
        self._memory.close()
        self._module.close()


def _statistics(tensor: np.void, count: int) -> TensorStatistics:
    highest, lowest, bias = (int(tensor[name]) for name in ("maximum_key", "minimum_key", "range"))
    non_finite = int(tensor["non_finite"])
    return TensorStatistics(
        count=count - non_finite,
        zeros=int(tensor["zeros"]),
        non_finite=non_finite,
        # No finite value has the key 0, nor the inverted key 0.
        minimum=_value(~lowest & 0xFFFFFFFF) if lowest else math.inf,
        maximum=_value(highest) if highest else -math.inf,
        histogram=Histogram(
            exponent=bias - _RANGE_BIAS - _BINS_LOG2 if bias else None, counts=tensor["counts"]
        ),
    )


def _value(key: int) -> float:
    bits = key & 0x7FFFFFFF if key & 0x80000000 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))
