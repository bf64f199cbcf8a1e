"""Finding the rows that make an operation fail, by halving."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import TrtfleetError

__all__ = ["isolate"]

T = TypeVar("T")


def isolate(
    rows: int, work: Callable[[int, int], T], start: int = 0
) -> tuple[list[tuple[int, int, T]], list[tuple[int, Exception]]]:
    """Applies ``work`` to a range of rows, halving it where it raises, down to single rows.

    Args:
        rows: How many rows.
        work: Called with the first row and the row after the last; must be repeatable.
        start: The first row.

    Returns:
        The pieces that went well, in order, as (first row, row after the last, result), and the rows that
        failed alone, with what they raised.

    Raises:
        TrtfleetError: ``work`` raised one: it blames the job, not a row.
    """
    if rows < 1:
        return [], []
    try:
        return [(start, start + rows, work(start, start + rows))], []
    except TrtfleetError:
        raise
    except Exception as error:
        if rows == 1:
            return [], [(start, error)]
    half = rows // 2
    good, bad = isolate(half, work, start)
    more_good, more_bad = isolate(rows - half, work, start + half)
    return good + more_good, bad + more_bad
