"""One attempt at a shard: its rows through the pipeline into a part, and the commit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.output import Output
from ..datasets.parts import PartWriter
from ..datasets.records import CommitRecord
from ..datasets.shards import Shard
from ..datasets.storage import foreign_errors
from ..errors import OutputError, TrtfleetError
from .batches import BadInput, Batch, Piece
from .isolate import isolate
from .pipeline import Deliver, Pipeline
from .results import Results
from .stages import Stage, Stages

__all__ = ["AttemptWriter", "BatchFailedError", "run_carefully", "run_fast"]


class BatchFailedError(Exception):
    """Executing a batch or converting its results raised; the cause is chained."""


class AttemptWriter:
    """Collects an attempt's results and commits them; as a context manager, discards them on an error.

    Once the commit record is on its way an error no longer discards: the record may stand.

    Args:
        output: Where to.
        shard: Of which shard.
        attempt: The attempt's unique name.
        compression: Parquet codec.
        reorder: Whether rows come out of file order and are put back into it.
    """

    def __init__(
        self, output: Output, shard: Shard, attempt: str, compression: str, *, reorder: bool
    ) -> None:
        self._output = output
        self._shard = shard
        self._attempt = attempt
        self._is_committing = False
        self._reorder: list[tuple[pa.RecordBatch, np.ndarray]] | None = [] if reorder else None
        self._part = PartWriter(
            output.storage, output.path("parts", f"{shard.id}-{attempt}.parquet"), compression
        )

    def __enter__(self) -> AttemptWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and not self._is_committing:
            self._part.discard()

    def write(self, results: pa.RecordBatch, rows: np.ndarray) -> None:
        """Appends results; ``rows`` are their numbers in the file."""
        if self._reorder is None:
            self._part.write(results)
        else:
            self._reorder.append((results, rows))

    def commit(self, bad: Sequence[BadInput]) -> CommitRecord:
        """Completes the part, quarantines bad rows, and commits both with one record.

        Returns:
            The record that stands; its ``attempt`` tells whose it is.
        """
        if self._reorder:
            order = np.argsort(np.concatenate([rows for _, rows in self._reorder]))
            table = pa.Table.from_batches([results for results, _ in self._reorder])
            for batch in table.take(pa.array(order)).combine_chunks().to_batches():
                self._part.write(batch)
        written = self._part.close()
        quarantine = self._quarantine(bad) if bad else None
        record = CommitRecord(
            shard=self._shard.id,
            attempt=self._attempt,
            rows=written.rows if written else 0,
            bad_rows=len(bad),
            part=written.path if written else None,
            part_bytes=written.size_bytes if written else 0,
            sha256=written.sha256 if written else None,
            quarantine=quarantine,
        )
        self._is_committing = True
        standing = self._output.commit(record)
        if standing.attempt != self._attempt:
            self._part.discard()
            if quarantine:
                with contextlib.suppress(Exception):
                    self._output.storage.delete([quarantine])
        return standing

    def _quarantine(self, bad: Sequence[BadInput]) -> str:
        ordered = sorted(bad, key=lambda row: row.row)
        columns = {
            "file": pa.array([self._shard.file.url] * len(ordered), pa.string()),
            "row": pa.array([row.row for row in ordered], pa.int64()),
            "column": pa.array([row.column or None for row in ordered], pa.string()),
            "reason": pa.array([row.reason for row in ordered], pa.string()),
        }
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        path = self._output.path("quarantine", f"{self._shard.id}-{self._attempt}.parquet")
        with foreign_errors(OutputError, f"cannot write to {self._output.storage.url}"):
            self._output.storage.put(path, sink.getvalue().to_pybytes())
        return path


class _InFlight:
    """The batches of one shard between submission and writing, and the first error among them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = 0
        self.error: BaseException | None = None

    def opened(self) -> None:
        with self._changed:
            self._open += 1

    def closed(self, error: BaseException | None) -> None:
        with self._changed:
            self.error = self.error or error
            self._open -= 1
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._open)


def run_fast(
    pipeline: Pipeline, batches: Iterable[Batch], results: Results, writer: AttemptWriter, stages: Stages
) -> None:
    """Keeps the pipeline full; its writer thread converts and writes results as they come.

    Raises:
        TrtfleetError: Reading, decoding or writing failed, or a hook broke its contract.
        BatchFailedError: Something raised that may be one row's fault.
    """
    in_flight = _InFlight()

    def receiver(batch: Batch) -> Deliver:
        def deliver(outputs: Mapping[str, np.ndarray] | None, error: BaseException | None) -> None:
            try:
                if outputs is not None and in_flight.error is None:
                    piece = batch.joined(arrays=False)
                    with stages.measure(Stage.CONVERT):
                        converted = results.convert(piece, outputs)
                    with stages.measure(Stage.WRITE):
                        writer.write(converted, piece.rows)
            except BaseException as raised:
                error = raised
            in_flight.closed(error)

        return deliver

    try:
        for batch in batches:
            _submit(pipeline, batch, receiver(batch), stages, in_flight.opened)
            if in_flight.error is not None:
                break
    finally:
        in_flight.wait()
    if isinstance(in_flight.error, TrtfleetError):
        raise in_flight.error
    if in_flight.error is not None:
        raise BatchFailedError from in_flight.error


def run_carefully(
    pipeline: Pipeline,
    batches: Iterable[Batch],
    results: Results,
    writer: AttemptWriter,
    bad: list[BadInput],
    stages: Stages,
) -> None:
    """Runs one batch at a time, halving those that fail; rows that fail alone are appended to ``bad``.

    Raises:
        TrtfleetError: As ``run_fast``.
    """
    for batch in batches:
        piece = batch.joined()
        good, failed = isolate(len(piece), _piecewise(pipeline, results, piece, stages))
        for start, stop, converted in good:
            writer.write(converted, piece.rows[start:stop])
        bad.extend(results.blame(int(piece.rows[row]), error) for row, error in failed)


def _piecewise(
    pipeline: Pipeline, results: Results, piece: Piece, stages: Stages
) -> Callable[[int, int], pa.RecordBatch]:
    def run(start: int, stop: int) -> pa.RecordBatch:
        rows = piece[start:stop]
        done = threading.Event()
        converted: list[pa.RecordBatch] = []
        errors: list[BaseException] = []

        def deliver(outputs: Mapping[str, np.ndarray] | None, error: BaseException | None) -> None:
            try:
                if outputs is not None:
                    converted.append(results.convert(rows, outputs))
            except BaseException as raised:
                error = raised
            errors.extend([error] if error else [])
            done.set()

        _submit(pipeline, Batch([rows]), deliver, stages)
        done.wait()
        if errors:
            raise errors[0]
        return converted[0]

    return run


def _submit(
    pipeline: Pipeline,
    batch: Batch,
    deliver: Deliver,
    stages: Stages,
    before: Callable[[], None] = lambda: None,
) -> None:
    slot = pipeline.acquire()
    try:
        with stages.measure(Stage.STAGE):
            batch.stage(slot)
    except BaseException:
        pipeline.release(slot)
        raise
    before()
    pipeline.submit(slot, len(batch), deliver)
