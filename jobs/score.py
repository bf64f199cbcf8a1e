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
from ..errors import OutputError
from ..trt_actors.actor import ScoreActor
from ..trt_actors.feed import decodes_ahead
from ..trt_actors.scorer import reading_threads
from ..trt_actors.task import ActorInfo, Receipt
from .account import Account
from .advice import advise
from .calibrate import calibrate_within
from .calibrate_spec import CalibrateSpec
from .device_shares import DeviceShares
from .parity_gate import Verdict, judge, record
from .plan import Plan, make_plan
from .profile import check_trace_path, write_trace
from .progress import JsonLines, Reporter, Silent, telling_failure
from .room import find_room
from .run_facts import Circumstances
from .run_report import ReportWriter
from .score_output import begun, finish_job, most_shard_bytes, open_job
from .spec import ScoreSpec
from .summary import Summary
from .task import SHARDS_IN_FLIGHT, score_task

__all__ = ["run_score"]

_SPARE_THREADS = 2
_LEAST_SPARE = 8
_FINISHED = ("rows", "bad_rows", "rows_scored", "files", "seconds", "rows_per_s", "efficiency", "failures")


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
        silent = JsonLines() if spec.log_format == "json" else Silent()
        shown = opened.enter_context(reporter or silent)
        opened.enter_context(telling_failure(shown))
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
            shown.tell("nothing_to_do", out=plan.storage.url)
            return _nothing_to_do(plan, finished)
        found = plan.dataset
        shown.tell(
            "job_planned",
            f"{len(found.files):,} files, {found.rows:,} rows, {found.size_bytes:,} bytes to read",
            files=len(found.files),
            rows=found.rows,
            size_bytes=found.size_bytes,
            model=spec.model,
            out=plan.storage.url,
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
        wait_for_nodes_s=spec.wait_for_nodes,
    )
    actors, cpus = room.actors, room.threads
    verdict = judge(plan, begun(plan), room, shown)
    job = open_job(plan, actors, most_shard_bytes(room.resources.gpus))
    if verdict is not None:
        record(job.output, verdict)
    circumstances = Circumstances(
        readers=min(reading_threads(cpus), cpus),
        feeders=SHARDS_IN_FLIGHT,
        decoders=cpus if decodes_ahead(plan.fitted.bindings) else SHARDS_IN_FLIGHT,
        column=_widest_column(plan),
        advice=tuple(advice),
    )
    # By the million, these records take more memory than all else; the account packs them.
    committed = job.output.committed().values()
    account = Account(job.output, job.shards, committed, job.run, shown, JobMetrics(job.run), circumstances)
    del committed
    shown.tell(
        "run_started",
        run=job.run,
        out=job.output.storage.url,
        generation=job.output.generation,
        shards=len(job.shards),
        shards_before=account.shards_before,
        actors=actors,
        backend=spec.backend,
        precision=spec.precision,
    )
    shards = account.shards
    scheduler = Scheduler(
        shards.weights,
        Limits(
            actors=actors,
            in_flight_per_actor=SHARDS_IN_FLIGHT,
            max_bad_rows=spec.max_bad_rows,
            # Merging is reading and writing: it takes some actors, not all.
            spare_actors=min(actors, max(_LEAST_SPARE, actors // 4)),
        ),
        account.counts(),
        shards.places,
    )
    account.watch(scheduler)
    work = Work(
        actor=ScoreActor,
        task=score_task(plan, job.output, threads=cpus, run=job.run),
        resources=room.resources,
        threads=SHARDS_IN_FLIGHT + _SPARE_THREADS,
        payload=lambda shard, attempt: (shards.named(shard), f"{job.run}-{attempt}"),
        count=lambda receipt: (receipt.record.rows, receipt.record.bad_rows),
        kind=lambda info: info.device,
    )
    report = ReportWriter(
        job.output, shown, precision=spec.precision, model=plan.model.proto, is_wanted=spec.report
    )
    devices = DeviceShares()

    def on_started(name: str, info: ActorInfo) -> None:
        further = devices.actor_started(name, info)
        account.actor_started(name, info)
        if further:
            shown.say(further)

    def on_done(name: str, shard: str, receipt: Receipt) -> None:
        devices.shard_done(name, receipt)
        account.shard_done(name, shard, receipt)

    pool = ActorPool(
        scheduler,
        work,
        on_started=on_started,
        on_done=on_done,
        on_progress=account.progress,
        watch=room.watch(session, shown),
    )
    try:
        pool.run()
        account.scored()
        if spec.trace is not None:
            shown.say(_write_trace(spec.trace, pool))
        success = finish_job(job, account.commits(), pool, time.monotonic() - start_s)
    except BaseException as error:
        account.failed(error)
        failed = replace(account.summary(None, time.monotonic() - start_s), devices=devices.shares())
        place = report(account.facts(), failed, error)
        if place:
            shown.tell("report_written", f"report: {place}", place=place)
        raise
    finally:
        pool.close()
    summary = replace(account.summary(success, time.monotonic() - start_s), devices=devices.shares())
    summary = _with_int8(summary, plan, verdict)
    summary = replace(summary, report=report(account.facts(), summary, None))
    if summary.report:
        shown.tell("report_written", place=summary.report)
    shown.tell("run_finished", **{name: getattr(summary, name) for name in _FINISHED})
    return summary


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
