"""Collecting statistics on Ray: units out to actors, what they counted in, each unit once and for all."""

from __future__ import annotations

import contextlib
import os
import shutil

from ..cluster.budgets import Limits
from ..cluster.pool import ActorPool, Work
from ..cluster.scheduler import Scheduler
from ..cluster.session import connect
from ..datasets.output import Output
from ..datasets.records import JobRecord
from ..datasets.sampling import suggest_unit_batches
from ..datasets.storage import Storage
from ..trt_actors.actor import CalibrateActor
from .calibrate_books import Books, Collected
from .calibrate_plan import CalibratePlan
from .progress import Reporter
from .room import Room, find_room

__all__ = ["collect", "forget"]

_UNITS_IN_FLIGHT = 2
_SPARE_THREADS = 1


def collect(plan: CalibratePlan, shown: Reporter) -> Collected:
    """Observes the sample, as far as that was not done before.

    The driver alone writes: actors answer with some hundred kilobytes for each unit. What an actor that was
    believed dead answers later is either the same bytes or not listened to.

    Raises:
        TrtfleetError: The statistics cannot be had; what was collected stays for the next call.
    """
    existing = Output.latest(plan.work)
    if existing is not None:
        existing.require(plan.fingerprint)
        books = Books(plan, existing, shown)
        if books.is_complete:
            return books.collected()
    with connect(plan.spec.address) as session:
        spec = plan.spec
        room = find_room(
            session,
            shown,
            backend=spec.backend,
            actors=spec.actors,
            cpus_per_actor=spec.cpus_per_actor,
            gpus_per_actor=spec.gpus_per_actor,
        )
        books = Books(plan, existing or _create(plan, room.actors), shown)
        _run(plan, books, room)
    return books.collected()


def forget(work: Storage) -> None:
    """Deletes what was collected, once the table is stored; what cannot be deleted stays."""
    with contextlib.suppress(Exception):
        if work.is_local:
            shutil.rmtree(work.root, ignore_errors=True)
            os.rmdir(os.path.dirname(work.root))
        else:
            work.delete([entry.path for entry in work.list()])


def _create(plan: CalibratePlan, actors: int) -> Output:
    unit_batches = suggest_unit_batches(len(plan.rows), plan.batch_size, actors)
    record = JobRecord(
        fingerprint=plan.fingerprint,
        resolved={"unit_batches": unit_batches},
        shards=-(-len(plan.rows) // (plan.batch_size * unit_batches)),
        rows=len(plan.rows),
        model=os.path.basename(plan.spec.model),
    )
    # Another driver may just have created it; then its idea of a unit holds for both.
    return Output.create(plan.work, record)


def _run(plan: CalibratePlan, books: Books, room: Room) -> None:
    scheduler = Scheduler(
        [(unit.id, unit.rows) for unit in books.units.values()],
        Limits(actors=room.actors, in_flight_per_actor=_UNITS_IN_FLIGHT, max_bad_rows=None),
        {unit: (record.rows, record.bad_rows) for unit, record in books.records.items()},
    )
    work = Work(
        actor=CalibrateActor,
        task=plan.task(room.threads),
        resources=room.resources,
        threads=_UNITS_IN_FLIGHT + _SPARE_THREADS,
        payload=lambda unit, attempt: (books.units[unit],),
        count=lambda receipt: (receipt.rows, len(receipt.bad)),
        method="observe",
    )
    pool = ActorPool(
        scheduler,
        work,
        on_started=books.actor_started,
        on_done=books.unit_done,
        on_progress=lambda: books.progress(scheduler),
    )
    try:
        pool.run()
    finally:
        pool.close()
