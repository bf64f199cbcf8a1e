"""Shards: a unit of work each, and a whole dataset of them by the million in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from .discovery import SourceFile

__all__ = ["Segment", "Shard", "ShardTable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of rows inside one row group.

    Attributes:
        group: The row group's or record batch's number in its file.
        offset: First row, counted inside the group.
        rows: How many rows.
        first_row: The first row's number in its file.
    """

    group: int
    offset: int
    rows: int
    first_row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A unit of work: some rows of one file, in file order.

    Attributes:
        id: Digest of the file's name, size and version and of the rows; the same in every run.
        index: Position in dataset order.
        file: The file to read.
        segments: Which rows.
        size_bytes: Uncompressed bytes of the columns the job reads.
    """

    id: str
    index: int
    file: SourceFile
    segments: tuple[Segment, ...]
    size_bytes: int

    @property
    def rows(self) -> int:
        """Rows before any filter."""
        segments = self.segments
        return segments[0].rows if len(segments) == 1 else sum(segment.rows for segment in segments)


class ShardTable(Sequence[Shard]):
    """Shards in dataset order, in columns; each look makes a `Shard` anew.

    Kept as objects, with their segments, they would take several times the memory, and the garbage collector
    would visit all of them again and again.

    Attributes:
        ids: The id of every shard.
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._files: list[SourceFile] = []
        self._file = array("I")
        self._sizes = array("q")
        # The segments of all shards in one line, and where in it those of each begin.
        self._starts = array("Q", [0])
        self._groups = array("q")
        self._offsets = array("q")
        self._rows = array("q")
        self._first_rows = array("q")

    @classmethod
    def of(cls, shards: Sequence[Shard]) -> ShardTable:
        """A table of shards that are at their ``index`` each; a table is taken as it is."""
        if isinstance(shards, cls):
            return shards
        table = cls()
        for shard in shards:
            table.append(shard.id, shard.file, shard.segments, shard.size_bytes)
        return table

    def append(self, name: str, file: SourceFile, segments: Iterable[Segment], size_bytes: int) -> None:
        """Adds a shard behind the others.

        Args:
            name: Its id.
            file: The file to read; shards of one file are added one after the other.
            segments: Which rows.
            size_bytes: Uncompressed bytes of the columns the job reads.
        """
        if not self._files or self._files[-1] is not file:
            self._files.append(file)
        self.ids.append(name)
        self._file.append(len(self._files) - 1)
        self._sizes.append(size_bytes)
        for segment in segments:
            self._groups.append(segment.group)
            self._offsets.append(segment.offset)
            self._rows.append(segment.rows)
            self._first_rows.append(segment.first_row)
        self._starts.append(len(self._rows))

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of every shard by its id; asked for when there are no more to add."""
        return {name: place for place, name in enumerate(self.ids)}

    def named(self, name: str) -> Shard:
        """The shard with an id.

        Raises:
            KeyError: There is none.
        """
        return self._at(self.places[name])

    def rows(self, place: int) -> int:
        """Rows of the shard at a position, before any filter."""
        start, stop = self._starts[place], self._starts[place + 1]
        return self._rows[start] if stop - start == 1 else sum(self._rows[start:stop])

    @property
    def rows_total(self) -> int:
        """Rows of all shards, before any filter."""
        return sum(self._rows)

    @property
    def weights(self) -> Iterator[tuple[str, int]]:
        """Id and rows of every shard."""
        return zip(self.ids, map(self.rows, range(len(self))), strict=True)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Shard: ...

    @overload
    def __getitem__(self, place: slice) -> list[Shard]: ...

    def __getitem__(self, place: int | slice) -> Shard | list[Shard]:
        places = range(len(self.ids))[place]
        return [self._at(one) for one in places] if isinstance(places, range) else self._at(places)

    def _at(self, place: int) -> Shard:
        segments = tuple(
            [
                Segment(
                    group=self._groups[at],
                    offset=self._offsets[at],
                    rows=self._rows[at],
                    first_row=self._first_rows[at],
                )
                for at in range(self._starts[place], self._starts[place + 1])
            ]
        )
        return Shard(
            id=self.ids[place],
            index=place,
            file=self._files[self._file[place]],
            segments=segments,
            size_bytes=self._sizes[place],
        )
