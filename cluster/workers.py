"""The scheduler's records of actors and attempts, and the order in which actors take work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

__all__ = ["Actor", "Attempt", "Workers"]


@dataclass(slots=True, eq=False)
class Actor:
    """One actor that was started and is not known to be gone.

    Attributes:
        name: Its unique name.
        order: How many actors became ready before it; None while it starts.
        attempts: What it has in flight, by (shard index, attempt number), oldest first; an attempt whose
            shard another one finished stays here until its end is reported: it still occupies the actor.
        alive: False once it is gone.
        listed: Loads under which a heap has an entry for it.
    """

    name: str
    order: int | None = None
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    alive: bool = True
    listed: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Attempt:
    """One shard in flight on one actor.

    Attributes:
        shard: The shard's index.
        number: The attempt's number within its shard, from 1.
        started_s: When it was dispatched.
        copies: All open attempts of the shard, this one included; one list shared by them all.
        open: True until the shard is finished or this attempt is lost.
        watched: Whether the straggler watch has an entry for it.
    """

    shard: int
    number: int
    started_s: float
    copies: list[Attempt]
    open: bool = True
    watched: bool = False


class Workers:
    """The actors of a job, and which of them takes the next attempt.

    Ready actors with room stand in one heap per load, in the order in which they became ready. Entries that
    no longer hold are dropped when they surface, and an actor has at most one entry in each heap: neither a
    look nor an update scans the actors.
    """

    def __init__(self, capacity: int) -> None:
        self._heaps: list[list[tuple[int, Actor]]] = [[] for _ in range(capacity)]
        self._actors: dict[str, Actor] = {}
        self._names_used = 0
        self._times_ready = 0

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Actor]:
        return iter(self._actors.values())

    def add(self) -> Actor:
        """A new actor, under a name of its own."""
        self._names_used += 1
        actor = Actor(name=f"actor-{self._names_used:04d}")
        self._actors[actor.name] = actor
        return actor

    def make_ready(self, name: str) -> bool:
        """Let an actor take work; False if it is unknown or was ready already."""
        actor = self._actors.get(name)
        if actor is None or actor.order is not None:
            return False
        actor.order = self._times_ready
        self._times_ready += 1
        self._line_up(actor)
        return True

    def remove(self, name: str) -> Actor | None:
        """Forget an actor; None if it is unknown."""
        actor = self._actors.pop(name, None)
        if actor is not None:
            actor.alive = False
        return actor

    def assign(self, actor: Actor, attempt: Attempt) -> None:
        """Put an attempt in flight on an actor."""
        actor.attempts[attempt.shard, attempt.number] = attempt
        self._line_up(actor)

    def release(self, name: str, shard: int, number: int) -> Attempt | None:
        """Free the place of an attempt that ended; None if no such actor has it in flight."""
        actor = self._actors.get(name)
        attempt = actor.attempts.pop((shard, number), None) if actor is not None else None
        if actor is not None and attempt is not None:
            self._line_up(actor)
        return attempt

    def least_loaded(self) -> Actor | None:
        """The actor to give the next attempt to, or None when all are full."""
        for load, heap in enumerate(self._heaps):
            while heap:
                actor = heap[0][1]
                if actor.alive and len(actor.attempts) == load:
                    return actor
                heappop(heap)
                actor.listed.discard(load)
        return None

    def _line_up(self, actor: Actor) -> None:
        load = len(actor.attempts)
        if actor.order is not None and load < len(self._heaps) and load not in actor.listed:
            actor.listed.add(load)
            heappush(self._heaps[load], (actor.order, actor))
