"""Fast and slow actors in one job, lost and new ones, on a virtual clock: when the last shard is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.events import (
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Dispatch,
    Fail,
    FailureKind,
    RoomFound,
    ShardDone,
    StartActor,
    StopActor,
    Tick,
    WakeAt,
)
from trtfleet.cluster.scheduler import Scheduler
from trtfleet.cluster.speeds import MUCH, Pace, Speeds
from trtfleet.tests.cluster.virtual import ROWS, Machine, Virtual

FAST, SLOW = Machine("fast", 5.0), Machine("slow", 1.0)
A, B, C = (f"actor-000{number}" for number in range(1, 4))


def machines(fast: int, slow: int) -> list[Machine]:
    return [replace(FAST) for _ in range(fast)] + [replace(SLOW) for _ in range(slow)]


def run(of: Sequence[Machine], shards: int, noise: float = 0.0, seed: int = 1, **limits: float) -> Virtual:
    options = Limits(actors=len(of), **limits)  # type: ignore[arg-type]
    return Virtual(of, shards, options, noise, seed).run()


# ---- rates


def test_a_pace_is_that_of_late_and_its_step_stays_near_a_border() -> None:
    pace = Pace()
    assert (pace.rate, pace.step) == (None, 0)
    pace.assume(8.0)
    assert pace.rate == 8.0
    pace.measure(100, 50.0)
    assert pace.rate == 2.0
    for _ in range(60):
        pace.measure(100, 10.0)
    assert pace.rate == pytest.approx(10.0, rel=0.01)
    step = pace.step
    for _ in range(60):
        pace.measure(110, 10.0)
    assert pace.step == step
    for _ in range(60):
        pace.measure(140, 10.0)
    assert pace.step == step + 2


def test_two_shards_that_end_together_tell_the_rate_together() -> None:
    pace = Pace()
    for _ in range(30):
        pace.measure(100, 20.0)
        pace.measure(100, 0.0)
    assert pace.rate == pytest.approx(10.0, rel=0.06)
    nothing = Pace()
    nothing.measure(100, 0.0)
    assert nothing.rate is None


def test_an_actor_is_expected_to_be_like_its_kind_else_like_all() -> None:
    speeds = Speeds()
    assert speeds.expected("fast") is None
    speeds.measure("fast", 100, 10.0)
    speeds.measure("slow", 100, 50.0)
    assert (speeds.expected("fast"), speeds.expected("slow")) == (10.0, 2.0)
    assert speeds.expected("new") == pytest.approx(200 / 60, rel=0.02)


def test_what_is_much_faster_is_faster_by_a_factor_of_two_or_so() -> None:
    def step(rate: float) -> int:
        pace = Pace()
        pace.assume(rate)
        return pace.step

    for rate in (0.01, 1.0, 37.0, 12_000.0):
        assert step(rate * 1.2) - step(rate) < MUCH
        assert step(rate * 2.2) - step(rate) >= MUCH


# ---- the end of a job


@pytest.mark.parametrize("shards_an_actor", [16, 20, 50, 100])
@pytest.mark.parametrize(("fast", "slow"), [(1, 1), (4, 4), (2, 8), (8, 2), (1, 7), (32, 32)])
def test_a_job_on_two_classes_ends_within_a_tenth_of_the_ideal_split(
    fast: int, slow: int, shards_an_actor: int
) -> None:
    job = run(machines(fast, slow), (fast + slow) * shards_an_actor)
    assert job.end_s <= 1.1 * job.ideal_s()
    # Nobody stood aside: the slow class did about the share that is its due.
    assert job.by_kind["slow"] >= 0.6 * slow / (5 * fast + slow) * job.shards * ROWS


@pytest.mark.parametrize("seed", range(5))
def test_shards_that_differ_by_chance_do_not_change_that(seed: int) -> None:
    job = run(machines(4, 4), 8 * 50, noise=0.1, seed=seed)
    assert job.end_s <= 1.1 * job.ideal_s()


def test_without_weighing_the_slow_class_holds_the_end() -> None:
    """What the tests above would see if speeds were not weighed."""
    weighed, plain = run(machines(8, 2), 160), run(machines(8, 2), 160, copies=1)
    assert weighed.end_s <= 1.1 * weighed.ideal_s()
    assert plain.end_s > 1.25 * plain.ideal_s()


def test_a_class_need_not_be_known_by_name() -> None:
    unnamed = [replace(machine, kind="") for machine in machines(4, 4)]
    job = run(unnamed, 160)
    assert job.end_s <= 1.1 * job.ideal_s()


def test_one_actor_that_becomes_slow_is_overtaken() -> None:
    """It has shards before it when it slows down, and those that it has yet to begin are done by others."""
    ill = replace(FAST, slower=((200.0, 0.02),))
    job = run([*machines(4, 0), ill], 100)
    alone_s = 100 * ROWS / (4 * 5.0) + 10
    assert job.copies >= 1
    assert job.end_s <= 1.1 * alone_s


def test_fast_actors_that_freeze_do_not_keep_the_rest_from_the_slow_ones() -> None:
    frozen = [replace(FAST, frozen_s=150.0) for _ in range(4)]
    job = run([*frozen, *machines(0, 4)], 80)
    assert job.by_kind["slow"] > 40 * ROWS
    # All that is left when they freeze, by the slow ones alone, with some patience for each of the frozen.
    left = 80 * ROWS - job.by_kind["fast"]
    assert job.end_s <= 150 + 1.5 * left / 4.0 + 600


def test_a_slow_actor_gets_no_shard_at_the_end_that_a_fast_one_would_finish_sooner() -> None:
    scheduler = Scheduler([(f"s{n}", 100) for n in range(12)], Limits(actors=2, in_flight_per_actor=1))
    scheduler.start(0.0)
    for actor in (A, B):
        scheduler.handle(ActorReady(at_s=0.0, actor=actor))
    owner = {A: ("s0", 1), B: ("s1", 1)}

    def done(actor: str, at_s: float) -> list[str]:
        shard, attempt = owner.pop(actor)
        event = ShardDone(at_s=at_s, actor=actor, shard=shard, attempt=attempt, rows=100, bad_rows=0)
        actions = scheduler.handle(event)
        for action in actions:
            if isinstance(action, Dispatch):
                owner[action.actor] = (action.shard, action.attempt)
        return [f"{action.actor} {action.shard}" for action in actions if isinstance(action, Dispatch)]

    for number in range(1, 10):
        assert done(A, number * 10.0) == [f"{A} s{number + 1}"]
    # A needs 10 s a shard and B 95: A will be done with s11 long before B could be.
    assert done(B, 95.0) == []
    assert done(A, 100.0) == [f"{A} s11"]
    assert done(A, 110.0) == []
    assert scheduler.finished


def test_a_shard_that_was_left_to_a_fast_actor_goes_to_the_slow_one_when_the_time_is_up() -> None:
    scheduler = Scheduler([(f"s{n}", 100) for n in range(4)], Limits(actors=2, in_flight_per_actor=1))
    scheduler.start(0.0)
    for actor in (A, B):
        scheduler.handle(ActorReady(at_s=0.0, actor=actor))

    def done(actor: str, shard: str, at_s: float) -> object:
        event = ShardDone(at_s=at_s, actor=actor, shard=shard, attempt=1, rows=100, bad_rows=0)
        return scheduler.handle(event)

    assert done(A, "s0", 10.0) == [Dispatch(actor=A, shard="s2", attempt=1)]
    # A takes 10 s a shard: it has s2, and half of that and s3 should be done 15 s from now.
    assert done(B, "s1", 19.0) == [WakeAt(at_s=34.0)]
    assert scheduler.handle(Tick(at_s=33.9)) == []
    assert scheduler.handle(Tick(at_s=34.0))[0] == Dispatch(actor=B, shard="s3", attempt=1)


@settings(max_examples=60)
@given(
    rates=st.lists(st.sampled_from([1.0, 1.7, 3.0, 5.0, 9.0]), min_size=1, max_size=12),
    shards_an_actor=st.integers(1, 40),
    noise=st.sampled_from([0.0, 0.2]),
    late=st.sampled_from([0.0, 120.0]),
)
def test_every_mixture_ends_and_no_later_than_one_shard_of_the_slowest_allows(
    rates: list[float], shards_an_actor: int, noise: float, late: float
) -> None:
    of = [Machine(f"{rate:g}", rate, 10.0 + late * (n % 2)) for n, rate in enumerate(rates)]
    job = run(of, len(of) * shards_an_actor, noise=noise)
    slowest_s = 2 * ROWS / min(rates)
    assert job.end_s <= (1.1 + noise) * job.ideal_s() + (1 + 2 * noise) * slowest_s


# ---- machines that go and come


@pytest.mark.parametrize("lost_s", [30.0, 200.0])
def test_half_of_the_machines_go_and_nothing_is_lost_nor_blamed(lost_s: float) -> None:
    of = [*machines(4, 0), *machines(4, 0)]
    job = Virtual(of, 160, Limits(actors=8, shard_deaths=0, actor_deaths=0, consecutive_failed_starts=0))
    job.lose(lost_s, of[::2])
    job.run()
    assert job.scheduler.node_losses == 4
    assert job.scheduler.shards_done == 160
    left_s = (160 * ROWS - 8 * 5.0 * (lost_s - 10)) / (4 * 5.0)
    assert job.end_s <= 1.15 * (lost_s + left_s)


def test_machines_that_come_are_used_and_shorten_the_job() -> None:
    alone = run(machines(2, 0), 200)
    job = Virtual(machines(2, 0), 200, Limits(actors=2))
    job.join(300.0, [Machine("new", 5.0, ready_s=0.0) for _ in range(6)], 8)
    job.run()
    assert job.by_kind["new"] > 0
    left_s = (200 * ROWS - 2 * 5.0 * 290) / (8 * 5.0)
    assert job.end_s <= 1.1 * (300 + left_s) < 0.6 * alone.end_s


def test_actors_beyond_the_room_wait_and_the_first_machine_to_come_is_theirs() -> None:
    job = Virtual(machines(1, 0), 100, Limits(actors=3))
    late = [Machine("new", 5.0, ready_s=0.0) for _ in range(2)]
    job.join(200.0, late, 1)
    job.run()
    assert job.by_kind["new"] > 40 * ROWS
    assert job.scheduler.actors_ready == 3


def test_room_that_shrinks_changes_nothing_and_more_room_starts_more_actors() -> None:
    scheduler = Scheduler([(f"s{n}", 10) for n in range(9)], Limits(actors=2))
    scheduler.start(0.0)
    assert scheduler.handle(RoomFound(at_s=1.0, actors=1)) == []
    assert scheduler.handle(RoomFound(at_s=2.0, actors=3)) == [StartActor(actor=C)]
    assert scheduler.handle(RoomFound(at_s=3.0, actors=3)) == []


def test_a_lost_node_costs_a_shard_nothing_until_it_was_there_too_often() -> None:
    limits = Limits(actors=1, shard_deaths=0, actor_deaths=0, shard_node_losses=2)
    scheduler = Scheduler([("s0", 10)], limits)
    scheduler.start(0.0)
    for number in range(1, 4):
        name = f"actor-000{number}"
        scheduler.handle(ActorReady(at_s=0.0, actor=name))
        died = ActorDied(at_s=1.0, actor=name, reason="its node has died", is_node_lost=True)
        actions = scheduler.handle(died)
    reason = "3 nodes were lost with it, 2 allowed; the last: its node has died"
    assert actions == [Fail(kind=FailureKind.SHARD_DEATHS, reason=reason, shard="s0")]


def test_an_actor_that_has_grown_too_large_after_good_work_is_replaced_for_nothing() -> None:
    scheduler = Scheduler([("s0", 10), ("s1", 10)], Limits(actors=1, shard_deaths=0, actor_deaths=0))
    scheduler.start(0.0)
    scheduler.handle(ActorReady(at_s=0.0, actor=A))
    scheduler.handle(ShardDone(at_s=1.0, actor=A, shard="s0", attempt=1, rows=10, bad_rows=0))
    spent = ActorDied(at_s=2.0, actor=A, reason="5 bytes of memory", is_spent=True)
    assert scheduler.handle(spent) == [StartActor(actor=B)]
    assert (scheduler.deaths, scheduler.renewals) == (1, 1)
    # The next one grows as much with a single shard: that one is to blame.
    scheduler.handle(ActorReady(at_s=3.0, actor=B))
    (fail,) = scheduler.handle(ActorDied(at_s=4.0, actor=B, reason="5 bytes of memory", is_spent=True))
    assert isinstance(fail, Fail)
    assert (fail.kind, fail.shard) == (FailureKind.SHARD_DEATHS, "s1")


def test_actors_that_start_on_a_node_that_is_lost_are_no_failed_starts() -> None:
    scheduler = Scheduler([("s0", 10), ("s1", 10)], Limits(actors=1, consecutive_failed_starts=0))
    scheduler.start(0.0)
    lost = ActorFailedToStart(at_s=0.0, actor=A, reason="its node has died", is_node_lost=True)
    assert scheduler.handle(lost) == [StartActor(actor=B)]


def test_starts_that_are_lost_for_ever_end_the_job_nevertheless() -> None:
    scheduler = Scheduler([("s0", 10)], Limits(actors=1, shard_node_losses=6))
    scheduler.start(0.0)
    for number in range(1, 8):
        name = f"actor-{number:04d}"
        lost = ActorFailedToStart(at_s=0.0, actor=name, reason="out of reach", is_node_lost=True)
        actions = scheduler.handle(lost)
    reason = "7 starts went with their nodes: out of reach"
    assert actions == [Fail(kind=FailureKind.ACTOR_STARTS, reason=reason)]


def test_an_actor_that_does_not_fit_its_machine_is_not_replaced_and_the_last_one_ends_the_job() -> None:
    scheduler = Scheduler([(f"s{n}", 10) for n in range(9)], Limits(actors=2, consecutive_failed_starts=0))
    scheduler.start(0.0)

    def unfit(actor: str) -> object:
        return scheduler.handle(
            ActorFailedToStart(at_s=0.0, actor=actor, reason="compute capability 9.0", is_unfit=True)
        )

    assert unfit(A) == []
    assert scheduler.handle(RoomFound(at_s=1.0, actors=3)) == [StartActor(actor=C)]
    assert unfit(B) == []
    assert unfit(C) == [Fail(kind=FailureKind.NO_FIT, reason="compute capability 9.0")]


# ---- actors of no more use


def test_idle_actors_are_released_at_the_end_but_for_those_that_may_yet_help() -> None:
    slow_shard = [*machines(7, 0), replace(FAST, slower=((90.0, 0.01),))]
    job = Virtual(slow_shard, 40, Limits(actors=8, straggler_min_s=1e6))
    job.run()
    # One shard is left, and one actor may be wanted for its copy.
    assert len(job.released) == 6
    assert min(job.released.values()) >= 30.0


def test_actors_are_kept_for_what_comes_after_the_last_shard() -> None:
    slow_shard = [*machines(7, 0), replace(FAST, slower=((90.0, 0.01),))]
    job = Virtual(slow_shard, 40, Limits(actors=8, straggler_min_s=1e6, spare_actors=5))
    job.run()
    assert len(job.released) == 3


def test_actors_that_never_got_a_machine_are_given_up_when_nothing_waits() -> None:
    job = Virtual(machines(2, 0), 40, Limits(actors=6, straggler_min_s=1e6, release_after_s=0.0))
    job.run()
    assert set(job.released) >= {f"actor-000{number}" for number in (3, 4, 5, 6)}
    assert job.scheduler.actors_released == len(job.released)


def test_an_actor_that_is_released_is_not_heard_any_more() -> None:
    scheduler = Scheduler([("s0", 10), ("s1", 10)], Limits(actors=2, release_after_s=5.0, copies=1))
    scheduler.start(0.0)
    scheduler.handle(ActorReady(at_s=0.0, actor=A))
    scheduler.handle(ShardDone(at_s=1.0, actor=A, shard="s1", attempt=1, rows=10, bad_rows=0))
    assert scheduler.handle(Tick(at_s=6.0)) == [StopActor(actor=B, graceful=False)]
    assert scheduler.handle(ActorReady(at_s=7.0, actor=B)) == []
    assert scheduler.actors_ready == 1
