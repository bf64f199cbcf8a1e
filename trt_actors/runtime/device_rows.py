"""Rows of an input that lie in device memory before a slot asks for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from .device import Buffer, Device, Stream
from .values import nbytes

__all__ = ["DeviceBlock", "DeviceRows", "RowStore", "join_rows"]

Copy = Callable[[int, int, int, Stream], None]
"""Adds a copy on the device to a stream: target address, source address, bytes."""

_LEAST_BYTES = 1 << 16


class DeviceBlock:
    """Memory of a store, which gets it back with the last reference."""

    def __init__(self, store: RowStore, buffer: Buffer) -> None:
        self._store = store
        self._buffer = buffer
        self.pointer = buffer.pointer

    def __del__(self) -> None:
        self._store.take_back(self._buffer)


class RowStore:
    """Device memory for decoded rows, used again and again; all of it is freed by ``close`` alone.

    Memory goes back whenever and in whichever thread its last reference goes, so that no call to the device
    may be needed for it. Whoever reads it on a stream keeps a reference until that is done.

    Args:
        device: Open; its context must be current in ``take`` and ``close``.
        copy: Copies on the device.
    """

    def __init__(self, device: Device, copy: Copy) -> None:
        self._lock = threading.Lock()
        self._device = device
        self._free: list[Buffer] = []
        self._all: list[Buffer] = []
        self._largest_bytes = _LEAST_BYTES
        self.copy = copy

    @property
    def held_bytes(self) -> int:
        """Device memory that the store holds, in use or not."""
        return sum(buffer.size_bytes for buffer in self._all)

    def upload(self, target: int, source: np.ndarray, stream: Stream) -> None:
        """Adds a copy from the host to a stream."""
        self._device.upload(target, source, stream)

    def take(self, size_bytes: int) -> DeviceBlock:
        """Memory of at least this size, uninitialized.

        Raises:
            MemoryError: The device has not so much left.
        """
        with self._lock:
            fitting = [buffer for buffer in self._free if buffer.size_bytes >= size_bytes]
            if fitting:
                buffer = min(fitting, key=lambda each: each.size_bytes)
                self._free.remove(buffer)
                return DeviceBlock(self, buffer)
            # What is too small now will be so again.
            small, self._free = self._free, []
            for buffer in small:
                self._all.remove(buffer)
                buffer.close()
            # One size for all, so that the smaller last block of a shard is of use to the next.
            buffer = self._device.allocate(max(self._largest_bytes, size_bytes))
            self._largest_bytes = buffer.size_bytes
            self._all.append(buffer)
        return DeviceBlock(self, buffer)

    def take_back(self, buffer: Buffer) -> None:
        """Keeps memory for the next who asks."""
        # A list's append is atomic; a lock could be held by this very thread when references are collected.
        self._free.append(buffer)

    def close(self) -> None:
        """Frees all memory, in use or not; harmless when repeated."""
        with self._lock:
            self._free = []
            while self._all:
                self._all.pop().close()


_Part = tuple[DeviceBlock | np.ndarray, np.ndarray]


class DeviceRows:
    """Rows of one input, chosen from blocks of device memory; some may still be on the host.

    Taking some of them, or joining those of several batches, copies nothing.

    Args:
        parts: Blocks, or C-contiguous arrays of rows, with the numbers of the rows in each (int64).
        row_shape: Of one row.
        dtype: Element type.
        store: Whose memory it is.
    """

    def __init__(
        self, parts: Sequence[_Part], *, row_shape: tuple[int, ...], dtype: np.dtype[Any], store: RowStore
    ) -> None:
        self._parts = tuple(parts)
        self._store = store
        self.shape = (sum(len(rows) for _, rows in self._parts), *row_shape)
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, chosen: slice | np.ndarray) -> DeviceRows:
        """Some of the rows: a slice, or an array of numbers or of bools as NumPy takes it."""
        numbers, begin = np.arange(len(self))[chosen], 0
        parts: list[_Part] = []
        sizes = np.cumsum([len(rows) for _, rows in self._parts])
        # Each stretch of numbers that lie in the same part.
        owners = np.searchsorted(sizes, numbers, side="right")
        for end in [*(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(numbers)]:
            if end > begin:
                source, rows = self._parts[owners[begin]]
                before = int(sizes[owners[begin]]) - len(rows)
                parts.append((source, rows[numbers[begin:end] - before]))
            begin = end
        return self._of(parts)

    def joined(self, others: Sequence[DeviceRows | np.ndarray]) -> DeviceRows:
        """These rows and those of others behind them."""
        parts = list(self._parts)
        for other in others:
            if isinstance(other, DeviceRows):
                parts.extend(other._parts)
            else:
                parts.append((np.ascontiguousarray(other, self.dtype), np.arange(len(other))))
        return self._of(parts)

    def _of(self, parts: Sequence[_Part]) -> DeviceRows:
        return DeviceRows(parts, row_shape=self.shape[1:], dtype=self.dtype, store=self._store)

    def copy_to(self, pointer: int, stream: Stream) -> None:
        """Adds copies to a stream, until whose end these rows must be kept; the context must be current."""
        row_bytes = nbytes(self.shape[1:], self.dtype)
        for source, rows in self._parts:
            for first, count in _runs(rows):
                if isinstance(source, DeviceBlock):
                    start = source.pointer + first * row_bytes
                    self._store.copy(pointer, start, count * row_bytes, stream)
                else:
                    self._store.upload(pointer, source[first : first + count], stream)
                pointer += count * row_bytes

    def fill_up(self, pointer: int, rows: int, stream: Stream) -> None:
        """Adds copies of the last row to a stream, behind those of ``copy_to``, up to a number of rows."""
        row_bytes, have = nbytes(self.shape[1:], self.dtype), len(self)
        last = pointer + (have - 1) * row_bytes
        filled = 1
        while filled - 1 < rows - have:
            count = min(filled, rows - have - (filled - 1))
            self._store.copy(last + filled * row_bytes, last, count * row_bytes, stream)
            filled += count


def _runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """First number and count of each stretch of consecutive numbers."""
    if not len(rows):
        return []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1])
    counts = np.diff(np.concatenate([starts, [len(rows)]]))
    return list(zip(rows[starts].tolist(), counts.tolist(), strict=True))


@overload
def join_rows(arrays: Sequence[np.ndarray]) -> np.ndarray: ...
@overload
def join_rows(arrays: Sequence[np.ndarray | DeviceRows]) -> np.ndarray | DeviceRows: ...
def join_rows(arrays: Sequence[Any]) -> np.ndarray | DeviceRows:
    """Rows of several pieces one behind the other: on the device as soon as some of them are.

    Args:
        arrays: At least one, of the same dtype and row shape.
    """
    on_device = next((array for array in arrays if isinstance(array, DeviceRows)), None)
    if on_device is None:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return on_device[:0].joined(arrays)
