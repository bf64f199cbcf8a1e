"""Running a job over a sample on Ray: units out to actors, findings in, each unit once and for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from ..cluster.budgets import Limits
from ..cluster.pool import ActorPool, Work
from ..cluster.scheduler import Scheduler
from ..cluster.session import Session, connect
from ..datasets.output import Output
from ..datasets.records import JobRecord
from ..datasets.sampling import suggest_unit_batches
from ..datasets.storage import Storage
from ..errors import RecordsGoneError
from .progress import Reporter
from .room import Room, room_of
from .sample_books import SampleBooks
from .sample_plan import SamplePlan

__all__ = ["UNITS_IN_FLIGHT", "forget", "run_sample", "unit_batches_of"]

T = TypeVar("T")

UNITS_IN_FLIGHT = 2
"""Units that an actor holds at once."""

_SPARE_THREADS = 1
_MOST_UNIT_BATCHES = 256


def run_sample(
    plan: SamplePlan, shown: Reporter, *, actor: Any, method: str, read: Callable[[SampleBooks], T]
) -> T:
    """Has every unit of the sample worked on, as far as that was not done before, and reads what was found.

    The driver alone writes: actors answer with some hundred kilobytes for each unit. What an actor that was
    believed dead answers later is either the same bytes or not listened to.

    Args:
        plan: The job.
        shown: Where progress is shown.
        actor: A Ray actor class with ``start(task)`` and the method named by ``method``.
        method: Takes a ``Unit``, returns a ``UnitReceipt``.
        read: Makes something of the complete books. Called again, with others, where another run of the same
            job ended meanwhile and removed what both knew of units.

    Returns:
        What was made of them.

    Raises:
        TrtfleetError: The job failed; what is known of units stays for the next call.
    """
    try:
        return read(_completed(plan, shown, actor, method))
    except RecordsGoneError:
        shown.say("another run of the same job ended and removed what was known of it: beginning again")
        forget(plan.work)
        return read(_completed(plan, shown, actor, method))


def _completed(plan: SamplePlan, shown: Reporter, actor: Any, method: str) -> SampleBooks:
    existing = Output.latest(plan.work)
    if existing is not None:
        existing.require(plan.fingerprint)
        books = SampleBooks(plan, existing, shown)
        if books.is_complete:
            books.started(0)
            return books
    with connect(plan.options.address) as session:
        room = room_of(plan.options, session, shown)
        books = SampleBooks(plan, existing or _create(plan, room.actors), shown)
        books.started(room.actors)
        _run(plan, books, room, session, shown, actor, method)
    return books


def unit_batches_of(plan: SamplePlan, actors: int) -> int:
    """How many batches make a unit of a new job: not too many, since a unit is lost when an actor dies."""
    return min(suggest_unit_batches(len(plan.rows), plan.batch_size, actors), _MOST_UNIT_BATCHES)


def forget(work: Storage) -> None:
    """Deletes what is known of units, once the job is done; what cannot be deleted stays."""
    with contextlib.suppress(Exception):
        # Commits first: who resumes after an interruption must find no commit whose part is gone.
        paths = [entry.path for entry in work.list()]
        work.delete(sorted(paths, key=lambda path: "/commits/" not in path))
        # Empty folders only: another run of the same job may have begun again in there.
        work.remove_empty_folders()


def _create(plan: SamplePlan, actors: int) -> Output:
    unit_batches = unit_batches_of(plan, actors)
    record = JobRecord(
        fingerprint=plan.fingerprint,
        resolved={"unit_batches": unit_batches},
        shards=-(-len(plan.rows) // (plan.batch_size * unit_batches)),
        rows=len(plan.rows),
        model=plan.label,
    )
    # Another driver may just have created it; then its idea of a unit holds for both.
    return Output.create(plan.work, record)


def _run(
    plan: SamplePlan,
    books: SampleBooks,
    room: Room,
    session: Session,
    shown: Reporter,
    actor: Any,
    method: str,
) -> None:
    scheduler = Scheduler(
        [(unit.id, unit.rows) for unit in books.units.values()],
        Limits(actors=room.actors, in_flight_per_actor=UNITS_IN_FLIGHT, max_bad_rows=None),
        {unit: (record.rows, record.bad_rows) for unit, record in books.records.items()},
    )
    work = Work(
        actor=actor,
        task=replace(plan.task(room.threads), run=books.run),
        resources=room.resources,
        threads=UNITS_IN_FLIGHT + _SPARE_THREADS,
        payload=lambda unit, attempt: (books.units[unit],),
        count=lambda receipt: (receipt.rows, len(receipt.bad)),
        method=method,
    )
    pool = ActorPool(
        scheduler,
        work,
        on_started=books.actor_started,
        on_done=books.unit_done,
        on_progress=lambda: books.progress(scheduler),
        watch=room.watch(session, shown),
    )
    try:
        pool.run()
    finally:
        books.look_at_failures(scheduler)
        pool.close()
