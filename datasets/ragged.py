"""Rows of different lengths (token ids): decoded flat, padded by batch, masked, ordered by length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .bound import ColumnBinding
from .columns import null_mask, plain, spans
from .elements import BadRow, cast, elements, fill_value

__all__ = ["Ragged", "decode_ragged", "mask", "order_by_length", "pad"]

NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Rows of different lengths, one behind the other.

    Attributes:
        values: Shape (elements,), the input's dtype; may be a read-only view that keeps the Arrow buffer
            alive.
        offsets: int64 of shape (rows + 1,): row i is ``values[offsets[i]:offsets[i + 1]]``, with offsets[0]
            = 0.
        bad: At most one entry for each bad row, in row order; a bad row has length 0.
    """

    values: NDArray
    offsets: NDArray
    bad: tuple[BadRow, ...] = ()

    @property
    def lengths(self) -> NDArray:
        """Elements of each row, int64 of shape (rows,)."""
        return np.diff(self.offsets)


def decode_ragged(batch: pa.RecordBatch, binding: ColumnBinding) -> Ragged:
    """Decodes a column of lists bound as RAGGED.

    With ``fill_null``, a null element takes that value and a null row becomes one element of it. A view of
    the Arrow buffer is returned when no row is null or bad and the dtypes are the same.

    Raises:
        DatasetError: The column's type is not the one that was bound.
    """
    array, column = binding.column(batch), binding.columns[0]
    fill, limit, dtype = binding.options.fill_null, binding.options.pad_to, binding.input.dtype
    rows = len(array)
    if rows == 0:
        return Ragged(values=np.zeros(0, dtype), offsets=np.zeros(1, np.int64))
    starts, lengths, child = spans(array)
    nulls = null_mask(array)
    absent = np.zeros(rows, np.bool_) if nulls is None else nulls
    lengths = np.where(absent, 0, lengths)
    used = np.flatnonzero(lengths)
    low = int(starts[used].min()) if len(used) else 0
    high = int((starts + lengths)[used].max()) if len(used) else 0
    stored, null_elements = elements(plain(child).slice(low, high - low), dtype)
    offsets = _offsets(lengths)
    in_order = bool((starts[used] - low == offsets[:-1][used]).all())
    if not in_order:
        picked = _positions(starts - low, lengths)
        stored = stored[picked]
        null_elements = None if null_elements is None else null_elements[picked]
    values, misfits = cast(stored, dtype)
    bad: dict[int, str] = {}
    if fill is None and nulls is not None:
        bad |= dict.fromkeys(np.flatnonzero(nulls).tolist(), "null")
    if limit is not None:
        for row in np.flatnonzero(lengths > limit).tolist():
            bad[row] = f"length {lengths[row]} exceeds --pad-to {limit}"
    if null_elements is not None:
        if fill is None:
            bad = dict.fromkeys(_rows_of(null_elements, offsets), "null inside the row") | bad
        else:
            values = values if values is not stored else stored.copy()
            values[null_elements] = fill_value(fill, dtype)
        misfits = None if misfits is None else misfits & ~null_elements
    if misfits is not None:
        for place, row in zip(np.flatnonzero(misfits).tolist(), _rows_of(misfits, offsets), strict=True):
            bad.setdefault(row, f"{stored[place]} does not fit {dtype}")
    if bad or nulls is not None:
        values, offsets = _rebuild(values, offsets, list(bad), absent, fill)
    found = tuple(BadRow(row=row, column=column, reason=bad[row]) for row in sorted(bad))
    return Ragged(values=values, offsets=offsets, bad=found)


def order_by_length(lengths: NDArray, batch_size: int) -> NDArray:
    """The order of rows in which batches need the least padding: longest first, ties as they came.

    Longest first, so that memory runs out in the first batch if it does at all, and the last, partial batch
    is the cheapest. Rows that make a single batch keep their order.

    Returns:
        A permutation, int64 of shape (rows,): place i is taken by row ``permutation[i]``.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if len(lengths) <= batch_size:
        return np.arange(len(lengths), dtype=np.int64)
    return np.argsort(-np.asarray(lengths, np.int64), kind="stable").astype(np.int64, copy=False)


def pad(
    ragged: Ragged, rows: NDArray, *, pad_to: int | None, pad_value: int, dtype: np.dtype[Any]
) -> NDArray:
    """Pads some rows on the right to one width.

    Args:
        ragged: All rows.
        rows: Indices of the rows wanted, in the order wanted.
        pad_to: The width; None takes the longest of the rows, but at least 1.
        pad_value: Value put behind the end of each row.
        dtype: Dtype of the result; the values must fit it.

    Returns:
        A new array of shape (len(rows), width).

    Raises:
        ValueError: A row is longer than ``pad_to``.
    """
    rows = np.asarray(rows, np.int64)
    lengths = ragged.lengths[rows]
    longest = int(lengths.max(initial=1))
    width = longest if pad_to is None else pad_to
    if longest > width:
        raise ValueError(f"a row has {longest} elements, more than the width of {width}")
    out = np.full((len(rows), width), pad_value, dtype)
    out[np.arange(width) < lengths[:, None]] = ragged.values[_positions(ragged.offsets[rows], lengths)]
    return out


def mask(lengths: NDArray, width: int, dtype: np.dtype[Any]) -> NDArray:
    """The attention mask of padded rows: 1 where a row has elements, 0 where it is padded, (rows, width)."""
    return (np.arange(width) < np.asarray(lengths)[:, None]).astype(dtype)


def _offsets(lengths: NDArray) -> NDArray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _positions(starts: NDArray, lengths: NDArray) -> NDArray:
    """Where the elements of the rows lie, row after row."""
    offsets = _offsets(lengths)
    positions: NDArray = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return positions


def _rows_of(marked: NDArray, offsets: NDArray) -> list[int]:
    rows: list[int] = (np.searchsorted(offsets, np.flatnonzero(marked), side="right") - 1).tolist()
    return rows


def _rebuild(
    values: NDArray, offsets: NDArray, bad: list[int], absent: NDArray, fill: float | None
) -> tuple[NDArray, NDArray]:
    """Leaves out the elements of bad rows and gives null rows the one element that fills them."""
    lengths = np.diff(offsets)
    lengths[bad] = 0
    kept = values[_positions(offsets[:-1], lengths)]
    if fill is None:
        return kept, _offsets(lengths)
    lengths[absent] = 1
    rebuilt = _offsets(lengths)
    out = np.full(rebuilt[-1], fill_value(fill, values.dtype), values.dtype)
    out[np.repeat(~absent, lengths)] = kept
    return out, rebuilt
