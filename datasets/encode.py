"""Numpy arrays as Arrow columns: what a model answers, on its way to Parquet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

__all__ = ["to_array", "to_list_array"]


def to_array(values: np.ndarray) -> pa.Array:
    """A column of one entry a row, sharing the array's memory where Arrow can.

    Args:
        values: (n,) or (n, 1) become plain values, (n, k) a fixed-size list, higher ranks a
            fixed_shape_tensor.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 1:
        return _plain(values)
    flat = _plain(np.ascontiguousarray(values).reshape(-1))
    width = math.prod(values.shape[1:])
    if width == 0:
        return pa.array([[]] * len(values), pa.list_(flat.type))
    lists = pa.FixedSizeListArray.from_arrays(flat, width)
    if values.ndim == 2:
        return lists
    tensor = pa.fixed_shape_tensor(flat.type, values.shape[1:])
    return pa.ExtensionArray.from_storage(tensor, lists)


def to_list_array(values: np.ndarray, is_free: Sequence[bool], lengths: np.ndarray | None = None) -> pa.Array:
    """A column of nested lists, of the same type whatever the sizes of this batch are.

    Args:
        values: (n, ...) with at least one axis besides the rows.
        is_free: For each of those axes whether its size may differ between batches; such an axis becomes a
            variable list, the others fixed-size lists.
        lengths: int64[n], keeps only so many entries of each row along the first axis, which must be free.
    """
    entries = _lists(values.reshape(-1, *values.shape[2:]), is_free[1:])
    if lengths is None:
        return _wrap(entries, len(values), values.shape[1], is_free[0])
    kept = np.arange(values.shape[1]) < lengths[:, None]
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), entries.filter(pa.array(kept.reshape(-1)))
    )


def _lists(values: np.ndarray, is_free: Sequence[bool]) -> pa.Array:
    if values.ndim == 1:
        return _plain(values)
    entries = _lists(values.reshape(-1, *values.shape[2:]), is_free[1:])
    return _wrap(entries, len(values), values.shape[1], is_free[0])


def _plain(values: np.ndarray) -> pa.Array:
    if values.dtype.kind not in "iuf" or not values.dtype.isnative:
        return pa.array(np.ascontiguousarray(values))
    # Numbers need none of what pa.array looks for, pandas among it, which it imports at its first call.
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def _wrap(entries: pa.Array, count: int, size: int, is_free: bool) -> pa.Array:
    if not is_free:
        return pa.FixedSizeListArray.from_arrays(entries, size)
    return pa.LargeListArray.from_arrays(pa.array(np.arange(count + 1) * size), entries)
