"""The scheduler's records of actors and attempts, and the order in which actors take work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from .speeds import MUCH, Pace, Speeds

__all__ = ["Actor", "Attempt", "Group", "Workers"]

_COMPACT_ABOVE = 64


@dataclass(slots=True, eq=False)
class Actor:
    """One actor that was started and is not known to be gone.

    Attributes:
        name: Its unique name.
        order: How many actors became ready before it; None while it starts.
        kind: What it runs on.
        attempts: What it has in flight, by (shard index, attempt number), oldest first; an attempt whose
            shard another one finished stays here until its end is reported: it still occupies the actor.
        rows: Rows of all these.
        pace: How fast it is.
        since_s: When it began what it does now: its last attempt ended, or it was idle and got one.
        has_done: Whether it has finished an attempt.
        alive: False once it is gone.
        listed: Step by load, for the loads under which a heap has an entry for it.
    """

    name: str
    order: int | None = None
    kind: str = ""
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    rows: int = 0
    pace: Pace = field(default_factory=Pace)
    since_s: float = 0.0
    has_done: bool = False
    alive: bool = True
    listed: dict[int, int] = field(default_factory=dict)

    def takes_s(self, rows: int) -> float | None:
        """Seconds until it would have done so many rows after what it has in flight, if its rate is known."""
        return None if self.pace.rate is None else (self.rows + rows) / self.pace.rate


@dataclass(slots=True, eq=False)
class Attempt:
    """One shard in flight on one actor.

    Attributes:
        shard: The shard's index.
        number: The attempt's number within its shard, from 1.
        rows: The shard's rows.
        started_s: When it was dispatched.
        ends_s: When it should end, by the rate that its actor had then; None where that was not known.
        actor_step: The actor's step then.
        copies: All open attempts of the shard, this one included; one list shared by them all.
        open: True until the shard is finished or this attempt is lost.
        watched: Which lines of the straggler watch have an entry for it.
    """

    shard: int
    number: int
    rows: int
    started_s: float
    copies: list[Attempt]
    ends_s: float | None = None
    actor_step: int = 0
    open: bool = True
    watched: int = 0


@dataclass(slots=True)
class Group:
    """Some ready actors.

    Attributes:
        actors: How many they are.
        rate: Rows that they do a second.
        rows: Rows that they have in flight.
    """

    actors: int = 0
    rate: float = 0.0
    rows: int = 0

    def takes_s(self, waiting: int, rows: int) -> float | None:
        """Seconds until they would have done so many rows more, in shards of so many; None where unknown."""
        if not self.rate:
            return None
        # What runs is half done, on average.
        return (waiting + max(0.0, self.rows - self.actors * rows / 2)) / self.rate


class Workers:
    """The actors of a job, and which of them takes the next attempt.

    Ready actors with room stand in one heap per load, the fastest first, among equals in the order in which
    they became ready. Entries that no longer hold are dropped when they surface or when they are too many:
    neither a look nor an update scans the actors.
    """

    def __init__(self, capacity: int) -> None:
        self._heaps: list[list[tuple[int, int, Actor]]] = [[] for _ in range(capacity)]
        self._actors: dict[str, Actor] = {}
        self._groups: dict[int, Group] = {}
        self._speeds = Speeds()
        self._names_used = 0
        self._times_ready = 0
        self._busy = 0

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Actor]:
        return iter(self._actors.values())

    @property
    def busy(self) -> int:
        """Actors with something in flight."""
        return self._busy

    def add(self) -> Actor:
        """A new actor, under a name of its own."""
        self._names_used += 1
        actor = Actor(name=f"actor-{self._names_used:04d}")
        self._actors[actor.name] = actor
        return actor

    def make_ready(self, name: str, kind: str = "") -> bool:
        """Let an actor take work; False if it is unknown or was ready already."""
        actor = self._actors.get(name)
        if actor is None or actor.order is not None:
            return False
        actor.order = self._times_ready
        actor.kind = kind
        actor.pace.assume(self._speeds.expected(kind))
        self._times_ready += 1
        self._join(actor)
        self._line_up(actor)
        return True

    def remove(self, name: str) -> Actor | None:
        """Forget an actor; None if it is unknown."""
        actor = self._actors.pop(name, None)
        if actor is not None:
            actor.alive = False
            self._busy -= bool(actor.attempts)
            if actor.order is not None:
                self._leave(actor)
        return actor

    def assign(self, actor: Actor, attempt: Attempt) -> None:
        """Put an attempt in flight on an actor."""
        if not actor.attempts:
            actor.since_s = attempt.started_s
            self._busy += 1
        actor.attempts[attempt.shard, attempt.number] = attempt
        actor.rows += attempt.rows
        self._groups[actor.pace.step].rows += attempt.rows
        self._line_up(actor)

    def release(self, name: str, shard: int, number: int, at_s: float, *, is_done: bool) -> Attempt | None:
        """Free the place of an attempt that ended, done or not; None if no such actor has it in flight."""
        actor = self._actors.get(name)
        attempt = actor.attempts.pop((shard, number), None) if actor is not None else None
        if actor is None or attempt is None:
            return None
        self._leave(actor)
        actor.rows -= attempt.rows
        if is_done:
            actor.has_done = True
            actor.pace.measure(attempt.rows, at_s - actor.since_s)
            self._speeds.measure(actor.kind, attempt.rows, at_s - actor.since_s)
        actor.since_s = at_s
        self._busy -= not actor.attempts
        self._join(actor)
        self._line_up(actor)
        return attempt

    def next_for(self, rows: int) -> Actor | None:
        """The actor to give an attempt at so many rows to, or None when all are full.

        That is the one with the fewest in flight, unless another one is so much faster that it would be done
        sooner nevertheless.
        """
        best: Actor | None = None
        for load in range(len(self._heaps)):
            actor = self._first(load)
            if actor is not None and (best is None or _is_sooner(actor, best, rows)):
                best = actor
        return best

    def idle(self) -> Actor | None:
        """The fastest actor that has nothing in flight, or None."""
        return self._first(0)

    def faster_than(self, actor: Actor) -> Group:
        """The ready actors that are much faster than this one; none where its own rate is not known."""
        found = Group()
        if actor.pace.rate is None:
            return found
        for step, group in self._groups.items():
            if step >= actor.pace.step + MUCH:
                found.actors += group.actors
                found.rate += group.rate
                found.rows += group.rows
        return found

    def dispensable(self, count: int) -> list[Actor]:
        """So many actors that do nothing, the least useful first: starting ones, then the slowest idle."""
        starting = [actor for actor in self if actor.order is None]
        idle = [actor for actor in self if actor.order is not None and not actor.attempts]
        idle.sort(key=lambda actor: (actor.pace.step, -(actor.order or 0)))
        return [*reversed(starting), *idle][:count]

    def _first(self, load: int) -> Actor | None:
        heap = self._heaps[load]
        while heap:
            step, actor = -heap[0][0], heap[0][2]
            is_listed = actor.listed.get(load) == step
            if is_listed and actor.alive and len(actor.attempts) == load and actor.pace.step == step:
                return actor
            heappop(heap)
            if is_listed:
                del actor.listed[load]
        return None

    def _line_up(self, actor: Actor) -> None:
        load, step = len(actor.attempts), actor.pace.step
        if actor.order is None or load >= len(self._heaps) or actor.listed.get(load) == step:
            return
        actor.listed[load] = step
        heap = self._heaps[load]
        heappush(heap, (-step, actor.order, actor))
        # Entries of steps and loads that an actor has left behind would pile up where they never surface.
        if len(heap) > 2 * len(self._actors) + _COMPACT_ABOVE:
            found = {id(entry[2]): entry[2] for entry in heap if entry[2].alive and load in entry[2].listed}
            heap[:] = [(-one.listed[load], one.order or 0, one) for one in found.values()]
            heapify(heap)

    def _join(self, actor: Actor) -> None:
        group = self._groups.setdefault(actor.pace.step, Group())
        group.actors += 1
        group.rate += actor.pace.rate or 0.0
        group.rows += actor.rows

    def _leave(self, actor: Actor) -> None:
        group = self._groups[actor.pace.step]
        group.actors -= 1
        group.rate -= actor.pace.rate or 0.0
        group.rows -= actor.rows
        if not group.actors:
            del self._groups[actor.pace.step]


def _is_sooner(actor: Actor, other: Actor, rows: int) -> bool:
    """Whether an actor with more in flight would nevertheless be done with a shard much sooner."""
    takes_s, other_s = actor.takes_s(rows), other.takes_s(rows)
    if takes_s is None or other_s is None or actor.pace.step < other.pace.step + MUCH:
        return False
    return takes_s < other_s
