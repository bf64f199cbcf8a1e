"""Arrow column types read as shapes: which types can hold tensor rows, and where their values lie.

A column may wrap its values: a dictionary encoding, a ``struct<bytes, path>`` as HuggingFace datasets stores
images, an extension type. ``plain`` takes the wrapping off; below it there are six forms: null, numbers,
lists (also views, fixed sizes and nested), ``fixed_shape_tensor``, and raw bytes of fixed or varying width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

__all__ = [
    "NUMPY_TYPES",
    "ColumnType",
    "column_type",
    "describe",
    "null_mask",
    "plain",
    "plain_type",
    "spans",
]

Array = Any
"""A pyarrow Array of any type; the stubs give each type a class of its own."""

NUMPY_TYPES: dict[pa.DataType, np.dtype[Any]] = {
    pa.bool_(): np.dtype(np.bool_),
    pa.int8(): np.dtype(np.int8),
    pa.int16(): np.dtype(np.int16),
    pa.int32(): np.dtype(np.int32),
    pa.int64(): np.dtype(np.int64),
    pa.uint8(): np.dtype(np.uint8),
    pa.uint16(): np.dtype(np.uint16),
    pa.uint32(): np.dtype(np.uint32),
    pa.uint64(): np.dtype(np.uint64),
    pa.float16(): np.dtype(np.float16),
    pa.float32(): np.dtype(np.float32),
    pa.float64(): np.dtype(np.float64),
}


@dataclass(frozen=True, kw_only=True)
class ColumnType:
    """What an Arrow type holds, seen as rows of a tensor.

    Attributes:
        form: ``null`` (nothing but nulls), ``scalar``, ``list``, ``tensor`` (fixed_shape_tensor) or
            ``bytes``.
        element: Type of one number; None for nulls (any dtype serves) and for bytes (the type does not say).
        sizes: Shape of one row in its logical order, None where rows may differ; empty for scalars and bytes.
        permutation: Axis i of the logical order is axis ``permutation[i]`` in memory.
        width_bytes: Bytes of one row for fixed-width bytes, else None.
    """

    form: Literal["null", "scalar", "list", "tensor", "bytes"]
    element: np.dtype[Any] | None = None
    sizes: tuple[int | None, ...] = ()
    permutation: tuple[int, ...] = ()
    width_bytes: int | None = None

    @property
    def row_elements(self) -> int | None:
        """Elements of one row; None when rows may differ."""
        known = [size for size in self.sizes if size is not None]
        return math.prod(known) if len(known) == len(self.sizes) else None


def plain_type(kind: Any) -> Any:
    """The type below dictionary encoding, ``struct<bytes, ...>``, views of bytes and extension types."""
    if pt.is_dictionary(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.FixedShapeTensorType):
        return kind
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pt.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = plain_type(kind.field("bytes").type)
        return inner if pt.is_binary(inner) or pt.is_large_binary(inner) else kind
    return pa.large_binary() if kind == pa.binary_view() else kind


def plain(array: Array) -> Array:
    """The array below its wrapping; its type is ``plain_type(array.type)``. Copies only what is encoded."""
    kind = array.type
    if plain_type(kind) == kind:
        return array
    if pt.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage)
    if pt.is_struct(kind):
        return plain(pc.struct_field(array, "bytes"))
    return array.cast(pa.large_binary())


def _is_list(kind: Any) -> bool:
    return bool(
        pt.is_list(kind)
        or pt.is_large_list(kind)
        or pt.is_fixed_size_list(kind)
        or pt.is_list_view(kind)
        or pt.is_large_list_view(kind)
    )


def column_type(kind: Any) -> ColumnType | None:
    """Reads an Arrow type; None for one that holds no tensor rows (strings, timestamps, maps, ...)."""
    kind = plain_type(kind)
    if pt.is_null(kind):
        return ColumnType(form="null")
    if kind in NUMPY_TYPES:
        return ColumnType(form="scalar", element=NUMPY_TYPES[kind])
    if isinstance(kind, pa.FixedShapeTensorType):
        axes = tuple(kind.permutation or range(len(kind.shape)))
        if kind.value_type not in NUMPY_TYPES:
            return None
        sizes = tuple(kind.shape[axis] for axis in axes)
        return ColumnType(form="tensor", element=NUMPY_TYPES[kind.value_type], sizes=sizes, permutation=axes)
    if pt.is_fixed_size_binary(kind):
        return ColumnType(form="bytes", width_bytes=kind.byte_width)
    if pt.is_binary(kind) or pt.is_large_binary(kind):
        return ColumnType(form="bytes")
    if not _is_list(kind):
        return None
    inner = column_type(kind.value_type)
    if inner is None or inner.form not in ("null", "scalar", "list"):
        return None
    size = kind.list_size if pt.is_fixed_size_list(kind) else None
    return ColumnType(form="list", element=inner.element, sizes=(size, *inner.sizes))


def describe(kind: Any) -> str:
    """A type in the words of a message: ``list<float>[10]``, ``tensor<uint8>[8, 8]``, ``fixed bytes[64]``."""
    if isinstance(kind, pa.FixedShapeTensorType):
        axes = kind.permutation or range(len(kind.shape))
        return f"tensor<{kind.value_type}>{[kind.shape[axis] for axis in axes]}"
    if pt.is_fixed_size_list(kind):
        return f"list<{describe(kind.value_type)}>[{kind.list_size}]"
    if pt.is_fixed_size_binary(kind):
        return f"fixed bytes[{kind.byte_width}]"
    if _is_list(kind):
        name = str(kind).partition("<")[0]
        return f"{name}<{describe(kind.value_type)}>"
    return str(kind)


def null_mask(array: Array) -> np.ndarray[Any, Any] | None:
    """Which entries are null, bool of shape (len(array),); None when none is."""
    if array.null_count == 0:
        return None
    mask: np.ndarray[Any, Any] = array.is_null().to_numpy(zero_copy_only=False)
    return mask


def spans(array: Array) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Array]:
    """Where each entry of a plain list, tensor or bytes array lies in its child.

    Returns:
        First element and length of each entry (int64, both of shape (len(array),), also for sliced arrays),
        and the child: an array of the list's values, or of uint8 for bytes. No value is copied. Spans of null
        entries mean nothing.
    """
    array = array.storage if isinstance(array.type, pa.FixedShapeTensorType) else array
    kind, count = array.type, len(array)
    if pt.is_fixed_size_list(kind) or pt.is_fixed_size_binary(kind):
        is_bytes = pt.is_fixed_size_binary(kind)
        size = kind.byte_width if is_bytes else kind.list_size
        starts = np.arange(array.offset, array.offset + count, dtype=np.int64) * size
        child = _bytes_child(array.buffers()[1]) if is_bytes else array.values
        return starts, np.full(count, size, np.int64), child
    if pt.is_list_view(kind) or pt.is_large_list_view(kind):
        starts = array.offsets.to_numpy()[:count].astype(np.int64)
        return starts, array.sizes.to_numpy()[:count].astype(np.int64), array.values
    wide = pt.is_large_list(kind) or pt.is_large_binary(kind)
    dtype = np.dtype(np.int64 if wide else np.int32)
    if count == 0:
        offsets = np.zeros(1, np.int64)
    else:
        offsets = np.frombuffer(array.buffers()[1], dtype, count + 1, array.offset * dtype.itemsize)
        offsets = offsets.astype(np.int64)
    is_bytes = pt.is_binary(kind) or pt.is_large_binary(kind)
    child = _bytes_child(array.buffers()[2]) if is_bytes else array.values
    return offsets[:-1], np.diff(offsets), child


def _bytes_child(data: Any) -> Array:
    size = 0 if data is None else data.size
    return pa.Array.from_buffers(pa.uint8(), size, [None, pa.py_buffer(b"") if data is None else data])
