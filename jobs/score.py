"""The scoring job: plan, run on Ray, merge, publish; repeatable at any point."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

from ..cluster.budgets import Limits
from ..cluster.metrics import JobMetrics
from ..cluster.pool import ActorPool, Work
from ..cluster.scheduler import Scheduler
from ..cluster.session import Session, connect
from ..datasets.records import SuccessRecord
from ..datasets.shards import DEFAULT_SHARD_BYTES
from ..errors import OutputError
from ..trt_actors.actor import ScoreActor
from ..trt_actors.feed import decodes_ahead
from ..trt_actors.scorer import reading_threads
from .account import Account, Circumstances
from .advice import advise
from .calibrate import calibrate_within
from .calibrate_spec import CalibrateSpec
from .parity_gate import Verdict, judge, record
from .plan import Plan, make_plan
from .profile import check_trace_path, write_trace
from .progress import Reporter, Silent
from .room import find_room
from .score_output import begun, finish_job, open_job
from .spec import ScoreSpec
from .summary import Summary
from .task import score_task

__all__ = ["run_score"]

_SHARDS_IN_FLIGHT = 2
_SPARE_THREADS = 2
_DEVICE_SHARD_BYTES = 512 << 20


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
    with contextlib.ExitStack() as opened:
        shown = opened.enter_context(reporter or Silent())
        if spec.trace is not None:
            check_trace_path(spec.trace)

        def calibrate(calibration: CalibrateSpec) -> None:
            shown.say(f"{spec.model} has no calibration table for what it is fed: calibrating first")
            # One cluster for both: whoever connects from now on finds this connection.
            opened.enter_context(connect(spec.address))
            calibrate_within(calibration, shown)

        plan = make_plan(spec, calibrate)
        finished = _finished(plan)
        if finished is not None:
            return _nothing_to_do(plan, finished)
        shown.say(
            f"{len(plan.dataset.files):,} files, {plan.dataset.rows:,} rows, "
            f"{plan.dataset.size_bytes:,} bytes to read"
        )
        advice = advise(plan.dataset, plan.fitted.bindings or ())
        told = () if plan.quantized is None else (plan.quantized.found.sentence, *plan.quantized.found.notes)
        for sentence in (*told, *advice):
            shown.say(sentence)
        session = opened.enter_context(connect(spec.address))
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
    verdict = judge(plan, begun(plan), room, shown)
    # A device fills the last batch of a shard up: few batches a shard would waste much of its time.
    job = open_job(plan, actors, _DEVICE_SHARD_BYTES if room.resources.gpus else DEFAULT_SHARD_BYTES)
    if verdict is not None:
        record(job.output, verdict)
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
        success = finish_job(job, account.commits(), pool, time.monotonic() - start_s)
    except BaseException as error:
        account.failed(error)
        raise
    finally:
        pool.close()
    return _with_int8(account.summary(success, time.monotonic() - start_s), plan, verdict)


def _with_int8(summary: Summary, plan: Plan, verdict: Verdict | None) -> Summary:
    """A summary that tells also what was quantized, and how well."""
    if plan.quantized is None:
        return summary
    found = plan.quantized.found
    warnings = () if verdict is None or not verdict.warning else (verdict.warning,)
    return replace(
        summary,
        calibration=found.sentence,
        parity="" if verdict is None else verdict.sentence,
        notes=(*found.notes, *warnings, *summary.notes),
    )


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
