"""The books of a sweep: its trials, and what is known of each of their measurements, in storage and here."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import asdict

from ...datasets.output import Output
from ...datasets.records import CommitRecord
from ...datasets.storage import foreign_errors
from ...errors import OutputError
from ...trt_actors.trial.task import HostInfo, Measurement
from ..progress import Reporter
from .grid import Trial
from .groups import unit_name, units_of
from .repeats import merged
from .results import Row, trials_text

__all__ = ["Ran"]

_TOLD = ("executed", "host_p50_ms", "host_p99_ms", "rows_per_s", "bad_rows", "is_steady", "seconds", "error")


class Ran:
    """The books of a sweep: its trials, each so many times, and what is known of them.

    Args:
        output: Where that is kept.
        trials: All of them, in order.
        repeats: How often each is measured.
        shown: Told of every measurement.

    Attributes:
        run: The run's name.
        before: How many measurements an earlier run had made.
    """

    def __init__(self, output: Output, trials: Sequence[Trial], repeats: int, shown: Reporter) -> None:
        self._output = output
        self._shown = shown
        self._trials = trials
        self._units = units_of(trials, repeats)
        self._repeats = repeats
        self._found = {key: self._read(record).found for key, record in output.committed().items()}
        self._problems: dict[Trial, str] = {}
        self._hosts: dict[str, HostInfo] = {}
        self._lock = threading.Lock()
        self.run = secrets.token_hex(4)
        self.before = len(self._found)

    def started(self) -> None:
        """The run begins."""
        text = f"{self.before} measurements had been made before" if self.before else ""
        self._shown.tell(
            "run_started",
            text,
            run=self.run,
            job="sweep",
            out=self._output.storage.url,
            generation=self._output.generation,
            trials=len(self._trials),
            repeats=self._repeats,
            measurements=len(self._units),
            measurements_before=self.before,
        )

    def actor_started(self, name: str, info: HostInfo) -> None:
        """An actor is ready."""
        self._hosts[name] = info
        self._shown.tell(
            "actor_ready", actor=name, node=info.node, pid=info.pid, device=info.device, gpus=info.gpus
        )

    @property
    def pending(self) -> dict[str, Trial]:
        """The measurements that are missing, by key, in order."""
        return {
            key: trial
            for key, trial in self._units.items()
            if key not in self._found and trial not in self._problems
        }

    @property
    def rows(self) -> list[Row]:
        """What is known, in the order of the trials, once nothing is pending."""
        return [Row(trial=trial, found=self._result(trial)) for trial in self._trials]

    def _result(self, trial: Trial) -> Measurement:
        if trial in self._problems:
            return Measurement(error=self._problems[trial])
        return merged([self._found[unit_name(trial, number)] for number in range(self._repeats)])

    def cannot(self, trials: Sequence[Trial], problem: str) -> None:
        """Trials that need not be tried for now; not committed, so that the next call looks again."""
        self._problems |= dict.fromkeys(trials, problem)
        self._shown.tell(
            "trials_set_aside",
            f"{trials_text(trials)}: {problem}",
            level="warning",
            trials=[trial.key for trial in trials],
            reason=problem,
        )

    def done(self, key: str, found: Measurement, actor: str = "") -> None:
        """A trial was measured: its row is written, then committed, unless another driver was first."""
        with self._lock:
            if key not in self._found:
                row = self._commit(key, found)
                self._tell(key, row, actor)

    def _tell(self, key: str, row: Row, actor: str) -> None:
        found, host = row.found, self._hosts.get(actor)
        self._shown.tell(
            "trial_done",
            f"[{len(self._found)}/{len(self._units)}] {row.trial}: {_in_short(found)}",
            level="info" if found.error is None else "warning",
            trial=key,
            actor=actor or None,
            node=found.node,
            pid=None if host is None else host.pid,
            **asdict(row.trial),
            **{name: getattr(found, name) for name in _TOLD},
            done=len(self._found),
            measurements=len(self._units),
        )

    def _commit(self, key: str, found: Measurement) -> Row:
        row = Row(trial=self._units[key], found=found)
        attempt, data, storage = secrets.token_hex(8), row.encode(), self._output.storage
        part = self._output.path("parts", f"{key}-{attempt}.json")
        with foreign_errors(OutputError, f"cannot write to {storage.url}"):
            storage.put(part, data)
        standing = self._output.commit(
            CommitRecord(
                shard=key,
                attempt=attempt,
                rows=1,
                bad_rows=0,
                part=part,
                part_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                quarantine=None,
            )
        )
        if standing.attempt != attempt:
            with contextlib.suppress(Exception):
                storage.delete([part])
            row = self._read(standing)
        self._found[key] = row.found
        return row

    def _read(self, record: CommitRecord) -> Row:
        storage, path = self._output.storage, record.part or ""
        with foreign_errors(OutputError, f"cannot read {storage.url}"):
            data = storage.get(path)
        return Row.decode(data or b"", storage.describe(path))


def _in_short(found: Measurement) -> str:
    if found.error is not None:
        return f"failed: {found.error}"
    parts = [] if found.host_p50_ms is None else [f"{found.host_p50_ms:.3f} ms"]
    parts += [] if found.rows_per_s is None else [f"{found.rows_per_s:,.0f} rows/s"]
    parts += [] if found.is_steady else ["never ran steadily"]
    return ", ".join(parts)
