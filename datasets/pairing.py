"""The rules by which one column fits one model input: lists and tensors, raw bytes, encoded images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MismatchError
from .bound import BindingOptions, ColumnBinding, ColumnKind
from .columns import NUMPY_TYPES, ColumnType, describe, plain_type
from .elements import castable, fill_value
from .placement import CHANNELS, Placement, guess_layout, place
from .signature import Dim, TensorSpec

__all__ = ["Pairing", "bind_bytes", "bind_lists", "wanted"]

DTYPE_KEY = b"trtfleet.dtype"
SHAPE_KEY = b"trtfleet.shape"


def wanted(spec: TensorSpec) -> str:
    """The dtype and shape of an input without its name: ``float32[N, 3, 224, 224]``."""
    return str(spec).removeprefix(f"{spec.name}: ")


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """An input and one column proposed for it."""

    spec: TensorSpec
    field: Any
    options: BindingOptions

    def mismatch(self, why: str = "", hint: str = "") -> MismatchError:
        """The error that names both sides, with why they do not fit where the types do not say it."""
        fact = f"input {self.spec.name} wants {wanted(self.spec)}, column {self.field.name} holds "
        fact += describe(self.field.type) + (f": {why}" if why else "")
        return MismatchError(fact, hint or f"map another column with --input {self.spec.name}=COLUMN")

    def check_cast(self, dtype: np.dtype[Any]) -> None:
        """Raises MismatchError when values of the dtype cannot be turned into the input's."""
        if not castable(dtype, self.spec.dtype):
            why = f"{dtype} values are not turned into {self.spec.dtype}"
            raise self.mismatch(why, "cast the column when you write it, or convert the model")

    def bound(
        self, kind: ColumnKind, dtype: np.dtype[Any], placement: Placement | None = None, flat: bool = False
    ) -> ColumnBinding:
        """The binding, once the cast is checked."""
        self.check_cast(dtype)
        placement = placement or Placement.of(())
        return ColumnBinding(
            input=self.spec,
            columns=(self.field.name,),
            kind=kind,
            options=self.options,
            dtype=dtype,
            types=(plain_type(self.field.type),),
            dims=placement.dims,
            axes=placement.axes,
            flat=flat,
        )


def bind_lists(pairing: Pairing, held: ColumnType) -> ColumnBinding:
    """Binds a list or tensor column; raises MismatchError when it does not fit."""
    spec, options, dtype = pairing.spec, pairing.options, held.element or pairing.spec.dtype
    if held.form == "list" and len(held.sizes) == 1 and len(spec.row_shape) == 1:
        dim, size = spec.row_shape[0], held.sizes[0]
        padded = options.pad_to is not None and (isinstance(dim, str) or dim == options.pad_to)
        if padded or (isinstance(dim, str) and size is None):
            if options.pad_to is not None and size is not None and size > options.pad_to:
                raise pairing.mismatch(f"rows of {size} exceed --pad-to {options.pad_to}", "raise --pad-to")
            if fill_value(options.pad_value, spec.dtype) is None:
                raise pairing.mismatch(f"pad value {options.pad_value} does not fit {spec.dtype}")
            return pairing.bound(ColumnKind.RAGGED, dtype)
    layout = options.layout or guess_layout(spec.row_shape)
    placement = place(held.sizes, held.permutation, spec.row_shape, layout)
    if placement is not None:
        return pairing.bound(ColumnKind.DENSE, dtype, placement, flat=held.form == "tensor")
    if len(held.sizes) == 1 and spec.is_static and held.sizes[0] in (None, spec.row_elements):
        return pairing.bound(ColumnKind.DENSE, dtype, Placement.of(spec.row_shape), flat=True)
    raise pairing.mismatch()


def bind_bytes(pairing: Pairing, held: ColumnType) -> ColumnBinding:
    """Binds raw bytes or encoded images; raises MismatchError when they do not fit."""
    spec, width = pairing.spec, held.width_bytes
    told = pairing.field.metadata or {}
    if width is None and DTYPE_KEY not in told and SHAPE_KEY not in told:
        return _bind_image(pairing)
    if SHAPE_KEY not in told and not spec.is_static:
        raise pairing.mismatch(
            "bytes do not tell their shape", 'set the field metadata trtfleet.shape, e.g. "1,8,8"'
        )
    shape = _parse_shape(pairing, told[SHAPE_KEY]) if SHAPE_KEY in told else spec.row_shape
    placement = place(
        _ints(shape), (), spec.row_shape, pairing.options.layout or guess_layout(spec.row_shape)
    )
    count = math.prod(_ints(shape))
    if placement is None and len(shape) == 1 and spec.is_static and count == spec.row_elements:
        placement = Placement.of(spec.row_shape)
    if placement is None:
        raise pairing.mismatch(f"its trtfleet.shape is {list(shape)}")
    if DTYPE_KEY in told:
        dtype = _parse_dtype(pairing, told[DTYPE_KEY])
    elif width is None:
        raise pairing.mismatch(
            "bytes do not tell their dtype", 'set the field metadata trtfleet.dtype, e.g. "uint8"'
        )
    else:
        dtype = np.dtype(np.uint8) if width == count and spec.dtype.itemsize > 1 else spec.dtype
    stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    if width is not None and width != count * stored.itemsize:
        raise pairing.mismatch(
            f"{stored}{list(shape)} takes {count * stored.itemsize} bytes a row, not {width}"
        )
    return pairing.bound(ColumnKind.BYTES, stored, placement)


def _ints(shape: Sequence[Dim]) -> list[int]:
    return [dim for dim in shape if isinstance(dim, int)]


def _parse_shape(pairing: Pairing, text: bytes) -> tuple[int, ...]:
    parts = text.decode(errors="replace").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise pairing.mismatch(
            f"its trtfleet.shape is {','.join(parts)!r}", 'write sizes >= 1 such as "1,8,8"'
        )
    return tuple(int(part) for part in parts)


def _parse_dtype(pairing: Pairing, text: bytes) -> np.dtype[Any]:
    for dtype in NUMPY_TYPES.values():
        if dtype.name == text.decode(errors="replace").strip():
            return dtype
    known = ", ".join(dtype.name for dtype in NUMPY_TYPES.values())
    raise pairing.mismatch(
        f"its trtfleet.dtype is {text.decode(errors='replace')!r}", f"write one of {known}"
    )


def _bind_image(pairing: Pairing) -> ColumnBinding:
    spec, resize = pairing.spec, pairing.options.resize
    layout = pairing.options.layout or guess_layout(spec.row_shape)
    channels = spec.row_shape[0 if layout == "nchw" else 2] if layout and len(spec.row_shape) == 3 else None
    if channels not in CHANNELS or not np.can_cast(np.uint8, spec.dtype, "safe"):
        raise pairing.mismatch(
            "encoded images give uint8 rows with 1, 3 or 4 channels first (nchw) or last (nhwc)",
            "if these are raw numbers, set the field metadata trtfleet.dtype and trtfleet.shape",
        )
    height, width = spec.row_shape[1:] if layout == "nchw" else spec.row_shape[:2]
    if resize is not None:
        for size, dim in zip(resize, (height, width), strict=True):
            if isinstance(dim, int) and dim != size:
                asked = f"--resize {resize[0]}x{resize[1]} contradicts its {height}x{width}"
                raise pairing.mismatch(asked, "leave --resize out: the input's own size is used")
        height, width = resize
    axes = (2, 0, 1) if layout == "nchw" else (0, 1, 2)
    placement = Placement(dims=(height, width, channels), axes=axes)
    return pairing.bound(ColumnKind.IMAGE, np.dtype(np.uint8), placement)
