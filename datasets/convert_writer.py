"""The Parquet files that ``convert`` writes: fast columns as bare bytes, others as they come."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import MismatchError, OutputError
from .convert_columns import is_fast
from .storage import Storage, foreign_errors

__all__ = ["ConvertWriter", "rows_of"]

_GROUP_BYTES = 8 << 20
_MOST_ROWS = 1 << 20
_PAGE_BYTES = 1 << 20
_OTHERS_CODEC = "SNAPPY"


def rows_of(size_bytes: int, row_bytes: int) -> int:
    """How many rows of such a size make so many bytes: at least one, and not too many."""
    return max(1, min(_MOST_ROWS, size_bytes // max(1, row_bytes)))


class _Sink:
    """A file object that ends when told to: a ParquetWriter that is given up still writes its footer."""

    def __init__(self, target: pa.NativeFile) -> None:
        self._target = target
        self.closed = False

    def write(self, data: Any) -> int:
        size = len(memoryview(data).cast("B"))
        if not self.closed:
            self._target.write(data)
        return size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._target.close()


class ConvertWriter:
    """Writes one Parquet object with row groups of about 8 MiB; an exception inside discards it.

    Args:
        storage: Where to.
        path: The new object, complete only when ``close`` returns.
        schema: Of what is written.
        compression: Codec of the fast columns, in Parquet's name for it.
        place: The file that is rewritten, for messages.

    Raises:
        MismatchError: Parquet cannot hold a column.
        OutputError: The storage failed.
    """

    def __init__(self, storage: Storage, path: str, schema: pa.Schema, compression: str, place: str) -> None:
        self._storage = storage
        self._path = path
        self._schema = schema
        self._options = _parquet_options(schema, compression, place)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0
        self._group_rows = 0
        self.rows = 0
        with self._writing():
            self._sink = _Sink(storage.open_output(path))
            self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), schema, **self._options)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return foreign_errors(OutputError, f"cannot write {self._storage.describe(self._path)}")

    def __enter__(self) -> ConvertWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            with contextlib.suppress(Exception):
                self._sink.close()
            with contextlib.suppress(Exception):
                self._writer.close()
            with contextlib.suppress(Exception):
                self._storage.delete([self._path])

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends rows; raises OutputError when the storage fails."""
        if not batch.num_rows:
            return
        self._group_rows = self._group_rows or rows_of(_GROUP_BYTES, batch.nbytes // batch.num_rows)
        self._waiting.append(batch)
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        while self._waiting_rows >= self._group_rows:
            self._flush(self._group_rows)

    def close(self, metadata: Mapping[str, str]) -> None:
        """Completes the object with these key-value metadata; raises as ``write`` does."""
        if self._waiting_rows:
            self._flush(self._waiting_rows)
        with self._writing():
            self._writer.add_key_value_metadata(metadata)
            self._writer.close()
            self._sink.close()

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting)
        with self._writing():
            self._writer.write_table(table.slice(0, rows).unify_dictionaries(), row_group_size=rows)
        rest = table.slice(rows)
        self._waiting, self._waiting_rows = rest.to_batches(), rest.num_rows


def _parquet_options(schema: pa.Schema, compression: str, place: str) -> dict[str, Any]:
    """How a schema's columns are written: the fast ones as bare bytes, the others as Parquet likes them."""
    empty = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(empty, schema, store_schema=True).close()
    except pa.ArrowNotImplementedError as error:
        raise MismatchError(
            f"{place} has a column that Parquet cannot hold: {str(error).splitlines()[0]}",
            "write the file without that column",
        ) from error
    leaves = pq.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    fast = {field.name for field in schema if is_fast(field)}
    widest = max((schema.field(name).type.byte_width for name in fast), default=1)
    others = [leaf for leaf in map(leaves.column, range(len(leaves))) if leaf.path not in fast]
    # Encoded images and other blobs neither repeat nor have an order worth a place in the footer.
    plain = [leaf for leaf in others if leaf.logical_type.type != "NONE" or "BYTE" not in leaf.physical_type]
    return {
        "store_schema": True,
        "compression": dict.fromkeys(fast, compression) | {leaf.path: _OTHERS_CODEC for leaf in others},
        "use_dictionary": [leaf.path for leaf in plain if leaf.physical_type not in ("FLOAT", "DOUBLE")],
        "write_statistics": [leaf.path for leaf in plain] or False,
        "write_batch_size": max(1, min(1024, _PAGE_BYTES // widest)),
    }
