"""One attempt at a shard: its results into a part with bad rows beside it, and the commit."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.output import Output
from ..datasets.parts import PartWriter
from ..datasets.records import CommitRecord
from ..datasets.shards import Shard
from ..datasets.storage import foreign_errors
from ..errors import OutputError
from .batches import BadInput

__all__ = ["AttemptWriter"]


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
