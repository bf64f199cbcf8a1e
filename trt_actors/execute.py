"""Batches of a shard through the pipeline: many at once, or one at a time to find out which rows fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pyarrow as pa

from ..errors import TrtfleetError
from .attempt import AttemptWriter
from .batches import BadInput, Batch, Piece
from .isolate import isolate
from .out_of_memory import OutOfMemoryError, out_of_memory
from .pipeline import Deliver, Pipeline
from .results import Results
from .stages import Stage, Stages

__all__ = ["BatchFailedError", "run_carefully", "run_fast"]


class BatchFailedError(Exception):
    """Executing a batch or converting its results raised; the cause is chained."""


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
        OutOfMemoryError: There is no memory for a batch.
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
    *,
    blames_memory: bool,
) -> int:
    """Runs one batch at a time, halving those that fail; rows that fail alone are appended to ``bad``.

    Args:
        pipeline: Where to.
        batches: Of a shard.
        results: Converts outputs.
        writer: Takes them.
        bad: See above.
        stages: Where seconds are summed up.
        blames_memory: Whether a row that takes more memory than there is is bad: true once batches are as
            small as they can be, because until then it is filled up with others.

    Returns:
        How many rows are bad for that.

    Raises:
        OutOfMemoryError: There is no memory for a batch, and no row to blame.
        TrtfleetError: As ``run_fast``.
    """
    rows = too_large = 0
    for batch in batches:
        piece = batch.joined()
        rows += len(piece)
        good, failed = isolate(
            len(piece), _piecewise(pipeline, results, piece, stages, blames_memory=blames_memory)
        )
        for start, stop, converted in good:
            writer.write(converted, piece.rows[start:stop])
        bad.extend(results.blame(int(piece.rows[row]), error) for row, error in failed)
        too_large += sum(isinstance(error, _RowTooLargeError) for _, error in failed)
    if 1 < rows == too_large:
        raise OutOfMemoryError(
            f"no memory is left for any single one of {rows:,} rows", "leave more of the device to this job"
        )
    return too_large


class _RowTooLargeError(Exception):
    """One row alone takes more memory than there is."""


def _piecewise(
    pipeline: Pipeline, results: Results, piece: Piece, stages: Stages, *, blames_memory: bool
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
        if errors and blames_memory and isinstance(errors[0], OutOfMemoryError):
            raise _RowTooLargeError(errors[0].fact) from errors[0]
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
    except MemoryError as error:
        pipeline.release(slot)
        raise out_of_memory(error, len(batch)) or error from error
    except BaseException:
        pipeline.release(slot)
        raise
    before()
    pipeline.submit(slot, len(batch), deliver)
