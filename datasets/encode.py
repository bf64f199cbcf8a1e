"""Numpy arrays as Arrow columns: what a model answers, on its way to Parquet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

__all__ = ["to_array", "to_ragged_array"]


def to_array(values: np.ndarray) -> pa.Array:
    """A column of one entry a row, sharing the array's memory where Arrow can.

    Args:
        values: (n,) or (n, 1) become plain values, (n, k) a fixed-size list, higher ranks a
            fixed_shape_tensor.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 1:
        return pa.array(np.ascontiguousarray(values))
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    width = int(np.prod(values.shape[1:]))
    if width == 0:
        return pa.array([[]] * len(values), pa.list_(flat.type))
    lists = pa.FixedSizeListArray.from_arrays(flat, width)
    if values.ndim == 2:
        return lists
    tensor = pa.fixed_shape_tensor(flat.type, values.shape[1:])
    return pa.ExtensionArray.from_storage(tensor, lists)


def to_ragged_array(rows: list[np.ndarray]) -> pa.Array:
    """A list column of rows that differ in their first dimension.

    Args:
        rows: Arrays of shape (length, ...), all with the same trailing shape and dtype.
    """
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    joined = np.concatenate(rows) if rows else np.empty((0,), np.float32)
    inner = pa.array(np.ascontiguousarray(joined).reshape(-1))
    if joined.ndim > 1:
        inner = pa.FixedSizeListArray.from_arrays(inner, int(np.prod(joined.shape[1:])))
    return pa.LargeListArray.from_arrays(pa.array(offsets), inner)
