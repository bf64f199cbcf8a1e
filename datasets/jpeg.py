"""JPEG images without Pillow's decoder, which holds Python's lock too long for many threads.

Both decoders are libjpeg-turbo and give the same pixels. This one is for what datasets are full of, whole
images in colour; it leaves the others to Pillow, which also has the last word on what is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import simplejpeg
from PIL import Image

from .orientation import TURNS, orientation

__all__ = ["MAX_SCANS", "decode_jpeg", "has_many_scans"]

MAX_SCANS = 64
"""A progressive image of more scans is not decoded: each takes a few bytes and long. Ten are usual."""

_SPACES = ("YCbCr", "RGB", "Gray")
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_PROGRESSIVE = 0xC2
_SCAN = bytes([0xFF, _START_OF_SCAN])
_EXIF = b"Exif\x00\x00"


def decode_jpeg(data: memoryview, most_pixels: int) -> Image.Image | None:
    """Decodes a JPEG image to RGB, turned upright by its EXIF orientation.

    Args:
        data: The encoded image.
        most_pixels: Larger images are left alone.

    Returns:
        None for what is better left to Pillow: other colour spaces, large images, and whatever is not in
        perfect order.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in _SPACES or height * width > most_pixels:
            return None
        # Four bytes a pixel, as Pillow itself stores RGB: it takes them over as they are.
        pixels = simplejpeg.decode_jpeg(data, colorspace="RGBX", fastdct=False, fastupsample=False)
    except ValueError:
        return None
    flat = pa.Array.from_buffers(pa.uint8(), pixels.size, [None, pa.py_buffer(pixels)])
    image = Image.fromarrow(pa.FixedSizeListArray.from_arrays(flat, 4), "RGB", (width, height))
    turn = TURNS.get(orientation(_exif(data)))
    return image if turn is None else image.transpose(turn)


def _exif(data: memoryview) -> bytes:
    """The EXIF block among the segments before the pixels; empty without one."""
    for marker, body in _segments(data):
        if marker == _APP1 and body[: len(_EXIF)] == _EXIF:
            return bytes(body)
    return b""


def has_many_scans(data: memoryview) -> bool:
    """Whether a JPEG image is progressive with more than ``MAX_SCANS`` scans."""
    # In the pixels themselves, a zero follows every 0xFF.
    is_progressive = any(marker == _PROGRESSIVE for marker, _ in _segments(data))
    return is_progressive and bytes(data).count(_SCAN) > MAX_SCANS


def _segments(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The marker and the content of each segment before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            break
        yield marker, data[position + 4 : position + 2 + length]
        position += 2 + length
