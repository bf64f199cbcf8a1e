"""The rows of some segments of one file as record batches, decoded as cheaply as the format allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from .discovery import Format, SourceFile
from .shards import Segment
from .storage import Storage

__all__ = ["ipc_rows", "parquet_rows"]

_STREAM_ROWS = 1 << 16
_PAGES_BYTES = 1 << 20
_LISTS_SHARE = 4


def parquet_rows(
    storage: Storage,
    file: SourceFile,
    run: Sequence[Segment],
    columns: Sequence[str],
    *,
    footer: pq.FileMetaData,
    about_rows: int,
) -> Iterator[pa.RecordBatch]:
    """Reads segments of a Parquet file.

    Args:
        storage: Where the file is.
        file: Which.
        run: Its segments, in order.
        columns: To read.
        footer: The file's.
        about_rows: Rows of a few megabytes, which batches are at most where not whole row groups are wanted.

    Raises:
        Exception: Whatever Arrow raises for files that cannot be read.
    """
    has_lists = _has_lists(footer, columns)
    if has_lists:
        # They are decoded by way of levels and wider integers, eight bytes for one of uint8: a few rows at a
        # time these stay in the caches, and reading takes half as long.
        about_rows = max(1, about_rows // _LISTS_SHARE)
    with storage.open_input(file.path) as source:
        parquet = pq.ParquetFile(source, metadata=footer, pre_buffer=not storage.is_local)
        if all(s.rows == footer.row_group(s.group).num_rows for s in run):
            groups = [s.group for s in run]
            if has_lists:
                yield from parquet.iter_batches(about_rows, groups, columns, use_threads=False)
            else:
                table = parquet.read_row_groups(groups, columns=columns, use_threads=False)
                yield from _as_batches(table, sum(s.rows for s in run))
            return
        # A buffered stream holds some pages of a column; plain reading would hold all of it in the group.
        streamed = pq.ParquetFile(source, metadata=footer, buffer_size=_PAGES_BYTES, pre_buffer=False)
        for segment in run:
            # Parquet has no random access inside a row group: decode from its start, keep our rows.
            position, stop = 0, segment.offset + segment.rows
            rows = min(about_rows, _STREAM_ROWS, stop)
            for batch in streamed.iter_batches(rows, [segment.group], columns, use_threads=False):
                start = max(0, segment.offset - position)
                kept = batch.slice(start, max(0, min(batch.num_rows, stop - position) - start))
                if kept.num_rows:
                    yield kept
                position += batch.num_rows
                if position >= stop:
                    break


def ipc_rows(
    storage: Storage, file: SourceFile, run: Sequence[Segment], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Reads segments of an Arrow IPC file or stream; see ``parquet_rows``."""
    with storage.open_input(file.path, mapped=True) as source:
        opened = (pa.ipc.open_file if file.format is Format.IPC_FILE else pa.ipc.open_stream)(source)
        options = pa.ipc.IpcReadOptions(
            included_fields=[opened.schema.get_field_index(name) for name in columns] or None
        )
        if file.format is Format.IPC_FILE:
            reader = pa.ipc.open_file(source, options=options)
            for segment in run:
                batch = reader.get_batch(segment.group).slice(segment.offset, segment.rows)
                yield _sound(batch.select(list(columns)))
            return
        source.seek(0)
        wanted = {segment.group: segment for segment in run}
        for number, batch in enumerate(pa.ipc.open_stream(source, options=options)):
            if number in wanted:
                batch = batch.slice(wanted[number].offset, wanted[number].rows)
                yield _sound(batch.select(list(columns)))
            if number >= run[-1].group:
                return


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if its use stays in its own memory: Arrow takes offsets and sizes as they are in the file.

    Costs little: the values of numbers and of binary columns are not looked at.
    """
    batch.validate(full=True)
    return batch


def _has_lists(footer: pq.FileMetaData, columns: Sequence[str]) -> bool:
    """Whether a column of lists is among the columns."""
    schema = footer.schema
    leaves = (schema.column(number) for number in range(len(schema)))
    return any(
        leaf.max_repetition_level and any(leaf.path.startswith(f"{name}.") for name in columns)
        for leaf in leaves
    )


def _as_batches(table: pa.Table, rows: int) -> Iterator[pa.RecordBatch]:
    # A projection of no stored column has no batches of its own but still its number of rows.
    if table.num_columns:
        yield from table.to_batches()
    else:
        yield pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
