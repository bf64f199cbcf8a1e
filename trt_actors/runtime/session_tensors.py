"""What a session of ONNX Runtime says of the types and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

__all__ = ["KnownOutput", "known_outputs", "numpy_dtype"]

_TYPES = {
    "float": "FLOAT",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "double": "DOUBLE",
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, kw_only=True)
class KnownOutput:
    """An output whose shape follows from the number of rows.

    Attributes:
        batch: Its rows where they are fixed; None for as many as the inputs have.
        row_shape: Of one row.
        dtype: Element type.
    """

    batch: int | None
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def shape(self, rows: int) -> tuple[int, ...]:
        """Its shape for a batch of so many rows."""
        return (rows if self.batch is None else self.batch, *self.row_shape)


def numpy_dtype(kind: str) -> np.dtype[Any] | None:
    """The element type of ``tensor(float)`` and the like; None for what no array holds."""
    name = _TYPES.get(kind.removeprefix("tensor(").removesuffix(")"))
    if name is None:
        return None
    return np.dtype(helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name)))


def known_outputs(session: Any, names: Iterable[str]) -> dict[str, KnownOutput] | None:
    """Shapes of a session's outputs, or None when one of them depends on more than the number of rows.

    Args:
        session: Whose inputs all have the same first dimension.
        names: Of the outputs.
    """
    inputs, targets = session.get_inputs(), {target.name: target for target in session.get_outputs()}
    batches = {source.shape[0] if source.shape else None for source in inputs}
    if len(batches) != 1 or None in batches:
        return None
    found = {}
    for name in names:
        shape, dtype = targets[name].shape, numpy_dtype(targets[name].type)
        # A name that no input has is a size that only the execution finds out.
        if dtype is None or not shape or shape[0] not in batches:
            return None
        if not all(isinstance(size, int) for size in shape[1:]):
            return None
        batch = shape[0] if isinstance(shape[0], int) else None
        found[name] = KnownOutput(batch=batch, row_shape=tuple(shape[1:]), dtype=dtype)
    return found
