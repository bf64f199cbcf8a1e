"""From blocks of columns to batches of model inputs, with the rows that cannot be decoded set aside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ..datasets.bindings import ColumnBinding, ColumnKind, bind_all
from ..datasets.decode import BadRow, Decoded, decode
from ..datasets.reading import Block
from ..datasets.storage import one_line
from ..errors import HookError
from .batches import BadInput, Batch, Piece
from .by_length import batches_by_length
from .hooks import Hook, run_preprocess
from .isolate import isolate
from .runtime.device_rows import DeviceRows
from .runtime.image_decoder import DecodedRows, ImageDecoder
from .stages import Stage, Stages
from .task import FeedTask
from .trace import NullTracer

__all__ = ["Feed", "decodes_ahead"]

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class _Decoded:
    """What became of a block: its good rows in order, and the bad ones."""

    pieces: list[Piece] = field(default_factory=list)
    bad: list[BadInput] = field(default_factory=list)


def decodes_ahead(bindings: Sequence[ColumnBinding] | None) -> bool:
    """Whether blocks are worth decoding in parallel, and each can be without the others.

    So are those of images of a known size, and of columns that are stacked. What a preprocess hook returns
    (no bindings) is decoded where the hook is called.
    """
    return any(
        (b.kind is ColumnKind.IMAGE and all(isinstance(dim, int) for dim in b.dims))
        or (b.kind is ColumnKind.SCALARS and len(b.columns) > 1)
        for b in bindings or ()
    )


class Feed:
    """Decodes the blocks of shards for one network; used by several threads at once.

    Where decoding takes more than a look at Arrow's memory, several blocks of a shard are decoded at once,
    ahead of their turn; see ``decodes_ahead``.

    Args:
        task: The job.
        preprocess: The user's hook, already imported.
        pool: Threads that decode.
        stages: Where the seconds of decoding are summed up.
        images: What decodes images on the engine's device; None leaves them to the CPU.
    """

    def __init__(
        self,
        task: FeedTask,
        preprocess: Hook | None,
        pool: ThreadPoolExecutor,
        stages: Stages | None = None,
        images: ImageDecoder | None = None,
    ) -> None:
        self._images = images
        self._stages = stages or Stages(NullTracer())
        self._task = task
        self._preprocess = preprocess
        self._pool = pool
        self._late_bindings: tuple[pa.Schema, tuple[ColumnBinding, ...]] | None = None

    @property
    def is_ragged(self) -> bool:
        """Whether rows are grouped by length, which takes a shard as a whole."""
        bindings = self._task.bindings or ()
        return any(binding.kind is ColumnKind.RAGGED for binding in bindings)

    def block_rows(self, batch_size: int) -> int:
        """How many rows to decode at once.

        Several batches where decoding is cheap, the same share of one where it is not, and a whole batch
        where its rows must agree on a size that no one knows yet, or where a device decodes.
        """
        bindings = self._task.bindings
        if bindings is None or not all(b.input.is_static for b in bindings):
            return batch_size
        if self._images is not None and any(map(self._images.takes, bindings)):
            # A device decodes many images as fast as a few.
            return batch_size
        row_bytes = max(1, sum(binding.input.row_bytes for binding in bindings))
        if decodes_ahead(self._task.bindings) and row_bytes * batch_size > _BLOCK_BYTES:
            return -(-batch_size // -(-row_bytes * batch_size // _BLOCK_BYTES))
        if any(binding.kind is ColumnKind.IMAGE for binding in bindings):
            return batch_size
        return batch_size * max(1, _BLOCK_BYTES // (row_bytes * batch_size))

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
            yield from batches_by_length(list(blocks), batch_size, self._task, self._pool, bad)
            return
        waiting: list[Piece] = []
        filled = 0
        for decoded in self._decoded(blocks):
            bad.extend(decoded.bad)
            for piece in decoded.pieces:
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

    def _decoded(self, blocks: Iterable[Block]) -> Iterator[_Decoded]:
        if self._preprocess is not None or not decodes_ahead(self._task.bindings):
            yield from map(self._decode, blocks)
            return
        waiting: deque[Future[_Decoded]] = deque()
        try:
            for block in blocks:
                waiting.append(self._pool.submit(self._decode_alone, block))
                while waiting and (len(waiting) > self._task.threads or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _decode_alone(self, block: Block) -> _Decoded:
        return self._columns(block.batch, block, 0, None)

    def _decode(self, block: Block) -> _Decoded:
        if self._preprocess is None:
            return self._columns(block.batch, block, 0, self._pool)
        hook, batch = self._preprocess, block.batch
        with self._stages.measure(Stage.DECODE):
            good, failed = isolate(
                batch.num_rows, lambda start, stop: run_preprocess(hook, batch.slice(start, stop - start))
            )
        made = _Decoded()
        for row, error in failed:
            reason = f"preprocess: {type(error).__name__}: {one_line(error)}"
            made.bad.append(BadInput(row=int(block.rows[row]), column="", reason=reason))
        for start, stop, result in good:
            if isinstance(result, dict):
                kept = batch.slice(start, stop - start).select(list(self._task.keep))
                made.pieces.append(Piece(arrays=self._arrays(result), kept=kept, rows=block.rows[start:stop]))
            else:
                part = self._columns(result, block, start, self._pool)
                made.pieces.extend(part.pieces)
                made.bad.extend(part.bad)
        return made

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
                    f"the preprocess hook returned {array.dtype}{list(array.shape)}, the model wants {spec}",
                    "return arrays of that type and shape, one entry a row",
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

    def _decoder_of(self, binding: ColumnBinding) -> Callable[..., Decoded | DecodedRows]:
        images = self._images
        return images.decode if images is not None and images.takes(binding) else decode

    def _columns(
        self, batch: pa.RecordBatch, block: Block, start: int, pool: ThreadPoolExecutor | None
    ) -> _Decoded:
        arrays: dict[str, np.ndarray | DeviceRows] = {}
        blamed: dict[int, BadRow] = {}
        for binding in self._bindings(batch.schema):
            with self._stages.measure(Stage.DECODE):
                decoded = self._decoder_of(binding)(batch, binding, pool)
            arrays[binding.input.name] = decoded.values
            for row in decoded.bad:
                blamed.setdefault(row.row, row)
        rows = block.rows[start : start + batch.num_rows]
        kept = block.batch.select(list(self._task.keep)).slice(start, batch.num_rows)
        made = _Decoded()
        if blamed:
            made.bad.extend(
                BadInput(row=int(rows[i]), column=row.column, reason=row.reason)
                for i, row in sorted(blamed.items())
            )
            good = np.delete(np.arange(batch.num_rows), list(blamed))
            arrays = {name: array[good] for name, array in arrays.items()}
            kept, rows = kept.take(pa.array(good)), rows[good]
        if len(rows):
            made.pieces.append(Piece(arrays=arrays, kept=kept, rows=rows))
        return made
