"""Reading a unit of a sample: its batches, each with exactly its rows, whatever files they lie in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor

import numpy as np
import pyarrow as pa

from .reading import Block, Projection, ShardReader
from .sampling import Unit

__all__ = ["read_batches"]


def read_batches(
    unit: Unit, projection: Projection, pool: Executor, prefetch_bytes: int
) -> Iterator[list[Block]]:
    """Yields the unit's batches in order, each as one block for every file that has rows in it.

    A row group is decoded once, up to the last sampled row in it.

    Args:
        unit: What to read.
        projection: Columns to deliver; it must have no filter, which would change what a batch holds.
        pool: Where row groups are fetched and decoded.
        prefetch_bytes: How many bytes of one file may be read ahead.

    Returns:
        Blocks whose ``rows`` are the rows' positions in the sample, not their numbers in the file. How the
        rows of a batch are divided into blocks depends on the sample alone, not on the unit.

    Raises:
        DatasetError: A file cannot be read or is not the one that was planned.
    """
    batch: list[Block] = []
    position = unit.first
    reader = ShardReader(projection, pool, prefetch_bytes)
    for sampled in unit.files:
        blocks = reader.read(sampled.shard, max(1, sampled.shard.rows), only=sampled.rows)
        missing = unit.batch_size - sum(len(block.rows) for block in batch)
        for part in _recut(blocks, len(sampled.rows), missing, unit.batch_size):
            batch.append(Block(batch=part, rows=np.arange(position, position + part.num_rows)))
            position += part.num_rows
            if sum(len(block.rows) for block in batch) == unit.batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def _recut(blocks: Iterable[Block], rows: int, first: int, size: int) -> Iterator[pa.RecordBatch]:
    """The same rows in pieces of ``size``, but for the first one and what is left at the end."""
    parts: list[pa.RecordBatch] = []
    missing = min(first, rows)
    for block in blocks:
        rest = block.batch
        while rest.num_rows:
            parts.append(rest.slice(0, missing))
            missing, rows = missing - parts[-1].num_rows, rows - parts[-1].num_rows
            rest = rest.slice(parts[-1].num_rows)
            if not missing:
                yield parts[0] if len(parts) == 1 else pa.concat_batches(parts)
                parts, missing = [], min(size, rows)
