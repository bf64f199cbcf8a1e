"""Who does what next: a pure state machine that hands out shards until all are done or a budget is spent.

Events go in, actions come out; there is no Ray, thread, clock or randomness here, so the same events always
give the same actions. The shell obeys every action, and reports the end of every attempt or the death of its
actor: an actor that hangs without dying is the shell's to detect. Shards are opaque keys. Events that come
late or twice are harmless, and the commit in storage decides: a shard reported done is done, whoever says so.

An event costs O(log n) amortized, in shards and in actors; a shard without trouble costs an index entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from ..errors import InternalError
from .assignment import Assignment
from .budgets import Budgets, Limits
from .events import (
    Action,
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Event,
    Fail,
    FailureKind,
    Finish,
    Incident,
    RoomFound,
    ShardDone,
    ShardError,
    StartActor,
    StopActor,
    StopRequested,
    Tick,
    WakeAt,
)
from .inventory import DEFECT, Inventory
from .staffing import Staffing
from .tail import Tail, earlier
from .tally import Tally
from .workers import Workers

__all__ = ["Limits", "Scheduler"]


class Scheduler(Tally):
    """Drives one job.

    Shards are dispatched in the order given, retried ones first once they are due, each to the ready actor
    with the fewest attempts in flight, or to one so much faster that it is done sooner. Near the end a slow
    actor gets none that the much faster ones will have done earlier; if they have not, it gets it after all.
    When nothing is left to dispatch, idle actors duplicate stragglers and what slow actors still have before
    them, and actors that nobody needs any more are stopped.

    `start` is called once, then `handle` for every event. The last action is `Finish` or `Fail`; after it,
    `handle` returns nothing. Before `Fail`, every actor is stopped. Before `Finish`, only those are that run
    a copy nobody needs, and only if another one is ready and idle: the shell may have use for the rest.

    Args:
        shards: Key and rows of every shard, in dataset order.
        limits: Budgets and timing.
        finished: Rows and bad rows of the shards that an earlier run committed, by key.
        places: The position of every key among the shards, from a caller that has it anyway: by the million,
            a second table takes 70 MiB.

    Raises:
        InternalError: A key occurs twice, or `finished` has a key that `shards` lacks.
    """

    def __init__(
        self,
        shards: Iterable[tuple[str, int]],
        limits: Limits,
        finished: Mapping[str, tuple[int, int]] | None = None,
        places: Mapping[str, int] | None = None,
    ) -> None:
        self._shards = Inventory(shards, limits, places)
        super().__init__(shards_total=len(self._shards.keys), rows_total=self._shards.rows_total)
        self._limits = limits
        self._budgets = Budgets(limits)
        self._workers = Workers(limits.in_flight_per_actor)
        self._tail = Tail(limits, self._workers)
        self._staffing = Staffing(limits, self._budgets)
        self._assignment = Assignment(self._shards, self._workers, self._tail)
        self._started = False
        self._now_s = 0.0
        self._wake_s: float | None = None
        self._actions: list[Action] = []
        for key, (rows, bad_rows) in (finished or {}).items():
            if key not in self._shards.index:
                raise InternalError(
                    f"committed shard {key} is not among the {self._shards_total} planned", DEFECT
                )
            self._commit(self._shards.index[key], rows, bad_rows)

    @property
    def running(self) -> int:
        """Unfinished shards that are in flight on some actor."""
        return self._shards.running

    @property
    def pending(self) -> int:
        """Unfinished shards that are in flight nowhere, those that wait for a retry included."""
        return self._shards_total - self._shards_done - self._shards.running

    def start(self, at_s: float) -> list[Action]:
        """Begin the job.

        Raises:
            InternalError: It was begun before.
        """
        if self._started:
            raise InternalError("the scheduler was started twice", DEFECT)
        self._started = True
        self._now_s = at_s
        return self._settle()

    def handle(self, event: Event) -> list[Action]:
        """Take note of an event; returns what the shell must do now, in this order.

        Raises:
            InternalError: The job was not begun.
        """
        if not self._started:
            raise InternalError(f"the scheduler got {type(event).__name__} before its start", DEFECT)
        if self.over:
            return []
        self._now_s = max(self._now_s, event.at_s)
        match event:
            case ActorReady():
                if self._workers.make_ready(event.actor, event.kind):
                    self._actors_ready += 1
                    self._staffing.succeeded()
            case ActorFailedToStart():
                self._on_gone(event.actor, event.reason, event.is_node_lost, event.is_unfit)
            case ActorDied():
                self._on_gone(event.actor, event.reason, event.is_node_lost, is_spent=event.is_spent)
            case RoomFound():
                self._staffing.grow(event.actors)
            case ShardDone():
                self._on_done(event)
            case ShardError():
                self._on_error(event)
            case StopRequested():
                self._fail_if(Fail(kind=FailureKind.STOPPED, reason=event.reason))
            case Tick():
                pass
            case _:
                assert_never(event)
        return self._settle()

    def _on_gone(
        self, name: str, reason: str, is_node_lost: bool, is_unfit: bool = False, is_spent: bool = False
    ) -> None:
        actor = self._workers.remove(name)
        if actor is None:
            return
        self._incidents.append(Incident(self._now_s, name, reason))
        if actor.order is None:
            others = bool(self._workers)
            fail = self._staffing.failed(
                reason, is_node_lost=is_node_lost, is_unfit=is_unfit, has_others=others
            )
            self._fail_if(fail)
            return
        self._actors_ready -= 1
        self._deaths += 1
        self._node_losses += is_node_lost
        # One that grows from shard to shard is renewed for as long as each does some.
        is_renewed = is_spent and actor.has_done
        self._renewals += is_renewed
        for attempt in actor.attempts.values():
            if attempt.open:
                past, key = self._shards.past(attempt.shard), self._shards.keys[attempt.shard]
                past.node_losses += is_node_lost
                past.deaths += not (is_node_lost or is_renewed)
                self._shards.lose(attempt, past)
                self._fail_if(self._budgets.shard_node_losses(past.node_losses, key, reason))
                self._fail_if(self._budgets.shard_deaths(past.deaths, key, reason))
        own_deaths = self._deaths - self._node_losses - self._renewals
        self._fail_if(self._budgets.actor_deaths(own_deaths, reason, self._staffing.most))

    def _on_done(self, event: ShardDone) -> None:
        index = self._shards.index.get(event.shard)
        if index is None:
            return
        attempt = self._workers.release(event.actor, index, event.attempt, self._now_s, is_done=True)
        if self._shards.is_done(index):
            return
        if attempt is not None:
            self._shards.stragglers.measure(self._now_s - attempt.started_s)
        self._commit(index, event.rows, event.bad_rows)

    def _on_error(self, event: ShardError) -> None:
        index = self._shards.index.get(event.shard)
        if index is None:
            return
        attempt = self._workers.release(event.actor, index, event.attempt, self._now_s, is_done=False)
        if attempt is None or not attempt.open:
            return
        self._errors += 1
        self._incidents.append(Incident(self._now_s, event.shard, event.reason))
        past = self._shards.past(index)
        past.errors += 1
        past.not_before_s = self._now_s + self._limits.backoff_after(past.errors)
        self._shards.lose(attempt, past)
        self._fail_if(self._budgets.shard_errors(past.errors, event.retryable, event.shard, event.reason))

    def _commit(self, index: int, rows: int, bad_rows: int) -> None:
        self._shards.finish(index)
        self._shards_done += 1
        self._rows_done += rows
        self._bad_rows += bad_rows

    def _settle(self) -> list[Action]:
        """Do all that can be done now, and hand over the actions."""
        self._fail_if(self._budgets.bad_rows(self._bad_rows))
        if not self.over and self._shards_done == self._shards_total:
            self._finish()
        if not self.over:
            self._start_actors()
            wake_s = self._assignment.dispatch_pending(self._now_s, self._actions)
            if self.pending:
                self._tail.keep_all()
            else:
                slow_s = self._assignment.duplicate_stragglers(self._now_s, self._actions)
                wake_s = earlier(slow_s, self._release())
            if wake_s is not None and wake_s != self._wake_s:
                self._actions.append(WakeAt(at_s=wake_s))
            self._wake_s = wake_s
        actions, self._actions = self._actions, []
        return actions

    @property
    def _wanted(self) -> int:
        """How many actors there should be."""
        return self._staffing.wanted(self._shards_total - self._shards_done)

    def _start_actors(self) -> None:
        while len(self._workers) < self._wanted:
            self._actions.append(StartActor(actor=self._workers.add().name))

    def _release(self) -> float | None:
        """Stop the actors that the rest of the job has no use for; returns when there may be some."""
        surplus, due_s = self._tail.surplus(self.running, self._wanted, self._staffing.most, self._now_s)
        for actor in surplus:
            self._workers.remove(actor.name)
            self._actors_ready -= actor.order is not None
            self._actors_released += 1
            self._actions.append(StopActor(actor=actor.name, graceful=actor.order is not None))
        return due_s

    def _fail_if(self, fail: Fail | None) -> None:
        """Stop every actor and fail, if there is a failure and it is the first."""
        if fail is None or self.over:
            return
        for actor in self._workers:
            graceful = actor.order is not None and not actor.attempts
            self._actions.append(StopActor(actor=actor.name, graceful=graceful))
        self._actions.append(fail)
        self._failed = fail

    def _finish(self) -> None:
        if self._workers.idle() is not None:
            busy = [actor for actor in self._workers if actor.attempts]
            self._actions.extend(StopActor(actor=actor.name, graceful=False) for actor in busy)
        self._actions.append(Finish())
        self._finished = True
