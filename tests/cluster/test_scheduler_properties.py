"""The scheduler against adversaries: a slow, plain model that scans everything checks every action."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.events import (
    Action,
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Dispatch,
    Event,
    Fail,
    FailureKind,
    Finish,
    RoomFound,
    ShardDone,
    ShardError,
    StartActor,
    StopActor,
    StopRequested,
    Tick,
    WakeAt,
)
from trtfleet.cluster.scheduler import Scheduler
from trtfleet.cluster.speeds import MUCH, Pace, Speeds

ROWS = 10
STEPS_S = (0.0, 0.0, 0.1, 1.0, 6.0, 40.0, -1.0)
KINDS = ("slow", "fast")


@dataclass
class Running:
    """One attempt in flight, and what was known of its actor when it began."""

    started_s: float
    ends_s: float | None
    step: int


class Tape:
    """Choices out of bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def __bool__(self) -> bool:
        return self.at < len(self.data)

    def below(self, count: int) -> int:
        self.at += 1
        return self.data[self.at - 1] % count if self.at <= len(self.data) else 0


class World:
    """A cluster that does what the scheduler asks, and checks everything that it asks."""

    def __init__(self, shards: int, limits: Limits, committed: int = 0) -> None:
        self.limits = limits
        self.keys = [f"s{number}" for number in range(shards)]
        self.finished = dict.fromkeys(self.keys[:committed], (ROWS, 0))
        self.now = 100.0
        self.starting: list[str] = []
        self.ready: list[str] = []
        self.names: set[str] = set()
        self.flight: dict[str, dict[tuple[str, int], Running]] = {}
        self.paces: dict[str, Pace] = {}
        self.kinds: dict[str, str] = {}
        self.since: dict[str, float] = {}
        self.speeds = Speeds()
        self.target, self.unfit = limits.actors, 0
        self.hold: float | None = None
        self.release: float | None = None
        self.released = self.held_back = self.overtaken = 0
        self.lost: list[tuple[str, str, int]] = []
        self.attempts: set[tuple[str, int]] = set()
        self.errors: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        self.node_losses: Counter[str] = Counter()
        self.due: dict[str, float] = {}
        self.dead = self.dead_with_node = self.renewed = 0
        self.lost_starts = self.failed_starts = self.duplicates = 0
        self.workers_done: set[str] = set()
        self.durations: deque[float] = deque(maxlen=101)
        self.wake: float | None = None
        self.end: Finish | Fail | None = None
        self.history: list[Event] = []
        self.scheduler = Scheduler([(key, ROWS) for key in self.keys], limits, dict(self.finished))
        self.check(self.scheduler.start(self.now), set())

    # ---- what the state is, by scanning

    def copies(self, shard: str) -> list[Running]:
        if shard in self.finished:
            return []
        return [found for held in self.flight.values() for (key, _), found in held.items() if key == shard]

    def waiting(self) -> list[str]:
        return [key for key in self.keys if key not in self.finished and not self.copies(key)]

    def first_in_line(self) -> str | None:
        due = [key for key in self.waiting() if self.due.get(key, -math.inf) <= self.now]
        tried = {shard for shard, _ in self.attempts}
        return next((key for key in due if key in tried), next(iter(due), None))

    def takes_s(self, name: str) -> float | None:
        """Seconds until an actor would be done with one shard more."""
        rate = self.paces[name].rate
        return None if rate is None else ROWS * (len(self.flight[name]) + 1) / rate

    def next_actor(self) -> str | None:
        """The one with the fewest in flight, the fastest of these; or one with more that is sooner done."""
        best: str | None = None
        for load in range(self.limits.in_flight_per_actor):
            equals = [name for name in self.ready if len(self.flight[name]) == load]
            name = max(equals, key=lambda one: self.paces[one].step, default=None)
            if name is None:
                continue
            if best is None:
                best = name
                continue
            mine, other = self.takes_s(name), self.takes_s(best)
            is_known = mine is not None and other is not None
            if is_known and self.paces[name].step >= self.paces[best].step + MUCH and mine < other:  # type: ignore[operator]
                best = name
        return best

    def others_s(self, name: str) -> float | None:
        """How long all that waits takes the much faster actors, if an actor had better leave it to them."""
        takes_s = self.takes_s(name)
        faster = [one for one in self.ready if self.paces[one].step >= self.paces[name].step + MUCH]
        rate = sum(self.paces[one].rate or 0.0 for one in faster)
        if self.limits.copies == 1 or takes_s is None or not rate:
            return None
        in_flight = ROWS * (sum(len(self.flight[one]) for one in faster) - len(faster) / 2)
        others_s = (ROWS * len(self.waiting()) + max(0.0, in_flight)) / rate
        return others_s if takes_s * (1.25 if self.flight[name] else 1.0) > others_s else None

    def is_close(self, name: str) -> bool:
        """Whether rounding decides if a shard is held back from an actor."""
        others_s, takes_s = self.others_s(name), self.takes_s(name)
        takes_s = None if takes_s is None else takes_s * (1.25 if self.flight[name] else 1.0)
        if others_s is not None and takes_s is not None and math.isclose(others_s, takes_s, rel_tol=1e-9):
            return True
        return self.hold is not None and math.isclose(self.hold, self.now, rel_tol=1e-9)

    def copy_for_idle(self) -> tuple[set[str], set[float]]:
        """Shards of which the idle actor is due a copy, any of them, and else when one may be due."""
        idle = [name for name in self.ready if not self.flight[name]]
        if not idle or self.waiting():
            return set(), set()
        actor = max(idle, key=lambda name: self.paces[name].step)
        takes_s = self.takes_s(actor)
        found = {key: found for key in self.keys if 0 < len(found := self.copies(key)) < self.limits.copies}
        flat = [(key, one) for key, ones in found.items() for one in ones]
        if not flat:
            return set(), set()
        known = [(one.ends_s, key, one) for key, one in flat if one.ends_s is not None]
        due: set[str] = set()
        if known and takes_s is not None:
            latest_s = max(ends_s for ends_s, _, _ in known)
            for ends_s, key, one in known:
                left_s = ends_s - self.now
                if ends_s == latest_s and self.paces[actor].step >= one.step + MUCH and left_s >= 2 * takes_s:
                    due |= {key} if left_s - takes_s >= self.limits.straggler_min_s else set()
            if due:
                return due, set()
        median = statistics.median(self.durations) if self.durations else 0.0
        patience_s = max(self.limits.straggler_min_s, self.limits.straggler_factor * median)
        faster = [one for one in self.ready if self.paces[one].step >= self.paces[actor].step + MUCH]
        rate = sum(self.paces[one].rate or 0.0 for one in faster if takes_s is not None)
        others_s = ROWS * sum(len(self.flight[one]) + 1 for one in faster) / rate if rate else 0.0
        oldest_s = min(one.started_s for _, one in flat)
        times: set[float] = set()
        for key, one in flat:
            if one.started_s == oldest_s:
                due_s = oldest_s + patience_s
                if takes_s is not None and one.ends_s is not None:
                    due_s = max(due_s, one.ends_s - takes_s)
                due_s += others_s
                if math.isclose(due_s, self.now, rel_tol=1e-9):
                    due, times = due | {key}, times | {due_s}
                    continue
                due |= {key} if due_s <= self.now else set()
                times |= {due_s} if due_s > self.now else set()
        return due, times

    @property
    def wanted(self) -> int:
        return min(self.target - self.unfit, len(self.keys) - len(self.finished))

    def surplus(self) -> list[str]:
        """Actors that nobody needs, when no shard waits."""
        running = sum(1 for key in self.keys if self.copies(key))
        idle = [name for name in self.ready if not self.flight[name]]
        busy = len(self.ready) - len(idle)
        useful = max(
            busy,
            self.wanted,
            min(self.target, busy + running * (self.limits.copies - 1)),
            self.limits.spare_actors,
        )
        slowest = sorted(idle, key=lambda name: (self.paces[name].step, -self.ready.index(name)))
        return [*reversed(self.starting), *slowest][: max(0, len(self.starting) + len(self.ready) - useful)]

    # ---- events

    def tell(self, event: Event) -> list[Action]:
        self.now = max(self.now, event.at_s)
        self.history.append(event)
        kinds = self.take_note(event) if self.end is None else set()
        actions = self.scheduler.handle(event)
        self.check(actions, kinds)
        return actions

    def take_note(self, event: Event) -> set[tuple[FailureKind, str | None]]:
        """Apply an event; returns the failures that it must lead to, any of them."""
        kinds: set[tuple[FailureKind, str | None]] = set()
        limits = self.limits
        match event:
            case ActorReady(actor=name) if name in self.starting:
                self.starting.remove(name)
                self.ready.append(name)
                self.flight[name] = {}
                self.paces[name], self.kinds[name] = Pace(), event.kind
                self.paces[name].assume(self.speeds.expected(event.kind))
                self.failed_starts = self.lost_starts = 0
            case RoomFound(actors=actors):
                self.target = max(self.target, actors)
            case ActorFailedToStart(actor=name, is_unfit=True) if name in self.starting:
                self.starting.remove(name)
                self.unfit += 1
                if self.wanted <= 0 and not self.starting and not self.ready:
                    kinds.add((FailureKind.NO_FIT, None))
            case ActorFailedToStart(actor=name) | ActorDied(actor=name) if name in self.starting:
                self.starting.remove(name)
                self.failed_starts += not event.is_node_lost
                self.lost_starts += event.is_node_lost
                if self.lost_starts > max(limits.shard_node_losses, 4 * self.target):
                    kinds.add((FailureKind.ACTOR_STARTS, None))
                if self.failed_starts > limits.consecutive_failed_starts:
                    kinds.add((FailureKind.ACTOR_STARTS, None))
            case ActorFailedToStart(actor=name) | ActorDied(actor=name) if name in self.ready:
                self.ready.remove(name)
                self.dead += 1
                self.dead_with_node += event.is_node_lost
                is_renewed = isinstance(event, ActorDied) and event.is_spent and name in self.workers_done
                self.renewed += is_renewed
                for shard, attempt in self.flight.pop(name):
                    self.lost.append((name, shard, attempt))
                    if shard not in self.finished and not is_renewed:
                        (self.node_losses if event.is_node_lost else self.deaths)[shard] += 1
                        if self.deaths[shard] > limits.shard_deaths:
                            kinds.add((FailureKind.SHARD_DEATHS, shard))
                        if self.node_losses[shard] > limits.shard_node_losses:
                            kinds.add((FailureKind.SHARD_DEATHS, shard))
                allowed = max(8, 4 * self.target) if limits.actor_deaths is None else limits.actor_deaths
                if self.dead - self.dead_with_node - self.renewed > allowed:
                    kinds.add((FailureKind.ACTOR_DEATHS, None))
            case ShardDone(actor=name, shard=shard, attempt=attempt) if shard in self.keys:
                started = self.end_attempt(name, shard, attempt, is_done=True)
                if shard not in self.finished:
                    self.finished[shard] = (event.rows, event.bad_rows)
                    if started is not None:
                        self.durations.append(self.now - started.started_s)
                    if limits.max_bad_rows is not None and self.bad_rows() > limits.max_bad_rows:
                        kinds.add((FailureKind.BAD_ROWS, None))
            case ShardError(actor=name, shard=shard, attempt=attempt):
                held = self.end_attempt(name, shard, attempt, is_done=False)
                if held is not None and shard not in self.finished:
                    self.errors[shard] += 1
                    delay = min(limits.backoff_cap_s, limits.backoff_s * 2 ** (self.errors[shard] - 1))
                    self.due[shard] = self.now + delay
                    if not event.retryable or self.errors[shard] > limits.shard_errors:
                        kinds.add((FailureKind.SHARD_DATA, shard))
            case StopRequested():
                kinds.add((FailureKind.STOPPED, None))
            case _:
                pass
        return kinds

    def end_attempt(self, name: str, shard: str, attempt: int, *, is_done: bool) -> Running | None:
        found = self.flight.get(name, {}).pop((shard, attempt), None)
        if found is not None:
            if is_done:
                self.workers_done.add(name)
                seconds = self.now - self.since[name]
                self.paces[name].measure(ROWS, seconds)
                self.speeds.measure(self.kinds[name], ROWS, seconds)
            self.since[name] = self.now
        return found

    def bad_rows(self) -> int:
        return sum(bad for _, bad in self.finished.values())

    # ---- actions

    def check(self, actions: Sequence[Action], kinds: set[tuple[FailureKind, str | None]]) -> None:
        if self.end is not None:
            assert actions == []
            return
        unfinished = len(self.keys) - len(self.finished)
        if kinds or not unfinished:
            self.check_end(actions, kinds)
        else:
            assert not any(isinstance(action, Finish | Fail) for action in actions)
            wakes = [action for action in actions if isinstance(action, WakeAt)]
            assert wakes == list(actions[len(actions) - len(wakes) :])
            stops: list[StopActor] = []
            for action in actions:
                match action:
                    case StartActor(actor=name):
                        assert name not in self.names
                        self.names.add(name)
                        self.starting.append(name)
                        assert len(self.starting) + len(self.ready) <= self.wanted
                    case Dispatch():
                        assert not stops
                        self.check_dispatch(action)
                    case StopActor():
                        stops.append(action)
            self.check_released(stops)
            if wakes:
                self.wake = wakes[0].at_s
                assert self.wake > self.now
            self.check_nothing_left(bool(wakes))
        self.check_counts()

    def check_end(self, actions: Sequence[Action], kinds: set[tuple[FailureKind, str | None]]) -> None:
        *stops, last = actions
        idle = {name for name in self.ready if not self.flight[name]}
        busy = set(self.ready) - idle
        if kinds:
            assert isinstance(last, Fail)
            assert (last.kind, last.shard) in kinds
            expected = {name: name in idle for name in (*self.starting, *self.ready)}
        else:
            assert last == Finish()
            expected = dict.fromkeys(busy, False) if idle else {}
        assert len(stops) == len(expected)
        for name, graceful in expected.items():
            assert StopActor(actor=name, graceful=graceful) in stops
        self.end = last

    def check_dispatch(self, action: Dispatch) -> None:
        assert (action.shard, action.attempt) not in self.attempts
        assert action.shard not in self.finished
        first = self.first_in_line()
        if first is not None:
            assert action.actor == self.next_actor()
            assert action.shard == first
            if self.others_s(action.actor) is not None and not self.is_close(action.actor):
                # The faster ones have not kept their promise.
                assert self.hold is not None
                assert self.hold <= self.now
            self.hold = None
        else:
            assert not self.waiting()
            idle = [name for name in self.ready if not self.flight[name]]
            assert action.actor == max(idle, key=lambda name: self.paces[name].step)
            assert action.shard in self.copy_for_idle()[0]
            running = self.copies(action.shard)
            self.overtaken += all(self.paces[action.actor].step >= one.step + MUCH for one in running)
            self.duplicates += 1
        self.attempts.add((action.shard, action.attempt))
        held = self.flight[action.actor]
        assert action.shard not in {shard for shard, _ in held}
        takes_s = self.takes_s(action.actor)
        if not held:
            self.since[action.actor] = self.now
        ends_s = None if takes_s is None else self.now + takes_s
        held[action.shard, action.attempt] = Running(self.now, ends_s, self.paces[action.actor].step)
        assert len(held) <= self.limits.in_flight_per_actor
        assert len(self.copies(action.shard)) <= max(1, self.limits.copies)

    def check_released(self, stops: list[StopActor]) -> None:
        """Actors are stopped once they have been of no use for a while, and not before."""
        surplus = [] if self.waiting() else self.surplus()
        if not surplus:
            self.release = None
        elif self.release is None:
            self.release = self.now + self.limits.release_after_s
        if self.release is None or self.now < self.release:
            assert not stops
            return
        self.release = None
        assert stops == [StopActor(actor=name, graceful=name in self.ready) for name in surplus]
        for name in surplus:
            self.released += 1
            if name in self.starting:
                self.starting.remove(name)
            else:
                self.ready.remove(name)
                del self.flight[name]

    def check_nothing_left(self, announced: bool) -> None:
        assert len(self.starting) + len(self.ready) >= self.wanted
        name, waiting = self.next_actor(), self.waiting()
        times: set[float] = set()
        if waiting and name is not None:
            times = {self.due[key] for key in waiting if self.due.get(key, -math.inf) > self.now}
            if self.first_in_line() is not None:
                others_s = self.others_s(name)
                assert others_s is not None or self.is_close(name)
                if self.hold is None:
                    takes_s = self.takes_s(name)
                    self.hold = self.now + (others_s or takes_s or 0.0)
                    self.held_back += 1
                times = {min({self.hold, *times})}
            else:
                self.hold = None
                times = {min(times)}
        else:
            self.hold = None
            due, later = self.copy_for_idle()
            # Among attempts that began at once, only the first to begin is looked at.
            assert not due or later
            if self.release is not None:
                later = {min(at, self.release) for at in later} or {self.release}
            times = later
        if not times:
            assert not announced
            self.wake = None
        else:
            assert self.wake is not None
            assert any(math.isclose(self.wake, at, rel_tol=1e-9) for at in times)
            if self.hold is not None and math.isclose(self.wake, self.hold, rel_tol=1e-9):
                self.hold = self.wake
        assert self.scheduler.handle(Tick(at_s=self.now)) == []

    def check_counts(self) -> None:
        scheduler = self.scheduler
        running = sum(1 for key in self.keys if self.copies(key))
        assert scheduler.shards_done == len(self.finished)
        assert scheduler.rows_done == sum(rows for rows, _ in self.finished.values())
        assert scheduler.bad_rows == self.bad_rows()
        assert scheduler.deaths == self.dead
        assert scheduler.node_losses == self.dead_with_node
        assert scheduler.renewals == self.renewed
        assert scheduler.actors_released == self.released
        assert scheduler.errors == sum(self.errors.values())
        assert scheduler.actors_ready == len(self.ready)
        assert scheduler.finished == isinstance(self.end, Finish)
        assert scheduler.failed == (self.end if isinstance(self.end, Fail) else None)
        if self.end is None:
            assert scheduler.running == running
            assert scheduler.pending + scheduler.running + scheduler.shards_done == len(self.keys)

    # ---- executors

    def in_flight(self) -> list[tuple[str, str, int]]:
        return [(name, shard, attempt) for name, held in self.flight.items() for shard, attempt in held]

    def done(self, name: str, shard: str, attempt: int, bad_rows: int = 0) -> ShardDone:
        return ShardDone(
            at_s=self.now, actor=name, shard=shard, attempt=attempt, rows=ROWS, bad_rows=bad_rows
        )

    def adversarial_event(self, tape: Tape) -> Event:
        at_s = self.now + STEPS_S[tape.below(len(STEPS_S))]
        choice, pick = tape.below(26), tape.below(256)
        held = self.in_flight()
        name, shard, attempt = held[pick % len(held)] if held else ("actor-9999", "s0", 1)
        bad_rows = int(pick % 11 == 10)
        starting = self.starting[pick % len(self.starting)] if self.starting else name
        ready = self.ready[pick % len(self.ready)] if self.ready else starting
        match choice:
            case 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7:
                return ShardDone(
                    at_s=at_s, actor=name, shard=shard, attempt=attempt, rows=ROWS, bad_rows=bad_rows
                )
            case 8 | 9 | 10 | 11 | 12:
                return ActorReady(at_s=at_s, actor=starting, kind=KINDS[pick % 2])
            case 13:
                is_unfit = pick % 4 == 3
                return ActorFailedToStart(at_s=at_s, actor=starting, reason="no memory", is_unfit=is_unfit)
            case 14:
                how = {"is_node_lost": pick % 4 == 2, "is_spent": pick % 4 == 3}
                return ActorDied(at_s=at_s, actor=ready, reason="killed", **how)
            case 15:
                return ActorDied(at_s=at_s, actor=starting, reason="killed", is_node_lost=pick % 3 == 2)
            case 24:
                return RoomFound(at_s=at_s, actors=1 + pick % 7)
            case 16 | 17:
                return ShardError(
                    at_s=at_s,
                    actor=name,
                    shard=shard,
                    attempt=attempt,
                    reason="broken",
                    retryable=pick % 16 != 15,
                )
            case 18:
                return Tick(at_s=at_s)
            case 19:
                return Tick(at_s=at_s if self.wake is None else self.wake)
            case 20 if self.lost:
                # A fenced actor that was taken for dead had committed after all.
                actor, late, number = self.lost[pick % len(self.lost)]
                return ShardDone(
                    at_s=at_s, actor=actor, shard=late, attempt=number, rows=ROWS, bad_rows=bad_rows
                )
            case 21 | 22 if self.history:
                return self.history[pick % len(self.history)]
            case 23 if pick == 255:
                return StopRequested(at_s=at_s, reason="interrupted")
            case _:
                return ShardDone(
                    at_s=at_s, actor="stranger", shard="unknown", attempt=1, rows=ROWS, bad_rows=1
                )

    def run_adversary(self, tape: Tape) -> None:
        while tape and self.end is None:
            self.tell(self.adversarial_event(tape))

    def run_fairly(self) -> int:
        """Every start succeeds, every attempt completes, the oldest first; returns the events it took."""
        steps = 0
        while self.end is None:
            steps += 1
            held = self.in_flight()
            if self.starting:
                self.tell(ActorReady(at_s=self.now + 0.5, actor=self.starting[0], kind="fast"))
            elif held:
                name, shard, attempt = min(held, key=lambda key: self.flight[key[0]][key[1:]].started_s)
                self.now += 0.5
                self.tell(self.done(name, shard, attempt))
            else:
                assert self.wake is not None, "nothing runs, nothing is due, and the job is not over"
                self.tell(Tick(at_s=self.wake))
        return steps


def loosened(limits: Limits) -> Limits:
    """The same timing with budgets that are never spent, for long sequences."""
    return replace(
        limits,
        max_bad_rows=None,
        shard_errors=1000,
        shard_deaths=1000,
        shard_node_losses=1000,
        actor_deaths=1000,
        consecutive_failed_starts=1000,
    )


def limits_with(spare: st.SearchStrategy[int]) -> st.SearchStrategy[Limits]:
    """Limits with small budgets, any of which `spare` may replace."""
    return st.builds(
        Limits,
        actors=st.integers(1, 4),
        in_flight_per_actor=st.integers(1, 3),
        max_bad_rows=st.none() | st.integers(0, 25) | spare,
        shard_errors=st.integers(0, 3) | spare,
        shard_deaths=st.integers(0, 3) | spare,
        shard_node_losses=st.integers(0, 3) | spare,
        actor_deaths=st.none() | st.integers(0, 5) | spare,
        consecutive_failed_starts=st.integers(0, 3) | spare,
        backoff_s=st.sampled_from([0.0, 0.5, 4.0]),
        backoff_cap_s=st.sampled_from([10.0, 30.0]),
        straggler_factor=st.sampled_from([0.0, 1.0, 3.0]),
        straggler_min_s=st.sampled_from([0.0, 5.0]),
        copies=st.integers(1, 3),
        release_after_s=st.sampled_from([0.0, 3.0, 30.0]),
        spare_actors=st.integers(0, 2),
    )


limits_tight = limits_with(st.nothing())
limits_any = st.one_of(limits_tight, limits_with(st.just(1000)), limits_with(st.just(1000)).map(loosened))
shard_counts = st.sampled_from([2, 3, 5, 8, 13, 21, 34, 55])
tapes = st.binary(min_size=600, max_size=1500)


@settings(max_examples=2000, deadline=None)
@given(
    limits=limits_any,
    shards=shard_counts,
    committed=st.integers(0, 2),
    tape=tapes,
)
def test_every_sequence_is_answered_as_the_plain_model_says_and_then_ends(
    limits: Limits, shards: int, committed: int, tape: bytes
) -> None:
    world = World(shards, limits, min(shards, committed))
    world.run_adversary(Tape(tape))
    steps = world.run_fairly()
    # Starts, attempts in flight, further attempts of each shard, and ticks.
    assert steps <= world.target * (1 + limits.in_flight_per_actor) + shards * (limits.copies + 2)
    end, count = world.end, len(world.history)
    world.run_adversary(Tape(tape))
    for event in world.history[:count]:
        assert world.scheduler.handle(event) == []
    assert world.end is end


def test_the_adversary_reaches_every_ending_and_duplicates_late_and_lost_attempts() -> None:
    ends: Counter[str] = Counter()
    duplicates = late = released = held_back = overtaken = 0
    for seed in range(500):
        chance = random.Random(seed)
        limits = Limits(
            actors=chance.randint(1, 4),
            max_bad_rows=chance.choice([None, 1]),
            shard_errors=chance.choice([1, 50]),
            shard_deaths=chance.choice([0, 1, 50]),
            actor_deaths=chance.choice([2, 50]),
            consecutive_failed_starts=chance.choice([1, 50]),
            straggler_min_s=1.0,
        )
        world = World(chance.randint(1, 30), limits)
        world.run_adversary(Tape(chance.randbytes(1200)))
        world.run_fairly()
        ends[world.end.kind if isinstance(world.end, Fail) else "finish"] += 1
        duplicates += world.duplicates
        released += world.released
        held_back += world.held_back
        overtaken += world.overtaken
        late += sum(1 for _, shard, _ in world.lost if shard in world.finished)
    assert set(ends) == {*FailureKind, "finish"}
    assert min(duplicates, late, released, held_back, overtaken, ends["finish"]) >= 20


@settings(max_examples=300, deadline=None)
@given(limits=limits_any, shards=shard_counts, tape=tapes)
def test_the_same_events_give_the_same_actions(limits: Limits, shards: int, tape: bytes) -> None:
    world = World(shards, limits)
    world.run_adversary(Tape(tape))
    plan = [(key, ROWS) for key in world.keys]
    first, second = Scheduler(plan, limits), Scheduler(plan, limits)
    assert first.start(100.0) == second.start(100.0)
    for event in world.history:
        assert first.handle(event) == second.handle(event)
    assert first.failures == second.failures


@settings(max_examples=100, deadline=None)
@given(limits=limits_tight, shards=st.integers(1, 12))
@pytest.mark.parametrize("what", ["deaths", "starts", "errors", "bad_rows"])
def test_an_executor_that_ruins_everything_leads_to_a_failure(what: str, limits: Limits, shards: int) -> None:
    world = World(shards, limits)
    while world.end is None:
        held = world.in_flight()
        if what == "starts":
            world.tell(ActorFailedToStart(at_s=world.now, actor=world.starting[0], reason="no memory"))
        elif world.starting:
            world.tell(ActorReady(at_s=world.now, actor=world.starting[0]))
        elif not held:
            assert world.wake is not None
            world.tell(Tick(at_s=world.wake))
        elif what == "deaths":
            world.tell(ActorDied(at_s=world.now + 0.1, actor=held[0][0], reason="killed"))
        elif what == "errors":
            name, shard, attempt = held[0]
            world.tell(
                ShardError(
                    at_s=world.now + 0.1,
                    actor=name,
                    shard=shard,
                    attempt=attempt,
                    reason="broken",
                    retryable=True,
                )
            )
        else:
            world.tell(world.done(*held[0], bad_rows=ROWS))
    budget = limits.max_bad_rows
    if what == "bad_rows" and (budget is None or budget >= shards * ROWS):
        assert isinstance(world.end, Finish)
        return
    assert isinstance(world.end, Fail)
    if what == "starts":
        assert len(world.history) == limits.consecutive_failed_starts + 1
    elif what == "bad_rows":
        assert budget is not None
        assert len(world.finished) == budget // ROWS + 1
