"""From blocks of columns to batches of model inputs, with the rows that cannot be decoded set aside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ..datasets.bindings import ColumnBinding, ColumnKind, bind_all
from ..datasets.decode import decode
from ..datasets.ragged import decode_ragged, mask, order_by_length, pad
from ..datasets.reading import Block
from ..datasets.storage import one_line
from ..errors import HookError
from .engine import Slot
from .hooks import Hook, run_preprocess
from .isolate import isolate
from .task import ScoreTask

__all__ = ["BadInput", "Batch", "Feed", "Piece"]


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
        arrays: (n, ...) by input name, views of Arrow memory where possible.
        kept: The columns to carry along, n rows.
        rows: int64[n], each row's number in its file.
        lengths: int64[n], unpadded lengths of ragged inputs; None without any.
    """

    arrays: Mapping[str, np.ndarray]
    kept: pa.RecordBatch
    rows: np.ndarray
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Piece:
        start, stop, _ = rows.indices(len(self))
        return Piece(
            arrays={name: array[start:stop] for name, array in self.arrays.items()},
            kept=self.kept.slice(start, stop - start),
            rows=self.rows[start:stop],
            lengths=None if self.lengths is None else self.lengths[start:stop],
        )

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
        """Hands the inputs to a slot: as they are when they come in one piece, else gathered in its memory."""
        if len(self.pieces) == 1:
            for name, array in self.pieces[0].arrays.items():
                slot.bind(name, array)
            return
        for name, shape in self.pieces[0].shapes.items():
            buffer, position = slot.buffer(name, (len(self), *shape)), 0
            for piece in self.pieces:
                buffer[position : position + len(piece)] = piece.arrays[name]
                position += len(piece)

    def joined(self, *, arrays: bool = True) -> Piece:
        """The same rows as one piece, on request without their inputs."""
        first = self.pieces[0]
        names = first.arrays if arrays else ()
        if len(self.pieces) == 1:
            return replace(first, arrays={name: first.arrays[name] for name in names})
        return Piece(
            arrays={name: np.concatenate([piece.arrays[name] for piece in self.pieces]) for name in names},
            kept=pa.concat_batches([piece.kept for piece in self.pieces]),
            rows=np.concatenate([piece.rows for piece in self.pieces]),
        )


class Feed:
    """Decodes the blocks of shards for one network; used by several threads at once.

    Args:
        task: The job.
        preprocess: The user's hook, already imported.
        pool: Threads that decode images.
    """

    def __init__(self, task: ScoreTask, preprocess: Hook | None, pool: ThreadPoolExecutor) -> None:
        self._task = task
        self._preprocess = preprocess
        self._pool = pool
        self._late_bindings: tuple[pa.Schema, tuple[ColumnBinding, ...]] | None = None

    @property
    def is_ragged(self) -> bool:
        """Whether rows are grouped by length, which takes a shard as a whole."""
        bindings = self._task.bindings or ()
        return any(binding.kind is ColumnKind.RAGGED for binding in bindings)

    def batches(self, blocks: Iterable[Block], batch_size: int, bad: list[BadInput]) -> Iterator[Batch]:
        """Yields a shard's batches; rows that cannot be decoded are appended to ``bad``.

        Batches come in file order, or longest rows first when a column is ragged. A batch is full unless the
        shard ends or the shape changes.

        Raises:
            MismatchError: What a preprocess hook returns does not fit the network.
            HookError: It returned another number of rows.
            DatasetError: A block cannot be read.
        """
        if self.is_ragged:
            yield from self._by_length(list(blocks), batch_size, bad)
            return
        waiting: list[Piece] = []
        filled = 0
        for block in blocks:
            for piece in self._decode(block, bad):
                if waiting and piece.shapes != waiting[0].shapes:
                    yield Batch(waiting)
                    waiting, filled = [], 0
                while filled + len(piece) >= batch_size:
                    take = batch_size - filled
                    yield Batch([*waiting, piece[:take]] if take else waiting)
                    piece = piece[take:]
                    waiting, filled = [], 0
                if len(piece):
                    waiting.append(piece)
                    filled += len(piece)
        if waiting:
            yield Batch(waiting)

    def _decode(self, block: Block, bad: list[BadInput]) -> Iterator[Piece]:
        if self._preprocess is None:
            yield from self._columns(block.batch, block, 0, bad)
            return
        hook, batch = self._preprocess, block.batch
        good, failed = isolate(
            batch.num_rows, lambda start, stop: run_preprocess(hook, batch.slice(start, stop - start))
        )
        for row, error in failed:
            reason = f"preprocess: {type(error).__name__}: {one_line(error)}"
            bad.append(BadInput(row=int(block.rows[row]), column="", reason=reason))
        for start, stop, result in good:
            if isinstance(result, dict):
                yield Piece(
                    arrays=self._arrays(result),
                    kept=batch.slice(start, stop - start).select(list(self._task.keep)),
                    rows=block.rows[start:stop],
                )
            else:
                yield from self._columns(result, block, start, bad)

    def _arrays(self, result: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {}
        for spec in self._task.network.inputs:
            array = result.get(spec.name)
            if array is None:
                raise HookError(
                    f"the preprocess hook returned {sorted(result)}, the model wants {spec}",
                    "return one array per model input, or a RecordBatch",
                )
            fits = array.ndim == len(spec.row_shape) + 1 and all(
                isinstance(dim, str) or dim == size
                for dim, size in zip(spec.row_shape, array.shape[1:], strict=False)
            )
            if not fits or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
                raise HookError(
                    f"the preprocess hook returned {array.dtype}{list(array.shape)}, the model wants {spec}"
                )
            arrays[spec.name] = np.ascontiguousarray(array, spec.dtype)
        return arrays

    def _bindings(self, schema: pa.Schema) -> tuple[ColumnBinding, ...]:
        task = self._task
        if task.bindings is not None:
            return task.bindings
        if self._late_bindings is None or not self._late_bindings[0].equals(schema):
            bindings = bind_all(task.fed, dict(task.given), schema, task.binding_options)
            self._late_bindings = (schema, bindings)
        return self._late_bindings[1]

    def _columns(
        self, batch: pa.RecordBatch, block: Block, start: int, bad: list[BadInput]
    ) -> Iterator[Piece]:
        arrays, blamed = {}, {}
        for binding in self._bindings(batch.schema):
            decoded = decode(batch, binding, self._pool)
            arrays[binding.input.name] = decoded.values
            for row in decoded.bad:
                blamed.setdefault(row.row, row)
        rows = block.rows[start : start + batch.num_rows]
        kept = block.batch.slice(start, batch.num_rows).select(list(self._task.keep))
        if blamed:
            bad.extend(
                BadInput(row=int(rows[i]), column=row.column, reason=row.reason)
                for i, row in sorted(blamed.items())
            )
            good = np.delete(np.arange(batch.num_rows), list(blamed))
            arrays = {name: array[good] for name, array in arrays.items()}
            kept, rows = kept.take(pa.array(good)), rows[good]
        if len(rows):
            yield Piece(arrays=arrays, kept=kept, rows=rows)

    def _by_length(self, blocks: list[Block], batch_size: int, bad: list[BadInput]) -> Iterator[Batch]:
        if not blocks:
            return
        batch = pa.concat_batches([block.batch for block in blocks])
        rows = np.concatenate([block.rows for block in blocks])
        bindings, options = self._bindings(batch.schema), self._task.binding_options
        ragged = {b.input.name: decode_ragged(batch, b) for b in bindings if b.kind is ColumnKind.RAGGED}
        dense = {
            b.input.name: decode(batch, b, self._pool) for b in bindings if b.kind is not ColumnKind.RAGGED
        }
        blamed = {row.row: row for decoded in (*ragged.values(), *dense.values()) for row in decoded.bad}
        first_name, first = next(iter(ragged.items()))
        lengths = first.lengths
        reasons = {i: (row.column, row.reason) for i, row in blamed.items()}
        for name, other in ragged.items():
            for i in np.flatnonzero(other.lengths != lengths).tolist():
                why = f"{name} has {other.lengths[i]} elements, {first_name} has {lengths[i]}"
                reasons.setdefault(i, ("", why))
        bad.extend(
            BadInput(row=int(rows[i]), column=c, reason=why) for i, (c, why) in sorted(reasons.items())
        )
        good = np.delete(np.arange(len(rows)), list(reasons))
        kept = batch.select(list(self._task.keep))
        dtypes = {binding.input.name: binding.input.dtype for binding in bindings}
        order = good[order_by_length(lengths[good], batch_size)]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            arrays = {name: decoded.values[chosen] for name, decoded in dense.items()}
            for name, values in ragged.items():
                arrays[name] = pad(
                    values, chosen, pad_to=options.pad_to, pad_value=options.pad_value, dtype=dtypes[name]
                )
            width = arrays[first_name].shape[1]
            for spec in self._task.masks:
                arrays[spec.name] = mask(lengths[chosen], width, spec.dtype)
            yield Batch(
                [
                    Piece(
                        arrays=arrays,
                        kept=kept.take(pa.array(chosen)),
                        rows=rows[chosen],
                        lengths=lengths[chosen],
                    )
                ]
            )
