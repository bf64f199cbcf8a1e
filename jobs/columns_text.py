"""Rows of words in columns, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["in_columns"]

_GAP = "  "


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the words of each column below each other; a column that is empty everywhere is left out."""
    count = max((len(row) for row in rows), default=0)
    padded = [[*row, *[""] * (count - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in padded) for column in range(count)]
    kept = [column for column in range(count) if any(row[column] for row in padded[1:])]
    return [_GAP.join(row[column].ljust(widths[column]) for column in kept).rstrip() for row in padded]
