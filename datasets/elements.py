"""The numbers inside Arrow arrays as NumPy arrays: views where Arrow allows, checked casts elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.types as pt

from .columns import NUMPY_TYPES, Array, null_mask, plain

__all__ = ["BadRow", "Decoded", "cast", "castable", "elements", "fill_value", "settle"]

NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """One row that cannot be scored.

    Attributes:
        row: Index of the row in its batch.
        column: The column at fault.
        reason: What is wrong with it, with the numbers found and expected.
    """

    row: int
    column: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One model input's values for a batch of rows.

    Attributes:
        values: Shape (rows, *row_shape), the input's dtype. May be a read-only view that keeps the Arrow
            buffer alive, and need not be contiguous. Values of bad rows are unspecified.
        bad: At most one entry for each bad row, in row order.
    """

    values: NDArray
    bad: tuple[BadRow, ...] = ()


def elements(array: Array, when_null: np.dtype[Any]) -> tuple[NDArray, NDArray | None]:
    """The values of an array of numbers, and which of them are null.

    Args:
        array: Numbers, bools (unpacked to one byte each, so copied) or nulls; may be sliced or
            dictionary-encoded.
        when_null: The dtype to give an array of Arrow's null type.

    Returns:
        Values of shape (len(array),), a view of the Arrow buffer; and a bool mask of the nulls or None.
        Values of null entries are unspecified.
    """
    array = plain(array)
    count = len(array)
    if pt.is_null(array.type):
        return np.zeros(count, when_null), np.ones(count, np.bool_) if count else None
    dtype = NUMPY_TYPES[array.type]
    data = array.buffers()[1]
    if count == 0 or data is None:
        return np.zeros(count, dtype), null_mask(array)
    if dtype == np.bool_:
        first, last = array.offset // 8, (array.offset + count + 7) // 8
        bits = np.unpackbits(np.frombuffer(data, np.uint8, last - first, first), bitorder="little")
        return bits[array.offset % 8 :][:count].view(np.bool_), null_mask(array)
    return np.frombuffer(data, dtype, count, array.offset * dtype.itemsize), null_mask(array)


def castable(stored: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether values may be turned from one dtype into another; floats never become integers."""
    if wanted.kind == "f":
        return stored.kind in "biuf"
    return wanted.kind in "biu" and stored.kind in "biu"


def cast(values: NDArray, dtype: np.dtype[Any]) -> tuple[NDArray, NDArray | None]:
    """Casts values, noting those that do not fit.

    Bools count as integers 0 and 1. An integer fits when the dtype holds it exactly; a finite number fits a
    float dtype when it does not overflow to infinity (rounding is accepted). NaN and infinities always fit.

    Returns:
        The cast values (``values`` itself when the dtype is the same) and a bool mask of misfits, or None.
    """
    if values.dtype == dtype:
        return values, None
    misfits: NDArray | None = None
    if dtype.kind != "f":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        unsafe = values.size and not np.can_cast(values.dtype, dtype, "safe")
        if unsafe and (int(values.min()) < low or int(values.max()) > high):
            misfits = (values < low) | (values > high)
        return values.astype(dtype), misfits
    with np.errstate(all="ignore"):
        out = values.astype(dtype)
    if not np.can_cast(values.dtype, dtype, "safe"):
        overflowed = np.isinf(out)
        if overflowed.any():
            misfits = overflowed & np.isfinite(values)
    return out, misfits


def fill_value(value: float, dtype: np.dtype[Any]) -> Any:
    """``value`` as a scalar of the dtype; None when the dtype cannot hold it."""
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            scalar = dtype.type(value)
        return scalar if np.isfinite(scalar) or not np.isfinite(value) else None
    if not np.isfinite(value) or value != int(value):
        return None
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return dtype.type(int(value)) if low <= int(value) <= high else None


def settle(
    values: NDArray, nulls: NDArray | None, dtype: np.dtype[Any], fill: float | None, bad: dict[int, str]
) -> NDArray:
    """Casts gathered values, fills their nulls and names the rows that fail.

    Args:
        values: Stored values, shape (rows, ...).
        nulls: Which of them are null (same shape), or None.
        dtype: The dtype wanted.
        fill: What to put in place of nulls; None makes their rows bad.
        bad: Reasons by row; rows found here are added, rows already there keep their reason.

    Returns:
        Values of the wanted dtype; ``values`` itself when nothing had to change.
    """
    inner = tuple(range(1, values.ndim))
    if nulls is not None and fill is None:
        for row in np.flatnonzero(nulls.any(axis=inner)).tolist():
            bad.setdefault(row, "null inside the row" if inner else "null")
    out, misfits = cast(values, dtype)
    if misfits is not None:
        if nulls is not None:
            misfits &= ~nulls
        for row in np.flatnonzero(misfits.any(axis=inner)).tolist():
            value = values[row][misfits[row]].flat[0] if inner else values[row]
            bad.setdefault(row, f"{value} does not fit {dtype}")
    if nulls is not None and fill is not None:
        out = out if out is not values else values.copy()
        out[nulls] = fill_value(fill, dtype)
    return out
