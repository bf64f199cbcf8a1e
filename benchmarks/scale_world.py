"""A cluster that exists only on a virtual clock: actors start, work, straggle, fail, freeze and vanish."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from scale_driver import Driver
from trtfleet.cluster.events import (
    Action,
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Dispatch,
    Event,
    Fail,
    Finish,
    ShardDone,
    ShardError,
    StartActor,
    StopActor,
    Tick,
    WakeAt,
)
from trtfleet.datasets.records import CommitRecord
from trtfleet.datasets.shards import Shard
from trtfleet.trt_actors.pipeline_stats import PipelineStats
from trtfleet.trt_actors.stages import StageStats
from trtfleet.trt_actors.task import ActorInfo, Receipt

__all__ = ["Rates", "World", "record_of"]

_LONGEST_WAIT_S = 0.5
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How a cluster behaves. Seconds are virtual.

    Attributes:
        shard_s: What a shard takes an actor of median speed.
        speed_sigma: Log-normal spread of the actors' speeds.
        shard_sigma: Log-normal spread of the shards on one actor.
        starts_a_s: Actors that a cluster starts a second.
        start_s: What an actor needs to load its network.
        failed_starts: Share of the starts that fail.
        deaths_an_hour: Share of the actors that die in an hour.
        lost_at_once: Share of the ready actors that vanish together when half of the shards are done.
        slow_actors: Share of the actors that are slow ...
        slow_factor: ... by this factor.
        frozen_actors: Share of the actors that stop answering after some shards, without dying.
        errors: Share of the attempts that end in a transient error.
        death_noticed_s: Until a death is noticed.
    """

    shard_s: float = 20.0
    speed_sigma: float = 0.15
    shard_sigma: float = 0.2
    starts_a_s: float = 50.0
    start_s: float = 20.0
    failed_starts: float = 1e-3
    deaths_an_hour: float = 0.005
    lost_at_once: float = 0.05
    slow_actors: float = 0.005
    slow_factor: float = 6.0
    frozen_actors: float = 1e-3
    errors: float = 1e-4
    death_noticed_s: float = 5.0


@dataclass(slots=True)
class _Actor:
    """One simulated actor; its engine takes one shard after the other."""

    name: str
    shard_s: float
    ready: bool = False
    gone: bool = False
    frozen_after: int | None = None
    free_s: float = 0.0
    shards: int = 0
    calls: dict[tuple[str, int], float] = field(default_factory=dict)


def record_of(shard: Shard, attempt: str, at_s: float) -> CommitRecord:
    """The commit record that an attempt at a shard would leave."""
    return CommitRecord(
        shard=shard.id,
        attempt=attempt,
        rows=shard.rows,
        bad_rows=0,
        part=f"_trtfleet/g0001/parts/{shard.id}-{attempt}.parquet",
        part_bytes=shard.rows * 40 + 2000,
        sha256=f"{int(shard.id, 16):064x}",
        quarantine=None,
        committed_s=at_s,
    )


class World:
    """Runs a driver to its end against simulated actors, on a virtual clock.

    Receipts reach the driver as Ray would bring them: pickled, and unpickled where they arrive.

    Args:
        driver: Not yet started.
        rates: How the cluster behaves.
        seed: The same seed gives the same run.
    """

    def __init__(self, driver: Driver, rates: Rates, seed: int) -> None:
        self.now_s = 0.0
        self.events = 0
        self.counts: Counter[str] = Counter()
        self.first_dispatch_s: float | None = None
        self.spent_at_first_dispatch_s = 0.0
        self.end: Finish | Fail | None = None
        self._driver = driver
        self._rates = rates
        self._random = random.Random(seed)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._entries = 0
        self._actors: dict[str, _Actor] = {}
        self._next_start_s = 0.0
        self._wake_s = float("inf")
        self._committed = bytearray(len(driver.shards))
        self._half = (driver.scheduler.shards_done + driver.scheduler.shards_total) // 2
        self._lost = False

    def run(self) -> None:
        """Works until the job is over."""
        self._obey(self._driver.start(self.now_s))
        while self.end is None:
            due_s = self._agenda[0][0] if self._agenda else float("inf")
            wait_s = min(self._wake_s, self.now_s + _LONGEST_WAIT_S)
            if wait_s < due_s:
                self.now_s = wait_s
                self._tell(Tick(at_s=self.now_s))
                continue
            self.now_s, _, happen = heappop(self._agenda)
            happen()

    def _later(self, at_s: float, happen: Callable[[], None]) -> None:
        self._entries += 1
        heappush(self._agenda, (at_s, self._entries, happen))

    def _tell(self, event: Event, result: ActorInfo | bytes | None = None) -> None:
        self.events += 1
        self.counts[type(event).__name__] += 1
        if event.at_s >= self._wake_s:
            self._wake_s = float("inf")
        self._obey(self._driver.tell(event, result))
        if not self._lost and self._driver.scheduler.shards_done >= self._half:
            self._lost = True
            self._lose_many()

    def _obey(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case StartActor(actor=name):
                    self._start(name)
                case Dispatch():
                    self._dispatch(action)
                case StopActor(actor=name):
                    self._actors[name].gone = True
                case WakeAt(at_s=at_s):
                    self._wake_s = at_s
                case Finish() | Fail():
                    self.end = action

    # ---- actors

    def _start(self, name: str) -> None:
        rates, chance = self._rates, self._random
        self.counts["StartActor"] += 1
        shard_s = rates.shard_s * chance.lognormvariate(0.0, rates.speed_sigma)
        if chance.random() < rates.slow_actors:
            shard_s *= rates.slow_factor
        actor = _Actor(name, shard_s)
        if chance.random() < rates.frozen_actors:
            actor.frozen_after = chance.randrange(1, 50)
        self._actors[name] = actor
        self._next_start_s = max(self.now_s, self._next_start_s) + 1.0 / rates.starts_a_s
        ready_s = self._next_start_s + rates.start_s * chance.lognormvariate(0.0, 0.3)
        self._later(ready_s, lambda: self._on_started(actor))

    def _on_started(self, actor: _Actor) -> None:
        if self._random.random() < self._rates.failed_starts:
            self._actors.pop(actor.name)
            self._tell(
                ActorFailedToStart(at_s=self.now_s, actor=actor.name, reason="no memory left on device")
            )
            return
        actor.ready = True
        actor.free_s = self.now_s
        if self._rates.deaths_an_hour:
            lives_s = self._random.expovariate(self._rates.deaths_an_hour / _HOUR_S)
            self._later(self.now_s + lives_s, lambda: self._die(actor, "the worker was killed"))
        node = f"node-{int(actor.name.split('-')[1]) // 8:04d}"
        info = ActorInfo(
            backend="tensorrt",
            not_taken="",
            batch_size=256,
            batch_origin="remembered",
            node=node,
            pid=1,
            start_s=1.0,
        )
        self._tell(ActorReady(at_s=self.now_s, actor=actor.name), info)

    def _lose_many(self) -> None:
        ready = sorted(name for name, actor in self._actors.items() if actor.ready and not actor.gone)
        for name in self._random.sample(ready, int(len(ready) * self._rates.lost_at_once)):
            self._die(self._actors[name], "the node was taken back")

    def _die(self, actor: _Actor, reason: str) -> None:
        """An actor vanishes; every call that it has in flight fails, and an idle one's death shows later."""
        if actor.gone:
            return
        actor.gone = True
        self.counts["died"] += 1
        for _ in actor.calls:
            self._notice(actor, reason)

    def _notice(self, actor: _Actor, reason: str) -> None:
        noticed_s = self.now_s + self._random.uniform(0.0, self._rates.death_noticed_s)
        self._later(noticed_s, lambda: self._on_gone(actor, reason))

    def _on_gone(self, actor: _Actor, reason: str) -> None:
        self._actors.pop(actor.name, None)
        self._tell(ActorDied(at_s=self.now_s, actor=actor.name, reason=reason))

    # ---- shards

    def _dispatch(self, action: Dispatch) -> None:
        if self.first_dispatch_s is None:
            self.first_dispatch_s = self.now_s
            self.spent_at_first_dispatch_s = self._driver.spent_s
        self.counts["Dispatch"] += 1
        if action.attempt > 1:
            self.counts["again"] += 1
        actor = self._actors[action.actor]
        actor.calls[action.shard, action.attempt] = self.now_s
        if actor.gone:
            self._notice(actor, "the worker was killed")
            return
        actor.shards += 1
        if actor.frozen_after is not None and actor.shards > actor.frozen_after:
            self.counts["frozen"] += actor.shards == actor.frozen_after + 1
            return
        took_s = actor.shard_s * self._random.lognormvariate(0.0, self._rates.shard_sigma)
        actor.free_s = max(self.now_s, actor.free_s) + took_s
        self._later(actor.free_s, lambda: self._on_ended(actor, action, took_s))

    def _on_ended(self, actor: _Actor, action: Dispatch, took_s: float) -> None:
        if actor.gone:
            return
        del actor.calls[action.shard, action.attempt]
        if self._random.random() < self._rates.errors:
            self._tell(
                ShardError(
                    at_s=self.now_s,
                    actor=actor.name,
                    shard=action.shard,
                    attempt=action.attempt,
                    reason="cannot read s3://datasets/photos: 503 Slow Down",
                    retryable=True,
                )
            )
            return
        receipt = self._receipt(actor, action, took_s)
        self.counts["twins"] += not receipt.won
        record = receipt.record
        self._tell(
            ShardDone(
                at_s=self.now_s,
                actor=actor.name,
                shard=action.shard,
                attempt=action.attempt,
                rows=record.rows,
                bad_rows=record.bad_rows,
            ),
            pickle.dumps(receipt),
        )

    def _receipt(self, actor: _Actor, action: Dispatch, took_s: float) -> Receipt:
        """What the actor answers; a twin that comes second gives the rows of the first one's commit."""
        shard = self._driver.account.shards.named(action.shard)
        won = not self._committed[shard.index]
        self._committed[shard.index] = True
        rows = actor.shards * shard.rows
        return Receipt(
            record=record_of(shard, f"5f3a90c1-{action.attempt}", self.now_s),
            won=won,
            seconds=took_s,
            stats=PipelineStats(busy_s=self.now_s, rows=rows, engine_rows_per_s=shard.rows / actor.shard_s),
            stages=StageStats(read_s=self.now_s, read_bytes=rows),
        )
