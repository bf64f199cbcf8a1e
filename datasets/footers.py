"""What the files of a dataset say of themselves: schema and row groups, read once, before any work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import DatasetError, EmptyDatasetError, MismatchError
from .discovery import Format, SourceFile, partition_schema
from .filters import Filter
from .groups import Group, Groups
from .storage import Storage, foreign_errors

__all__ = ["MAX_GROUP_BYTES", "MAX_GROUP_ROWS", "Dataset", "inspect", "read_schema"]

MAX_GROUP_ROWS = 1 << 28
"""A row group or record batch of more rows is refused."""

MAX_GROUP_BYTES = 1 << 48
"""So is one of more bytes."""

_FOOTER_THREADS = 16
_READ_AT_ONCE = 4096
_PHYSICAL_BYTES = {"INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}
_NARROW_BYTES = {"INT_8": 1, "UINT_8": 1, "INT_16": 2, "UINT_16": 2}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset ready to be cut into shards.

    Attributes:
        files: Each file with its row groups, in dataset order.
        schema: The columns that the job reads, Hive partitions included.
        partitions: The part of the schema that comes from Hive folders.
    """

    files: tuple[tuple[SourceFile, Groups], ...]
    schema: pa.Schema
    partitions: pa.Schema

    @property
    def rows(self) -> int:
        """Rows in the row groups that the filter may let pass."""
        return sum(groups.rows for _, groups in self.files)

    @property
    def size_bytes(self) -> int:
        """Uncompressed bytes of the same row groups, read columns only."""
        return sum(groups.size_bytes for _, groups in self.files)


def read_schema(files: Sequence[SourceFile]) -> pa.Schema:
    """The schema of the first file, with the Hive partitions of all.

    Raises:
        DatasetError: The file cannot be read, or two columns, partitions included, have one name.
    """
    with _reading(files[0]):
        own = _open_schema(files[0])
        names = own.names
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise DatasetError(f"{files[0].url} has more than one column {twice[0]!r}", "rename one of them")
    partitions = partition_schema(files)
    both = set(names) & set(partitions.names)
    if both:
        raise DatasetError(
            f"{sorted(both)[0]!r} is a column of {files[0].url} and a Hive partition", "rename one of them"
        )
    return pa.schema([*own, *partitions])


def inspect(files: Sequence[SourceFile], columns: Sequence[str], where: Filter | None) -> Dataset:
    """Reads every footer, checks that all files have the same types, and drops what the filter excludes.

    Args:
        files: In dataset order.
        columns: What the job reads, filter columns included.
        where: The row filter; row groups whose statistics exclude it are marked not to keep.

    Raises:
        DatasetError: A file cannot be read.
        MismatchError: A file lacks a column or holds it with another type.
        EmptyDatasetError: No row is there, or none can pass the filter.
    """
    full = read_schema(files)
    missing = [name for name in columns if name not in full.names]
    if missing:
        raise MismatchError(
            f"{files[0].url} lacks column {missing[0]!r}", f"its columns: {', '.join(full.names)}"
        )
    partitions = partition_schema(files)
    schema = pa.schema([full.field(name) for name in columns])
    if where is not None:
        where.check(full)
    stored = [field for field in schema if field.name not in partitions.names]

    def one(file: SourceFile) -> tuple[SourceFile, Groups]:
        with _reading(file):
            groups = _groups(file, stored, partitions, full, where)
        _check_sizes(file, groups)
        return file, Groups(groups)

    read: list[tuple[SourceFile, Groups]] = []
    with ThreadPoolExecutor(_FOOTER_THREADS, "footers") as pool:
        # All at once, the futures of a hundred thousand files would take more memory than their footers.
        for start in range(0, len(files), _READ_AT_ONCE):
            read.extend(pool.map(one, files[start : start + _READ_AT_ONCE]))
    dataset = Dataset(files=tuple(read), schema=schema, partitions=partitions)
    if not any(group.rows for _, groups in dataset.files for group in groups):
        raise EmptyDatasetError(f"the dataset has no rows ({len(files)} files read)", "check the path")
    if not dataset.rows and where is not None:
        raise EmptyDatasetError(f"--filter {where.text!r} matches no row", "check the filter's values")
    return dataset


def _check_sizes(file: SourceFile, groups: Sequence[Group]) -> None:
    """Refuses what no writer writes: it would be believed, and memory be taken for it."""
    for number, group in enumerate(groups):
        if not (0 <= group.rows <= MAX_GROUP_ROWS and 0 <= group.size_bytes <= MAX_GROUP_BYTES):
            raise DatasetError(
                f"{file.url} says that row group {number} has {group.rows:,} rows of {group.size_bytes:,} "
                f"bytes, at most {MAX_GROUP_ROWS:,} rows and {MAX_GROUP_BYTES:,} bytes are read",
                "is the file intact? else write smaller row groups",
            )


def _reading(file: SourceFile) -> AbstractContextManager[None]:
    return foreign_errors(DatasetError, f"cannot read {file.url}", "is the file complete?")


def _open_schema(file: SourceFile) -> pa.Schema:
    with Storage(file.root).open_input(file.path) as source:
        match file.format:
            case Format.PARQUET:
                return pq.ParquetFile(source).schema_arrow
            case Format.IPC_FILE:
                return pa.ipc.open_file(source).schema
            case Format.IPC_STREAM:
                return pa.ipc.open_stream(source).schema


def _check_fields(file: SourceFile, found: pa.Schema, wanted: Iterable[pa.Field]) -> None:
    for field in wanted:
        if field.name not in found.names:
            raise MismatchError(
                f"{file.url} lacks column {field.name!r}, which other files have",
                f"its columns: {', '.join(found.names)}",
            )
        if found.field(field.name).type != field.type:
            raise MismatchError(
                f"{file.url} holds column {field.name!r} as {found.field(field.name).type}, "
                f"other files as {field.type}",
                "rewrite the files with one schema",
            )


def _groups(
    file: SourceFile, stored: Sequence[pa.Field], partitions: pa.Schema, full: pa.Schema, where: Filter | None
) -> tuple[Group, ...]:
    storage = Storage(file.root)
    if file.format is Format.PARQUET:
        with storage.open_input(file.path) as source:
            parquet = pq.ParquetFile(source)
            _check_fields(file, parquet.schema_arrow, stored)
            kept = _kept_row_groups(file, storage, partitions, full, where)
            return _parquet_groups(parquet.metadata, {field.name for field in stored}, kept)
    with storage.open_input(file.path, mapped=True) as source:
        if file.format is Format.IPC_FILE:
            found = pa.ipc.open_file(source).schema
            _check_fields(file, found, stored)
            # One narrow column is enough to count rows without reading the rest of each batch.
            narrow = min(range(len(found)), key=lambda i: _width(found.field(i).type), default=None)
            options = pa.ipc.IpcReadOptions(included_fields=None if narrow is None else [narrow])
            reader = pa.ipc.open_file(source, options=options)
            rows = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        else:
            stream = pa.ipc.open_stream(source)
            _check_fields(file, stream.schema, stored)
            rows = [batch.num_rows for batch in stream]
    # Record batches may be compressed: what is certain of their decoded size is the fixed-width part.
    row_bytes = max(
        file.size_bytes // max(1, sum(rows)), sum(_fixed_bits(field.type) for field in stored) // 8
    )
    keep = _partition_passes(file, partitions, where)
    return tuple(Group(rows=count, size_bytes=row_bytes * count, keep=keep) for count in rows)


def _width(kind: pa.DataType) -> int:
    return _fixed_bits(kind) or 1 << 30


def _fixed_bits(kind: pa.DataType) -> int:
    """Bits of one value; 0 where values differ in size."""
    if isinstance(kind, pa.BaseExtensionType):
        return _fixed_bits(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _fixed_bits(kind.value_type)
    try:
        return int(kind.bit_width)
    except ValueError:
        return 0


def _parquet_groups(meta: pq.FileMetaData, names: set[str], kept: set[int] | None) -> tuple[Group, ...]:
    # Dictionary and run-length encoding may hide most of a column's decoded size.
    leaves: dict[int, int] = {}
    for i in range(meta.num_columns):
        leaf = meta.schema.column(i)
        if any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in names):
            width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
            leaves[i] = _NARROW_BYTES.get(leaf.converted_type) or _PHYSICAL_BYTES.get(
                leaf.physical_type, width
            )
    groups = []
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        chunks = ((group.column(i), width) for i, width in leaves.items())
        size = sum(max(chunk.total_uncompressed_size, chunk.num_values * width) for chunk, width in chunks)
        groups.append(Group(rows=group.num_rows, size_bytes=size, keep=kept is None or number in kept))
    return tuple(groups)


def _kept_row_groups(
    file: SourceFile, storage: Storage, partitions: pa.Schema, full: pa.Schema, where: Filter | None
) -> set[int] | None:
    # Statistics leave NaN out, so they cannot prove that a negation fails for every float.
    if where is None or (where.negates and any(_has_nan(full.field(name).type) for name in where.columns)):
        return None
    fragment = storage.parquet_fragment(file.path, partition_expression(file, partitions))
    parts = fragment.split_by_row_group(where.expression, schema=full)
    return {group.id for part in parts for group in part.row_groups}


def _has_nan(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind))


def partition_expression(file: SourceFile, partitions: pa.Schema) -> pc.Expression:
    """What a file's Hive folders say of all its rows."""
    result = pc.scalar(True)
    for name, value in partition_values(file, partitions).items():
        field = pc.field(name)
        result = result & (field == value if value.is_valid else field.is_null())
    return result


def partition_values(file: SourceFile, partitions: pa.Schema) -> dict[str, pa.Scalar]:
    """The value of each Hive column in one file; null where its path lacks the key."""
    texts = dict(file.partitions)
    values = {}
    for field in partitions:
        text = texts.get(field.name)
        plain = int(text) if text is not None and pa.types.is_integer(field.type) else text
        values[field.name] = pa.scalar(plain, field.type)
    return values


def _partition_passes(file: SourceFile, partitions: pa.Schema, where: Filter | None) -> bool:
    if where is None or not where.columns <= set(partitions.names):
        return True
    row = {name: [value.as_py()] for name, value in partition_values(file, partitions).items()}
    return bool(pa.table(row, schema=partitions).filter(where.expression).num_rows)
