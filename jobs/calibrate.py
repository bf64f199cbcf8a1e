"""The calibration job: sample, observe on Ray, merge, choose thresholds, store the table."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..datasets.storage import foreign_errors
from ..errors import OutputError
from ..trt_actors.calibration.table import CalibrationTable
from ..trt_actors.calibration.thresholds import Method
from .calibrate_books import Collected
from .calibrate_plan import CalibratePlan, make_calibrate_plan
from .calibrate_run import collect
from .calibrate_spec import CalibrateSpec
from .calibration_html import write_calibration_html
from .progress import Reporter
from .reporting import reporting
from .sample_run import forget

__all__ = ["CalibrateSummary", "calibrate_within", "run_calibrate"]

_MOST_SHOWN = 10
_FINISHED = (
    *("rows", "bad_rows", "units", "units_before", "actors", "backend", "failures"),
    *("tensors", "digest", "stored", "table"),
)


@dataclass(frozen=True, kw_only=True)
class CalibrateSummary:
    """The outcome of a calibration.

    Attributes:
        model: The model's path.
        method: How thresholds were chosen.
        stored: Where the table is kept beside the engine cache.
        table: The table's file; None when none was asked for.
        report: The HTML report; None when none was asked for.
        digest: SHA-256 of the table's bytes.
        samples: Rows that were asked for.
        rows: Rows that were observed.
        bad_rows: Sampled rows that could not be fed to the model.
        bad: Some of these, in words.
        seed: That rows were drawn with.
        batch_size: Rows a batch.
        tensors: Tensors with a range.
        worst: The share of their values beyond the threshold, of the tensors that lose most.
        backend: What executed.
        actors: Actors that took part; 0 when an earlier run had observed everything.
        units: Pieces of work.
        units_before: Of these, how many an earlier run had done.
        failures: Attempts and actors that failed on the way.
        seconds: From the start of the command to the end.
    """

    model: str
    method: str
    stored: str
    table: str | None
    report: str | None
    digest: str
    samples: int
    rows: int
    bad_rows: int
    bad: tuple[str, ...]
    seed: int
    batch_size: int
    tensors: int
    worst: Mapping[str, float]
    backend: str
    actors: int
    units: int
    units_before: int
    failures: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The summary as plain values."""
        return {**vars(self), "bad": list(self.bad), "worst": dict(self.worst)}

    def lines(self) -> list[str]:
        """The summary in words."""
        lines = [
            f"{self.tensors} ranges by {self.method} from {self.rows:,} rows, batch size {self.batch_size}, "
            f"seed {self.seed}",
            f"{self.seconds:.1f} s on {self.actors} actors, {self.backend}",
        ]
        if self.units_before:
            lines.append(f"{self.units_before} of {self.units} units had been observed before")
        if self.bad_rows:
            lines.append(f"{self.bad_rows:,} bad rows did not count; the first: {self.bad[0]}")
        if self.worst:
            lines.append("most values beyond the threshold:")
            lines += [f"  {share:8.4%}  {name}" for name, share in self.worst.items()]
        else:
            lines.append("no tensor has values beyond its threshold")
        lines.append(f"table: {self.table or self.stored}")
        if self.table:
            lines.append(f"found by `score --precision int8` in {self.stored}")
        if self.report:
            lines.append(f"report: {self.report}")
        return lines


def run_calibrate(spec: CalibrateSpec, reporter: Reporter | None = None) -> CalibrateSummary:
    """Makes a model's calibration table from a sample of a dataset; see ``CalibrateSpec``.

    The table's bytes depend on the model, the dataset and the options alone, not on the number of actors or
    on what happened to them. An interrupted call is resumed by the same call.

    Args:
        spec: What to do.
        reporter: Where progress is shown; nowhere by default.

    Raises:
        TrtfleetError: The calibration failed; what was observed stays for the next call.
    """
    with reporting(reporter, spec.log_format) as shown:
        return calibrate_within(spec, shown)


def calibrate_within(spec: CalibrateSpec, shown: Reporter) -> CalibrateSummary:
    """Calibrates as a part of another job, whose reporter is open; a connection to Ray that is there is used.

    Raises:
        TrtfleetError: As ``run_calibrate``.
    """
    start_s = time.monotonic()
    plan = make_calibrate_plan(spec)
    tensors = len(plan.observed.tensors)
    shown.tell(
        "job_planned",
        f"{len(plan.dataset.files):,} files, {plan.dataset.rows:,} rows; "
        f"{len(plan.rows):,} are sampled, {tensors} tensors observed",
        job=plan.job,
        model=spec.model,
        files=len(plan.dataset.files),
        rows=plan.dataset.rows,
        samples=len(plan.rows),
        tensors=tensors,
    )
    if len(plan.rows) < spec.samples:
        shown.say(f"there are fewer rows than --samples {spec.samples:,}: all {len(plan.rows):,} are taken")
    found = collect(plan, shown)
    table = _table(plan, found)
    stored = plan.store.put(table)
    if spec.table is not None:
        _write(spec.table, table.encode())
    if spec.report_path is not None:
        write_calibration_html(table, spec.report_path)
        shown.tell("report_written", place=spec.report_path)
    forget(plan.work)
    summary = CalibrateSummary(
        model=spec.model,
        method=table.method,
        stored=stored,
        table=spec.table,
        report=spec.report_path,
        digest=table.digest,
        samples=spec.samples,
        rows=found.rows,
        bad_rows=found.bad_rows,
        bad=found.bad,
        seed=spec.seed,
        batch_size=plan.batch_size,
        tensors=len(table.tensors),
        worst={name: tensor.clipped for name, tensor in table.worst_clipped(_MOST_SHOWN)},
        backend=found.backend,
        actors=found.actors,
        units=found.units,
        units_before=found.units_before,
        failures=found.failures,
        seconds=time.monotonic() - start_s,
    )
    told = {name: getattr(summary, name) for name in _FINISHED}
    shown.tell("run_finished", job=plan.job, seconds=round(summary.seconds, 3), **told)
    return summary


def _table(plan: CalibratePlan, found: Collected) -> CalibrationTable:
    return CalibrationTable.from_statistics(
        found.statistics,
        model=plan.model.digest,
        model_name=os.path.basename(plan.spec.model),
        method=Method.parse(plan.spec.method),
        samples=found.rows,
        seed=plan.spec.seed,
        batch_size=plan.batch_size,
        feed=plan.feed,
        excluded=plan.spec.exclude,
    )


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with foreign_errors(OutputError, f"{path} cannot be written", "check the path of -o"):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise
