"""Measuring other exclusions on Ray: the actors stay, selections go out to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..cluster.budgets import Limits
from ..cluster.pool import ActorPool, Work
from ..cluster.scheduler import Scheduler
from ..cluster.session import Session
from ..datasets.sampling import Unit, plan_units
from ..datasets.storage import one_line
from ..errors import ClusterError, TrtfleetError
from ..trt_actors.actor import CompareActor
from ..trt_actors.calibration.task import CalibratorInfo
from ..trt_actors.comparison.comparison import Comparison
from ..trt_actors.comparison.exclusion_search import Suggestion, find_exclusion
from ..trt_actors.comparison.parity import Parity
from ..trt_actors.quantization.placement import Site
from .compare_int8 import Int8
from .compare_plan import ComparePlan
from .compare_spec import DEFAULT_MAX_DROP
from .progress import Reporter
from .reporting import Failures
from .room import room_of

__all__ = ["TrialPool", "suggest_exclusion"]

_TRIES = 3

Sites = tuple[Site, ...]


def suggest_exclusion(
    plan: ComparePlan, int8: Int8, session: Session, shown: Reporter, run: str
) -> Suggestion:
    """Looks for few nodes to keep in single precision so that the second network passes.

    Args:
        plan: The comparison.
        int8: How its second network was quantized.
        session: The cluster.
        shown: Told how far the search is.
        run: The run's name, for the actors' logs.

    Raises:
        TrtfleetError: A network cannot be run, or no actor is left.
    """
    room = room_of(plan.options, session, shown)
    batches = -(-len(plan.rows) // plan.batch_size)
    # As many units as actors: each goes on with the rows that it remembers.
    unit_batches = -(-batches // min(room.actors, batches))
    units = plan_units(plan.dataset.files, plan.rows, batch_size=plan.batch_size, unit_batches=unit_batches)
    whole = int8.placement.sites
    by_id = {unit.id: unit for unit in units}
    found: dict[str, bytes] = {}
    work = Work(
        actor=CompareActor,
        task=replace(plan.trial_task(room.threads), run=run),
        resources=room.resources,
        threads=2,
        payload=lambda unit, attempt: (whole, by_id[unit]),
        count=lambda data: (0, 0),
        method="trial",
    )
    scheduler = Scheduler(
        [(unit.id, unit.rows) for unit in units],
        # They all stay: trials come after the last unit.
        Limits(actors=room.actors, in_flight_per_actor=1, max_bad_rows=None, spare_actors=room.actors),
        {},
    )

    def of_search(actor: str) -> str:
        # The comparison's own actors, which have ended, were named as these are.
        return f"search/{actor}"

    failures = Failures(shown, lambda name: {"unit": name} if name in by_id else {"actor": of_search(name)})

    def on_started(name: str, info: CalibratorInfo) -> None:
        shown.tell("actor_ready", actor=of_search(name), node=info.node, pid=info.pid, **info.told)

    pool = ActorPool(
        scheduler,
        work,
        on_started=on_started,
        on_done=lambda name, unit, data: found.update({unit: data}),
        on_progress=lambda: failures.look(scheduler),
    )
    try:
        pool.run()
        trials = TrialPool(pool, units, {whole: _parity(found[unit.id] for unit in units)})
        max_drop = DEFAULT_MAX_DROP if plan.spec.max_drop is None else plan.spec.max_drop
        return find_exclusion(int8.sites_without, trials.measure, max_drop, shown.say)
    finally:
        pool.close()


class _Maps(Protocol):
    def map(self, method: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]: ...


class TrialPool:
    """Measures selections on actors that run already.

    Args:
        pool: The actors.
        units: The sample.
        known: What was measured before.
    """

    def __init__(self, pool: _Maps, units: Sequence[Unit], known: dict[Sites, Parity]) -> None:
        self._pool = pool
        self._units = units
        self._known = known

    def measure(self, selections: Sequence[Sites]) -> list[Parity]:
        """How well each selection does.

        Calls that fail are repeated, as an actor may have died.

        Raises:
            TrtfleetError: A network does not run, or calls fail again and again.
        """
        new = [sites for sites in selections if sites not in self._known]
        answers = iter(self._ask([(sites, unit) for sites in new for unit in self._units]))
        for sites in new:
            self._known[sites] = _parity(next(answers) for _ in self._units)
        return [self._known[sites] for sites in selections]

    def _ask(self, calls: Sequence[tuple[Sites, Unit]]) -> list[bytes]:
        answers: list[Any] = self._pool.map("trial", calls)
        for _ in range(_TRIES):
            # Wrong networks fail for good; that an actor died says nothing of the others.
            failed = [i for i, answer in enumerate(answers) if isinstance(answer, BaseException)]
            for index in failed:
                if isinstance(answers[index], TrtfleetError) and not isinstance(answers[index], ClusterError):
                    raise answers[index]
            if not failed:
                return answers
            again = self._pool.map("trial", [calls[i] for i in reversed(failed)])
            for index, answer in zip(reversed(failed), again, strict=True):
                answers[index] = answer
        lost = next(answer for answer in answers if isinstance(answer, BaseException))
        raise ClusterError(
            f"trials fail again and again: {one_line(lost)}", "see Ray's logs of the actors"
        ) from lost


def _parity(parts: Any) -> Parity:
    decoded = [Comparison.decode(data, "what an actor found") for data in parts]
    total = decoded[0]
    for part in decoded[1:]:
        total = total.merge(part, 0)
    return Parity.of(total)
