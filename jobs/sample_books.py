"""Keeping the books of a job over a sample: what is known of each of its units, in storage and here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from ..cluster.scheduler import Scheduler
from ..datasets.output import Output
from ..datasets.records import CommitRecord
from ..datasets.sampling import Unit, plan_units
from ..datasets.storage import foreign_errors
from ..errors import BackendError, BadRowsError, OutputError, RecordsGoneError
from ..trt_actors.calibration.task import CalibratorInfo, UnitReceipt
from .progress import Reporter, Snapshot
from .reporting import Failures
from .sample_plan import SamplePlan

__all__ = ["Outcome", "SampleBooks"]

_REASONS_KEPT = 100


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a sample, in this run and in earlier ones of the same job.

    Attributes:
        rows: Rows that went through the network.
        bad_rows: Sampled rows that could not.
        bad: Some of these, in words.
        units: Units of the sample.
        units_before: Of these, how many an earlier run had done.
        actors: Actors that took part; 0 when nothing was left to do.
        backend: What executed.
        failures: Attempts and actors that failed on the way.
    """

    rows: int
    bad_rows: int
    bad: tuple[str, ...]
    units: int
    units_before: int
    actors: int
    backend: str
    failures: int


class SampleBooks:
    """The books of one run.

    Args:
        plan: The job.
        output: Where what is known of its units is kept.
        shown: Where progress is shown.

    Attributes:
        run: The run's name.
        units: All units by id, in the order of the sample.
        records: The commit record of each finished unit, by id.
    """

    def __init__(self, plan: SamplePlan, output: Output, shown: Reporter) -> None:
        self._plan = plan
        self._output = output
        self._shown = shown
        planned = plan_units(
            plan.dataset.files,
            plan.rows,
            batch_size=plan.batch_size,
            unit_batches=int(output.job.resolved["unit_batches"]),
        )
        self.units: Mapping[str, Unit] = {unit.id: unit for unit in planned}
        self.records: dict[str, CommitRecord] = output.committed()
        self._before = len(self.records)
        self._rows_before = sum(record.rows for record in self.records.values())
        self.run = secrets.token_hex(4)
        self._actors: dict[str, CalibratorInfo] = {}
        self._failures = 0
        self._told = Failures(shown, lambda name: {"unit" if name in self.units else "actor": name})
        self._ready_s: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every unit is committed."""
        return self.records.keys() >= self.units.keys()

    def started(self, actors: int) -> None:
        """The run begins, on so many actors; 0 where nothing is left to do."""
        self._shown.tell(
            "run_started",
            run=self.run,
            job=self._plan.job,
            generation=self._output.generation,
            samples=len(self._plan.rows),
            batch_size=self._plan.batch_size,
            units=len(self.units),
            units_before=self._before,
            actors=actors,
            backend=self._plan.options.backend,
        )

    def actor_started(self, name: str, info: CalibratorInfo) -> None:
        """An actor is ready; all must compute in the same place for the same bits."""
        agreed = self._output.agree("backend", lambda: {"backend": info.backend})["backend"]
        if info.backend != agreed:
            why = f" ({info.not_taken})" if info.not_taken else ""
            raise BackendError(
                f"the actor on {info.node} runs {info.backend}{why}, the others {agreed}: "
                "the result would depend on who did what",
                f"say --backend {info.backend}, or see why that node has no {agreed}",
            )
        text = ""
        if not self._actors:
            self._ready_s = time.monotonic()
            reason = f" ({info.not_taken})" if info.not_taken else ""
            text = f"backend {info.backend}, batch size {self._plan.batch_size}{reason}"
        self._actors[name] = info
        self._shown.tell("actor_ready", text, actor=name, node=info.node, pid=info.pid, **info.told)

    def unit_done(self, name: str, unit: str, receipt: UnitReceipt) -> None:
        """An actor answered for a unit: its statistics are written, then committed, unless they are there."""
        is_first = unit not in self.records
        if is_first:
            self.records[unit] = self._commit(unit, receipt)
        info = self._actors[name]
        self._shown.tell(
            "unit_done",
            unit=unit,
            actor=name,
            node=info.node,
            pid=info.pid,
            rows=receipt.rows,
            bad_rows=len(receipt.bad),
            seconds=round(receipt.seconds, 3),
            is_first=is_first,
        )
        if is_first:
            self._check_bad()

    def _commit(self, unit: str, receipt: UnitReceipt) -> CommitRecord:
        """Writes what was found out about a unit; returns the record that stands."""
        attempt = f"{self.run}-{secrets.token_hex(4)}"
        storage, output = self._output.storage, self._output
        part = output.path("parts", f"{unit}-{attempt}.stats")
        quarantine = output.path("quarantine", f"{unit}-{attempt}.json") if receipt.bad else None
        with foreign_errors(OutputError, f"cannot write to {storage.url}"):
            storage.put(part, receipt.statistics)
            if quarantine is not None:
                storage.put(quarantine, json.dumps([asdict(row) for row in receipt.bad]).encode())
        standing = output.commit(
            CommitRecord(
                shard=unit,
                attempt=attempt,
                rows=receipt.rows,
                bad_rows=len(receipt.bad),
                part=part,
                part_bytes=len(receipt.statistics),
                sha256=hashlib.sha256(receipt.statistics).hexdigest(),
                quarantine=quarantine,
            )
        )
        if standing.attempt != attempt:
            with contextlib.suppress(Exception):
                storage.delete([part] if quarantine is None else [part, quarantine])
        return standing

    def _check_bad(self) -> None:
        bad = sum(record.bad_rows for record in self.records.values())
        if 2 * bad > len(self._plan.rows):
            sampled, first = len(self._plan.rows), next(iter(self._reasons()), "")
            raise BadRowsError(
                f"{bad:,} of {sampled:,} sampled rows cannot be fed to the model; the first: {first}",
                "does the data fit the model? see --input, --fill-null and --preprocess",
            )

    def progress(self, scheduler: Scheduler) -> None:
        """Shows how far the run is."""
        failures = scheduler.deaths + scheduler.errors
        if failures != self._failures:
            self.look_at_failures(scheduler)
        self._failures = failures
        passed = sum(self.units[unit].rows for unit in self.records if unit in self.units)
        seconds = 0.0 if self._ready_s is None else time.monotonic() - self._ready_s
        self._shown.update(
            Snapshot(
                rows_planned=len(self._plan.rows),
                rows_passed=passed,
                rows_written=scheduler.rows_done,
                bad_rows=scheduler.bad_rows,
                shards_done=scheduler.shards_done,
                shards_total=scheduler.shards_total,
                actors=scheduler.actors_ready,
                failures=self._failures,
                rows_per_s=(scheduler.rows_done - self._rows_before) / seconds if seconds else 0.0,
                pieces="units",
            )
        )

    def look_at_failures(self, scheduler: Scheduler) -> None:
        """Tells of what failed since the last look."""
        self._told.look(scheduler)

    def outcome(self) -> Outcome:
        """What became of the sample, once it is complete.

        Raises:
            BadRowsError: More than half of the rows are bad.
        """
        self._check_bad()
        records = [self.records[unit] for unit in self.units]
        backend = (self._output.agreed("backend") or {}).get("backend", "")
        return Outcome(
            rows=sum(record.rows for record in records),
            bad_rows=sum(record.bad_rows for record in records),
            bad=tuple(self._reasons()),
            units=len(records),
            units_before=self._before,
            actors=len(self._actors),
            backend=str(backend),
            failures=self._failures,
        )

    def parts(self) -> Iterator[tuple[bytes, str]]:
        """What was found out about each unit, in the order of the sample, and the name of what holds it.

        Raises:
            RecordsGoneError: It is gone, as it is once a run of the same job has ended.
        """
        storage = self._output.storage
        for unit in self.units:
            path = self.records[unit].part or ""
            with foreign_errors(OutputError, f"cannot read {storage.url}"):
                data = storage.get(path)
            if data is None:
                raise RecordsGoneError(
                    f"{storage.describe(path)} is gone", f"remove {storage.url} and repeat"
                )
            yield data, storage.describe(path)

    def _reasons(self) -> Sequence[str]:
        """The first bad rows in words, in the order of the sample."""
        found: list[str] = []
        for unit in self.units:
            record = self.records.get(unit)
            if record is None or record.quarantine is None or len(found) >= _REASONS_KEPT:
                continue
            with foreign_errors(OutputError, f"cannot read {self._output.storage.url}"):
                rows = json.loads(self._output.storage.get(record.quarantine) or b"[]")
            found += [_in_words(**row) for row in rows]
        return found[:_REASONS_KEPT]


def _in_words(*, file: str, row: int, column: str, reason: str) -> str:
    return f"row {row:,} of {file}: " + (f"{column}: {reason}" if column else reason)
