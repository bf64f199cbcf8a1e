"""The rows in which two networks differ most: which ones does not depend on who compared them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .outputs import RowErrors

__all__ = ["WorstRow", "choose_worst", "keep_worst", "plain_key"]

_LONGEST_TEXT = 200


@dataclass(frozen=True, kw_only=True)
class WorstRow:
    """A row in which two networks differ.

    Attributes:
        position: Its place in the sample.
        file: URL of its file.
        row: Its number in the file.
        key: The values that were kept of it, as JSON can hold them.
        output: The output of the first network with the largest relative error.
        error: That relative error; may be infinite.
        agrees: Whether all answers are the same.
        answers: The classes of both networks, of the first output that scores classes and differs, else of
            the first that scores classes; None without one.
    """

    position: int
    file: str
    row: int
    key: Mapping[str, Any] = field(hash=False)
    output: str
    error: float
    agrees: bool
    answers: tuple[int, int] | None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what ``vars`` and JSON made of one."""
        answers = values["answers"]
        return cls(**{**values, "answers": None if answers is None else (int(answers[0]), int(answers[1]))})


def keep_worst(rows: Iterable[WorstRow], most: int) -> tuple[WorstRow, ...]:
    """The worst rows first: other answers before larger errors, and of equal ones the first in the sample."""
    return tuple(sorted(rows, key=lambda row: (row.agrees, -row.error, row.position))[:most])


def choose_worst(errors: Sequence[RowErrors], most: int) -> list[tuple[int, int, bool, float]]:
    """Chooses the worst rows of a batch; rows without any error are none.

    Args:
        errors: Of each output.
        most: How many.

    Returns:
        Of each: its place in the batch, the output with the largest relative error, whether all answers are
        the same, and that error.
    """
    relative = np.stack([one.relative for one in errors])
    agrees = np.all([one.agrees for one in errors], axis=0)
    largest = relative.max(axis=0)
    order = np.lexsort((np.arange(len(largest)), -largest, agrees))[:most]
    at: NDArray[np.int64] = relative.argmax(axis=0)
    return [
        (row, int(at[row]), bool(agrees[row]), float(largest[row]))
        for row in order.tolist()
        if largest[row] > 0 or not agrees[row]
    ]


def plain_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """Kept columns of one row as JSON can hold them; what else there is becomes text."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value[:_LONGEST_TEXT] if isinstance(value, str) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value[: _LONGEST_TEXT // 2].hex()
    return str(value)[:_LONGEST_TEXT]
