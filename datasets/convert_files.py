"""One file rewritten with some of its columns in the fast layout, piece by piece and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DatasetError
from .convert_columns import FastColumn
from .convert_writer import ConvertWriter, rows_of
from .discovery import Format, SourceFile
from .storage import Storage, foreign_errors

__all__ = ["FileConverter", "read_first_row"]

_BATCH_BYTES = 4 << 20
_LOCAL_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20
# Another library's description of the columns, which no longer holds.
_STALE_METADATA = (b"huggingface",)


@dataclass(frozen=True, kw_only=True)
class FileConverter:
    """Rewrites files; may be used from several threads.

    Attributes:
        columns: What is converted; everything else is carried along.
        pool: Where row groups are decoded, and images.
        window_bytes: Decoded bytes of one file that may wait for its writer.
        compression: Codec of the converted columns, in Parquet's name for it.
        progress: Called with every number of rows written; raises to stop.
    """

    columns: Sequence[FastColumn]
    pool: ThreadPoolExecutor
    window_bytes: int
    compression: str
    progress: Callable[[int], None]

    def convert(self, file: SourceFile, storage: Storage, path: str, record: Mapping[str, str]) -> int:
        """Rewrites one file.

        Args:
            file: What to read.
            storage: Where to write.
            path: The new object, which is complete only when this returns.
            record: What to put into the new file's key-value metadata.

        Returns:
            Its rows.

        Raises:
            DatasetError: The file cannot be read, or a row does not fit the fast layout.
            MismatchError: A column carried along cannot be stored in Parquet.
            OutputError: The storage failed.
        """
        with foreign_errors(DatasetError, f"cannot read {file.url}", "is the file intact?"):
            schema = self._schema(file)
        with ConvertWriter(storage, path, schema, self.compression, file.url) as writer:
            for batch in self._pieces(file, schema):
                writer.write(batch)
                self.progress(batch.num_rows)
            writer.close(record)
        return writer.rows

    def _schema(self, file: SourceFile) -> pa.Schema:
        with Storage(file.root).open_input(file.path) as source:
            match file.format:
                case Format.PARQUET:
                    schema = pq.ParquetFile(source).schema_arrow
                case Format.IPC_FILE:
                    schema = pa.ipc.open_file(source).schema
                case _:
                    schema = pa.ipc.open_stream(source).schema
        for column in self.columns:
            place = schema.get_field_index(column.name)
            schema = schema.set(place, column.field(schema.field(place)))
        kept = {key: text for key, text in (schema.metadata or {}).items() if key not in _STALE_METADATA}
        return schema.with_metadata(kept or None)

    def _encode(
        self,
        batch: pa.RecordBatch,
        schema: pa.Schema,
        place: str,
        first_row: int,
        executor: ThreadPoolExecutor | None = None,
    ) -> pa.RecordBatch:
        arrays = list(batch.columns)
        for column in self.columns:
            arrays[schema.get_field_index(column.name)] = column.encode(batch, place, first_row, executor)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _pieces(self, file: SourceFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The file's rows, converted; reading errors are told as such."""
        with foreign_errors(DatasetError, f"cannot read {file.url}", "is the file intact?"):
            if file.format is Format.PARQUET:
                yield from self._parquet(file, schema)
                return
            first_row = 0
            for batch in _ipc_batches(file, sum(column.width_bytes for column in self.columns)):
                yield self._encode(batch, schema, file.url, first_row, self.pool)
                first_row += batch.num_rows

    def _parquet(self, file: SourceFile, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with Storage(file.root).open_input(file.path) as source:
            footer = pq.ParquetFile(source).metadata
        width = sum(column.width_bytes for column in self.columns)
        waiting: deque[tuple[Future[list[pa.RecordBatch]], int]] = deque()
        held_bytes, first_row = 0, 0
        try:
            for number in range(footer.num_row_groups):
                group = footer.row_group(number)
                size = group.num_rows * width + group.total_byte_size
                while waiting and held_bytes + size > self.window_bytes:
                    future, freed = waiting.popleft()
                    yield from future.result()
                    held_bytes -= freed
                if size <= self.window_bytes:
                    task = (file, footer, number, first_row, schema)
                    waiting.append((self.pool.submit(self._whole_group, *task), size))
                    held_bytes += size
                else:
                    yield from self._group(file, footer, number, first_row, schema, self.pool)
                first_row += group.num_rows
            while waiting:
                yield from waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()

    def _whole_group(
        self, file: SourceFile, footer: pq.FileMetaData, number: int, first_row: int, schema: pa.Schema
    ) -> list[pa.RecordBatch]:
        return list(self._group(file, footer, number, first_row, schema, None))

    def _group(
        self,
        file: SourceFile,
        footer: pq.FileMetaData,
        number: int,
        first_row: int,
        schema: pa.Schema,
        executor: ThreadPoolExecutor | None,
    ) -> Iterator[pa.RecordBatch]:
        """One row group decoded as a stream: decoding lists at once takes many times their size."""
        storage = Storage(file.root)
        group = footer.row_group(number)
        width = sum(column.width_bytes for column in self.columns)
        rows = rows_of(_BATCH_BYTES, width + group.total_byte_size // max(1, group.num_rows))
        buffer = _LOCAL_BUFFER_BYTES if storage.is_local else _REMOTE_BUFFER_BYTES
        with storage.open_input(file.path) as source:
            parquet = pq.ParquetFile(source, metadata=footer, buffer_size=buffer, pre_buffer=False)
            for batch in parquet.iter_batches(rows, [number], use_threads=False):
                yield self._encode(batch, schema, file.url, first_row, executor)
                first_row += batch.num_rows


def _ipc_batches(file: SourceFile, row_bytes: int) -> Iterator[pa.RecordBatch]:
    """An Arrow IPC file's rows, in order, in small batches; ``row_bytes`` is what a row will take besides."""
    with Storage(file.root).open_input(file.path, mapped=True) as source:
        if file.format is Format.IPC_FILE:
            reader = pa.ipc.open_file(source)
            stored: Iterator[pa.RecordBatch] = map(reader.get_batch, range(reader.num_record_batches))
        else:
            stored = iter(pa.ipc.open_stream(source))
        for batch in stored:
            rows = rows_of(_BATCH_BYTES, row_bytes + batch.nbytes // max(1, batch.num_rows))
            yield from (batch.slice(start, rows) for start in range(0, batch.num_rows, rows))


def read_first_row(file: SourceFile, columns: Sequence[str]) -> pa.RecordBatch | None:
    """The first row of a file, with the columns named; None where there is no row.

    Raises:
        DatasetError: The file cannot be read.
    """
    with foreign_errors(DatasetError, f"cannot read {file.url}", "is the file intact?"):
        if file.format is not Format.PARQUET:
            first = next(_ipc_batches(file, _BATCH_BYTES), None)
            return None if first is None else first.select(columns)
        with Storage(file.root).open_input(file.path) as source:
            parquet = pq.ParquetFile(source, buffer_size=_LOCAL_BUFFER_BYTES, pre_buffer=False)
            return next(parquet.iter_batches(1, columns=columns, use_threads=False), None)
