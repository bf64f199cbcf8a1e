"""The shape and dtype of one model input or output, as the data plane sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Dim", "TensorSpec"]

Dim = int | str
"""A fixed size, or the name of a free one (two dims of the same name always have the same size)."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named tensor of a model.

    Attributes:
        name: The tensor's name in the graph.
        dtype: Element type.
        row_shape: Shape of one row, without the batch dimension; a free dimension is its symbolic name.
        batch: The batch dimension: its fixed size, or None when it is free.
    """

    name: str
    dtype: np.dtype
    row_shape: tuple[Dim, ...]
    batch: int | None = None

    @property
    def is_static(self) -> bool:
        """Whether every dimension of one row is fixed."""
        return all(isinstance(dim, int) for dim in self.row_shape)

    @property
    def row_elements(self) -> int:
        """Elements of one row.

        Raises:
            ValueError: A dimension of the row is free.
        """
        dims = [dim for dim in self.row_shape if isinstance(dim, int)]
        if len(dims) != len(self.row_shape):
            raise ValueError(f"{self.name} has a free dimension: {self}")
        return math.prod(dims)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; raises ValueError when a dimension of the row is free."""
        return self.row_elements * self.dtype.itemsize

    def __str__(self) -> str:
        dims = ["N" if self.batch is None else str(self.batch), *map(str, self.row_shape)]
        return f"{self.name}: {self.dtype}[{', '.join(dims)}]"
