"""Keeping the books of a run: commits, actors' times, the run's record in storage, summary and report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from ..cluster.events import Incident
from ..cluster.metrics import JobMetrics
from ..cluster.scheduler import Scheduler
from ..datasets.output import Output
from ..datasets.records import CommitRecord, SuccessRecord
from ..datasets.shard_table import Shard, ShardTable
from ..errors import OutputError
from ..trt_actors.task import ActorInfo, Receipt
from .actor_books import ActorBooks
from .commit_table import CommitTable
from .progress import Reporter, Snapshot
from .run_facts import Circumstances, RunFacts
from .run_log import RunLog
from .run_report_history import History
from .summary import Summary, sized

__all__ = ["Account"]

_LOOK_EVERY_S = 1.0
_QUARANTINES_KEPT = 10
_FIRST_ACTOR_EXPECTED_S = 20.0


class Account:
    """The books of one run.

    Args:
        output: What it writes.
        shards: All shards, in dataset order.
        committed: The commit records of earlier runs; they are looked through once, and not kept.
        run: The run's name.
        shown: Where progress is shown.
        metrics: Where it is counted.
        circumstances: What was known of it before it began.

    Attributes:
        shards: The shards, by position and by id.
        shards_before: How many of them earlier runs have committed.
        state: ``running``, ``finished``, ``failed``, or ``stopped`` by the user.

    Raises:
        OutputError: A record is of no shard of this job.
    """

    def __init__(
        self,
        output: Output,
        shards: Sequence[Shard],
        committed: Iterable[CommitRecord],
        run: str,
        shown: Reporter,
        metrics: JobMetrics,
        circumstances: Circumstances | None = None,
    ) -> None:
        self._circumstances = circumstances or Circumstances()
        self._output = output
        self.shards = ShardTable.of(shards)
        self._records = CommitTable(self.shards)
        self._rows_planned = self.shards.rows_total
        self._rows_before = self._rows_passed = 0
        self._quarantines: list[str] = []
        for record in committed:
            if record.shard not in self.shards.places:
                commit = f"{output.storage.url} holds a commit of shard {record.shard[:40]}"
                raise OutputError(
                    f"{commit}, which is not one of the {len(shards):,} of this job",
                    "another version of trtfleet may have cut the data; start afresh with --overwrite",
                )
            self._rows_before += record.rows
            self._enter(record.shard, record)
        self.shards_before = len(self._records)
        self._run = run
        self._shown = shown
        self._metrics = metrics
        self._actors = ActorBooks()
        self._start_s = time.monotonic()
        self._log = RunLog(output, run)
        self._first_ready_s: float | None = None
        self._patience_s = _FIRST_ACTOR_EXPECTED_S
        self._scored_s: float | None = None
        self.state = "running"
        self._looked_s = float("-inf")
        self._failed = 0
        self._history = History(self._start_s)
        self._scheduler: Scheduler | None = None

    def watch(self, scheduler: Scheduler) -> None:
        """Names the scheduler whose counts are shown."""
        self._scheduler = scheduler

    def actor_started(self, name: str, info: ActorInfo) -> None:
        """An actor is ready."""
        now_s, text = time.monotonic(), ""
        if self._first_ready_s is None:
            self._first_ready_s = now_s
            reason = f" ({info.not_taken})" if info.not_taken else ""
            text = f"backend {info.backend}, batch size {sized(info.batch_size, info.batch_origin)}{reason}"
        self._actors.add(name, info, now_s)
        self._shown.tell(
            "actor_ready",
            text,
            actor=name,
            node=info.node,
            pid=info.pid,
            device=info.device,
            backend=info.backend,
            batch_size=info.batch_size,
            seconds=round(info.start_s, 3),
        )
        self._note(name, info.notes)

    def shard_done(self, name: str, shard: str, receipt: Receipt) -> None:
        """An actor answered for a shard."""
        now_s, record = time.monotonic(), receipt.record
        book = self._actors[name]
        worked = self._actors.hear(book, receipt, now_s)
        if worked is not None:
            self._metrics.worked(book.info.node, **vars(worked))
        self._note(name, receipt.notes)
        if receipt.won:
            book.shards += 1
            book.rows += record.rows
        is_first = shard not in self._records
        if is_first:
            self._enter(shard, record)
            self._metrics.shard_done(record.rows, record.bad_rows)
            self._history.shard_done(book.place, record.rows, now_s, receipt.seconds)
        self._shown.tell(
            "shard_done",
            shard=shard,
            attempt=record.attempt,
            actor=name,
            node=book.info.node,
            pid=book.info.pid,
            rows=record.rows,
            bad_rows=record.bad_rows,
            seconds=round(receipt.seconds, 3),
            is_first=is_first,
        )

    def _enter(self, shard: str, record: CommitRecord) -> None:
        """Notes down the first record of a shard."""
        self._records[shard] = record
        self._rows_passed += self.shards.rows(self.shards.places[shard])
        if record.quarantine and len(self._quarantines) < _QUARANTINES_KEPT:
            self._quarantines.append(record.quarantine)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Rows and bad rows of the shards committed so far, by id."""
        return self._records.counts()

    def _note(self, name: str, notes: tuple[str, ...]) -> None:
        """Says what an actor has to tell when nobody did before; the summary has the last words."""
        for note in self._actors.note(name, notes):
            self._shown.tell("note", note, actor=name, node=self._actors[name].info.node)

    def progress(self) -> None:
        """Shows where the run is, and every few seconds records it in storage."""
        scheduler = self._scheduler
        if scheduler is None:
            return
        if self._first_ready_s is None and time.monotonic() - self._start_s > self._patience_s:
            self._patience_s *= 4
            self._shown.say("no actor is ready yet: the cluster may be busy, or nodes still starting")
        failures = scheduler.deaths + scheduler.errors
        now_s = time.monotonic()
        if failures != self._failed or now_s - self._looked_s >= _LOOK_EVERY_S:
            self._failed, self._looked_s = failures, now_s
            self._look_at_failures(scheduler)
        self._metrics.state(
            actors=scheduler.actors_ready,
            failures=failures,
            pending=scheduler.pending,
            in_flight=scheduler.running,
        )
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
        if self._log.is_due(now_s):
            self._log.write(scheduler, "running")

    def _look_at_failures(self, scheduler: Scheduler) -> None:
        for incident in self._history.failures(scheduler.failures):
            self._shown.tell("failure", level="warning", reason=incident.reason, **self._subject(incident))

    def _subject(self, incident: Incident) -> dict[str, str]:
        return {"shard" if incident.subject in self.shards.places else "actor": incident.subject}

    def scored(self) -> None:
        """The last shard is committed."""
        self._scored_s = time.monotonic()

    def failed(self, error: BaseException) -> None:
        """The run ends without a result."""
        self._end(error)
        try:
            self._log.write(self._scheduler, self.state, str(error))
        except OutputError:
            # The output may be what failed; the error itself is on its way to the user.
            return

    def _end(self, error: BaseException | None) -> None:
        if self._scheduler is not None:
            self._look_at_failures(self._scheduler)
        self._metrics.close()
        self.state = "finished"
        if error is not None:
            self.state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"

    def commits(self) -> list[CommitRecord]:
        """The commit record of every shard, in dataset order."""
        return [self._records[shard] for shard in self.shards.ids]

    def summary(self, success: SuccessRecord | None, seconds: float) -> Summary:
        """Closes the books.

        Args:
            success: What was published; None where the run came to nothing.
            seconds: What the command has taken.
        """
        if success is None:
            return self.facts().summary(seconds=seconds, circumstances=self._circumstances)
        self._end(None)
        self._log.write(self._scheduler, "finished")
        return self.facts().summary(
            seconds=seconds,
            circumstances=self._circumstances,
            files=len(success.parts),
            rows=(success.rows, success.bad_rows),
        )

    def facts(self) -> RunFacts:
        """All that was written down so far."""
        scheduler, start_s = self._scheduler, self._start_s
        return RunFacts(
            run=self._run,
            state=self.state,
            out=self._output.storage.url,
            started_s=self._log.started_s,
            rows_planned=self._rows_planned,
            rows=scheduler.rows_done if scheduler else self._rows_before,
            rows_before=self._rows_before,
            bad_rows=scheduler.bad_rows if scheduler else 0,
            shards=len(self.shards),
            shards_before=self.shards_before,
            shards_done=len(self._records),
            ready_s=None if self._first_ready_s is None else self._first_ready_s - start_s,
            scored_s=None if self._scored_s is None else self._scored_s - start_s,
            end_s=time.monotonic() - start_s,
            timeline=self._history.timeline(),
            failures=self._history.groups,
            deaths=scheduler.deaths if scheduler else 0,
            errors=scheduler.errors if scheduler else 0,
            actors=tuple(self._actors),
            engines=self._actors.engines,
            notes=self._actors.notes,
            quarantines=tuple(self._quarantines),
            heard_offset_s=start_s,
        )

    def _rate(self) -> float:
        if self._first_ready_s is None or self._scheduler is None:
            return 0.0
        rows = self._scheduler.rows_done - self._rows_before
        return rows / max(1e-9, time.monotonic() - self._first_ready_s)
