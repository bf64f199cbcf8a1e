"""Which columns can be kept in the fast layout, and their values on the way there.

The fast layout is ``FixedSizeBinary``: the numbers of a row one behind the other, row-major and
little-endian, with their dtype and shape in the field's metadata. Parquet copies such bytes, where it decodes
lists element by element.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from ..errors import DatasetError, MismatchError
from .bindings import bind
from .bound import BindingOptions, ColumnBinding
from .columns import ColumnType, column_type, describe, plain, plain_type
from .dense import dense_lists
from .images import decode_images
from .pairing import DTYPE_KEY, SHAPE_KEY
from .signature import TensorSpec

__all__ = ["FastColumn", "candidates", "is_fast", "settle"]

NDArray = np.ndarray[Any, Any]
_EXTENSION = b"ARROW:extension:"


@dataclass(frozen=True, kw_only=True)
class FastColumn:
    """A column and the fast layout it gets.

    Attributes:
        name: Its name.
        stored: Its Arrow type so far.
        dtype: Of one element.
        shape: Of one row.
        image: How encoded images become pixels; None for a column of numbers.
    """

    name: str
    stored: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    image: ColumnBinding | None = None

    @property
    def width_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def field(self, old: pa.Field) -> pa.Field:
        """The column's field in the fast layout, with whatever else the old one's metadata says."""
        kept = {key: text for key, text in (old.metadata or {}).items() if not key.startswith(_EXTENSION)}
        told = {DTYPE_KEY: self.dtype.name.encode(), SHAPE_KEY: ",".join(map(str, self.shape)).encode()}
        return pa.field(old.name, pa.binary(self.width_bytes), old.nullable, {**kept, **told})

    def encode(
        self, batch: pa.RecordBatch, place: str, first_row: int, executor: ThreadPoolExecutor | None = None
    ) -> pa.Array:
        """The column's rows as FixedSizeBinary, sharing the batch's memory where they lie in order.

        Args:
            batch: Some rows.
            place: Their file, for messages.
            first_row: The first one's number in it.
            executor: Threads to decode images on; None decodes them in this thread.

        Raises:
            DatasetError: A row is null, holds a null, has another shape, or is no image.
        """
        if self.image is not None:
            decoded = decode_images(batch, self.image, executor)
            values, bad = decoded.values, {row.row: row.reason for row in decoded.bad}
        else:
            values, bad = self._numbers(plain(batch.column(batch.schema.get_field_index(self.name))))
        if bad:
            row = min(bad)
            raise self.refusal(place, first_row + row, bad[row])
        flat = np.ascontiguousarray(values).reshape(-1)
        data = pa.py_buffer(flat.view(np.uint8))
        return pa.Array.from_buffers(pa.binary(self.width_bytes), batch.num_rows, [None, data])

    def _numbers(self, array: Any) -> tuple[NDArray, dict[int, str]]:
        if not isinstance(array.type, pa.FixedShapeTensorType):
            rows = dense_lists(array, self.shape, self.dtype, None)
            return rows.values, rows.bad
        rows = dense_lists(array, (math.prod(self.shape),), self.dtype, None)
        axes = array.type.permutation or range(len(self.shape))
        values = rows.values.reshape(len(array), *array.type.shape)
        return values.transpose(0, *(axis + 1 for axis in axes)), rows.bad

    def refusal(self, place: str, row: int, why: str) -> DatasetError:
        """The error for a row that does not fit."""
        return _refusal(place, row, self.name, why)


def _refusal(place: str, row: int, name: str, why: str) -> DatasetError:
    return DatasetError(
        f"{place}, row {row:,}, column {name}: {why}; every row must have the same shape",
        "leave the column out by naming the others with --column, or repair the row",
    )


def is_fast(field: pa.Field) -> bool:
    """Whether a column is in the fast layout already."""
    kind = plain_type(field.type)
    return bool(pt.is_fixed_size_binary(kind)) and SHAPE_KEY in (field.metadata or {})


def candidates(schema: pa.Schema, names: Sequence[str], images: bool) -> list[str]:
    """The columns that may be converted, judged by their types.

    Args:
        schema: The columns there are.
        names: Columns asked for; all when empty.
        images: Whether bytes of varying width are taken for encoded images.

    Raises:
        MismatchError: A column asked for is missing or cannot be converted.
    """
    for name in names:
        if name not in schema.names:
            near = difflib.get_close_matches(name, schema.names, n=3, cutoff=0.5)
            listed = f"nearest: {', '.join(near)}" if near else f"columns: {', '.join(schema.names[:20])}"
            raise MismatchError(f"--column names column {name!r}, which the data lacks", listed)
        field = schema.field(name)
        if not _fits(field, images):
            why, hint = _why_not(field)
            raise MismatchError(f"column {name} holds {describe(field.type)}, {why}", hint)
    return [field.name for field in schema if (not names or field.name in names) and _fits(field, images)]


def _fits(field: pa.Field, images: bool) -> bool:
    held = column_type(field.type)
    if held is None:
        return False
    if held.form in ("list", "tensor"):
        return held.element is not None
    return images and _may_be_image(held, field)


def _may_be_image(held: ColumnType, field: pa.Field) -> bool:
    told = field.metadata or {}
    return held.form == "bytes" and held.width_bytes is None and not {SHAPE_KEY, DTYPE_KEY} & set(told)


def _why_not(field: pa.Field) -> tuple[str, str]:
    held = column_type(field.type)
    if held is not None and held.form == "bytes":
        if _may_be_image(held, field):
            return "encoded images perhaps", "say the size they shall have with --resize HxW"
        return "which is read fast already", "leave it out"
    return "which is no list or tensor of numbers", "leave it out: it is carried along as it is"


def settle(
    first: pa.RecordBatch,
    place: str,
    names: Sequence[str],
    asked: Sequence[str],
    size: tuple[int, int] | None,
    channels: int,
) -> list[FastColumn]:
    """Fixes the shape of each candidate by the dataset's first row.

    Args:
        first: That row; its schema must have the fields' metadata.
        place: Its file, for messages.
        names: The candidates.
        asked: Those that were named; bytes that are no image are only passed over where they were not.
        size: Height and width of decoded images.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA) of decoded images.

    Raises:
        DatasetError: The row is null, empty or ragged, or no image though it was named one.
    """
    found: list[FastColumn] = []
    for name in names:
        column = (
            _image(first, name, size, channels)
            if size and _is_bytes(first, name)
            else _list(first, place, name)
        )
        if column.image is not None:
            bad = decode_images(first, column.image).bad
            if bad and name not in asked and bad[0].reason.startswith("not a "):
                continue
            if bad:
                raise column.refusal(place, 0, bad[0].reason)
        found.append(column)
    return found


def _is_bytes(first: pa.RecordBatch, name: str) -> bool:
    held = column_type(first.schema.field(name).type)
    return held is not None and held.form == "bytes"


def _image(first: pa.RecordBatch, name: str, size: tuple[int, int], channels: int) -> FastColumn:
    shape = (*size, channels)
    wanted = TensorSpec(name=name, dtype=np.dtype(np.uint8), row_shape=shape)
    image = bind(wanted, [name], first.schema, BindingOptions(layout="nhwc"))
    kind = first.schema.field(name).type
    return FastColumn(name=name, stored=kind, dtype=wanted.dtype, shape=shape, image=image)


def _list(first: pa.RecordBatch, place: str, name: str) -> FastColumn:
    kind = first.schema.field(name).type
    held = column_type(kind)
    assert held is not None
    assert held.element is not None
    sizes = held.sizes
    if held.form == "list":
        dims = [f"axis {axis}" if size is None else size for axis, size in enumerate(sizes)]
        rows = dense_lists(first.column(name), dims, held.element, None)
        if rows.bad:
            raise _refusal(place, 0, name, rows.bad[0])
        sizes = rows.values.shape[1:]
    shape = tuple(size for size in sizes if size is not None)
    if 0 in shape:
        raise _refusal(place, 0, name, "no elements")
    return FastColumn(name=name, stored=kind, dtype=held.element, shape=shape)
