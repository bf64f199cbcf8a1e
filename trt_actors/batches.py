"""Decoded rows on their way to a slot: pieces, and the batches they are put together to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .engine import PlacingSlot, Slot
from .runtime.device_rows import DeviceRows, join_rows

__all__ = ["BadInput", "Batch", "Piece"]


@dataclass(frozen=True, kw_only=True)
class BadInput:
    """A row that cannot be scored.

    Attributes:
        row: Its number in its file.
        column: The column to blame; empty when it is the row as a whole.
        reason: Why, in one line.
    """

    row: int
    column: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Decoded rows.

    Attributes:
        arrays: (n, ...) by input name, views of Arrow memory where possible; on the device where it decoded.
        kept: The columns to carry along, n rows.
        rows: int64[n], each row's number in its file.
        lengths: int64[n], unpadded lengths of ragged inputs; None without any.
        width: What ragged inputs are padded to; None without any.
    """

    arrays: Mapping[str, np.ndarray | DeviceRows]
    kept: pa.RecordBatch
    rows: np.ndarray
    lengths: np.ndarray | None = None
    width: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Piece:
        start, stop, _ = rows.indices(len(self))
        return Piece(
            arrays={name: array[start:stop] for name, array in self.arrays.items()},
            kept=self.kept.slice(start, stop - start),
            rows=self.rows[start:stop],
            lengths=None if self.lengths is None else self.lengths[start:stop],
            width=self.width,
        )

    @property
    def on_host(self) -> dict[str, np.ndarray]:
        """The arrays, where no device decodes."""
        return {name: array for name, array in self.arrays.items() if isinstance(array, np.ndarray)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Row shape of each input."""
        return {name: array.shape[1:] for name, array in self.arrays.items()}


@dataclass(frozen=True)
class Batch:
    """Pieces that go through the engine together, all of one shape."""

    pieces: Sequence[Piece]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def stage(self, slot: Slot) -> None:
        """Hands the inputs to a slot: as they are when they are one piece, else gathered in its memory."""
        for name in self.pieces[0].arrays:
            parts = [piece.arrays[name] for piece in self.pieces]
            whole = join_rows(parts) if any(isinstance(part, DeviceRows) for part in parts) else None
            if isinstance(whole, DeviceRows):
                assert isinstance(slot, PlacingSlot)
                slot.place(name, whole)
            else:
                _gather(slot, name, [part for part in parts if isinstance(part, np.ndarray)])

    def joined(self, *, arrays: bool = True) -> Piece:
        """The same rows as one piece, on request without their inputs."""
        first = self.pieces[0]
        names = first.arrays if arrays else ()
        if len(self.pieces) == 1:
            return replace(first, arrays={name: first.arrays[name] for name in names})
        return Piece(
            arrays={name: join_rows([piece.arrays[name] for piece in self.pieces]) for name in names},
            kept=pa.concat_batches([piece.kept for piece in self.pieces]),
            rows=np.concatenate([piece.rows for piece in self.pieces]),
        )


def _gather(slot: Slot, name: str, parts: Sequence[np.ndarray]) -> None:
    if len(parts) == 1:
        slot.bind(name, parts[0])
        return
    rows, position = sum(map(len, parts)), 0
    buffer = slot.buffer(name, (rows, *parts[0].shape[1:]))
    for part in parts:
        buffer[position : position + len(part)] = part
        position += len(part)
