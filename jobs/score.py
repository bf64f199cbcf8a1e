"""The scoring job: plan, run on Ray, merge, publish; repeatable at any point."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..cluster.budgets import Limits
from ..cluster.metrics import JobMetrics
from ..cluster.pool import ActorPool, Work
from ..cluster.scheduler import Scheduler
from ..cluster.session import Session, connect
from ..datasets.merge import merge_group, plan_merge, publish
from ..datasets.output import Output
from ..datasets.records import CommitRecord, FinalPart, JobRecord, SuccessRecord
from ..datasets.shards import DEFAULT_SHARD_BYTES, Shard, plan_shards, suggest_shard_bytes
from ..errors import EmptyDatasetError, OutputError
from ..trt_actors.actor import ScoreActor
from ..trt_actors.feed import decodes_ahead
from ..trt_actors.scorer import reading_threads
from .account import Account, Circumstances
from .advice import advise
from .plan import Plan, make_plan
from .profile import check_trace_path, write_trace
from .progress import Reporter, Silent
from .room import find_room
from .spec import ScoreSpec
from .summary import Summary
from .task import score_task

__all__ = ["run_score"]

_SHARDS_IN_FLIGHT = 2
_SPARE_THREADS = 2
_DEVICE_SHARD_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A plan on its way: its shards, where it writes, and this run's name."""

    plan: Plan
    shards: list[Shard]
    output: Output
    run: str


def run_score(spec: ScoreSpec, reporter: Reporter | None = None) -> Summary:
    """Scores a dataset; see ``ScoreSpec``.

    Every row of the dataset ends up in the output once, in dataset order, or in quarantine. An interrupted
    call is resumed by the same call.

    Args:
        spec: What to do.
        reporter: Where progress is shown; nowhere by default.

    Raises:
        TrtfleetError: The job failed; what was committed stays for the next call.
    """
    start_s = time.monotonic()
    with reporter or Silent() as shown:
        if spec.trace is not None:
            check_trace_path(spec.trace)
        plan = make_plan(spec)
        finished = _finished(plan)
        if finished is not None:
            return _nothing_to_do(plan, finished)
        shown.say(
            f"{len(plan.dataset.files):,} files, {plan.dataset.rows:,} rows, "
            f"{plan.dataset.size_bytes:,} bytes to read"
        )
        advice = advise(plan.dataset, plan.fitted.bindings or ())
        for sentence in advice:
            shown.say(sentence)
        with connect(spec.address) as session:
            return _run(plan, session, shown, start_s, advice)


def _finished(plan: Plan) -> SuccessRecord | None:
    if plan.existing is None or plan.spec.overwrite:
        return None
    record = plan.existing.success()
    return None if record is None else plan.existing.finish(record)


def _nothing_to_do(plan: Plan, record: SuccessRecord) -> Summary:
    return Summary(
        out=plan.storage.url,
        rows=record.rows,
        bad_rows=record.bad_rows,
        files=len(record.parts),
        already_finished=True,
    )


def _run(plan: Plan, session: Session, shown: Reporter, start_s: float, advice: Sequence[str]) -> Summary:
    spec = plan.spec
    room = find_room(
        session,
        shown,
        backend=spec.backend,
        actors=spec.actors,
        cpus_per_actor=spec.cpus_per_actor,
        gpus_per_actor=spec.gpus_per_actor,
    )
    actors, cpus = room.actors, room.threads
    # A device fills the last batch of a shard up: few batches a shard would waste much of its time.
    job = _open(plan, actors, _DEVICE_SHARD_BYTES if room.resources.gpus else DEFAULT_SHARD_BYTES)
    committed = job.output.committed()
    circumstances = Circumstances(
        readers=min(reading_threads(cpus), cpus),
        feeders=_SHARDS_IN_FLIGHT,
        decoders=cpus if decodes_ahead(plan.fitted.bindings) else _SHARDS_IN_FLIGHT,
        column=_widest_column(plan),
        advice=tuple(advice),
    )
    account = Account(job.output, job.shards, committed, job.run, shown, JobMetrics(job.run), circumstances)
    scheduler = Scheduler(
        [(shard.id, shard.rows) for shard in job.shards],
        Limits(actors=actors, in_flight_per_actor=_SHARDS_IN_FLIGHT, max_bad_rows=spec.max_bad_rows),
        {shard: (record.rows, record.bad_rows) for shard, record in committed.items()},
    )
    account.watch(scheduler)
    by_id = {shard.id: shard for shard in job.shards}
    work = Work(
        actor=ScoreActor,
        task=score_task(plan, job.output, threads=cpus),
        resources=room.resources,
        threads=_SHARDS_IN_FLIGHT + _SPARE_THREADS,
        payload=lambda shard, attempt: (by_id[shard], f"{job.run}-{attempt}"),
        count=lambda receipt: (receipt.record.rows, receipt.record.bad_rows),
    )
    pool = ActorPool(
        scheduler,
        work,
        on_started=account.actor_started,
        on_done=account.shard_done,
        on_progress=account.progress,
    )
    try:
        pool.run()
        account.scored()
        if spec.trace is not None:
            shown.say(_write_trace(spec.trace, pool))
        success = _finish(job, account, pool, time.monotonic() - start_s)
    except BaseException as error:
        account.failed(error)
        raise
    finally:
        pool.close()
    return account.summary(success, time.monotonic() - start_s)


def _widest_column(plan: Plan) -> str:
    """The column that feeds the largest input, with its type, for reports; empty with a preprocess hook."""
    fixed = [b for b in plan.fitted.bindings or () if b.input.is_static and len(b.columns) == 1]
    if not fixed:
        return ""
    name = max(fixed, key=lambda binding: binding.input.row_bytes).columns[0]
    return f"column {name} ({plan.schema.field(name).type})"


def _write_trace(path: str, pool: ActorPool) -> str:
    """Writes one actor's trace; a trace that cannot be had or written is only a pity."""
    (found,) = pool.map("trace", [()])
    if isinstance(found, BaseException):
        return f"no trace: {found}"
    events, dropped, info = found
    try:
        return write_trace(path, f"actor on {info.node}", events, dropped=dropped, pid=info.pid)
    except OutputError as error:
        return f"no trace: {error.fact}"


def _open(plan: Plan, actors: int, most_bytes: int) -> _Job:
    """Cuts the dataset and opens the generation to write: the same job's unfinished one, or a new one."""
    existing = plan.existing
    if existing is not None and plan.spec.overwrite:
        same = dict(existing.job.fingerprint) == dict(plan.fingerprint)
        if not same or existing.success() is not None:
            existing = None
    wanted = plan.spec.shard_bytes or suggest_shard_bytes(plan.dataset.size_bytes, actors, most_bytes)
    resolved = existing.job.resolved if existing else {"shard_bytes": wanted}
    shards = plan_shards(plan.dataset.files, int(resolved["shard_bytes"]))
    if existing is None:
        record = JobRecord(
            fingerprint=plan.fingerprint,
            resolved=resolved,
            shards=len(shards),
            rows=plan.dataset.rows,
            model=os.path.basename(plan.spec.model),
        )
        existing = Output.create(plan.storage, record, after=plan.existing)
        if existing.job.resolved != resolved:
            # Another driver created it a moment ago, with its own idea of a shard.
            shards = plan_shards(plan.dataset.files, int(existing.job.resolved["shard_bytes"]))
    return _Job(plan=plan, shards=shards, output=existing, run=secrets.token_hex(4))


def _finish(job: _Job, account: Account, pool: ActorPool, seconds: float) -> SuccessRecord:
    """Merges and publishes, unless another driver on the same output already did."""
    commits = account.commits()
    if not any(commit.rows or commit.bad_rows for commit in commits):
        raise EmptyDatasetError(
            f"no row passes --filter {job.plan.spec.filter!r}"
            if job.plan.spec.filter
            else "the dataset has no rows",
            "check the filter's values",
        )
    try:
        finals, folder = _merge(job, commits, pool)
        return publish(job.output, finals, folder, commits=commits, seconds=seconds)
    except OutputError:
        theirs = job.output.success()
        if theirs is None:
            raise
        return job.output.finish(theirs)


def _merge(job: _Job, commits: Sequence[CommitRecord], pool: ActorPool) -> tuple[list[FinalPart], str]:
    """Makes the final files, on the actors or else here; also returns the folder they are staged in."""
    groups = plan_merge(commits)
    if len(groups) > 1:
        found: list[Any] = pool.map("merge", [(group, job.run) for group in groups])
        if all(isinstance(result, FinalPart) for result in found):
            return found, job.run
    # In a folder of our own: an actor that was given up may wake and write on in the run's.
    folder = f"{job.run}-driver"
    codec = job.plan.spec.compression
    return [merge_group(job.output, group, folder, codec) for group in groups], folder
