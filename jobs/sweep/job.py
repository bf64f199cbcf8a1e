"""The sweep job: every combination measured on Ray, its results as files, tables and a page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...datasets.storage import foreign_errors
from ...errors import OutputError
from ..progress import Reporter
from ..reporting import reporting
from .compare import Change, changes, in_words
from .page import REPORT, sweep_page
from .plan import make_sweep_plan
from .results import CSV, PARQUET, Row, best_rows, failures, read_rows, write_rows
from .spec import SweepSpec
from .tables import tables
from .trials import run_trials

__all__ = ["SweepSummary", "run_sweep"]


@dataclass(frozen=True, kw_only=True)
class SweepSummary:
    """The outcome of a sweep.

    Attributes:
        out: Where the results are.
        rows: A row for each trial.
        before: How many measurements an earlier run had made.
        changes: What differs from an earlier sweep; None where none was named.
        baseline: The backend that others are held against in the tables.
        seconds: From the start of the command to the end.
    """

    out: str
    rows: Sequence[Row] = field(repr=False)
    before: int
    changes: Sequence[Change] | None
    baseline: str | None
    seconds: float

    @property
    def failed(self) -> list[Row]:
        """The trials that came to nothing."""
        return [row for row in self.rows if row.found.error is not None]

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {
            "out": self.out,
            "trials": [{**asdict(row.trial), **asdict(row.found)} for row in self.rows],
            "failed": len(self.failed),
            "before": self.before,
            "changes": None if self.changes is None else [change.as_json() for change in self.changes],
            "seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """The summary in words."""
        lines = tables(self.rows, self.baseline)
        for row in best_rows(self.rows):
            of = f" on {row.trial.devices} devices" if row.trial.devices > 1 else ""
            lines.append(f"most rows per second of a device: {row.trial}: {row.found.rows_per_s:,.0f}{of}")
        lines += [f"failed: {trials}: {reason}" for trials, reason in failures(self.rows)]
        if self.changes is not None:
            lines += in_words(self.changes)
        again = f", {self.before} measurements were made before" if self.before else ""
        lines.append(f"{len(self.rows)} trials in {self.seconds:.1f} s{again}")
        lines.append(f"{self.out}: {PARQUET}, {CSV}, {REPORT}")
        return lines


def run_sweep(spec: SweepSpec, reporter: Reporter | None = None) -> SweepSummary:
    """Measures models in every combination of settings on a cluster; see ``SweepSpec``.

    An interrupted call is resumed by the same call: no trial is measured twice.

    Args:
        spec: What to do.
        reporter: Where progress is shown; nowhere by default.

    Raises:
        TrtfleetError: The sweep as a whole failed; a trial that fails is a row with its error.
    """
    start_s = time.monotonic()
    with reporting(reporter, spec.log_format) as shown:
        earlier = None if spec.compare is None else read_rows(spec.compare)
        plan = make_sweep_plan(spec)
        shown.tell(
            "job_planned",
            job="sweep",
            models=list(plan.models),
            out=plan.storage.url,
            data=list(spec.data) or None,
        )
        ran = run_trials(plan, shown)
        rows = ran.rows
        found = None if earlier is None else changes(earlier, rows)
        write_rows(plan.storage, rows)
        page = sweep_page(rows, found, spec.baseline)
        with foreign_errors(OutputError, f"cannot write to {plan.storage.url}"):
            plan.storage.put(REPORT, page)
        summary = SweepSummary(
            out=plan.storage.url,
            rows=rows,
            before=ran.before,
            changes=found,
            baseline=spec.baseline,
            seconds=time.monotonic() - start_s,
        )
        shown.tell("report_written", place=plan.storage.describe(REPORT))
        shown.tell(
            "run_finished",
            job="sweep",
            out=summary.out,
            trials=len(rows),
            failed=len(summary.failed),
            measurements_before=ran.before,
            changes=None if found is None else len(found),
            seconds=round(summary.seconds, 3),
        )
    return summary
