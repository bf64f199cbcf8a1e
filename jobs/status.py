"""What an output says of its own job: read from storage alone, while it runs or long after."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from ..datasets.output import Output
from ..datasets.records import CommitRecord, RunRecord, kind_of
from ..datasets.storage import Storage, foreign_errors
from ..errors import OutputError

__all__ = ["Status", "first_bad_rows", "read_status"]

_SILENT_AFTER_S = 30.0
_BAD_ROWS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of an output.

    Attributes:
        out: Where it is.
        state: ``finished``, ``running``, ``failed``, ``stopped`` (by the user) or ``silent`` (a run that
            neither ended nor gave a sign of life lately).
        generation: Which generation this is about.
        model: The model's file name.
        rows_planned: Rows of the dataset before filtering.
        rows: Rows committed.
        bad_rows: Rows quarantined.
        shards_done: Shards committed.
        shards_total: All shards.
        rows_per_s: Rows by the time between the first and the last commit.
        runs: How many runs took part.
        updated_s: Seconds since the last sign of life.
        error: Why the last run failed.
        failures: Recent failures that were retried, as ``{at_s, subject, reason}``.
        quarantine: The first bad rows, as ``{file, row, column, reason}``.
        files: Final Parquet files.
    """

    out: str
    state: str
    generation: str
    model: str
    rows_planned: int
    rows: int
    bad_rows: int
    shards_done: int
    shards_total: int
    rows_per_s: float
    runs: int
    updated_s: float | None
    error: str
    failures: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    files: int

    def as_json(self) -> dict[str, Any]:
        """The status as plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The status in words, a few lines."""
        share = self.shards_done / max(1, self.shards_total)
        lines = [
            f"{self.out}: {self.state} ({self.model}, generation {self.generation}, {self.runs} runs)",
            f"{self.shards_done:,} of {self.shards_total:,} shards ({share:.0%}), {self.rows:,} rows, "
            f"{self.bad_rows:,} bad rows, {self.rows_per_s:,.0f} rows/s, {self.files:,} files",
        ]
        if self.state != "finished" and self.updated_s is not None:
            lines.append(f"last sign of life {self.updated_s:,.0f} s ago")
        if self.error:
            lines.append(f"error: {self.error}")
        shown = self.failures[-_BAD_ROWS_SHOWN:]
        lines += [f"failure: {failure['subject']}: {failure['reason']}" for failure in shown]
        for bad in self.quarantine:
            column = f" column {bad['column']}" if bad["column"] else ""
            lines.append(f"bad row: {bad['file']} row {bad['row']:,}{column}: {bad['reason']}")
        if self.bad_rows > len(self.quarantine) and self.quarantine:
            lines.append(f"... and {self.bad_rows - len(self.quarantine):,} more bad rows")
        return lines


def read_status(out: str) -> Status:
    """Reads the state of an output; needs no cluster.

    Raises:
        OutputError: There is no output of trtfleet, or it cannot be read.
    """
    storage = Storage(out)
    output = Output.latest(storage)
    if output is None:
        raise OutputError(f"{storage.url} holds no output of trtfleet", "check the path")
    kind = kind_of(output.job.fingerprint)
    if kind != "a scoring job":
        raise OutputError(
            f"{storage.url} holds {kind}, and status is about scoring jobs",
            "the command that writes it goes on, or says that nothing is left; its report is report.html",
        )
    commits = list(output.committed().values())
    runs = output.runs()
    success = output.success()
    last = max(runs, key=lambda run: run.updated_s) if runs else None
    if success is not None:
        state = "finished"
    elif last is None:
        state = "silent"
    else:
        is_silent = last.state == "running" and time.time() - last.updated_s > _SILENT_AFTER_S
        state = "silent" if is_silent or last.state == "finished" else last.state
    return Status(
        out=storage.url,
        state=state,
        generation=output.generation,
        model=output.job.model,
        rows_planned=output.job.rows,
        rows=sum(commit.rows for commit in commits),
        bad_rows=sum(commit.bad_rows for commit in commits),
        shards_done=len(commits),
        shards_total=output.job.shards,
        rows_per_s=_rate(commits),
        runs=len(runs),
        updated_s=None if last is None else max(0.0, time.time() - last.updated_s),
        error="" if last is None or success is not None else last.error,
        failures=_failures(runs),
        quarantine=first_bad_rows(output, (c.quarantine for c in commits if c.quarantine)),
        files=0 if success is None else len(success.parts),
    )


def _rate(commits: list[CommitRecord]) -> float:
    times = [commit.committed_s for commit in commits]
    span_s = max(times) - min(times) if times else 0.0
    return sum(commit.rows for commit in commits) / span_s if span_s else 0.0


def _failures(runs: list[RunRecord]) -> list[dict[str, Any]]:
    return sorted((f for run in runs for f in run.failures), key=lambda failure: failure["at_s"])


def first_bad_rows(output: Output, quarantines: Iterable[str]) -> list[dict[str, Any]]:
    """The first rows of quarantine files, as ``{file, row, column, reason}``.

    Args:
        output: Of which they are.
        quarantines: Their paths below it; no more of them are read than needed.

    Raises:
        OutputError: They cannot be read.
    """
    shown: list[dict[str, Any]] = []
    for path in quarantines:
        if len(shown) >= _BAD_ROWS_SHOWN:
            break
        with (
            foreign_errors(OutputError, f"cannot read {output.storage.describe(path)}"),
            output.storage.open_input(path) as source,
        ):
            rows = pq.read_table(source).to_pylist()
        shown.extend(rows[: _BAD_ROWS_SHOWN - len(shown)])
    return shown
