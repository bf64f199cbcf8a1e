"""What a scoring job's driver does itself: planner, scheduler and books, without Ray and without I/O."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping, Sequence

from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.events import Action, ActorReady, Event, ShardDone
from trtfleet.cluster.metrics import JobMetrics
from trtfleet.cluster.scheduler import Scheduler
from trtfleet.datasets.discovery import SourceFile, snapshot_digest
from trtfleet.datasets.groups import Groups
from trtfleet.datasets.records import CommitRecord, JobRecord, RunRecord
from trtfleet.datasets.shards import plan_shards, suggest_shard_bytes
from trtfleet.jobs.account import Account
from trtfleet.jobs.progress import Silent
from trtfleet.trt_actors.task import ActorInfo, Receipt

__all__ = ["Driver"]

Files = Sequence[tuple[SourceFile, Groups]]


class _NoOutput:
    """An output that encodes a run's account and forgets it."""

    def __init__(self, job: JobRecord) -> None:
        self.job = job

    def report_run(self, record: RunRecord) -> None:
        """Does what a real one does up to the write."""
        record.encode()


class Driver:
    """A job as `jobs.score` runs it, from the footers to the last commit.

    `spent_s` sums up the CPU time of all that is done here. A single thread does it without waiting: on an
    idle machine, no more time than that passes.

    Args:
        files: What the footers said.
        actors: How many to run.
        committed: Hands over the commit records of an earlier run, as reading them would.
    """

    def __init__(
        self, files: Files, actors: int, committed: Callable[[], Mapping[str, CommitRecord]] = dict
    ) -> None:
        start_cpu_s = time.thread_time()
        total_bytes = sum(groups.size_bytes for _, groups in files)
        shard_bytes = suggest_shard_bytes(total_bytes, actors)
        job = JobRecord(
            fingerprint={"dataset": snapshot_digest(file for file, _ in files)},
            resolved={"shard_bytes": shard_bytes},
            shards=0,
            rows=0,
        )
        self.shards = plan_shards(files, shard_bytes)
        self.planned_s = time.thread_time() - start_cpu_s
        self.account = Account(
            _NoOutput(job),  # type: ignore[arg-type]
            self.shards,
            committed().values(),
            "simulated",
            Silent(),
            JobMetrics("simulated"),
        )
        shards = self.account.shards
        self.scheduler = Scheduler(
            shards.weights, Limits(actors=actors), self.account.counts(), shards.places
        )
        self.account.watch(self.scheduler)
        self.spent_s = time.thread_time() - start_cpu_s

    def start(self, at_s: float) -> list[Action]:
        """Begins the job."""
        start_cpu_s = time.thread_time()
        actions = self.scheduler.start(at_s)
        self.spent_s += time.thread_time() - start_cpu_s
        return actions

    def tell(self, event: Event, result: ActorInfo | bytes | None) -> list[Action]:
        """Does what `cluster.pool` does when a call has ended, its calls of Ray left out.

        Args:
            event: What has happened.
            result: What the call returned: for a shard a pickled `Receipt`.
        """
        start_cpu_s = time.thread_time()
        match event, result:
            case ActorReady(), ActorInfo():
                self.account.actor_started(event.actor, result)
            case ShardDone(), bytes():
                receipt: Receipt = pickle.loads(result)
                self.account.shard_done(event.actor, event.shard, receipt)
        actions = self.scheduler.handle(event)
        self.account.progress()
        self.spent_s += time.thread_time() - start_cpu_s
        return actions
