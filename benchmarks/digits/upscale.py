"""The digits as a deeper network sees them: the demo's images, each pixel four times as wide and high."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["SCALE", "SIDE", "upscaled"]

SCALE = 4
SIDE = 8 * SCALE


def upscaled(table: pa.Table) -> pa.Table:
    """Replaces ``image``, 8x8 pixels, by images of 32x32; the other columns stay.

    Args:
        table: As ``digits.parquet`` has it: ``image`` is FixedSizeBinary(64), uint8.

    Returns:
        The same rows; ``image`` is FixedSizeBinary(1024) and its metadata tell the shape 1,32,32.
    """
    raw = b"".join(table["image"].to_pylist())
    small = np.frombuffer(raw, np.uint8).reshape(-1, 1, 8, 8)
    large: npt.NDArray[np.uint8] = small.repeat(SCALE, axis=2).repeat(SCALE, axis=3)
    kind = pa.binary(SIDE * SIDE)
    metadata = {"trtfleet.dtype": "uint8", "trtfleet.shape": f"1,{SIDE},{SIDE}"}
    rows = pa.array([image.tobytes() for image in large], kind)
    field = pa.field("image", kind, nullable=False, metadata=metadata)
    return table.set_column(table.schema.get_field_index("image"), field, rows)
