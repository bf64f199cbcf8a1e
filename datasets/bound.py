"""What binding a model input to columns is told and what it yields."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import DatasetError, UsageError
from .columns import Array, describe, plain, plain_type
from .placement import Layout, guess_layout
from .signature import Dim, TensorSpec

__all__ = ["BindingOptions", "ColumnBinding", "ColumnKind"]


class ColumnKind(StrEnum):
    """How columns turn into a tensor."""

    SCALARS = "scalars"
    DENSE = "dense"
    BYTES = "bytes"
    IMAGE = "image"
    RAGGED = "ragged"


@dataclass(frozen=True, kw_only=True)
class BindingOptions:
    """What the user says about one input's columns.

    Attributes:
        fill_null: Value for nulls; None makes a row with a null a bad row.
        resize: Height and width that encoded images are resized to; other columns ignore it.
        layout: Layout of the tensor the input wants, for images; None guesses it from the channel axis.
        pad_to: Length that ragged rows are padded to; None pads to the longest row of each batch. Ignored by
            columns that are not ragged.
        pad_value: What ragged rows are padded with.
    """

    fill_null: float | None = None
    resize: tuple[int, int] | None = None
    layout: Layout | None = None
    pad_to: int | None = None
    pad_value: int = 0

    def __post_init__(self) -> None:
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise UsageError(f"resize must be a height and a width >= 1, got {self.resize}", "say 224x224")
        if self.layout not in (None, "nhwc", "nchw"):
            raise UsageError(f"layout must be nhwc or nchw, got {self.layout!r}", "say nhwc or nchw")
        if self.pad_to is not None and self.pad_to < 1:
            raise UsageError(f"pad_to must be >= 1, got {self.pad_to}", "give a length of at least 1")


@dataclass(frozen=True, kw_only=True)
class ColumnBinding:
    """Columns bound to an input; made by ``bindings.bind``, can be pickled.

    Attributes:
        input: The tensor to produce.
        columns: Columns it is made of; several only for SCALARS.
        kind: How they turn into it.
        options: What the user said about them.
        dtype: Element type as stored (uint8 for images and for raw bools; the input's own where the columns
            hold nulls only or differ among themselves).
        types: Arrow type of each column below its wrapping, as ``columns.plain_type`` gives it.
        dims: Shape of one stored row as it lies in memory; a name where only the rows tell. For images
            (height, width, channels) after resizing. Empty for scalars and for RAGGED.
        axes: Axis i of the input's row is axis ``axes[i]`` of ``dims``.
        flat: Whether a row is stored as one flat list although ``dims`` has another rank.
    """

    input: TensorSpec
    columns: tuple[str, ...]
    kind: ColumnKind
    options: BindingOptions
    dtype: np.dtype[Any]
    types: tuple[Any, ...]
    dims: tuple[Dim, ...] = ()
    axes: tuple[int, ...] = ()
    flat: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...] | None:
        """Shape of one row as it lies in memory; None while it is only known from the rows."""
        if self.kind is ColumnKind.SCALARS:
            return () if not self.input.row_shape else (len(self.columns),)
        known = tuple(dim for dim in self.dims if isinstance(dim, int))
        return known if self.kind is not ColumnKind.RAGGED and len(known) == len(self.dims) else None

    @property
    def stored_layout(self) -> Layout | None:
        """Layout in memory of rows that look like images, whatever the input's own; None for others."""
        if self.kind is ColumnKind.IMAGE:
            return "nhwc"
        layout = self.options.layout or guess_layout(self.input.row_shape)
        if len(self.axes) != 3 or layout is None:
            return None
        channels = self.axes[0 if layout == "nchw" else 2]
        return "nchw" if channels == 0 else "nhwc" if channels == 2 else None

    @cached_property
    def stackable(self) -> pa.Schema | None:
        """The columns of SCALARS when all are of the input's own type, so that Arrow can stack them."""
        dtype = self.input.dtype
        kind = pa.from_numpy_dtype(dtype) if dtype.kind in "iuf" else None
        if kind is None or any(found != kind for found in self.types):
            return None
        return pa.schema([(name, kind) for name in self.columns])

    def column(self, batch: pa.RecordBatch, place: int = 0) -> Array:
        """The binding's column number ``place`` of a batch, below its wrapping.

        Raises:
            DatasetError: The batch lacks the column or holds it as another type than the one bound.
        """
        name = self.columns[place]
        index = batch.schema.get_field_index(name)
        found = "nothing" if index < 0 else describe(plain_type(batch.schema.field(index).type))
        if index < 0 or plain_type(batch.schema.field(index).type) != self.types[place]:
            raise DatasetError(
                f"column {name} holds {found} here, {describe(self.types[place])} when the job was planned",
                "give every file of the dataset the same schema",
            )
        return plain(batch.column(index))
