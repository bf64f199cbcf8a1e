"""Running a sweep's trials on Ray: each has its devices for itself, each is committed once and for all."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

from ...cluster.budgets import Limits
from ...cluster.pool import ActorPool, Work
from ...cluster.scheduler import Scheduler
from ...cluster.session import connect
from ...datasets.output import Output
from ...datasets.records import JobRecord
from ...trt_actors.actor import SweepActorOn
from ...trt_actors.trial.task import HostTask
from ..progress import Reporter
from ..reporting import Failures
from .books import Ran
from .grid import CPU, Device, Trial, devices_of, grid
from .groups import Group, groups_of, problems_of
from .plan import SweepPlan

__all__ = ["run_trials"]


def run_trials(plan: SweepPlan, shown: Reporter) -> Ran:
    """Runs every trial of which nothing is known yet.

    Raises:
        FingerprintError: The output holds another sweep.
        TrtfleetError: The cluster cannot be used; what was measured stays for the next call.
    """
    output = Output.latest(plan.storage)
    if output is not None:
        output.require_kind(plan.fingerprint)
    if output is not None and not plan.spec.overwrite:
        output.require(plan.fingerprint)
        ran = _books(plan, output, shown)
        if all(map(plan.problem, ran.pending.values())):
            ran.started()
            _set_aside(plan, ran, {})
            return ran
    with connect(plan.spec.address) as session:
        devices = devices_of(session.nodes)
        if output is None or plan.spec.overwrite:
            output = _create(plan, list(devices), output)
        ran = _books(plan, output, shown)
        ran.started()
        _run(plan, ran, devices, shown)
    return ran


def _books(plan: SweepPlan, output: Output, shown: Reporter) -> Ran:
    return Ran(output, _trials(plan, output.job.resolved["devices"]), plan.spec.repeats, shown)


def _trials(plan: SweepPlan, devices: Sequence[str]) -> list[Trial]:
    return grid(plan.spec, list(plan.models), devices)


def _create(plan: SweepPlan, devices: Sequence[str], before: Output | None) -> Output:
    trials = _trials(plan, devices)
    record = JobRecord(
        fingerprint=plan.fingerprint,
        # Which trials there are depends on the cluster that the sweep began on.
        resolved={"devices": list(devices)},
        shards=len(trials) * plan.spec.repeats,
        rows=len(trials) * plan.spec.repeats,
        model=", ".join(plan.models),
    )
    return Output.create(plan.storage, record, before)


def _run(plan: SweepPlan, ran: Ran, devices: Mapping[str, Device], shown: Reporter) -> None:
    _set_aside(plan, ran, devices)
    groups = groups_of(ran.pending, devices, plan.spec.cpus_per_actor)
    kinds = dict.fromkeys(group.device.name for group in groups if group.device.is_gpu)
    over = threading.Event()

    def run_kind(name: str) -> None:
        for number, group in enumerate(groups, 1):
            if group.device.name == name:
                _run_group(plan, ran, number, group, shown, over)

    with ThreadPoolExecutor(max(1, len(kinds)), "kind") as threads:
        futures = [threads.submit(run_kind, name) for name in kinds]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            over.set()
            raise
    # Last: trials on CPUs would disturb those on the GPUs of the same node.
    run_kind(CPU)


def _set_aside(plan: SweepPlan, ran: Ran, devices: Mapping[str, Device]) -> None:
    """Gives up the pending trials that are known to fail."""
    trials = list(dict.fromkeys(ran.pending.values()))
    for problem, those in problems_of(plan, trials, devices).items():
        ran.cannot(those, problem)


def _run_group(
    plan: SweepPlan, ran: Ran, number: int, group: Group, shown: Reporter, over: threading.Event
) -> None:
    """Runs measurements until they are all done, or until another kind of device has failed."""
    units, wanted = group.units, group.wanted
    shown.tell(
        "group_started",
        str(group),
        group=number,
        device=group.device.name,
        measurements=len(units),
        at_once=group.at_once,
    )

    def of_group(actor: str) -> str:
        # Each group has a pool of its own, which names its actors as all others do.
        return f"{number}/{actor}"

    def payload(key: str, attempt: int) -> tuple[object, ...]:
        trial = units[key]
        order = plan.order(trial, plan.spec.cpus_per_actor or max(1, int(wanted.cpus) // trial.actors))
        return (replace(order, name=key),)

    work = Work(
        actor=SweepActorOn(group.device.accelerator),
        task=HostTask(run=ran.run, log_format=plan.spec.log_format),
        resources=wanted,
        threads=1,
        payload=payload,
        count=lambda found: (1, 0),
        method="measure",
    )
    # No trial runs twice at once: a slow one is slow for a reason, and that is what is measured.
    limits = Limits(actors=group.at_once, in_flight_per_actor=1, max_bad_rows=None, copies=1)
    scheduler = Scheduler([(key, 1) for key in units], limits)
    failures = Failures(shown, lambda name: {"trial": name} if name in units else {"actor": of_group(name)})

    def on_progress() -> None:
        failures.look(scheduler)
        if over.is_set():
            raise _OverError

    pool = ActorPool(
        scheduler,
        work,
        on_started=lambda actor, info: ran.actor_started(of_group(actor), info),
        on_done=lambda actor, key, found: ran.done(key, found, of_group(actor)),
        on_progress=on_progress,
    )
    try:
        pool.run()
    finally:
        failures.look(scheduler)
        pool.close()


class _OverError(Exception):
    """Another kind of device has failed, with an error that is raised elsewhere."""
