"""Whether a JPEG is so plain that every decoder makes the same of it, and its size and orientation.

A decoder on a GPU may accept what the one on the CPU refuses, or the reverse. So that a bad row is bad with
either, only images whose every segment is in order go to the GPU: baseline, one scan, 8 bits, grey or YCbCr,
all tables there, ending with the end marker and nothing behind it. In such an image the CPU's decoder finds
nothing to refuse.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from ...datasets.images import MAX_PIXELS
from ...datasets.orientation import orientation

__all__ = ["JpegHeader", "PlainJpegs"]

_SOF0, _DHT, _SOS, _DQT, _DRI, _COM = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_JFIF, _EXIF, _ICC, _ADOBE = b"JFIF", b"Exif\0\0", b"ICC_PROFILE\0", b"Adobe"
_YCBCR = (1, 2, 3)
_LUMA = {0x11, 0x12, 0x21, 0x22}

_MARKER = rb"\xff[^\x00\xd0-\xd7]"
"""Among the bits of a scan 0xFF is followed by 0, or makes a restart marker."""

_MARKERS = re.compile(_MARKER, re.DOTALL)
_MOST_KEPT, _MOST_SIZES, _LARGEST_KEPT_BYTES = 1024, 4, 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegHeader:
    """What resizing an image must know beforehand.

    Attributes:
        height: Rows as stored, before it is turned upright.
        width: Columns as stored.
        orientation: 1 to 8, as EXIF counts; 1 is upright.
    """

    height: int
    width: int
    orientation: int


class _NotPlainError(Exception):
    """Something out of the ordinary: the CPU decides."""


class _Parts:
    """What the segments before the scan have said."""

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None
        self.components: dict[int, int] = {}
        self.quantizers: set[int] = set()
        self.huffman: set[int] = set()
        self.orientation: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Head:
    """What stands before the bits of the scan.

    Attributes:
        header: What it says.
        markers: How many markers it has, those inside its segments' bytes included.
    """

    header: JpegHeader
    markers: int


class PlainJpegs:
    """Finds the images of a batch that can go to the GPU; for several threads at once.

    Images of one source mostly begin alike: what they begin with is read once.
    """

    def __init__(self) -> None:
        self._heads: dict[bytes, _Head] = {}
        self._sizes: tuple[int, ...] = ()

    def headers(self, images: Any, encoded: Sequence[tuple[int, memoryview]]) -> list[JpegHeader | None]:
        """The headers of a batch's images; None for those that the CPU should have.

        Args:
            images: Array of binary, large_binary or fixed_size_binary: whole encoded images.
            encoded: Some of them: which one, and its bytes.
        """
        if pt.is_fixed_size_binary(images.type):
            images = images.cast(pa.binary())
        # One call for all, which leaves Python's lock to other threads.
        markers = pc.count_substring_regex(images, pattern=_MARKER).to_pylist()
        found: list[JpegHeader | None] = []
        for place, data in encoded:
            head = self._head(data)
            # The only marker behind the head is the one that ends the image.
            is_plain = head is not None and markers[place] == head.markers + 1 and _ends(data)
            found.append(head.header if head is not None and is_plain else None)
        return found

    def _head(self, data: memoryview) -> _Head | None:
        for size in self._sizes:
            found = self._heads.get(bytes(data[:size]))
            if found is not None:
                return found
        try:
            found, size = _read(data)
        except (_NotPlainError, struct.error, IndexError):
            return None
        if size <= _LARGEST_KEPT_BYTES:
            if len(self._heads) >= _MOST_KEPT:
                self._heads = {}
            self._heads[bytes(data[:size])] = found
            self._sizes = (size, *[other for other in self._sizes if other != size][: _MOST_SIZES - 1])
        return found


def _ends(data: memoryview) -> bool:
    return len(data) > 3 and bytes(data[-2:]) == b"\xff\xd9" and data[-3] != 0xFF


def _read(data: memoryview) -> tuple[_Head, int]:
    """The head of an image and its size in bytes."""
    if bytes(data[:2]) != b"\xff\xd8":
        raise _NotPlainError
    parts, at = _Parts(), 2
    while True:
        fill, marker, length = struct.unpack_from(">BBH", data, at)
        end = at + 2 + length
        if fill != 0xFF or length < 2 or end > len(data):
            raise _NotPlainError
        _segment(marker, data[at + 4 : end], parts)
        at = end
        if marker == _SOS:
            break
    if parts.size is None:
        raise _NotPlainError
    height, width = parts.size
    header = JpegHeader(height=height, width=width, orientation=parts.orientation or 1)
    return _Head(header=header, markers=len(_MARKERS.findall(data[:at]))), at


def _segment(marker: int, body: memoryview, parts: _Parts) -> None:
    if marker in _APPLICATION:
        _application(body, parts)
    elif marker == _DQT:
        parts.quantizers |= _quantizers(bytes(body))
    elif marker == _DHT:
        parts.huffman |= _huffman(bytes(body))
    elif marker == _SOF0:
        _frame(body, parts)
    elif marker == _SOS:
        _scan(body, parts)
    elif marker != _COM and not (marker == _DRI and len(body) == 2):
        raise _NotPlainError


def _application(body: memoryview, parts: _Parts) -> None:
    start = bytes(body[:14])
    if start.startswith(_EXIF):
        # Several such segments may be parts of one.
        if parts.orientation is not None:
            raise _NotPlainError
        parts.orientation = orientation(bytes(body))
        return
    is_short = (start.startswith(_JFIF) and len(body) < 12) or (start.startswith(_ICC) and len(body) < 14)
    # Three colours are red, green and blue when this one says so.
    is_rgb = start.startswith(_ADOBE) and (len(body) != 12 or body[11] != 1)
    if is_short or is_rgb:
        raise _NotPlainError


@lru_cache(maxsize=1024)
def _quantizers(body: bytes) -> frozenset[int]:
    if not body or len(body) % 65:
        raise _NotPlainError
    numbers = body[::65]
    if any(number > 3 for number in numbers):
        raise _NotPlainError
    return frozenset(numbers)


@lru_cache(maxsize=1024)
def _huffman(body: bytes) -> frozenset[int]:
    """Numbers of the tables of one segment, each of them a prefix code."""
    found, at = set(), 0
    while at < len(body):
        number, counts = body[at], body[at + 1 : at + 17]
        symbols = body[at + 17 : at + 17 + sum(counts)]
        at += 17 + sum(counts)
        if number & 0xEE or len(counts) < 16 or not 0 < sum(counts) <= 256 or at > len(body):
            raise _NotPlainError
        code = 0
        for bits, count in enumerate(counts, 1):
            code += count
            if count and code >= 1 << bits:
                raise _NotPlainError
            code <<= 1
        if number < 0x10 and max(symbols) > 11:
            raise _NotPlainError
        found.add(number)
    return frozenset(found)


def _frame(body: memoryview, parts: _Parts) -> None:
    bits, height, width, count = struct.unpack_from(">BHHB", body)
    if parts.size or bits != 8 or count not in (1, 3) or len(body) != 6 + 3 * count:
        raise _NotPlainError
    if not 0 < height * width <= MAX_PIXELS:
        raise _NotPlainError
    names, samplings = tuple(body[6::3]), tuple(body[7::3])
    if count == 3 and (names != _YCBCR or samplings[0] not in _LUMA or samplings[1:] != (0x11, 0x11)):
        raise _NotPlainError
    if count == 1 and samplings != (0x11,):
        raise _NotPlainError
    parts.size = (height, width)
    parts.components = dict(zip(names, body[8::3], strict=True))


def _scan(body: memoryview, parts: _Parts) -> None:
    """The one scan must have all components, and every table they name must be there."""
    count = len(parts.components)
    whole = bytes((0, 63, 0))
    if not count or len(body) != 4 + 2 * count or body[0] != count or bytes(body[-3:]) != whole:
        raise _NotPlainError
    if tuple(body[1:-3:2]) != tuple(parts.components):
        raise _NotPlainError
    if not set(parts.components.values()) <= parts.quantizers:
        raise _NotPlainError
    for tables in body[2:-3:2]:
        if not {tables >> 4, 0x10 | tables & 0xF} <= parts.huffman:
            raise _NotPlainError
