"""Who does what next: a pure state machine that hands out shards until all are done or a budget is spent.

Events go in, actions come out; there is no Ray, thread, clock or randomness here, so the same events always
give the same actions. The shell obeys every action, and reports the end of every attempt or the death of its
actor: an actor that hangs without dying is the shell's to detect. Shards are opaque keys. Events that come
late or twice are harmless, and the commit in storage decides: a shard reported done is done, whoever says so.

An event costs O(log n) amortized, in shards and in actors; a shard without trouble costs an index entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

from ..errors import InternalError
from .backlog import Backlog, Past
from .budgets import Budgets, Limits
from .events import (
    Action,
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Dispatch,
    Event,
    Fail,
    FailureKind,
    Finish,
    Incident,
    ShardDone,
    ShardError,
    StartActor,
    StopActor,
    StopRequested,
    Tick,
    WakeAt,
)
from .stragglers import Stragglers
from .tally import Tally
from .workers import Actor, Attempt, Workers

__all__ = ["Limits", "Scheduler"]

_DEFECT = "this is a defect of trtfleet, please report it"


class Scheduler(Tally):
    """Drives one job.

    Shards are dispatched in the order given, retried ones first once they are due, each to the ready actor
    with the fewest attempts in flight. When nothing is left to dispatch, idle actors duplicate stragglers.

    `start` is called once, then `handle` for every event. The last action is `Finish` or `Fail`; after it,
    `handle` returns nothing. Before `Fail`, every actor is stopped. Before `Finish`, only those are that run
    a copy nobody needs, and only if another one is ready and idle: the shell may have use for the rest.

    Args:
        shards: Key and rows of every shard, in dataset order.
        limits: Budgets and timing.
        finished: Rows and bad rows of the shards that an earlier run committed, by key.

    Raises:
        InternalError: A key occurs twice, or `finished` has a key that `shards` lacks.
    """

    def __init__(
        self,
        shards: Sequence[tuple[str, int]],
        limits: Limits,
        finished: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(shards_total=len(shards), rows_total=sum(rows for _, rows in shards))
        self._limits = limits
        self._budgets = Budgets(limits)
        self._keys = [key for key, _ in shards]
        self._index = {key: index for index, key in enumerate(self._keys)}
        if len(self._index) != len(self._keys):
            raise InternalError(f"{len(self._keys)} shards have {len(self._index)} distinct keys", _DEFECT)
        self._backlog = Backlog(len(self._keys))
        self._past: dict[int, Past] = {}
        self._copies: dict[int, list[Attempt]] = {}
        self._workers = Workers(limits.in_flight_per_actor)
        self._stragglers = Stragglers(limits)
        self._failed_starts = 0
        self._started = False
        self._now_s = 0.0
        self._wake_s: float | None = None
        self._actions: list[Action] = []
        for key, (rows, bad_rows) in (finished or {}).items():
            if key not in self._index:
                raise InternalError(f"committed shard {key} is not among the {len(shards)} planned", _DEFECT)
            self._commit(self._index[key], rows, bad_rows)

    @property
    def running(self) -> int:
        """Unfinished shards that are in flight on some actor."""
        return len(self._copies)

    @property
    def pending(self) -> int:
        """Unfinished shards that are in flight nowhere, those that wait for a retry included."""
        return self._shards_total - self._shards_done - len(self._copies)

    def start(self, at_s: float) -> list[Action]:
        """Begin the job.

        Raises:
            InternalError: It was begun before.
        """
        if self._started:
            raise InternalError("the scheduler was started twice", _DEFECT)
        self._started = True
        self._now_s = at_s
        return self._settle()

    def handle(self, event: Event) -> list[Action]:
        """Take note of an event; returns what the shell must do now, in this order.

        Raises:
            InternalError: The job was not begun.
        """
        if not self._started:
            raise InternalError(f"the scheduler got {type(event).__name__} before its start", _DEFECT)
        if self.over:
            return []
        self._now_s = max(self._now_s, event.at_s)
        match event:
            case ActorReady():
                if self._workers.make_ready(event.actor):
                    self._actors_ready += 1
                    self._failed_starts = 0
            case ActorFailedToStart() | ActorDied():
                self._on_gone(event.actor, event.reason)
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

    def _on_gone(self, name: str, reason: str) -> None:
        actor = self._workers.remove(name)
        if actor is None:
            return
        self._incidents.append(Incident(self._now_s, name, reason))
        if actor.order is None:
            self._failed_starts += 1
            self._fail_if(self._budgets.failed_starts(self._failed_starts, reason))
            return
        self._actors_ready -= 1
        self._deaths += 1
        for attempt in actor.attempts.values():
            if attempt.open:
                past = self._past.setdefault(attempt.shard, Past())
                past.deaths += 1
                self._lose(attempt, past)
                self._fail_if(self._budgets.shard_deaths(past.deaths, self._keys[attempt.shard], reason))
        self._fail_if(self._budgets.actor_deaths(self._deaths, reason))

    def _on_done(self, event: ShardDone) -> None:
        index = self._index.get(event.shard)
        if index is None:
            return
        attempt = self._workers.release(event.actor, index, event.attempt)
        if self._backlog.is_done(index):
            return
        if attempt is not None:
            self._stragglers.measure(self._now_s - attempt.started_s)
        self._stragglers.finished(self._copies.pop(index, []))
        self._past.pop(index, None)
        self._commit(index, event.rows, event.bad_rows)

    def _on_error(self, event: ShardError) -> None:
        index = self._index.get(event.shard)
        attempt = None if index is None else self._workers.release(event.actor, index, event.attempt)
        if attempt is None or not attempt.open:
            return
        self._errors += 1
        self._incidents.append(Incident(self._now_s, event.shard, event.reason))
        past = self._past.setdefault(attempt.shard, Past())
        past.errors += 1
        past.not_before_s = self._now_s + self._limits.backoff_after(past.errors)
        self._lose(attempt, past)
        self._fail_if(self._budgets.shard_errors(past.errors, event.retryable, event.shard, event.reason))

    def _commit(self, index: int, rows: int, bad_rows: int) -> None:
        self._backlog.mark_done(index)
        self._shards_done += 1
        self._rows_done += rows
        self._bad_rows += bad_rows

    def _lose(self, attempt: Attempt, past: Past) -> None:
        """Close an attempt without a commit; its shard goes back in line unless another copy runs."""
        self._stragglers.lost(attempt)
        if not attempt.copies:
            del self._copies[attempt.shard]
            self._backlog.put_back(attempt.shard, past.not_before_s)

    def _settle(self) -> list[Action]:
        """Do all that can be done now, and hand over the actions."""
        self._fail_if(self._budgets.bad_rows(self._bad_rows))
        if not self.over and self._shards_done == self._shards_total:
            self._finish()
        if not self.over:
            self._start_actors()
            retry_s = self._dispatch_pending()
            wake_s = retry_s if self.pending else self._duplicate_stragglers()
            if wake_s is not None and wake_s != self._wake_s:
                self._actions.append(WakeAt(at_s=wake_s))
            self._wake_s = wake_s
        actions, self._actions = self._actions, []
        return actions

    def _start_actors(self) -> None:
        while len(self._workers) < min(self._limits.actors, self._shards_total - self._shards_done):
            self._actions.append(StartActor(actor=self._workers.add().name))

    def _dispatch_pending(self) -> float | None:
        """Dispatch what is due; returns when more will be, if an actor could take it then."""
        self._backlog.promote(self._now_s)
        while (actor := self._workers.least_loaded()) is not None:
            index = self._backlog.take()
            if index is None:
                return self._backlog.next_due_s
            self._dispatch(index, actor)
        return None

    def _dispatch(self, index: int, actor: Actor) -> None:
        past = self._past.get(index)
        if past is not None:
            past.attempts += 1
        number = 1 if past is None else past.attempts
        copies = self._copies.setdefault(index, [])
        attempt = Attempt(shard=index, number=number, started_s=self._now_s, copies=copies)
        copies.append(attempt)
        self._workers.assign(actor, attempt)
        self._stragglers.opened(attempt)
        self._actions.append(Dispatch(actor=actor.name, shard=self._keys[index], attempt=number))

    def _duplicate_stragglers(self) -> float | None:
        """Give idle actors copies of the slowest attempts; returns when the next is slow enough, if ever."""
        while (actor := self._workers.least_loaded()) is not None and not actor.attempts:
            slowest = self._stragglers.longest_running()
            if slowest is None:
                return None
            due_s = slowest.started_s + self._stragglers.patience_s
            if due_s > self._now_s:
                return due_s
            self._past.setdefault(slowest.shard, Past())
            self._dispatch(slowest.shard, actor)
        return None

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
        idlest = self._workers.least_loaded()
        if idlest is not None and not idlest.attempts:
            busy = [actor for actor in self._workers if actor.attempts]
            self._actions.extend(StopActor(actor=actor.name, graceful=False) for actor in busy)
        self._actions.append(Finish())
        self._finished = True
