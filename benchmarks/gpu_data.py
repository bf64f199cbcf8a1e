"""What the GPU benchmark scores: Parquet datasets, made once from fixed seeds and kept.

A dataset is one file and hard links to it under further names: reading is the work of the full size, writing
that of one file. Everything just written is in the page cache, so reading measures decoding and copying, not
a disk. The ids of a file are 0, 1, 2, ...; each file repeats them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_scale import Scale
from PIL import Image
from workloads import made

__all__ = [
    "images",
    "jpegs",
    "names",
    "table",
]

CHANNELS = 3
SEED = 7
_GROUP_BYTES = 8 << 20
_TABLE_GROUP_ROWS = 65_536
_QUALITIES = range(98, 40, -4)

Layout = Literal["binary", "tensor"]
TableLayout = Literal["columns", "binary", "list"]


def images(scale: Scale, work: Path, layout: Layout, copies: int) -> list[Path]:
    """Raw images: ``id`` and ``image``, uint8 [side, side, 3], in row groups of about 8 MiB.

    Args:
        scale: The sizes.
        work: Where datasets are kept.
        layout: FixedSizeBinary with the dtype and shape in the field's metadata, uncompressed; or
            ``fixed_shape_tensor`` as ``pyarrow.parquet.write_table`` writes it by default.
        copies: Files.
    """
    shape = (scale.side, scale.side, CHANNELS)
    width = int(np.prod(shape))

    def make(path: Path) -> None:
        pixels = np.random.default_rng(SEED).integers(0, 256, (scale.distinct, *shape), dtype=np.uint8)
        ids = pa.array(np.arange(scale.distinct))
        if layout == "tensor":
            column = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
            pq.write_table(
                pa.table({"id": ids, "image": column}), path, row_group_size=_group_rows(scale, width)
            )
            return
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(pixels), [None, pa.py_buffer(pixels)]
        )
        metadata = {"trtfleet.dtype": "uint8", "trtfleet.shape": ",".join(map(str, shape))}
        schema = pa.schema([("id", pa.int64()), pa.field("image", pa.binary(width), metadata=metadata)])
        _write(pa.table([ids, column], schema=schema), path, _group_rows(scale, width))

    return _files(work / f"{layout}-{scale.side}-{scale.distinct}", copies, make)


def jpegs(scale: Scale, work: Path, copies: int) -> list[Path]:
    """Encoded images: ``id`` and ``image``, JPEG of smooth gradients under noise."""

    def make(path: Path) -> None:
        random = np.random.default_rng(SEED)
        pictures = [_picture(random, scale.jpeg_size) for _ in range(scale.jpegs)]
        quality = _quality(pictures[0], scale.jpeg_bytes)
        encoded = [_encode(picture, quality) for picture in pictures]
        rows = [encoded[number % len(encoded)] for number in range(scale.distinct)]
        ids = pa.array(np.arange(scale.distinct))
        average = sum(map(len, rows)) // len(rows)
        _write(pa.table({"id": ids, "image": pa.array(rows, pa.binary())}), path, _group_rows(scale, average))

    return _files(work / f"jpeg-{scale.jpegs}-{scale.distinct}", copies, make)


def table(scale: Scale, work: Path, layout: TableLayout, copies: int) -> list[Path]:
    """Rows of float32 numbers: ``f000``, ``f001``, ... one column each, or ``features`` with all of a row.

    Args:
        scale: The sizes.
        work: Where datasets are kept.
        layout: A column for each number; FixedSizeBinary with its metadata; or ``fixed_size_list``.
        copies: Files.
    """
    rows, width = scale.table_rows, scale.columns

    def make(path: Path) -> None:
        values = np.random.default_rng(SEED).random((width, rows), dtype=np.float32)
        if layout == "columns":
            found = pa.table(
                {name: pa.array(column) for name, column in zip(names(width), values, strict=True)}
            )
        else:
            flat = np.ascontiguousarray(values.T).reshape(-1)
            if layout == "list":
                column, kind = pa.FixedSizeListArray.from_arrays(pa.array(flat), width), None
                found = pa.table({"features": column})
            else:
                kind = pa.binary(4 * width)
                column = pa.FixedSizeBinaryArray.from_buffers(kind, rows, [None, pa.py_buffer(flat)])
                metadata = {"trtfleet.dtype": "float32", "trtfleet.shape": str(width)}
                found = pa.table([column], schema=pa.schema([pa.field("features", kind, metadata=metadata)]))
        _write(found, path, min(rows, _TABLE_GROUP_ROWS))

    return _files(work / f"table-{layout}-{width}-{rows}", copies, make)


def names(columns: int) -> list[str]:
    """The names of the table's columns."""
    return [f"f{number:03d}" for number in range(columns)]


def _group_rows(scale: Scale, row_bytes: int) -> int:
    """Row groups of about 8 MiB, of which several make a whole number of batches, or one does."""
    parts = [rows for rows in range(1, scale.batch_rows + 1) if scale.batch_rows % rows == 0]
    whole = [scale.batch_rows * times for times in range(2, scale.distinct // scale.batch_rows + 1)]
    return min((*parts, *whole), key=lambda rows: abs(rows * row_bytes - _GROUP_BYTES))


def _write(found: pa.Table, path: Path, group_rows: int) -> None:
    pq.write_table(
        found,
        path,
        row_group_size=group_rows,
        compression="none",
        use_dictionary=False,
        write_statistics=["id"] if "id" in found.column_names else False,
    )


def _files(folder: Path, copies: int, make: Callable[[Path], None]) -> list[Path]:
    first = made(folder, lambda draft: make(draft / "part-000.parquet")) / "part-000.parquet"
    files = [folder / f"part-{number:03d}.parquet" for number in range(copies)]
    for path in files:
        if not path.exists():
            os.link(first, path)
    return files


def _picture(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A photograph's worth of detail: gradients in every channel, and noise that JPEG must keep."""
    height, width = size
    down, across = np.mgrid[0:height, 0:width].astype(np.float32)
    slopes = random.uniform(-0.3, 0.3, (2, CHANNELS)).astype(np.float32)
    smooth = 128 + down[..., None] * slopes[0] + across[..., None] * slopes[1]
    noise = random.normal(0, 12, (height, width, 1)).astype(np.float32)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def _encode(picture: np.ndarray, quality: int) -> bytes:
    target = io.BytesIO()
    Image.fromarray(picture).save(target, "JPEG", quality=quality)
    return target.getvalue()


def _quality(picture: np.ndarray, size_bytes: int) -> int:
    return min(_QUALITIES, key=lambda quality: abs(len(_encode(picture, quality)) - size_bytes))
