"""Reading a shard: its rows as record batches, in file order, fetched ahead by a thread pool."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DatasetError
from .discovery import Format, SourceFile
from .file_rows import ipc_rows, parquet_rows
from .filters import Filter
from .footers import partition_values
from .shards import Segment, Shard
from .storage import Storage, foreign_errors

__all__ = ["Block", "Measure", "Projection", "ShardReader"]

Measure = Callable[[str], AbstractContextManager[dict[str, Any]]]
"""Measures a block of code that is a stage of that name; its details go into the dict."""

_TASK_BYTES = 8 << 20
_GROUPS_AHEAD = 5
_CACHED_FOOTERS = 64
_ROW = "__trtfleet_row__"


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What is read of each file.

    Attributes:
        columns: Names to deliver, partition columns included, in this order.
        partitions: The columns that come from Hive folders.
        where: Rows that do not pass are dropped while reading.
    """

    columns: tuple[str, ...]
    partitions: pa.Schema
    where: Filter | None = None

    @property
    def stored(self) -> list[str]:
        """The columns that files hold: those delivered and those the filter needs."""
        wanted = dict.fromkeys([*self.columns, *sorted(self.where.columns if self.where else ())])
        return [name for name in wanted if name not in self.partitions.names]


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of a shard.

    Attributes:
        batch: The projected columns.
        rows: int64[n], each row's number in its file.
    """

    batch: pa.RecordBatch
    rows: np.ndarray


class ShardReader:
    """Reads shards, several at once from several threads; keeps the footers of recent files.

    Args:
        projection: Columns and filter.
        pool: Where row groups are fetched and decoded.
        prefetch_bytes: How many bytes of one shard may be read ahead of its consumer.
        measure: Told of every read, stage ``read``.
    """

    def __init__(
        self,
        projection: Projection,
        pool: Executor,
        prefetch_bytes: int,
        measure: Measure = lambda _: nullcontext({}),
    ) -> None:
        self._measure = measure
        self._projection = projection
        self._pool = pool
        self._prefetch_bytes = prefetch_bytes
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: Shard, block_rows: int, only: np.ndarray | None = None) -> Iterator[Block]:
        """Yields the shard's rows that pass the filter, in file order, at most ``block_rows`` a block.

        Args:
            shard: What to read.
            block_rows: Most rows of a block.
            only: int64[n], the numbers in the file of the rows that are wanted; None wants all.

        Raises:
            DatasetError: The file cannot be read or is not the one that was planned.
        """
        row_bytes = max(1, shard.size_bytes // max(1, shard.rows))
        task_rows = max(1, _TASK_BYTES // row_bytes)
        group_bytes = row_bytes * max((segment.rows for segment in shard.segments), default=0)
        ahead = max(1, self._prefetch_bytes // _TASK_BYTES)
        if group_bytes > _TASK_BYTES:
            # A large row group is read whole. A few at once must do: more would fill the memory.
            ahead = max(min(ahead, _GROUPS_AHEAD), self._prefetch_bytes // group_bytes)
        waiting: deque[Future[list[Block]]] = deque()
        with foreign_errors(DatasetError, f"cannot read {shard.file.url}"):
            _check_unchanged(Storage(shard.file.root), shard.file)
        try:
            for run in _split(shard.segments, task_rows):
                reading = self._pool.submit(self._read_run, shard.file, run, task_rows, block_rows, only)
                waiting.append(reading)
                if len(waiting) > ahead:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _read_run(
        self,
        file: SourceFile,
        run: Sequence[Segment],
        task_rows: int,
        block_rows: int,
        only: np.ndarray | None,
    ) -> list[Block]:
        doing = f"cannot read {file.url}, row group {run[0].group}"
        with foreign_errors(DatasetError, doing, "is the file intact?"), self._measure("read") as details:
            storage, columns = Storage(file.root), self._projection.stored
            if file.format is Format.PARQUET:
                footer = self._footer(storage, file)
                batches = parquet_rows(storage, file, run, columns, footer=footer, about_rows=task_rows)
            else:
                batches = ipc_rows(storage, file, run, columns)
            rows = np.concatenate([np.arange(s.first_row, s.first_row + s.rows) for s in run])
            found = self._blocks(file, batches, rows, block_rows)
            blocks = list(found if only is None else _wanted(found, only))
            details["bytes"] = sum(block.batch.nbytes for block in blocks)
            return blocks

    def _footer(self, storage: Storage, file: SourceFile) -> pq.FileMetaData:
        with self._lock:
            if file.url in self._footers:
                self._footers.move_to_end(file.url)
                return self._footers[file.url]
        with storage.open_input(file.path) as source:
            footer = pq.ParquetFile(source).metadata
        with self._lock:
            self._footers[file.url] = footer
            while len(self._footers) > _CACHED_FOOTERS:
                self._footers.popitem(last=False)
        return footer

    def _blocks(
        self, file: SourceFile, batches: Iterator[pa.RecordBatch], rows: np.ndarray, block_rows: int
    ) -> Iterator[Block]:
        projection = self._projection
        constants = partition_values(file, projection.partitions)
        position = 0
        for batch in batches:
            numbers = rows[position : position + batch.num_rows]
            position += batch.num_rows
            for name, value in constants.items():
                batch = batch.append_column(
                    projection.partitions.field(name), pa.repeat(value, batch.num_rows)
                )
            if projection.where is not None:
                numbered = batch.append_column(_ROW, pa.array(numbers))
                passed = numbered.filter(projection.where.expression)
                batch, numbers = passed, passed.column(_ROW).to_numpy()
            batch = batch.select(list(projection.columns))
            for start in range(0, batch.num_rows, block_rows):
                stop = min(start + block_rows, batch.num_rows)
                yield Block(batch=batch.slice(start, stop - start), rows=numbers[start:stop])


def _wanted(blocks: Iterator[Block], only: np.ndarray) -> Iterator[Block]:
    for block in blocks:
        is_wanted = np.isin(block.rows, only, assume_unique=True)
        if is_wanted.all():
            yield block
        elif is_wanted.any():
            taken = np.flatnonzero(is_wanted)
            # Copies: a view would keep the whole decoded batch alive for a few of its rows.
            yield Block(batch=block.batch.take(pa.array(taken)), rows=block.rows[taken])


def _check_unchanged(storage: Storage, file: SourceFile) -> None:
    entry = storage.head(file.path)
    if entry is None or (entry.size_bytes, entry.version) != (file.size_bytes, file.version):
        found = "is gone" if entry is None else f"has {entry.size_bytes:,} bytes, version {entry.version}"
        raise DatasetError(
            f"{file.url} changed under the job: planned with {file.size_bytes:,} bytes, "
            f"version {file.version}, it now {found}",
            "run again with --overwrite once the data is stable",
        )


def _split(segments: Sequence[Segment], task_rows: int) -> Iterator[Sequence[Segment]]:
    """Runs of segments of about ``task_rows`` each, so that small row groups are fetched together."""
    edges, filled = [0], 0
    for number, segment in enumerate(segments):
        if filled and filled + segment.rows > task_rows:
            edges.append(number)
            filled = 0
        filled += segment.rows
    edges.append(len(segments))
    return (segments[start:stop] for start, stop in pairwise(edges))
