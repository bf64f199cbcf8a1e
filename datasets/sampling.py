"""Which rows of a dataset are sampled, and in which batches and units of work: pure planning over footers.

A sample is cut into batches of consecutive sampled rows. What a batch holds depends on the dataset, the
number of samples, the seed and the batch size alone; how many batches make a unit of work is free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from .discovery import SourceFile
from .shards import Group, Segment, Shard

__all__ = ["SampledRows", "Unit", "plan_units", "sample_rows", "suggest_unit_batches"]

_UNITS_PER_ACTOR = 4


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """The sampled rows of one file that lie in one unit.

    Attributes:
        shard: The spans of the file to decode: of each row group, from its first sampled row to its last.
        rows: int64[n], the sampled rows' numbers in the file, ascending.
    """

    shard: Shard
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Some whole batches of a sample, perhaps of several files.

    Attributes:
        id: Digest of the files' names, sizes and versions, of the rows and of the batch size.
        index: Position among the sample's units.
        first: Position in the sample of its first row; a multiple of ``batch_size``.
        batch_size: Rows a batch; the sample's last batch may have fewer.
        files: Its rows, in dataset order.
    """

    id: str
    index: int
    first: int
    batch_size: int
    files: tuple[SampledRows, ...]

    @property
    def rows(self) -> int:
        """How many rows."""
        return sum(len(sampled.rows) for sampled in self.files)

    def locate(self, position: int) -> tuple[str, int]:
        """The file's URL and the number in it of a row, by its position in the sample.

        Raises:
            IndexError: The row is of another unit.
        """
        left = position - self.first
        for sampled in self.files:
            if 0 <= left < len(sampled.rows):
                return sampled.shard.file.url, int(sampled.rows[left])
            left -= len(sampled.rows)
        raise IndexError(f"row {position} of the sample is not among {self.rows} rows from {self.first} on")


def sample_rows(total: int, samples: int, seed: int) -> np.ndarray:
    """Draws distinct rows uniformly from a whole dataset.

    Args:
        total: Rows of the dataset.
        samples: How many to draw; all rows when there are no more.
        seed: Of numpy's default generator.

    Returns:
        int64[min(total, samples)], ascending row numbers in dataset order.

    Raises:
        UsageError: ``samples`` is below 1, or ``seed`` below 0.
    """
    if samples < 1:
        raise UsageError(f"samples must be >= 1, got {samples}", "500 rows are enough for most models")
    if seed < 0:
        raise UsageError(f"seed must be >= 0, got {seed}")
    if samples >= total:
        return np.arange(total, dtype=np.int64)
    drawn = np.random.default_rng(seed).choice(total, samples, replace=False, shuffle=False)
    return np.sort(drawn.astype(np.int64))


def suggest_unit_batches(rows: int, batch_size: int, actors: int) -> int:
    """How many batches a unit should have for each actor to get several units."""
    batches = -(-rows // batch_size)
    return max(1, batches // max(1, actors * _UNITS_PER_ACTOR))


def plan_units(
    dataset: Sequence[tuple[SourceFile, Sequence[Group]]],
    rows: np.ndarray,
    *,
    batch_size: int,
    unit_batches: int,
) -> list[Unit]:
    """Cuts a sample into units of whole batches.

    Args:
        dataset: Each file with its row groups, in dataset order.
        rows: int64[n], ascending row numbers in dataset order.
        batch_size: Rows a batch.
        unit_batches: Batches a unit; the last unit may have fewer.

    Raises:
        UsageError: A size is below 1.
    """
    for name, value in (("batch_size", batch_size), ("unit_batches", unit_batches)):
        if value < 1:
            raise UsageError(f"{name} must be >= 1, got {value}")
    ends = np.cumsum([sum(group.rows for group in groups) for _, groups in dataset])
    step = batch_size * unit_batches
    units = []
    for index, first in enumerate(range(0, len(rows), step)):
        files = tuple(_by_file(dataset, ends, rows[first : first + step]))
        units.append(
            Unit(
                id=_identity(files, batch_size), index=index, first=first, batch_size=batch_size, files=files
            )
        )
    return units


def _by_file(
    dataset: Sequence[tuple[SourceFile, Sequence[Group]]], ends: np.ndarray, rows: np.ndarray
) -> Iterator[SampledRows]:
    of = np.searchsorted(ends, rows, side="right")
    for number in np.unique(of).tolist():
        file, groups = dataset[number]
        start = int(ends[number - 1]) if number else 0
        inside = rows[of == number] - start
        segments, size_bytes = _spans(groups, inside)
        shard = Shard(id="", index=number, file=file, segments=tuple(segments), size_bytes=size_bytes)
        yield SampledRows(shard=shard, rows=inside)


def _spans(groups: Sequence[Group], rows: np.ndarray) -> tuple[list[Segment], int]:
    """The part of each row group that has sampled rows, and its uncompressed bytes."""
    edges = np.concatenate([[0], np.cumsum([group.rows for group in groups])])
    of = np.searchsorted(edges[1:], rows, side="right")
    segments, size_bytes = [], 0
    for number in np.unique(of).tolist():
        group, chosen = groups[number], rows[of == number]
        offset, span = int(chosen[0] - edges[number]), int(chosen[-1] - chosen[0]) + 1
        segments.append(Segment(group=number, offset=offset, rows=span, first_row=int(chosen[0])))
        size_bytes += group.size_bytes * span // group.rows
    return segments, size_bytes


def _identity(files: Sequence[SampledRows], batch_size: int) -> str:
    digest = hashlib.sha256(f"{batch_size}\n".encode())
    for sampled in files:
        file = sampled.shard.file
        digest.update(f"{file.url}\0{file.size_bytes}\0{file.version}\0{len(sampled.rows)}\n".encode())
        digest.update(sampled.rows.astype("<i8").tobytes())
    return digest.hexdigest()[:20]
