"""Keeping the books of a run: commits, actors' times, the run's record in storage, and the summary."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..cluster.metrics import JobMetrics
from ..cluster.scheduler import Scheduler
from ..datasets.output import Output
from ..datasets.records import CommitRecord, RunRecord, SuccessRecord
from ..datasets.shards import Shard
from ..errors import OutputError
from ..trt_actors.pipeline import PipelineStats
from ..trt_actors.stages import StageStats
from ..trt_actors.task import ActorInfo, Receipt
from .limits import JobFacts, limit_of
from .progress import Reporter, Snapshot
from .summary import Summary, device_share_of, shares_of, sized

__all__ = ["Account"]

_RECORD_EVERY_S = 5.0
_FAILURES_KEPT = 20
_FIRST_ACTOR_EXPECTED_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What was known of a run before it began, for the words about its limit.

    Attributes:
        readers: Threads an actor reads with; no more than its cores.
        decoders: Threads an actor decodes with: its feeders where that is cheap.
        feeders: Threads an actor fills slots with.
        column: The widest column with its type; may be empty.
        advice: Sentences about what would speed reading up.
    """

    readers: int = 1
    decoders: int = 1
    feeders: int = 1
    column: str = ""
    advice: tuple[str, ...] = ()


class Account:
    """The books of one run.

    Args:
        output: What it writes.
        shards: All shards, in dataset order.
        committed: Those that earlier runs committed.
        run: The run's name.
        shown: Where progress is shown.
        metrics: Where it is counted.
        circumstances: What was known of it before it began.
    """

    def __init__(
        self,
        output: Output,
        shards: Sequence[Shard],
        committed: Mapping[str, CommitRecord],
        run: str,
        shown: Reporter,
        metrics: JobMetrics,
        circumstances: Circumstances | None = None,
    ) -> None:
        self._circumstances = circumstances or Circumstances()
        self._stages: dict[str, StageStats] = {}
        self._output = output
        self._shards = shards
        self._records = dict(committed)
        self._rows_before = sum(record.rows for record in committed.values())
        self._shard_rows = {shard.id: shard.rows for shard in shards}
        self._rows_passed = sum(self._shard_rows[shard] for shard in committed)
        self._rows_planned = sum(self._shard_rows.values())
        self._run = run
        self._shown = shown
        self._metrics = metrics
        self._actors: dict[str, ActorInfo] = {}
        self._notes: dict[str, tuple[str, ...]] = {}
        self._stats: dict[str, tuple[PipelineStats, float]] = {}
        self._start_s = time.monotonic()
        self._started_unix_s = time.time()
        self._first_ready_s: float | None = None
        self._patience_s = _FIRST_ACTOR_EXPECTED_S
        self._scored_s: float | None = None
        self._recorded_s = float("-inf")
        self._scheduler: Scheduler | None = None

    def watch(self, scheduler: Scheduler) -> None:
        """Names the scheduler whose counts are shown."""
        self._scheduler = scheduler

    def actor_started(self, name: str, info: ActorInfo) -> None:
        """An actor is ready."""
        if self._first_ready_s is None:
            self._first_ready_s = time.monotonic()
            reason = f" ({info.not_taken})" if info.not_taken else ""
            size = sized(info.batch_size, info.batch_origin)
            self._shown.say(f"backend {info.backend}, batch size {size}{reason}")
        self._actors[name] = info
        self._note(name, info.notes)

    def shard_done(self, name: str, shard: str, receipt: Receipt) -> None:
        """An actor answered for a shard."""
        self._stats[name] = (receipt.stats, time.monotonic())
        self._stages[name] = receipt.stages
        self._note(name, receipt.notes)
        if shard not in self._records:
            self._records[shard] = receipt.record
            self._rows_passed += self._shard_rows[shard]
            self._metrics.shard_done(receipt.record.rows, receipt.record.bad_rows)

    def _note(self, name: str, notes: tuple[str, ...]) -> None:
        """Says what an actor has to tell when it is more than before; the summary has the last words."""
        for note in notes[len(self._notes.get(name, ())) :]:
            if note not in self._told():
                self._shown.say(note)
        self._notes[name] = notes

    def _told(self) -> set[str]:
        return {note for notes in self._notes.values() for note in notes}

    def progress(self) -> None:
        """Shows where the run is, and every few seconds records it in storage."""
        scheduler = self._scheduler
        if scheduler is None:
            return
        if self._first_ready_s is None and time.monotonic() - self._start_s > self._patience_s:
            self._patience_s *= 4
            self._shown.say("no actor is ready yet: the cluster may be busy, or nodes still starting")
        failures = scheduler.deaths + scheduler.errors
        self._metrics.state(scheduler.actors_ready, failures)
        self._shown.update(
            Snapshot(
                rows_planned=self._rows_planned,
                rows_passed=self._rows_passed,
                rows_written=scheduler.rows_done,
                bad_rows=scheduler.bad_rows,
                shards_done=scheduler.shards_done,
                shards_total=scheduler.shards_total,
                actors=scheduler.actors_ready,
                failures=failures,
                rows_per_s=self._rate(),
            )
        )
        if time.monotonic() - self._recorded_s >= _RECORD_EVERY_S:
            self._record("running")

    def scored(self) -> None:
        """The last shard is committed."""
        self._scored_s = time.monotonic()

    def failed(self, error: BaseException) -> None:
        """The run ends without a result."""
        state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        try:
            self._record(state, str(error))
        except OutputError:
            # The output may be what failed; the error itself is on its way to the user.
            return

    def commits(self) -> list[CommitRecord]:
        """The commit record of every shard, in dataset order."""
        return [self._records[shard.id] for shard in self._shards]

    def summary(self, success: SuccessRecord, seconds: float) -> Summary:
        """Closes the books."""
        self._record("finished")
        end_s = time.monotonic()
        ready_s = self._first_ready_s if self._first_ready_s is not None else end_s
        scored_s = self._scored_s if self._scored_s is not None else end_s
        scoring_s = max(0.0, scored_s - ready_s)
        rows_scored = sum(record.rows for record in self._records.values()) - self._rows_before
        engine = sum(stats.engine_rows_per_s for stats, _ in self._stats.values())
        rate = rows_scored / scoring_s if scoring_s else 0.0
        scheduler = self._scheduler
        until_scored = {name: (stats, scored_s - at_s) for name, (stats, at_s) in self._stats.items()}
        summary = Summary(
            out=self._output.storage.url,
            rows=success.rows,
            bad_rows=success.bad_rows,
            rows_scored=rows_scored,
            shards=len(self._shards),
            files=len(success.parts),
            actors=len(self._actors),
            backend=", ".join(sorted({info.backend for info in self._actors.values()})),
            not_taken="; ".join(sorted({info.not_taken for info in self._actors.values()} - {""})),
            batch_size=max((info.batch_size for info in self._actors.values()), default=0),
            batch_origin=next((info.batch_origin for info in self._actors.values()), ""),
            notes=tuple(sorted(self._told())),
            seconds=seconds,
            startup_s=max(0.0, seconds - (end_s - ready_s)),
            scoring_s=scoring_s,
            merge_s=end_s - scored_s,
            rows_per_s=rate,
            engine_rows_per_s=engine,
            efficiency=rate / engine if engine and rows_scored else None,
            shares=shares_of(until_scored),
            device_share=device_share_of(until_scored),
            failures=scheduler.deaths + scheduler.errors if scheduler else 0,
        )
        return replace(summary, limit=self._limit(summary)) if rows_scored else summary

    def _limit(self, summary: Summary) -> tuple[str, ...]:
        """What limited the run, in words."""
        known = self._circumstances
        facts = JobFacts(
            shares=summary.shares,
            device_share=summary.device_share,
            efficiency=summary.efficiency,
            seconds=summary.seconds,
            startup_s=summary.startup_s,
            scoring_s=summary.scoring_s,
            merge_s=summary.merge_s,
            actors=max(1, summary.actors),
            stages=StageStats.total(self._stages.values()),
            readers=known.readers,
            decoders=known.decoders,
            feeders=known.feeders,
            batch_size=summary.batch_size,
            column=known.column,
            advice=known.advice,
        )
        return limit_of(facts).sentences

    def _rate(self) -> float:
        if self._first_ready_s is None or self._scheduler is None:
            return 0.0
        rows = self._scheduler.rows_done - self._rows_before
        return rows / max(1e-9, time.monotonic() - self._first_ready_s)

    def _record(self, state: str, error: str = "") -> None:
        self._recorded_s = time.monotonic()
        scheduler = self._scheduler
        failures: list[dict[str, Any]] = []
        if scheduler is not None:
            offset_s = time.time() - time.monotonic()
            failures = [
                {"at_s": incident.at_s + offset_s, "subject": incident.subject, "reason": incident.reason}
                for incident in list(scheduler.failures)[-_FAILURES_KEPT:]
            ]
        self._output.report_run(
            RunRecord(
                run=self._run,
                state=state,
                started_s=self._started_unix_s,
                actors=scheduler.actors_ready if scheduler else 0,
                shards_done=scheduler.shards_done if scheduler else 0,
                failures=failures,
                error=error,
            )
        )
