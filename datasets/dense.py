"""Columns whose rows all have one shape (numbers, lists, tensors, raw bytes), decoded without a loop over
rows.

Where the rows of a batch lie one behind the other in the Arrow buffer, the values returned are a view of it.
Otherwise (rows of a wrong length, null rows that take no room) good rows are gathered into a new array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.types as pt
from numpy.lib.stride_tricks import sliding_window_view

from .columns import Array, null_mask, plain, spans
from .elements import elements, settle
from .signature import Dim

__all__ = ["DenseRows", "dense_bytes", "dense_lists", "dense_scalars"]

NDArray = np.ndarray[Any, Any]


@dataclass(kw_only=True)
class DenseRows:
    """Rows of one column.

    Attributes:
        values: Shape (rows, *row_shape), possibly a read-only view of an Arrow buffer.
        bad: Why a row cannot be scored, by row.
    """

    values: NDArray
    bad: dict[int, str] = field(default_factory=dict)


def dense_scalars(array: Array, dtype: np.dtype[Any], fill: float | None) -> DenseRows:
    """Decodes one number a row.

    Args:
        array: Numbers, bools or nulls.
        dtype: Dtype of the values returned.
        fill: Replaces nulls; None makes their rows bad.

    Returns:
        Values of shape (rows,).
    """
    values, nulls = elements(array, dtype)
    rows = DenseRows(values=values)
    rows.values = settle(values, nulls, dtype, fill, rows.bad)
    return rows


def dense_lists(array: Array, dims: Sequence[Dim], dtype: np.dtype[Any], fill: float | None) -> DenseRows:
    """Decodes (nested) lists or tensors whose rows have one shape.

    Args:
        array: One list level for each entry of ``dims``, or nulls only.
        dims: Elements wanted at each level. A name stands for any size, the same in every row and at every
            level of that name: that of the first row.
        dtype: Dtype of the values returned.
        fill: Replaces null elements and every element of null lists; None makes their rows bad.

    Returns:
        Values of shape (rows, *dims).
    """
    rows = _gather(array, dims, dtype, fill, "elements")
    return DenseRows(values=settle(rows.values, rows.nulls, dtype, fill, rows.bad), bad=rows.bad)


def dense_bytes(
    array: Array, shape: Sequence[int], stored: np.dtype[Any], dtype: np.dtype[Any], fill: float | None
) -> DenseRows:
    """Decodes raw bytes, one tensor a row, row-major and little-endian.

    Args:
        array: Bytes of fixed or varying width.
        shape: Shape of one row.
        stored: Dtype of the bytes.
        dtype: Dtype of the values returned.
        fill: Fills null rows; None makes them bad.

    Returns:
        Values of shape (rows, *shape).
    """
    width = int(np.prod(shape, dtype=np.int64)) * stored.itemsize
    rows = _gather(array, (width,), np.dtype(np.uint8), fill, "bytes")
    values = rows.values.view(stored).reshape(len(array), *shape)
    nulls = rows.nulls
    if nulls is not None:
        nulls = np.broadcast_to(nulls[:, 0].reshape(-1, *(1 for _ in shape)), values.shape)
    return DenseRows(values=settle(values, nulls, dtype, fill, rows.bad), bad=rows.bad)


@dataclass(kw_only=True)
class _Gathered(DenseRows):
    nulls: NDArray | None = None


def _gather(
    array: Array, dims: Sequence[Dim], when_null: np.dtype[Any], fill: float | None, unit: str
) -> _Gathered:
    """Walks down the list levels, keeping where each wanted entry lies, then takes the values in blocks.

    ``index`` picks the wanted entries out of a level's array (None: all of it, in order); ``absent`` marks
    those that have no value because they, or a list around them, are null or of the wrong length.
    """
    rows = len(array)
    found = _Gathered(values=np.zeros(0))
    sizes: list[int] = []
    named: dict[str, int] = {}
    index: NDArray | None = None
    absent = np.zeros(rows, np.bool_)
    nulls: NDArray | None
    child, starts = plain(array), np.zeros(rows, np.int64)
    for axis, dim in enumerate(dims):
        array = child
        if pt.is_null(array.type):
            starts = lengths = np.zeros_like(starts)
            nulls = np.ones(len(starts), np.bool_)
        else:
            starts, lengths, child = spans(array)
            child, nulls = plain(child), null_mask(array)
            if index is not None and len(array):
                starts, lengths = starts[index], lengths[index]
                nulls = None if nulls is None else nulls[index]
            elif index is not None:
                starts, lengths, nulls = index, index, None
        per_row = max(len(starts) // rows, 1) if rows else 1
        if nulls is not None:
            _note_nulls(nulls & ~absent, per_row, axis, fill, found.bad)
            absent |= nulls
        present = np.flatnonzero(~absent)
        size = named.get(dim) if isinstance(dim, str) else dim
        if size is None:
            size = int(lengths[present[0]]) if len(present) else 0
        if isinstance(dim, str) and (len(present) or dim in named):
            named[dim] = size
        elif isinstance(dim, str):
            for row in range(rows):
                found.bad.setdefault(row, f"no row of the batch tells the size of axis {axis}")
        for entry in present[lengths[present] != size].tolist():
            where = f" on axis {axis}" if axis else ""
            found.bad.setdefault(entry // per_row, f"expected {size} {unit}{where}, got {lengths[entry]}")
            absent[entry] = True
        sizes.append(size)
        if axis == len(dims) - 1:
            break
        first = _first(starts, size, len(child))
        if first is not None:
            child, index = child.slice(first, len(starts) * size), None
        else:
            index = (np.where(absent, 0, starts)[:, None] + np.arange(size)).ravel()
            index[np.repeat(absent, size)] = 0
        absent = np.repeat(absent, size)
        starts = np.zeros(len(absent), np.int64)
    found.values, found.nulls = _take(child, starts, sizes[-1], absent, when_null, fill)
    found.values = found.values.reshape(rows, *sizes)
    found.nulls = None if found.nulls is None else found.nulls.reshape(rows, *sizes)
    return found


def _note_nulls(nulls: NDArray, per_row: int, axis: int, fill: float | None, bad: dict[int, str]) -> None:
    if fill is None:
        for entry in np.flatnonzero(nulls).tolist():
            bad.setdefault(entry // per_row, "null inside the row" if axis else "null")


def _first(starts: NDArray, size: int, available: int) -> int | None:
    """Where the entries begin if they lie one behind the other, ``size`` apart; else None."""
    if len(starts) == 0:
        return 0
    first = int(starts[0])
    fits = 0 <= first <= available - len(starts) * size
    return first if fits and bool((np.diff(starts) == size).all()) else None


def _take(
    child: Array, starts: NDArray, size: int, absent: NDArray, when_null: np.dtype[Any], fill: float | None
) -> tuple[NDArray, NDArray | None]:
    """The entries' values, shape (entries, size), as a view if they lie in order, and the mask of nulls."""
    first = _first(starts, size, len(child))
    if first is not None:
        flat, nulls = elements(child.slice(first, len(starts) * size), when_null)
        values = flat.reshape(len(starts), size)
        mask = None if nulls is None else nulls.reshape(len(starts), size)
    else:
        good = np.flatnonzero(~absent)
        low = int(starts[good].min()) if len(good) else 0
        high = int(starts[good].max()) + size if len(good) else 0
        flat, nulls = elements(child.slice(low, high - low), when_null)
        values = _blocks(flat, starts[good] - low, size, good, len(starts))
        mask = None if nulls is None else _blocks(nulls, starts[good] - low, size, good, len(starts))
    if not absent.any():
        return values, mask
    if mask is not None or fill is not None:
        mask = np.zeros(values.shape, np.bool_) if mask is None else mask.copy()
        mask[absent] = fill is not None
    return values, mask


def _blocks(flat: NDArray, starts: NDArray, size: int, places: NDArray, count: int) -> NDArray:
    out = np.zeros((count, size), flat.dtype)
    if len(starts) and size:
        out[places] = sliding_window_view(flat, size)[starts]
    return out
