"""Which shard goes to which actor now: those that wait, and copies of those that take too long."""

from __future__ import annotations

from .events import Action, Dispatch
from .inventory import Inventory
from .tail import Tail, earlier
from .workers import Actor, Workers

__all__ = ["Assignment"]


class Assignment:
    """Hands out the shards of a job.

    Args:
        shards: What there is to do.
        workers: Who does it.
        tail: Says when an actor had better get nothing.
    """

    def __init__(self, shards: Inventory, workers: Workers, tail: Tail) -> None:
        self._shards = shards
        self._workers = workers
        self._tail = tail

    def dispatch_pending(self, now_s: float, actions: list[Action]) -> float | None:
        """Dispatches what is due; returns when more will be, if an actor could take it then.

        Args:
            now_s: The time.
            actions: What is to be done is added to it.
        """
        shards, backlog = self._shards, self._shards.backlog
        backlog.promote(now_s)
        while (index := backlog.first()) is not None:
            rows = shards.rows(index)
            actor = self._workers.next_for(rows)
            if actor is None:
                break
            hold_s = self._tail.had_better_wait(actor, rows, shards.waiting_rows, now_s)
            if hold_s is not None:
                return earlier(hold_s, backlog.next_due_s)
            backlog.take(index)
            actions.append(self._dispatch(index, actor, now_s))
        self._tail.hold_nothing()
        return None if self._workers.next_for(1) is None else backlog.next_due_s

    def duplicate_stragglers(self, now_s: float, actions: list[Action]) -> float | None:
        """Gives idle actors copies of the slowest attempts; returns when the next is slow enough, if ever.

        Args:
            now_s: The time.
            actions: What is to be done is added to it.
        """
        while (actor := self._workers.idle()) is not None:
            faster = self._workers.faster_than(actor)
            attempt, due_s = self._shards.stragglers.worth_a_copy(actor, faster, now_s)
            if attempt is None:
                return due_s
            # From now on its attempts are counted.
            self._shards.past(attempt.shard)
            actions.append(self._dispatch(attempt.shard, actor, now_s))
        return None

    def _dispatch(self, index: int, actor: Actor, now_s: float) -> Dispatch:
        attempt = self._shards.begin(index, actor, now_s)
        self._workers.assign(actor, attempt)
        return Dispatch(actor=actor.name, shard=self._shards.keys[index], attempt=attempt.number)
