"""Device memory for values between segments, reused in stream order instead of freed."""

from __future__ import annotations

import numpy as np

from .device import Buffer, Device
from .values import DeviceArray, nbytes

__all__ = ["Block", "Pool"]

_GRANULE_BYTES = 512
_STEPS = 8


class Block:
    """Memory taken from a pool.

    Attributes:
        pointer: Its address on the device.
        size_bytes: Its size, at least what was asked for.
    """

    def __init__(self, pool: Pool, buffer: Buffer) -> None:
        self._pool: Pool | None = pool
        self._buffer = buffer
        self.pointer = buffer.pointer
        self.size_bytes = buffer.size_bytes

    def release(self) -> None:
        """Gives the memory back; harmless when repeated."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._take_back(self._buffer)


class Pool:
    """Keeps freed memory for the next value of a similar size.

    A released block is handed out again at once. That is right as long as everybody who touches it works on
    one stream: what still reads the old value runs before what writes the new one.

    Args:
        device: Open; its context must be current in every call.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[Buffer]] = {}
        self._out = 0
        self._is_closed = False

    @property
    def blocks_out(self) -> int:
        """Blocks taken and not yet released."""
        return self._out

    def take(self, size_bytes: int) -> Block:
        """Memory of at least this size, uninitialized.

        Raises:
            MemoryError: The device has not so much left, even when everything kept is freed.
        """
        size = _rounded(size_bytes)
        kept = self._free.get(size)
        if kept:
            buffer = kept.pop()
        else:
            try:
                buffer = self._device.allocate(size)
            except MemoryError:
                self.trim()
                buffer = self._device.allocate(size)
        self._out += 1
        return Block(self, buffer)

    def array(self, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        """Memory for an array, which the array's owner gives back."""
        block = self.take(nbytes(shape, dtype))
        return DeviceArray(pointer=block.pointer, shape=shape, dtype=dtype, owner=block)

    def close(self) -> None:
        """Frees everything that is not in use, and what is as soon as it is released."""
        self._is_closed = True
        self.trim()

    def trim(self) -> None:
        """Frees everything that is not in use."""
        while self._free:
            _, buffers = self._free.popitem()
            for buffer in buffers:
                buffer.close()

    def _take_back(self, buffer: Buffer) -> None:
        self._out -= 1
        if self._is_closed:
            buffer.close()
        else:
            self._free.setdefault(buffer.size_bytes, []).append(buffer)


def _rounded(size_bytes: int) -> int:
    """The next of eight sizes between two powers of two, so that similar sizes share blocks."""
    step = max(_GRANULE_BYTES, (1 << max(size_bytes - 1, 1).bit_length()) // (2 * _STEPS))
    return max(-(-size_bytes // step), 1) * step
