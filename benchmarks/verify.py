"""Whether all peers wrote the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Reference"]

# Batch sizes and threads change the order of additions, so the last bits of float32 differ.
TOLERANCE = 1e-3


class Reference:
    """The first result it sees, which all later ones must equal.

    Args:
        rows: Rows of the dataset, with ids from 0.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._logits: np.ndarray | None = None

    def check(self, folder: Path) -> tuple[int, float, float]:
        """Compares a result with the first one.

        Args:
            folder: Parquet files with ``id`` and ``logits``, in any order of rows.

        Returns:
            Rows, the sum of the logits in float64, and the largest difference from the first result's logits.

        Raises:
            ValueError: A row is missing or there twice, or logits differ by more than rounding explains.
        """
        table = pq.read_table(folder, columns=["id", "logits"])
        ids = table["id"].to_numpy()
        if len(ids) != self._rows:
            raise ValueError(f"wrote {len(ids):,} rows instead of {self._rows:,}")
        order = np.argsort(ids, kind="stable")
        if not np.array_equal(ids[order], np.arange(self._rows)):
            raise ValueError("wrote some rows twice and left others out")
        logits = _matrix(table["logits"])[order]
        if not np.isfinite(logits).all():
            raise ValueError("wrote logits that are not finite")
        if self._logits is None:
            self._logits = logits
        if logits.shape != self._logits.shape:
            raise ValueError(f"wrote logits {logits.shape} instead of {self._logits.shape}")
        deviation = float(np.abs(logits - self._logits).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(self._logits).max()))
        if deviation > allowed:
            raise ValueError(f"logits differ by {deviation:.3g}, more than {allowed:.3g}")
        return len(ids), float(logits.sum(dtype=np.float64)), deviation


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    lists = column.combine_chunks()
    values: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(lists), -1)
