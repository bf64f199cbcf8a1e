"""A dataset of any size that exists only as the sizes its files' footers would state."""

from __future__ import annotations

from trtfleet.datasets.discovery import Format, SourceFile
from trtfleet.datasets.groups import Group, Groups
from trtfleet.datasets.shards import DEFAULT_SHARD_BYTES

__all__ = ["SHARDS_A_FILE", "dataset_of"]

SHARDS_A_FILE = 10
_ROW_BYTES = 224 * 224 * 3


def dataset_of(shards: int) -> list[tuple[SourceFile, Groups]]:
    """Files that are cut into so many shards, with as many row groups or a little more.

    A shard is a row group in most files. In every fifth, two row groups are packed into a shard, and in
    every fifth but one a row group is cut in two.

    Args:
        shards: A multiple of `SHARDS_A_FILE`.
    """
    files, rest = divmod(shards, SHARDS_A_FILE)
    if rest or not files:
        raise SystemExit(f"shards must be a positive multiple of {SHARDS_A_FILE}, got {shards}")
    return [_file(number) for number in range(files)]


def _file(number: int) -> tuple[SourceFile, Groups]:
    split = {0: (2, 2 * SHARDS_A_FILE), 1: (0.5, SHARDS_A_FILE // 2)}
    per_shard, count = split.get(number % 5, (1, SHARDS_A_FILE))
    # Writers that go by bytes make row groups of slightly different lengths.
    groups = Groups(
        Group(rows=size_bytes // _ROW_BYTES, size_bytes=size_bytes)
        for i in range(count)
        for size_bytes in [
            int(DEFAULT_SHARD_BYTES / per_shard) - (number * 31 + i * 7) % 97 * _ROW_BYTES // 10
        ]
    )
    file = SourceFile(
        root="s3://datasets/photos",
        path=f"day={number // 1000:04d}/part-{number:06d}-8c1f0d6e.parquet",
        size_bytes=sum(group.size_bytes for group in groups),
        version=f'"{number * 2654435761 % 2**64:032x}"',
        format=Format.PARQUET,
        partitions=(("day", f"{number // 1000:04d}"),),
    )
    return file, groups
