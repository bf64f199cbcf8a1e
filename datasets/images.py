"""Encoded images (JPEG, PNG, WEBP, BMP) decoded into uint8 pixels, over threads when the caller has some.

Image data is not trusted: only these four decoders are ever reached, the header's size is checked before a
pixel is decoded, and whatever a decoder raises makes a bad row.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from .bound import ColumnBinding
from .columns import null_mask, spans
from .elements import BadRow, Decoded, fill_value
from .jpeg import MAX_SCANS, decode_jpeg, has_many_scans
from .orientation import upright
from .signature import Dim

__all__ = ["MAX_PIXELS", "decode_images"]

MAX_PIXELS = 64 * 1024 * 1024
"""Images of more pixels than this are bad rows."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

NDArray = np.ndarray[Any, Any]


class _ImageError(Exception):
    """An image that makes its row a bad one; the message is the reason."""


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leaves the resolution alone: nobody needs it, and Pillow warns where the EXIF data is corrupt."""


def decode_images(
    batch: pa.RecordBatch, binding: ColumnBinding, executor: ThreadPoolExecutor | None = None
) -> Decoded:
    """Decodes a column of encoded images bound as IMAGE.

    EXIF orientation is applied, then the mode the input's channels ask for (an alpha channel it has no room
    for is dropped, 16-bit grey keeps its upper byte), then the size: resized, bilinear, to the input's or
    the user's. With neither, all images of a batch must have the size of its first good one.

    Args:
        batch: The rows.
        binding: Its ``dims`` are the height, width and channels wanted.
        executor: Threads to decode on; None decodes in this thread.

    Returns:
        Values of shape (rows, *row_shape): pixels 0..255 in the input's dtype; a new array.

    Raises:
        DatasetError: The column's type is not the one that was bound.
    """
    array, column = binding.column(batch), binding.columns[0]
    rows, fill = len(array), binding.options.fill_null
    starts, lengths, child = spans(array)
    data = memoryview(child.buffers()[1]).cast("B")
    nulls = null_mask(array)
    absent = np.zeros(rows, np.bool_) if nulls is None else nulls
    *size, channels = binding.dims
    target = _fixed(size)
    mode = MODES[int(channels)]

    def one(row: int) -> NDArray | str:
        start = int(starts[row])
        try:
            return _pixels(data[start : start + int(lengths[row])], mode, target)
        except _ImageError as error:
            return str(error)

    bad: dict[int, str] = {}
    if fill is None:
        bad = dict.fromkeys(np.flatnonzero(absent).tolist(), "null")
    wanted = target
    out: NDArray | None = None if wanted is None else _zeros(rows, wanted, binding)
    present = np.flatnonzero(~absent).tolist()
    decoded: Iterable[NDArray | str] = executor.map(one, present) if executor else map(one, present)
    for row, pixels in zip(present, decoded, strict=True):
        if isinstance(pixels, str):
            bad[row] = pixels
            continue
        found = pixels.shape[:2]
        if out is None and _fits(found, size):
            wanted, out = found, _zeros(rows, found, binding)
        if out is None or found != wanted:
            expected = wanted or tuple(size)
            bad[row] = f"expected {expected[0]}x{expected[1]} pixels, got {found[0]}x{found[1]}"
        else:
            out[row] = pixels.transpose(binding.axes)
    if fill is not None and out is None:
        unknown = np.flatnonzero(absent).tolist()
        bad |= dict.fromkeys(unknown, "null, and no row of the batch tells its size")
    if out is None:
        out = _zeros(rows, (0, 0), binding)
    if fill is not None:
        out[absent] = fill_value(fill, out.dtype)
    named = tuple(BadRow(row=row, column=column, reason=bad[row]) for row in sorted(bad))
    return Decoded(values=out, bad=named)


def _fixed(size: list[Dim]) -> tuple[int, int] | None:
    height, width = size
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _fits(found: tuple[int, ...], size: list[Dim]) -> bool:
    square = size[0] != size[1] or found[0] == found[1]
    return square and all(isinstance(dim, str) or dim == got for dim, got in zip(size, found, strict=True))


def _zeros(rows: int, size: tuple[int, ...], binding: ColumnBinding) -> NDArray:
    stored = (*size, int(binding.dims[2]))
    return np.zeros((rows, *(stored[axis] for axis in binding.axes)), binding.input.dtype)


def _decoder(head: bytes) -> Callable[[io.BytesIO], ImageFile]:
    if head[:3] == b"\xff\xd8\xff":
        return _Jpeg
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return PngImageFile
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImageFile
    if head[:2] == b"BM":
        return BmpImageFile
    start = head[:4].hex(" ") if head else "nothing"
    raise _ImageError(f"not a JPEG, PNG, WEBP or BMP image: it starts with {start}")


def _pixels(data: memoryview, mode: str, target: tuple[int, int] | None) -> NDArray:
    """One image as uint8 of shape (height, width, channels)."""
    open_image = _decoder(bytes(data[:12]))
    if open_image is _Jpeg and has_many_scans(data):
        raise _ImageError(f"more than {MAX_SCANS} scans")
    quick = decode_jpeg(data, MAX_PIXELS) if open_image is _Jpeg and mode == "RGB" else None
    if quick is not None:
        return np.asarray(_resized(quick, target))
    try:
        # The decoder's class is called directly: Image.open would warn about large images first, and a
        # warning cannot be held back in one thread only.
        with open_image(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _ImageError(f"{image.width}x{image.height} pixels exceed the limit of {MAX_PIXELS}")
            image.load()
            pixels = np.asarray(_resized(_to_mode(upright(image), mode), target))
    except (_ImageError, MemoryError):
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise _ImageError(f"cannot be decoded: {detail[:200]}") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _resized(image: Image.Image, target: tuple[int, int] | None) -> Image.Image:
    if target is None or (image.height, image.width) == target:
        return image
    return image.resize((target[1], target[0]), Image.Resampling.BILINEAR)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        upper = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        image = Image.fromarray(upper.astype(np.uint8))
    if "transparency" in image.info and image.mode != mode:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)
