"""The file format of statistics: a short head with a digest, then an Arrow stream, compressed as a whole.

The head says how large the stream is, so that reading foreign bytes cannot allocate more than is allowed.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import CalibrationError
from .histogram import BINS

__all__ = ["FORMAT", "MAX_TENSORS", "Columns", "pack", "unpack"]

FORMAT = 1
"""Version of the bytes; those of a higher one are refused."""

MAX_TENSORS = 20_000
"""More than any network has."""

_MAGIC = b"TFSTATS\n"
_HEAD = struct.Struct("<8sIQ32s")
_MAX_BYTES = MAX_TENSORS * (BINS * 8 + 4096)
_CODEC = "zstd"
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("count", pa.uint64(), nullable=False),
        pa.field("zeros", pa.uint64(), nullable=False),
        pa.field("non_finite", pa.uint64(), nullable=False),
        pa.field("minimum", pa.float64(), nullable=False),
        pa.field("maximum", pa.float64(), nullable=False),
        pa.field("exponent", pa.int16()),
        pa.field("histogram", pa.list_(pa.uint64(), BINS), nullable=False),
    ]
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Statistics as columns, one entry per tensor; the fields are those of ``TensorStatistics``."""

    names: Sequence[str]
    counts: Sequence[int]
    zeros: Sequence[int]
    non_finite: Sequence[int]
    minima: Sequence[float]
    maxima: Sequence[float]
    exponents: Sequence[int | None]
    histograms: Sequence[NDArray[np.uint64]]


def pack(columns: Columns) -> bytes:
    """Columns as bytes, the same for the same columns."""
    bins = np.concatenate(columns.histograms) if columns.histograms else np.empty(0, np.uint64)
    plain = [
        columns.names,
        columns.counts,
        columns.zeros,
        columns.non_finite,
        columns.minima,
        columns.maxima,
        columns.exponents,
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(plain, _SCHEMA, strict=False)]
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(bins), BINS))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
    stream = sink.getvalue()
    packed: bytes = pa.Codec(_CODEC).compress(stream, asbytes=True)
    head: bytes = _HEAD.pack(_MAGIC, FORMAT, stream.size, hashlib.sha256(packed).digest())
    return head + packed


def unpack(data: bytes, name: str, make: Callable[[Columns], T]) -> T:
    """Reads what ``pack`` gave and makes something of it.

    Args:
        data: The bytes.
        name: Of the file, for messages.
        make: Its ValueErrors say what is wrong with the columns.

    Raises:
        CalibrationError: They are damaged, or a later version of trtfleet wrote them.
    """
    try:
        version, stream = _open(data)
        if version == FORMAT:
            return make(_columns(stream))
    except (ValueError, OSError, OverflowError, struct.error, MemoryError, pa.ArrowException) as error:
        said = " ".join(str(error).split())[:200]
        raise CalibrationError(f"{name} is damaged: {said}", "remove it and calibrate again") from error
    raise CalibrationError(f"{name} has format {version}, this trtfleet reads format {FORMAT}", "upgrade")


def _open(data: bytes) -> tuple[int, Any]:
    magic, version, size, digest = _HEAD.unpack_from(data)
    if magic != _MAGIC or version < 1:
        raise ValueError("it does not begin as calibration statistics do")
    if version > FORMAT:
        return version, None
    packed = memoryview(data)[_HEAD.size :]
    if hashlib.sha256(packed).digest() != digest:
        raise ValueError("its content does not have the SHA-256 that it says")
    if size > _MAX_BYTES:
        raise ValueError(f"it says that it holds {size:,} bytes, at most {_MAX_BYTES:,} can be")
    return version, pa.Codec(_CODEC).decompress(packed, decompressed_size=size)


def _columns(stream: Any) -> Columns:
    table = pa.ipc.open_stream(stream).read_all()
    if not table.schema.equals(_SCHEMA):
        raise ValueError("it has other columns than calibration statistics")
    table.validate(full=True)
    if table.num_rows > MAX_TENSORS:
        raise ValueError(f"it has {table.num_rows:,} tensors, at most {MAX_TENSORS:,} can be")
    if any(table[field.name].null_count for field in _SCHEMA if not field.nullable):
        raise ValueError("it has values missing")
    names = table["name"].to_pylist()
    if names != sorted(set(names)):
        raise ValueError("its names are not sorted, or one comes twice")
    histogram = table["histogram"].combine_chunks()
    bins = histogram.flatten().to_numpy().reshape(-1, BINS)
    return Columns(
        names=names,
        counts=table["count"].to_pylist(),
        zeros=table["zeros"].to_pylist(),
        non_finite=table["non_finite"].to_pylist(),
        minima=table["minimum"].to_pylist(),
        maxima=table["maximum"].to_pylist(),
        exponents=table["exponent"].to_pylist(),
        histograms=list(bins),
    )
