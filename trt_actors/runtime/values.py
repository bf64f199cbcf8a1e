"""What segments hand to each other: arrays in host memory, or arrays that stay on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .device import Device, HostBuffer, Stream

__all__ = ["DeviceArray", "Owner", "Place", "Value", "nbytes", "release", "to_host", "view"]


class Owner(Protocol):
    """Whoever takes memory back."""

    def release(self) -> None:
        """Takes it back; work already on the stream may still use it."""


@dataclass(frozen=True, kw_only=True)
class DeviceArray:
    """A C-contiguous array in device memory.

    Attributes:
        pointer: Address of its first element; valid, though never read, when the array is empty.
        shape: Its shape.
        dtype: Element type.
        owner: Takes the memory back; None when it belongs to a slot.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Owner | None = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return nbytes(self.shape, self.dtype)


Value = np.ndarray | DeviceArray
"""One tensor between two segments."""

Place = Callable[[str, tuple[int, ...], np.dtype], DeviceArray]
"""Finds memory for an output of known shape."""


def nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array."""
    return math.prod(shape) * dtype.itemsize


def release(value: Value) -> None:
    """Gives a value's device memory back, if it has an owner."""
    if isinstance(value, DeviceArray) and value.owner is not None:
        value.owner.release()


def view(buffer: HostBuffer, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The beginning of host memory as an array."""
    return buffer.array[: nbytes(shape, dtype)].view(dtype).reshape(shape)


def to_host(value: Value, device: Device, stream: Stream) -> np.ndarray:
    """A value in pageable host memory; waits for all work on the stream when it must be copied."""
    if isinstance(value, np.ndarray):
        return value
    array = np.empty(value.shape, value.dtype)
    if array.nbytes:
        device.download(array, value.pointer, stream)
    stream.synchronize()
    return array
