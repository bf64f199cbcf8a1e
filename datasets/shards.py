"""Cutting a dataset into shards: pure planning over the sizes that files' footers state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..errors import DatasetError, UsageError
from .discovery import SourceFile
from .groups import Group
from .shard_table import Segment, Shard, ShardTable

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "MAX_SHARDS",
    "Group",
    "Segment",
    "Shard",
    "plan_shards",
    "suggest_shard_bytes",
]

DEFAULT_SHARD_BYTES = 64 << 20
MAX_SHARDS = 5_000_000
"""A dataset is cut into at most so many shards, whatever its footers say that it holds."""

_SMALLEST_SHARD_BYTES = 16 << 10
_SHARDS_PER_ACTOR = 8


def suggest_shard_bytes(total_bytes: int, actors: int, most_bytes: int = DEFAULT_SHARD_BYTES) -> int:
    """A shard size that gives each actor several shards, at most ``most_bytes``."""
    wanted = total_bytes // max(1, actors * _SHARDS_PER_ACTOR)
    return min(most_bytes, max(_SMALLEST_SHARD_BYTES, wanted))


def plan_shards(dataset: Sequence[tuple[SourceFile, Sequence[Group]]], shard_bytes: int) -> ShardTable:
    """Packs consecutive row groups of a file into shards of about ``shard_bytes``.

    A row group of half as much again and more is cut by row offsets into nearly equal pieces.

    Raises:
        UsageError: ``shard_bytes`` is not positive.
        DatasetError: There would be more than ``MAX_SHARDS``.
    """
    if shard_bytes < 1:
        raise UsageError(f"shard_bytes must be >= 1, got {shard_bytes}")
    shards = ShardTable()
    for file, groups in dataset:
        # What the ids of a file's shards have in common is digested once.
        digest = hashlib.sha256(f"{file.url}\0{file.size_bytes}\0{file.version}\0".encode())
        pending: list[Segment] = []
        pending_bytes = 0
        for segment, size in _segments(groups, shard_bytes):
            if pending and pending_bytes + size > shard_bytes:
                shards.append(_id(digest, pending), file, pending, pending_bytes)
                pending, pending_bytes = [], 0
            pending.append(segment)
            pending_bytes += size
        if pending:
            shards.append(_id(digest, pending), file, pending, pending_bytes)
        if len(shards) > MAX_SHARDS:
            raise _too_many()
    return shards


def _segments(groups: Sequence[Group], shard_bytes: int) -> Iterator[tuple[Segment, int]]:
    first_row = 0
    for number, group in enumerate(groups):
        if group.keep and group.rows:
            pieces = min(group.rows, max(1, round(group.size_bytes / shard_bytes)))
            if pieces > MAX_SHARDS:
                raise _too_many()
            if pieces == 1:
                segment = Segment(group=number, offset=0, rows=group.rows, first_row=first_row)
                yield segment, group.size_bytes
            else:
                edges = [group.rows * piece // pieces for piece in range(pieces + 1)]
                for start, stop in pairwise(edges):
                    segment = Segment(
                        group=number, offset=start, rows=stop - start, first_row=first_row + start
                    )
                    yield segment, group.size_bytes * (stop - start) // group.rows
        first_row += group.rows


def _too_many() -> DatasetError:
    return DatasetError(
        f"the files say that they hold more than {MAX_SHARDS:,} shards",
        "raise --shard-bytes, or score the dataset in parts",
    )


def _id(of_file: hashlib._Hash, segments: Sequence[Segment]) -> str:
    digest = of_file.copy()
    digest.update(",".join([f"{s.group}:{s.offset}+{s.rows}" for s in segments]).encode())
    return digest.hexdigest()[:20]
