"""The EXIF orientation of an image, read without an EXIF parser that warns or fails on corrupt metadata."""

from __future__ import annotations

import struct

from PIL import Image
from PIL.Image import Transpose

__all__ = ["orientation", "upright"]

ORIENTATION_TAG = 0x0112
SHORT = 3
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def orientation(exif: bytes) -> int:
    """The orientation (1 to 8) an EXIF block states; 1, upright, when it states none or is corrupt.

    Args:
        exif: A TIFF structure, with or without the ``Exif`` prefix JPEG puts in front.
    """
    tiff = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == ORIENTATION_TAG:
                return int(value) if kind == SHORT and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def upright(image: Image.Image) -> Image.Image:
    """The image turned or mirrored as its EXIF orientation asks; itself when it is upright already."""
    exif = image.info.get("exif")
    turn = TURNS.get(orientation(exif)) if isinstance(exif, bytes) else None
    return image if turn is None else image.transpose(turn)
