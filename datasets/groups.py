"""What a file's footer says of its row groups, and the same by the million in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import overload

__all__ = ["Group", "Groups"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What a footer says of one row group or record batch.

    Attributes:
        rows: Its rows.
        size_bytes: Uncompressed bytes of the columns the job reads.
        keep: False when statistics prove that no row passes the filter.
    """

    rows: int
    size_bytes: int
    keep: bool = True


class Groups(Sequence[Group]):
    """The groups of one file, in columns; each look makes a `Group` anew.

    Args:
        groups: In the order of the file; rows and bytes must fit 64 bits.
    """

    __slots__ = ("_keep", "_rows", "_sizes")

    def __init__(self, groups: Iterable[Group]) -> None:
        given = tuple(groups)
        self._rows = array("q", [group.rows for group in given])
        self._sizes = array("q", [group.size_bytes for group in given])
        self._keep = bytes(group.keep for group in given)

    @property
    def rows(self) -> int:
        """Rows of the groups to keep."""
        return sum(compress(self._rows, self._keep))

    @property
    def size_bytes(self) -> int:
        """Bytes of the groups to keep."""
        return sum(compress(self._sizes, self._keep))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Group: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Group, ...]: ...

    def __getitem__(self, place: int | slice) -> Group | tuple[Group, ...]:
        if isinstance(place, slice):
            return tuple(self)[place]
        return _group(self._rows[place], self._sizes[place], self._keep[place])

    def __iter__(self) -> Iterator[Group]:
        return map(_group, self._rows, self._sizes, self._keep)


def _group(rows: int, size_bytes: int, keep: int) -> Group:
    return Group(rows=rows, size_bytes=size_bytes, keep=bool(keep))
