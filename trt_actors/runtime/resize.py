"""Decoded images of any size, wherever they lie on the device, turned upright and resized into one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .device import Buffer, Device, Module, Stream

__all__ = ["Frame", "ImageLayout", "Resizer"]

_KERNELS = Path(__file__).with_name("resize.ptx")
_THREADS = 256
_MOST_FRAMES = 65_535
"""What the second dimension of a grid admits."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One decoded image in device memory: RGB, uint8, rows one behind the other.

    Attributes:
        pointer: Address of its first pixel.
        row_bytes: From one row to the next.
        height: Rows as stored.
        width: Columns as stored.
        owner: Keeps the memory.
    """

    pointer: int
    row_bytes: int
    height: int
    width: int
    owner: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """How the images of a batch lie in memory.

    Attributes:
        height: Rows of each.
        width: Columns of each.
        axes: Axis i in memory is axis ``axes[i]`` of (height, width, channels).
    """

    height: int
    width: int
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image in memory."""
        sizes = (self.height, self.width, 3)
        return tuple(sizes[axis] for axis in self.axes)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Bytes from row to row, from pixel to pixel, and from channel to channel."""
        shape = self.shape
        found = [math.prod(shape[self.axes.index(axis) + 1 :]) for axis in range(3)]
        return (found[0], found[1], found[2])


class Resizer:
    """Resizes on one stream; makes bit for bit what Pillow's bilinear filter makes of the same pixels.

    Pillow 13 takes images along their columns first when their height shrinks by more than twice as many
    pixels as their width; those differ by one level at most.

    Args:
        device: Open; its context must be current in every call.

    Raises:
        BackendError: The driver does not take the kernels.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._module: Module = device.module(_KERNELS.read_bytes())
        self._table: np.ndarray | None = None
        self._buffers: dict[str, Buffer] = {}

    def enqueue(
        self,
        frames: Sequence[Frame],
        orientations: Sequence[int],
        places: Sequence[int],
        layout: ImageLayout,
        images: int,
        stream: Stream,
    ) -> None:
        """Adds the resizing of some images to a stream, which must be the same in every call.

        Args:
            frames: At most 65,535; their memory must stay until the work is done.
            orientations: Of each, as EXIF counts.
            places: Which image of the batch each becomes.
            layout: Of the batch.
            images: Address of the batch.
            stream: Where the work goes.

        Raises:
            MemoryError: The device has no memory left for what lies between the two passes.
        """
        if not 0 < len(frames) <= _MOST_FRAMES:
            raise ValueError(f"1 to {_MOST_FRAMES} images can be resized at once, got {len(frames)}")
        table, made_bytes, strip_bytes, most_rows = _table(frames, orientations, places, layout)
        # The host may not touch what an earlier call still copies from.
        stream.synchronize()
        self._table = table
        where = [
            np.uint64(self._room(name, size_bytes))
            for name, size_bytes in (("table", table.nbytes), ("made", made_bytes), ("strips", strip_bytes))
        ]
        self._device.upload(int(where[0]), table, stream)
        height, width = np.int32(layout.height), np.int32(layout.width)
        steps = [np.int32(step) for step in layout.steps]
        count = len(frames)
        work: tuple[tuple[str, tuple[np.generic, ...], int], ...] = (
            ("weights", (*where[:2], height, width), layout.height + layout.width),
            ("across", (*where, width), most_rows * layout.width),
            ("down", (*where, np.uint64(images), height, width, *steps), layout.height * layout.width),
        )
        for kernel, arguments, threads in work:
            self._module.launch(
                kernel,
                *arguments,
                blocks=(-(-threads // _THREADS), count),
                threads=(_THREADS,),
                stream=stream,
            )

    def _room(self, name: str, size_bytes: int) -> int:
        found = self._buffers.get(name)
        if found is None or found.size_bytes < size_bytes:
            if found is not None:
                del self._buffers[name]
                found.close()
            found = self._buffers[name] = self._device.allocate(size_bytes + size_bytes // 4)
        return found.pointer

    def close(self) -> None:
        """Frees everything, once its work is done; harmless when repeated."""
        while self._buffers:
            self._buffers.popitem()[1].close()
        self._module.close()


def _table(
    frames: Sequence[Frame], orientations: Sequence[int], places: Sequence[int], layout: ImageLayout
) -> tuple[np.ndarray, int, int, int]:
    """What the kernels are told, as ``Column`` in their source says.

    Returns:
        int64[images, 11]; the bytes of weights and of strips; and the most rows of an upright image.
    """
    stored = np.array([(f.pointer, f.row_bytes, f.height, f.width) for f in frames], np.int64)
    turned = np.asarray(orientations) >= 5
    high = np.where(turned, stored[:, 3], stored[:, 2])
    wide = np.where(turned, stored[:, 2], stored[:, 3])
    across_taps, down_taps = _taps(wide, layout.width), _taps(high, layout.height)
    # Two numbers go before the weights of each position.
    across, down = layout.width * (across_taps + 2), layout.height * (down_taps + 2)
    begins = np.cumsum(across + down) - (across + down)
    strips = high * (layout.width * 3)
    table = np.column_stack(
        [
            stored,
            np.asarray(orientations, np.int64),
            np.cumsum(strips) - strips,
            begins,
            across_taps,
            begins + across,
            down_taps,
            np.asarray(places, np.int64),
        ]
    )
    return np.ascontiguousarray(table), int((across + down).sum()) * 4, int(strips.sum()), int(high.max())


def _taps(sizes: np.ndarray, target: int) -> np.ndarray:
    """The most pixels that one pixel is made of."""
    return 2 * np.ceil(np.maximum(sizes / target, 1.0)).astype(np.int64) + 1
