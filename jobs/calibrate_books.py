"""Keeping the books of a calibration: what is known of each unit of the sample, in storage and here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from ..cluster.scheduler import Scheduler
from ..datasets.output import Output
from ..datasets.records import CommitRecord
from ..datasets.sampling import Unit, plan_units
from ..datasets.storage import foreign_errors
from ..errors import BackendError, BadRowsError, CalibrationError, OutputError
from ..trt_actors.calibration.statistics import Statistics, decode, merge_all
from ..trt_actors.calibration.task import CalibratorInfo, UnitReceipt
from .calibrate_plan import CalibratePlan
from .progress import Reporter, Snapshot

__all__ = ["Books", "Collected"]

_REASONS_KEPT = 100


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a run collected, with what earlier runs of the same calibration had.

    Attributes:
        statistics: Of every tensor, over the whole sample.
        rows: Rows that were observed.
        bad_rows: Sampled rows that could not be.
        bad: Some of these, in words.
        units: Units of the sample.
        units_before: Of these, how many an earlier run had done.
        actors: Actors that took part; 0 when nothing was left to do.
        backend: What executed.
        failures: Attempts and actors that failed on the way.
    """

    statistics: Statistics
    rows: int
    bad_rows: int
    bad: tuple[str, ...]
    units: int
    units_before: int
    actors: int
    backend: str
    failures: int


class Books:
    """The books of one run.

    Args:
        plan: The calibration.
        output: Where the statistics of its units are kept.
        shown: Where progress is shown.

    Attributes:
        units: All units by id, in the order of the sample.
        records: The commit record of each finished unit, by id.
    """

    def __init__(self, plan: CalibratePlan, output: Output, shown: Reporter) -> None:
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
        self._run = secrets.token_hex(4)
        self._actors: dict[str, CalibratorInfo] = {}
        self._failures = 0
        self._ready_s: float | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every unit is committed."""
        return self.records.keys() >= self.units.keys()

    def actor_started(self, name: str, info: CalibratorInfo) -> None:
        """An actor is ready; all must compute in the same place for the same bits."""
        agreed = self._output.agree("backend", lambda: {"backend": info.backend})["backend"]
        if info.backend != agreed:
            why = f" ({info.not_taken})" if info.not_taken else ""
            raise BackendError(
                f"the actor on {info.node} runs {info.backend}{why}, the others {agreed}: "
                "the table would depend on who did what",
                f"say --backend {info.backend}, or see why that node has no {agreed}",
            )
        if not self._actors:
            self._ready_s = time.monotonic()
            reason = f" ({info.not_taken})" if info.not_taken else ""
            self._shown.say(f"backend {info.backend}, batch size {self._plan.batch_size}{reason}")
        self._actors[name] = info

    def unit_done(self, name: str, unit: str, receipt: UnitReceipt) -> None:
        """An actor answered for a unit: its statistics are written, then committed, unless they are there."""
        if unit in self.records:
            return
        attempt = f"{self._run}-{secrets.token_hex(4)}"
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
        self.records[unit] = standing
        self._check_bad()

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
        self._failures = scheduler.deaths + scheduler.errors
        passed = sum(self.units[unit].rows for unit in self.records)
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
            )
        )

    def collected(self) -> Collected:
        """Merges the statistics of all units.

        Raises:
            CalibrationError: Statistics are damaged or gone.
            BadRowsError: More than half of the rows are bad.
        """
        self._check_bad()
        records = [self.records[unit] for unit in self.units]
        backend = self._output.agree("backend", dict).get("backend", "")
        return Collected(
            statistics=merge_all(map(self._read, records)),
            rows=sum(record.rows for record in records),
            bad_rows=sum(record.bad_rows for record in records),
            bad=tuple(self._reasons()),
            units=len(records),
            units_before=self._before,
            actors=len(self._actors),
            backend=str(backend),
            failures=self._failures,
        )

    def _read(self, record: CommitRecord) -> Statistics:
        storage = self._output.storage
        path = record.part or ""
        with foreign_errors(OutputError, f"cannot read {storage.url}"):
            data = storage.get(path)
        if data is None:
            raise CalibrationError(f"{storage.describe(path)} is gone", f"remove {storage.url} and repeat")
        return decode(data, storage.describe(path))

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
