"""One record batch turned into the values of one model input, whatever kind of column it comes from."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from .bound import ColumnBinding, ColumnKind
from .dense import DenseRows, dense_bytes, dense_lists, dense_scalars
from .elements import BadRow, Decoded
from .images import decode_images
from .ragged import decode_ragged, pad

__all__ = ["BadRow", "Decoded", "decode"]


def decode(
    batch: pa.RecordBatch, binding: ColumnBinding, executor: ThreadPoolExecutor | None = None
) -> Decoded:
    """Decodes the columns of one binding.

    Args:
        batch: The rows; may be a slice.
        binding: What to make of which columns.
        executor: Threads to spread the decoding of images over; None decodes them in this thread.

    Returns:
        Values of shape (len(batch), *row_shape) in the input's dtype: where Arrow's layout allows and the
        dtypes agree, a read-only view of the batch's buffers (also transposed when rows are stored in
        another layout). RAGGED columns are padded to ``pad_to`` or the batch's longest row.

    Raises:
        DatasetError: A column's type is not the one that was bound.
    """
    if binding.kind is ColumnKind.IMAGE:
        return decode_images(batch, binding, executor)
    if binding.kind is ColumnKind.RAGGED:
        ragged = decode_ragged(batch, binding)
        options, dtype = binding.options, binding.input.dtype
        values = pad(
            ragged, np.arange(len(batch)), pad_to=options.pad_to, pad_value=options.pad_value, dtype=dtype
        )
        return Decoded(values=values, bad=ragged.bad)
    if binding.kind is ColumnKind.SCALARS:
        return _decode_scalars(batch, binding)
    rows = _decode_rows(batch, binding)
    values = rows.values.transpose(0, *(axis + 1 for axis in binding.axes))
    return Decoded(values=values, bad=_named(rows.bad, binding.columns[0]))


def _decode_scalars(batch: pa.RecordBatch, binding: ColumnBinding) -> Decoded:
    dtype, fill = binding.input.dtype, binding.options.fill_null
    stacked = _stacked(batch, binding) if len(binding.columns) > 1 else None
    if stacked is not None:
        return Decoded(values=stacked)
    parts: list[np.ndarray[Any, Any]] = []
    bad: dict[int, BadRow] = {}
    for place, column in enumerate(binding.columns):
        part = dense_scalars(binding.column(batch, place), dtype, fill)
        parts.append(part.values)
        for row in _named(part.bad, column):
            bad.setdefault(row.row, row)
    if len(parts) > 1:
        values = np.stack(parts, axis=1)
    else:
        values = parts[0].reshape(len(batch), *(1 for _ in binding.input.row_shape))
    return Decoded(values=values, bad=tuple(bad[row] for row in sorted(bad)))


def _stacked(batch: pa.RecordBatch, binding: ColumnBinding) -> np.ndarray[Any, Any] | None:
    """Columns of the input's own type without nulls as rows; None when they are not all so.

    Arrow transposes them in one call that leaves Python's lock alone; one by one they would cost more of it
    than of the copying.
    """
    wanted = binding.stackable
    if wanted is None:
        return None
    try:
        chosen = batch if batch.schema.names == wanted.names else batch.select(wanted.names)
        if not chosen.schema.equals(wanted):
            return None
        rows: np.ndarray[Any, Any] = chosen.to_tensor(row_major=True).to_numpy()
    except (KeyError, pa.ArrowTypeError):
        # A column is missing, or has nulls.
        return None
    return rows


def _decode_rows(batch: pa.RecordBatch, binding: ColumnBinding) -> DenseRows:
    array = binding.column(batch)
    dtype, fill = binding.input.dtype, binding.options.fill_null
    shape = binding.stored_shape
    if binding.kind is ColumnKind.BYTES and shape is not None:
        return dense_bytes(array, shape, binding.dtype, dtype, fill)
    if binding.flat and shape is not None:
        rows = dense_lists(array, (math.prod(shape),), dtype, fill)
        return DenseRows(values=rows.values.reshape(len(array), *shape), bad=rows.bad)
    return dense_lists(array, binding.dims, dtype, fill)


def _named(bad: dict[int, str], column: str) -> tuple[BadRow, ...]:
    return tuple(BadRow(row=row, column=column, reason=bad[row]) for row in sorted(bad))
