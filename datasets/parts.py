"""Writing Parquet so that the same rows always give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import HookError, OutputError
from .storage import Storage, foreign_errors

__all__ = ["COMPRESSIONS", "PartWriter", "WrittenPart"]

COMPRESSIONS = ("snappy", "zstd", "lz4", "gzip", "none")
_ROW_GROUP_BYTES = 32 << 20
_MOST_ROWS = 1 << 17
_VARIABLE_WIDTH_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A closed part: its path below the storage, rows, length and digest."""

    path: str
    rows: int
    size_bytes: int
    sha256: str


class _HashingSink:
    """A file object that hashes what passes through."""

    def __init__(self, target: pa.NativeFile) -> None:
        self._target = target
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.closed:
            # A discarded ParquetWriter still writes its footer when it is collected.
            return len(view)
        self.digest.update(view)
        self._target.write(view)
        self.size_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._target.close()


class PartWriter:
    """Writes record batches into one Parquet object, with row groups at fixed row counts.

    Row groups depend on the schema and the rows alone, never on how the rows were batched. The first batch
    sets the schema. Use as a context manager: an exception inside discards the object.

    Args:
        storage: Where to write.
        path: The object's path below the storage.
        compression: One of ``COMPRESSIONS``.
    """

    def __init__(self, storage: Storage, path: str, compression: str) -> None:
        self._storage = storage
        self._path = path
        self._compression = compression
        self._writer: pq.ParquetWriter | None = None
        self._sink: _HashingSink | None = None
        self._schema: pa.Schema | None = None
        self._group_rows = 0
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self.rows = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows; the batch is kept until its row group is full.

        Raises:
            HookError: The batch's schema differs from the first one's.
            OutputError: The storage failed.
        """
        if not batch.num_rows:
            return
        if self._schema is None:
            self._schema = batch.schema
            self._group_rows = _row_group_rows(batch.schema)
        elif not batch.schema.equals(self._schema):
            raise HookError(
                f"output columns changed from {_brief(self._schema)} to {_brief(batch.schema)}",
                "a postprocess hook must return the same types for every batch",
            )
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        while self._waiting_rows >= self._group_rows:
            table = pa.Table.from_batches(self._waiting)
            self._write_group(table.slice(0, self._group_rows))
            rest = table.slice(self._group_rows)
            self._waiting, self._waiting_rows = rest.to_batches(), rest.num_rows

    def close(self) -> WrittenPart | None:
        """Completes the object; None, and no object, when no row was written."""
        if self._waiting_rows:
            self._write_group(pa.Table.from_batches(self._waiting))
            self._waiting, self._waiting_rows = [], 0
        if self._writer is None or self._sink is None:
            return None
        with foreign_errors(OutputError, f"cannot write {self._storage.describe(self._path)}"):
            self._writer.close()
            self._sink.close()
        digest = self._sink.digest.hexdigest()
        return WrittenPart(path=self._path, rows=self.rows, size_bytes=self._sink.size_bytes, sha256=digest)

    def discard(self) -> None:
        """Removes what was written; nothing refers to it, so a failure here only leaves litter."""
        self._waiting = []
        if self._sink is not None:
            with contextlib.suppress(Exception):
                self._sink.close()
            with contextlib.suppress(Exception):
                self._storage.delete([self._path])

    def _write_group(self, table: pa.Table) -> None:
        with foreign_errors(OutputError, f"cannot write {self._storage.describe(self._path)}"):
            if self._writer is None:
                self._sink = _HashingSink(self._storage.open_output(self._path))
                self._writer = pq.ParquetWriter(
                    pa.PythonFile(self._sink, mode="w"),
                    table.schema,
                    compression=self._compression,
                    use_dictionary=_columns(table.schema, _repeats),
                    write_statistics=_columns(table.schema, _has_order),
                    store_schema=True,
                )
            self._writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)


def _row_group_rows(schema: pa.Schema) -> int:
    width = sum(_width(field.type) for field in schema)
    return max(1, min(_MOST_ROWS, _ROW_GROUP_BYTES // max(1, width)))


def _width(kind: pa.DataType) -> int:
    if isinstance(kind, pa.ExtensionType | pa.FixedShapeTensorType):
        return _width(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    if pa.types.is_struct(kind):
        return sum(_width(field.type) for field in kind)
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return _VARIABLE_WIDTH_BYTES


def _repeats(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def _has_order(kind: pa.DataType) -> bool:
    return (
        not pa.types.is_nested(kind)
        and not isinstance(kind, pa.BaseExtensionType | pa.FixedSizeBinaryType)
        and not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    )


def _columns(schema: pa.Schema, accept: Any) -> Sequence[str] | bool:
    return [field.name for field in schema if accept(field.type)] or False


def _brief(schema: pa.Schema) -> str:
    return "[" + ", ".join(f"{field.name}: {field.type}" for field in schema) + "]"
