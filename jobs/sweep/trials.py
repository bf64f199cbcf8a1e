"""Running a sweep's trials on Ray: each has its devices for itself, each is committed once and for all."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ...cluster.budgets import Limits
from ...cluster.pool import ActorPool, Work
from ...cluster.scheduler import Scheduler
from ...cluster.session import connect
from ...datasets.output import Output
from ...datasets.records import CommitRecord, JobRecord
from ...datasets.storage import foreign_errors
from ...errors import OutputError
from ...trt_actors.actor import SweepActorOn
from ...trt_actors.trial.task import HostInfo, Measurement
from ..progress import Reporter
from .grid import CPU, Device, Trial, devices_of, grid
from .groups import Group, groups_of, problems_of, unit_name, units_of
from .plan import SweepPlan
from .repeats import merged
from .results import Row, trials_text

__all__ = ["Ran", "run_trials"]


class Ran:
    """The books of a sweep: its trials, each so many times, and what is known of them.

    Args:
        output: Where that is kept.
        trials: All of them, in order.
        repeats: How often each is measured.
        shown: Told of every measurement.

    Attributes:
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
        self._lock = threading.Lock()
        self.before = len(self._found)

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
        self._shown.say(f"{trials_text(trials)}: {problem}")

    def done(self, key: str, found: Measurement) -> None:
        """A trial was measured: its row is written, then committed, unless another driver was first."""
        with self._lock:
            if key not in self._found:
                self._commit(key, found)

    def _commit(self, key: str, found: Measurement) -> None:
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
        self._shown.say(f"[{len(self._found)}/{len(self._units)}] {row.trial}: {_in_short(row.found)}")

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


def run_trials(plan: SweepPlan, shown: Reporter) -> Ran:
    """Runs every trial of which nothing is known yet.

    Raises:
        FingerprintError: The output holds another sweep.
        TrtfleetError: The cluster cannot be used; what was measured stays for the next call.
    """
    output = Output.latest(plan.storage)
    if output is not None and not plan.spec.overwrite:
        output.require(plan.fingerprint)
        ran = _books(plan, output, shown)
        if all(map(plan.problem, ran.pending.values())):
            _set_aside(plan, ran, {})
            return ran
    with connect(plan.spec.address) as session:
        devices = devices_of(session.nodes)
        if output is None or plan.spec.overwrite:
            output = _create(plan, list(devices), output)
        ran = _books(plan, output, shown)
        if ran.before:
            shown.say(f"{ran.before} measurements had been made before")
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
        for group in groups:
            if group.device.name == name:
                _run_group(plan, ran, group, shown, over)

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


def _run_group(plan: SweepPlan, ran: Ran, group: Group, shown: Reporter, over: threading.Event) -> None:
    """Runs measurements until they are all done, or until another kind of device has failed."""
    shown.say(str(group))
    units, wanted = group.units, group.wanted

    def payload(key: str, attempt: int) -> tuple[object, ...]:
        trial = units[key]
        return (plan.order(trial, plan.spec.cpus_per_actor or max(1, int(wanted.cpus) // trial.actors)),)

    work = Work(
        actor=SweepActorOn(group.device.accelerator),
        task=None,
        resources=wanted,
        threads=1,
        payload=payload,
        count=lambda found: (1, 0),
        method="measure",
    )
    # No trial runs twice at once: a slow one is slow for a reason, and that is what is measured.
    limits = Limits(actors=group.at_once, in_flight_per_actor=1, max_bad_rows=None, copies=1)
    pool = ActorPool(
        Scheduler([(key, 1) for key in units], limits),
        work,
        on_started=_nothing,
        on_done=lambda actor, key, found: ran.done(key, found),
        on_progress=lambda: _go_on(over),
    )
    try:
        pool.run()
    finally:
        pool.close()


class _OverError(Exception):
    """Another kind of device has failed, with an error that is raised elsewhere."""


def _go_on(over: threading.Event) -> None:
    if over.is_set():
        raise _OverError


def _nothing(actor: str, info: HostInfo) -> None:
    """Trials tell themselves where they ran."""
