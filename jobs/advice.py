"""Whether ``trtfleet convert`` would make a job's columns much faster to read, and by how much: measured.

A few rows of the dataset are written to memory twice, as they are stored and in the fast layout, and decoded
as an actor does. What storage and network take is left out of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.bindings import bind
from ..datasets.bound import ColumnBinding, ColumnKind
from ..datasets.columns import describe
from ..datasets.convert_columns import FastColumn, candidates, settle
from ..datasets.decode import decode
from ..datasets.discovery import Format, SourceFile
from ..datasets.footers import Dataset
from ..datasets.storage import Storage
from ..errors import TrtfleetError

__all__ = ["Rates", "Sample", "advise", "measure"]

SMALLEST_BYTES = 64 << 20
"""Columns of fewer bytes are not worth a second copy."""
LEAST_GAIN = 2.0
MOST_GROWTH = 4.0
"""Encoded images that would become more times as large are better left as they are."""

_SAMPLE_BYTES = 1 << 20
_SAMPLE_ROWS = 4096
_LONGEST_S = 0.1
_PATIENCE_S = 0.3
_REPEATED_BYTES = 16 << 20
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The first rows of one column.

    Attributes:
        batch: The column alone, as stored.
        binding: What an actor makes of it.
        fast: The fast layout it would get.
        codec: The Parquet codec it is stored with.
    """

    batch: pa.RecordBatch
    binding: ColumnBinding
    fast: FastColumn
    codec: str


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast one core makes the model's input of a column, in bytes of the fast layout a second.

    Attributes:
        now_bytes_per_s: From how it is stored.
        fast_bytes_per_s: From the fast layout.
    """

    now_bytes_per_s: float
    fast_bytes_per_s: float


def measure(sample: Sample, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Decodes a sample from memory in both layouts, for about a tenth of a second.

    Args:
        sample: What to decode.
        clock: Seconds.
    """
    fast, batch = sample.fast, sample.batch
    stored = _in_memory(pa.Table.from_batches([batch]), sample.codec)
    now_s, rows = _decode_stored(stored, sample.binding, batch.num_rows, clock)
    if now_s < _LONGEST_S:
        # What is done for the first time takes longer.
        now_s, rows = _decode_stored(stored, sample.binding, batch.num_rows, clock)
    encoded = fast.encode(batch.slice(0, rows), "", 0)
    times = max(1, _REPEATED_BYTES // max(1, rows * fast.width_bytes))
    schema = pa.schema([fast.field(batch.schema.field(fast.name))])
    table = pa.Table.from_batches([pa.RecordBatch.from_arrays([encoded], schema=schema)] * times)
    whole = pq.ParquetFile(pa.BufferReader(_in_memory(table, "NONE")))
    quick = bind(sample.binding.input, [fast.name], table.schema, sample.binding.options)
    start_s = clock()
    for part in whole.iter_batches(rows, use_threads=False):
        decode(part, quick)
    fast_s = clock() - start_s
    size = rows * fast.width_bytes
    return Rates(now_bytes_per_s=size / max(now_s, 1e-9), fast_bytes_per_s=size * times / max(fast_s, 1e-9))


def _decode_stored(
    stored: pa.Buffer, binding: ColumnBinding, rows: int, clock: Callable[[], float]
) -> tuple[float, int]:
    """Decodes until the end or for about a tenth of a second; returns the seconds and the rows."""
    # Images take so long that a few rows must do.
    step = 1 if binding.kind is ColumnKind.IMAGE else rows
    start_s, done = clock(), 0
    for part in pq.ParquetFile(pa.BufferReader(stored)).iter_batches(step, use_threads=False):
        decode(part, binding)
        done += part.num_rows
        if clock() - start_s >= _LONGEST_S:
            break
    return clock() - start_s, done


def advise(
    dataset: Dataset,
    bindings: Sequence[ColumnBinding],
    measure_rates: Callable[[Sample], Rates] = measure,
    clock: Callable[[], float] = time.perf_counter,
) -> list[str]:
    """Says for which columns reading would be at least twice as fast in the fast layout.

    Nothing is said of columns that are read fast already, of small ones, of Arrow IPC files, and of encoded
    images unless the job resizes them and they would not grow too much. Data that cannot be read or does not
    fit the fast layout gives no advice either: the job itself says what is wrong with it.

    Args:
        dataset: The job's data.
        bindings: What it makes of which columns.
        measure_rates: Takes the measurements.
        clock: Seconds; no further column is looked at after 0.3 of them.

    Returns:
        One sentence a column.
    """
    file = next((f for f, groups in dataset.files if any(group.rows for group in groups)), None)
    if file is None or file.format is not Format.PARQUET or dataset.size_bytes == 0:
        return []
    found: list[str] = []
    start_s = clock()
    for binding in bindings:
        if clock() - start_s > _PATIENCE_S:
            break
        try:
            sentence = _advise_one(dataset, file, binding, measure_rates)
        except (TrtfleetError, OSError, pa.ArrowException):
            continue
        if sentence:
            found.append(sentence)
    return found


def _advise_one(
    dataset: Dataset, file: SourceFile, binding: ColumnBinding, measure_rates: Callable[[Sample], Rates]
) -> str | None:
    is_image = binding.kind is ColumnKind.IMAGE
    if binding.kind is not ColumnKind.DENSE and not (is_image and binding.options.resize):
        return None
    name = binding.columns[0]
    if not candidates(pa.schema([dataset.schema.field(name)]), (), images=is_image):
        return None
    sample = _sample(file, binding)
    if sample is None or dataset.rows * sample.fast.width_bytes < SMALLEST_BYTES:
        return None
    growth = sample.fast.width_bytes * sample.batch.num_rows / max(1, sample.batch.nbytes)
    if is_image and growth > MOST_GROWTH:
        return None
    rates = measure_rates(sample)
    gain = rates.fast_bytes_per_s / rates.now_bytes_per_s
    if gain < LEAST_GAIN:
        return None
    faster = f"{gain:.1f}" if gain < 10 else f"{gain:,.0f}"
    held = "encoded images" if is_image else describe(binding.types[0])
    option = ""
    if is_image:
        height, width, channels = sample.fast.shape
        option = f" --resize {height}x{width}" + (f" --channels {channels}" if channels != 3 else "")
    size = f", and {growth:.1f} times as large" if is_image and growth >= 1.05 else ""
    return (
        f"column {name} ({held}) is read at {rates.now_bytes_per_s / 1e6:,.0f} MB/s a core; "
        f"`trtfleet convert{option}` would make it {faster} times faster{size}"
    )


def _sample(file: SourceFile, binding: ColumnBinding) -> Sample | None:
    name = binding.columns[0]
    size, channels = None, 3
    if binding.kind is ColumnKind.IMAGE:
        size, channels = binding.options.resize, int(binding.dims[2])
    with Storage(file.root).open_input(file.path) as source:
        parquet = pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        first = next(parquet.iter_batches(1, columns=[name], use_threads=False), None)
        if first is None:
            return None
        fast = settle(first, file.url, [name], [name], size, channels)[0]
        rows = max(1, min(_SAMPLE_ROWS, _SAMPLE_BYTES // fast.width_bytes))
        batch = next(parquet.iter_batches(rows, columns=[name], use_threads=False))
        codec = parquet.metadata.row_group(0).column(_leaf(parquet.metadata, name)).compression
    return Sample(batch=batch, binding=binding, fast=fast, codec=codec)


def _leaf(footer: pq.FileMetaData, name: str) -> int:
    """The number of a column's first leaf."""
    paths = [footer.schema.column(number).path for number in range(len(footer.schema))]
    return next(number for number, path in enumerate(paths) if path == name or path.startswith(f"{name}."))


def _in_memory(table: pa.Table, codec: str) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    codec = "NONE" if codec == "UNCOMPRESSED" else codec
    is_fast = pa.types.is_fixed_size_binary(table.schema.field(0).type)
    pq.write_table(table, sink, compression=codec, write_statistics=False, use_dictionary=not is_fast)
    return sink.getvalue()
