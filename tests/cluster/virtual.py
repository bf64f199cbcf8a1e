"""Actors that exist on a virtual clock, each with a speed of its own, for jobs that a scheduler drives."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.events import (
    Action,
    ActorDied,
    ActorReady,
    Dispatch,
    Event,
    Fail,
    Finish,
    RoomFound,
    ShardDone,
    StartActor,
    StopActor,
    Tick,
    WakeAt,
)
from trtfleet.cluster.scheduler import Scheduler

ROWS = 100


@dataclass
class Machine:
    """What an actor gets to run on.

    Attributes:
        kind: What it says it is.
        rows_per_s: How fast it is, from its beginning or from some time on.
        ready_s: When an actor on it is ready, or how long it takes to become so.
        slower: Times at which its speed is multiplied by a factor.
        frozen_s: When it stops answering for good.
    """

    kind: str
    rows_per_s: float
    ready_s: float = 10.0
    slower: tuple[tuple[float, float], ...] = ()
    frozen_s: float = float("inf")

    def takes_s(self, rows: int, at_s: float) -> float:
        """Seconds for so many rows, begun at some time."""
        rate = self.rows_per_s
        for since_s, factor in self.slower:
            rate *= factor if at_s >= since_s else 1.0
        return rows / rate


@dataclass
class Virtual:
    """Runs a job on machines; the next actor gets the next free machine, and waits while there is none.

    Attributes:
        end_s: When the last shard was committed.
        by_kind: Rows committed by kind.
        copies: Attempts beyond the first of a shard.
        released: When each actor was released that was.
    """

    machines: Sequence[Machine]
    shards: int
    limits: Limits
    noise: float = 0.0
    seed: int = 1
    now_s: float = 0.0
    end_s: float = 0.0
    by_kind: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    released: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.free = list(self.machines)
        self.waiting: list[str] = []
        self.runs_on: dict[str, Machine] = {}
        self.busy_until: dict[str, float] = {}
        self.agenda: list[tuple[float, int, Callable[[], Event | None]]] = []
        self.order = count()
        self.wake_s = float("inf")
        self.committed: set[str] = set()
        self.scheduler = Scheduler([(f"s{n}", ROWS) for n in range(self.shards)], self.limits)

    def at(self, at_s: float, happen: Callable[[], Event | None]) -> None:
        """Has something happen at a time."""
        heappush(self.agenda, (at_s, next(self.order), happen))

    def run(self) -> Virtual:
        """Runs the job to its end, which must be a good one."""
        self.obey(self.scheduler.start(0.0))
        while not self.scheduler.over:
            assert self.agenda or self.wake_s < float("inf"), "nothing runs and nothing is due"
            if not self.agenda or self.wake_s < self.agenda[0][0]:
                self.now_s, self.wake_s = self.wake_s, float("inf")
                self.obey(self.scheduler.handle(Tick(at_s=self.now_s)))
                continue
            self.now_s, _, happen = heappop(self.agenda)
            event = happen()
            if event is not None:
                self.obey(self.scheduler.handle(event))
        assert self.scheduler.finished, self.scheduler.failed
        assert len(self.committed) == self.shards
        self.end_s = self.now_s
        return self

    def ideal_s(self) -> float:
        """When the job would be done if shards could be split at will and machines worked without a break."""
        rows, now_s, rate = float(self.shards * ROWS), 0.0, 0.0
        for machine in sorted(self.machines, key=lambda one: one.ready_s):
            done = rate * (machine.ready_s - now_s)
            if done >= rows:
                break
            rows, now_s, rate = rows - done, machine.ready_s, rate + machine.rows_per_s
        return now_s + rows / rate

    def obey(self, actions: Sequence[Action]) -> None:
        """Does what the scheduler asks for."""
        for action in actions:
            match action:
                case StartActor(actor=name):
                    self.waiting.append(name)
                case Dispatch():
                    self.dispatch(action)
                case StopActor(actor=name):
                    self.released[name] = self.now_s
                    self.waiting = [one for one in self.waiting if one != name]
                    machine = self.runs_on.pop(name, None)
                    self.free += [machine] if machine else []
                case WakeAt(at_s=at_s):
                    self.wake_s = at_s
                case Finish() | Fail():
                    pass
        while self.waiting and self.free:
            self.place(self.waiting.pop(0), self.free.pop(0))

    def place(self, name: str, machine: Machine) -> None:
        """Starts an actor on a machine."""
        self.runs_on[name] = machine

        def ready() -> Event | None:
            self.busy_until[name] = self.now_s
            return ActorReady(at_s=self.now_s, actor=name, kind=machine.kind) if self.has(name) else None

        self.at(max(self.now_s, machine.ready_s), ready)

    def has(self, name: str) -> bool:
        """Whether an actor runs."""
        return name in self.runs_on

    def dispatch(self, action: Dispatch) -> None:
        """An actor does one shard after the other."""
        machine = self.runs_on[action.actor]
        self.copies += action.attempt > 1
        begins_s = max(self.now_s, self.busy_until[action.actor])
        takes_s = machine.takes_s(ROWS, begins_s) * self.chance.lognormvariate(0.0, self.noise)
        self.busy_until[action.actor] = ends_s = begins_s + takes_s

        def done() -> Event | None:
            if not self.has(action.actor) or ends_s >= machine.frozen_s:
                return None
            if action.shard not in self.committed:
                self.committed.add(action.shard)
                self.by_kind[machine.kind] += ROWS
            return ShardDone(
                at_s=self.now_s,
                actor=action.actor,
                shard=action.shard,
                attempt=action.attempt,
                rows=ROWS,
                bad_rows=0,
            )

        self.at(ends_s, done)

    def lose(self, at_s: float, machines: Sequence[Machine]) -> None:
        """Takes machines away at a time, with what runs on them."""

        def lost(machine: Machine) -> Callable[[], Event | None]:
            def happen() -> Event | None:
                self.free = [one for one in self.free if one is not machine]
                name = next((name for name, one in self.runs_on.items() if one is machine), None)
                if name is None:
                    return None
                del self.runs_on[name]
                return ActorDied(at_s=self.now_s, actor=name, reason="its node has died", is_node_lost=True)

            return happen

        for machine in machines:
            self.at(at_s, lost(machine))

    def join(self, at_s: float, machines: Sequence[Machine], actors: int) -> None:
        """Brings machines at a time, after which so many actors fit."""

        def happen() -> Event:
            self.free += machines
            return RoomFound(at_s=self.now_s, actors=actors)

        self.at(at_s, happen)
