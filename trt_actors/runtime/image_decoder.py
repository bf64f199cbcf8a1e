"""Columns of JPEG images decoded on the device, so that their pixels never lie in host memory.

What a GPU cannot or should not decode (another format, colours or segments out of the ordinary, nulls, broken
images) is decoded on the CPU as if there were no GPU, and its pixels or its reason take their row's place:
which rows are bad does not depend on who decodes. Pixels may: JPEG leaves the last bits to the decoder.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from ...datasets.bound import ColumnBinding, ColumnKind
from ...datasets.columns import null_mask, spans
from ...datasets.elements import BadRow
from ...datasets.images import MAX_PIXELS, decode_images
from .device import Device, Event, Stream
from .device_rows import DeviceBlock, DeviceRows, RowStore
from .jpeg_header import JpegHeader, PlainJpegs
from .resize import Frame, ImageLayout
from .values import nbytes

__all__ = ["Codec", "DecodedRows", "ImageDecoder", "Scaler"]

_LANES = 3
"""While one lane decodes, another resizes and the next looks at its images' headers."""

_UINT8 = np.dtype(np.uint8)


class Codec(Protocol):
    """Decodes images on one stream; see `nvimgcodec.NvImageCodec`."""

    def decode(self, encoded: Sequence[memoryview], stream: Stream) -> list[Frame | None]:
        """A frame for each image, or None where it cannot be decoded."""

    def close(self) -> None:
        """Releases what it holds; harmless when repeated."""


class Scaler(Protocol):
    """Resizes images on one stream; see `resize.Resizer`."""

    def enqueue(
        self,
        frames: Sequence[Frame],
        orientations: Sequence[int],
        places: Sequence[int],
        layout: ImageLayout,
        images: int,
        stream: Stream,
    ) -> None:
        """Adds the resizing of some images into a batch at an address to the stream."""

    def close(self) -> None:
        """Releases what it holds; harmless when repeated."""


@dataclass(frozen=True, kw_only=True)
class DecodedRows:
    """One input's values for a batch of rows; as ``Decoded``, but on the device.

    Attributes:
        values: (rows, *row_shape); those of bad rows are unspecified. An array where nothing was decoded on
            the device.
        bad: At most one entry for each bad row, in row order.
    """

    values: DeviceRows | np.ndarray
    bad: tuple[BadRow, ...] = ()


@dataclass(frozen=True)
class _Lane:
    stream: Stream
    done: Event
    codec: Codec
    scaler: Scaler


class ImageDecoder:
    """Decodes for one engine; ``decode`` is called by several threads at once.

    Args:
        device: The engine's, open until after ``close``.
        make_codec: Makes what decodes, once for each lane.
        make_scaler: Makes what resizes, likewise.
        copy: Adds a copy on the device to a stream: target address, source address, bytes.
        lanes: How many calls may use the device at once; others wait.

    Raises:
        BackendError: A codec or the kernels cannot be used here.

    Attributes:
        on_device: Rows decoded on the device so far.
        on_host: Rows that were left to the CPU so far.
    """

    def __init__(
        self,
        device: Device,
        *,
        make_codec: Callable[[Stream], Codec],
        make_scaler: Callable[[], Scaler],
        copy: Callable[[int, int, int, Stream], None],
        lanes: int = _LANES,
    ) -> None:
        self._device = device
        self._lanes: list[_Lane] = []
        self._free: SimpleQueue[_Lane] = SimpleQueue()
        self._store = RowStore(device, copy)
        self._jpegs = PlainJpegs()
        self._decoding = threading.Lock()
        self._counts = threading.Lock()
        self.on_device = 0
        self.on_host = 0
        try:
            with device.current():
                for _ in range(lanes):
                    self._add_lane(make_codec, make_scaler)
        except BaseException:
            self.close()
            raise

    def _add_lane(self, make_codec: Callable[[Stream], Codec], make_scaler: Callable[[], Scaler]) -> None:
        stream, done = self._device.stream(), self._device.event()
        try:
            lane = _Lane(stream, done, make_codec(stream), make_scaler())
        except BaseException:
            done.close()
            stream.close()
            raise
        self._lanes.append(lane)
        self._free.put(lane)

    @staticmethod
    def takes(binding: ColumnBinding) -> bool:
        """Whether columns bound so can be decoded here: images of three channels and one size, as bytes."""
        return (
            binding.kind is ColumnKind.IMAGE
            and binding.input.dtype == _UINT8
            and binding.dims[2] == 3
            and all(isinstance(dim, int) for dim in binding.dims)
        )

    def decode(
        self, batch: pa.RecordBatch, binding: ColumnBinding, executor: ThreadPoolExecutor | None = None
    ) -> DecodedRows:
        """Decodes a column of encoded images; returns when the pixels are there.

        Args:
            batch: The rows.
            binding: One that ``takes`` accepts.
            executor: Threads for what the CPU decodes; None decodes it in this thread.

        Raises:
            DatasetError: The column's type is not the one that was bound.
            BackendError: The device failed.
        """
        column = binding.column(batch)
        images = _encoded(column)
        headers = self._jpegs.headers(column, images)
        plain = [
            (row, header) for (row, _), header in zip(images, headers, strict=True) if header is not None
        ]
        if not plain:
            return self._on_host(batch, binding, executor)
        height, width = (int(dim) for dim in binding.dims[:2])
        layout = ImageLayout(height=height, width=width, axes=binding.axes)
        image_bytes = nbytes(layout.shape, _UINT8)
        try:
            block, others = self._fill(batch.num_rows, plain, dict(images), layout)
            bad = self._fill_in(batch, binding, executor, others, block, image_bytes)
        except MemoryError:
            return self._on_host(batch, binding, executor)
        with self._counts:
            self.on_device += batch.num_rows - len(others)
            self.on_host += len(others)
        values = DeviceRows(
            [(block, np.arange(batch.num_rows))], row_shape=layout.shape, dtype=_UINT8, store=self._store
        )
        return DecodedRows(values=values, bad=bad)

    def _on_host(
        self, batch: pa.RecordBatch, binding: ColumnBinding, executor: ThreadPoolExecutor | None
    ) -> DecodedRows:
        with self._counts:
            self.on_host += batch.num_rows
        decoded = decode_images(batch, binding, executor)
        return DecodedRows(values=decoded.values, bad=decoded.bad)

    @contextlib.contextmanager
    def _lane(self) -> Iterator[_Lane]:
        """A lane of this thread's own, with nothing left on its stream in the end."""
        lane = self._free.get()
        try:
            with self._device.current():
                try:
                    yield lane
                finally:
                    lane.done.record(lane.stream)
                    lane.done.synchronize()
        finally:
            self._free.put(lane)

    def _fill(
        self,
        rows: int,
        plain: Sequence[tuple[int, JpegHeader]],
        encoded: Mapping[int, memoryview],
        layout: ImageLayout,
    ) -> tuple[DeviceBlock, list[int]]:
        """Decodes plain images into their places in a new block; returns it and the rows that are missing."""
        missing = set(range(rows)) - {row for row, _ in plain}
        with self._lane() as lane:
            block = self._store.take(rows * nbytes(layout.shape, _UINT8))
            for group in _groups(plain):
                # Two at once share the GPU's JPEG unit worse than one after the other.
                with self._decoding:
                    frames = lane.codec.decode([encoded[row] for row, _ in group], lane.stream)
                good: list[tuple[int, int, Frame]] = []
                for (row, header), frame in zip(group, frames, strict=True):
                    if frame is None or (frame.height, frame.width) != (header.height, header.width):
                        missing.add(row)
                    else:
                        good.append((row, header.orientation, frame))
                if good:
                    places, orientations, found = zip(*good, strict=True)
                    lane.scaler.enqueue(found, orientations, places, layout, block.pointer, lane.stream)
                # Frames give their memory back in stream order, other libraries' need not.
                lane.done.record(lane.stream)
                lane.done.synchronize()
        return block, sorted(missing)

    def _fill_in(
        self,
        batch: pa.RecordBatch,
        binding: ColumnBinding,
        executor: ThreadPoolExecutor | None,
        rows: Sequence[int],
        block: DeviceBlock,
        image_bytes: int,
    ) -> tuple[BadRow, ...]:
        """Decodes some rows on the CPU and puts them into their places; returns the bad ones."""
        if not rows:
            return ()
        decoded = decode_images(batch.take(pa.array(rows)), binding, executor)
        values = np.ascontiguousarray(decoded.values)
        unusable = {bad.row for bad in decoded.bad}
        with self._lane() as lane:
            for place, row in enumerate(rows):
                if place not in unusable:
                    self._device.upload(block.pointer + row * image_bytes, values[place], lane.stream)
        return tuple(BadRow(row=rows[bad.row], column=bad.column, reason=bad.reason) for bad in decoded.bad)

    def close(self) -> None:
        """Frees everything, also the memory of rows still in use; no call may be under way."""
        with self._device.current():
            while self._lanes:
                lane = self._lanes.pop()
                lane.stream.synchronize()
                lane.scaler.close()
                lane.codec.close()
                lane.done.close()
                lane.stream.close()
            self._store.close()


def _encoded(array: Any) -> list[tuple[int, memoryview]]:
    """Row and bytes of every image of a column that is there, views of Arrow memory."""
    starts, lengths, child = spans(array)
    buffer, nulls = child.buffers()[1], null_mask(array)
    if buffer is None:
        return []
    data = memoryview(buffer).cast("B")
    present = range(len(array)) if nulls is None else np.flatnonzero(~nulls).tolist()
    begins, sizes = starts.tolist(), lengths.tolist()
    return [(row, data[begins[row] : begins[row] + sizes[row]]) for row in present]


def _groups(plain: Sequence[tuple[int, JpegHeader]]) -> Iterator[list[tuple[int, JpegHeader]]]:
    """Images that are decoded together: not more pixels than the largest single image may have."""
    group: list[tuple[int, JpegHeader]] = []
    pixels = 0
    for row, header in plain:
        size = header.height * header.width
        if group and pixels + size > MAX_PIXELS:
            yield group
            group, pixels = [], 0
        group.append((row, header))
        pixels += size
    if group:
        yield group
