"""Each rule of the scheduler by itself, and one large job."""

from __future__ import annotations

import gc
import heapq
import statistics
import tracemalloc
from collections.abc import Sequence

import pytest
from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.events import (
    Action,
    ActorDied,
    ActorFailedToStart,
    ActorReady,
    Dispatch,
    Fail,
    FailureKind,
    Finish,
    ShardDone,
    ShardError,
    StartActor,
    StopActor,
    StopRequested,
    Tick,
    WakeAt,
)
from trtfleet.cluster.scheduler import Scheduler
from trtfleet.cluster.stragglers import Stragglers
from trtfleet.cluster.workers import Attempt, Workers
from trtfleet.errors import InternalError, UsageError

A, B, C, D = (f"actor-000{number}" for number in range(1, 5))


def scheduler_of(shards: int, **limits: object) -> Scheduler:
    """A scheduler of shards s0, s1, ... of 10 rows each, started at 0 s."""
    options = {"actors": 1, **limits}
    scheduler = Scheduler([(f"s{number}", 10) for number in range(shards)], Limits(**options))  # type: ignore[arg-type]
    scheduler.start(0.0)
    return scheduler


def ready(actor: str, at_s: float = 0.0) -> ActorReady:
    return ActorReady(at_s=at_s, actor=actor)


def died(actor: str, at_s: float = 1.0) -> ActorDied:
    return ActorDied(at_s=at_s, actor=actor, reason="SIGKILL")


def no_start(actor: str, reason: str = "no memory") -> ActorFailedToStart:
    return ActorFailedToStart(at_s=0.0, actor=actor, reason=reason)


def done(actor: str, shard: str, attempt: int = 1, at_s: float = 1.0, bad_rows: int = 0) -> ShardDone:
    return ShardDone(at_s=at_s, actor=actor, shard=shard, attempt=attempt, rows=10, bad_rows=bad_rows)


def error(
    actor: str,
    shard: str,
    attempt: int = 1,
    at_s: float = 1.0,
    retryable: bool = True,
    reason: str = "broken",
) -> ShardError:
    return ShardError(
        at_s=at_s, actor=actor, shard=shard, attempt=attempt, reason=reason, retryable=retryable
    )


def given_out(actions: Sequence[Action]) -> list[tuple[str, str, int]]:
    return [(a.actor, a.shard, a.attempt) for a in actions if isinstance(a, Dispatch)]


def make_ready(scheduler: Scheduler, *actors: str) -> list[tuple[str, str, int]]:
    return [given for actor in actors for given in given_out(scheduler.handle(ready(actor)))]


# ---- limits


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("actors", 0, 1),
        ("in_flight_per_actor", 0, 1),
        ("copies", 0, 1),
        ("max_bad_rows", -1, 0),
        ("actor_deaths", -1, 0),
        ("shard_errors", -1, 0),
        ("shard_deaths", -1, 0),
        ("shard_node_losses", -1, 0),
        ("consecutive_failed_starts", -1, 0),
        ("backoff_s", -0.5, 0),
        ("backoff_cap_s", float("inf"), 0),
        ("straggler_factor", float("nan"), 0),
        ("straggler_min_s", -1.0, 0),
        ("release_after_s", -1.0, 0),
        ("spare_actors", -1, 0),
    ],
)
def test_a_limit_out_of_range_is_refused_with_its_name_and_value(name: str, value: float, least: int) -> None:
    with pytest.raises(UsageError) as caught:
        Limits(**{"actors": 1, name: value})  # type: ignore[arg-type]
    assert caught.value.fact == f"{name} must be finite and >= {least}, got {value}"


def test_the_budget_of_actor_deaths_follows_the_number_of_actors_unless_given() -> None:
    assert Limits(actors=1).actor_deaths_allowed(1) == 8
    assert Limits(actors=1).actor_deaths_allowed(100) == 400
    assert Limits(actors=100, actor_deaths=0).actor_deaths_allowed(100) == 0


def test_the_backoff_doubles_up_to_its_cap_and_never_overflows() -> None:
    limits = Limits(actors=1)
    assert [limits.backoff_after(errors) for errors in (1, 2, 3, 6, 7, 8)] == [
        0.5,
        1.0,
        2.0,
        16.0,
        30.0,
        30.0,
    ]
    assert limits.backoff_after(10_000) == 30.0


# ---- start and end


def test_no_shards_finish_at_once_without_an_actor() -> None:
    scheduler = Scheduler([], Limits(actors=4))
    assert scheduler.start(0.0) == [Finish()]
    assert scheduler.finished
    assert scheduler.over


def test_as_many_actors_are_started_as_there_are_unfinished_shards_but_not_more_than_asked_for() -> None:
    plan = [(f"s{number}", 10) for number in range(5)]
    committed = {"s0": (10, 0), "s3": (9, 1)}
    few = Scheduler(plan, Limits(actors=8, max_bad_rows=1), committed)
    assert few.start(0.0) == [StartActor(actor=A), StartActor(actor=B), StartActor(actor=C)]
    many = Scheduler(plan, Limits(actors=2, max_bad_rows=1), committed)
    assert many.start(0.0) == [StartActor(actor=A), StartActor(actor=B)]


def test_a_resumed_job_counts_what_is_committed_and_does_the_rest_in_order() -> None:
    plan = [(f"s{number}", 10) for number in range(4)]
    scheduler = Scheduler(plan, Limits(actors=1, max_bad_rows=1), {"s0": (10, 0), "s2": (10, 1)})
    scheduler.start(0.0)
    assert (scheduler.shards_done, scheduler.shards_total, scheduler.rows_done) == (2, 4, 20)
    assert (scheduler.bad_rows, scheduler.rows_total, scheduler.pending) == (1, 40, 2)
    assert make_ready(scheduler, A) == [(A, "s1", 1), (A, "s3", 1)]
    assert scheduler.handle(done(A, "s3")) == []
    assert scheduler.handle(done(A, "s1")) == [Finish()]
    assert scheduler.rows_done == 40


def test_a_resumed_job_that_is_complete_finishes_and_one_with_too_many_bad_rows_fails_at_once() -> None:
    complete = Scheduler([("s0", 10)], Limits(actors=1), {"s0": (10, 0)})
    assert complete.start(0.0) == [Finish()]
    over = Scheduler([("s0", 10)], Limits(actors=1, max_bad_rows=2), {"s0": (10, 3)})
    assert over.start(0.0) == [Fail(kind=FailureKind.BAD_ROWS, reason="3 rows are bad, 2 allowed")]


def test_plans_that_contradict_themselves_and_calls_out_of_order_are_defects() -> None:
    with pytest.raises(InternalError, match="3 shards have 2 distinct keys"):
        Scheduler([("s0", 1), ("s1", 1), ("s0", 1)], Limits(actors=1))
    with pytest.raises(InternalError, match="2 shards have 1 distinct keys"):
        Scheduler([("s0", 1), ("s1", 1)], Limits(actors=1), None, {"s0": 0})
    with pytest.raises(InternalError, match="committed shard s9 is not among the 1 planned"):
        Scheduler([("s0", 1)], Limits(actors=1), {"s9": (1, 0)})
    scheduler = Scheduler([("s0", 1)], Limits(actors=1))
    with pytest.raises(InternalError, match="Tick before its start"):
        scheduler.handle(Tick(at_s=0.0))
    scheduler.start(0.0)
    with pytest.raises(InternalError, match="started twice"):
        scheduler.start(0.0)


def test_a_stop_request_fails_once_and_stops_idle_actors_gracefully_and_others_not() -> None:
    scheduler = scheduler_of(3, actors=3, in_flight_per_actor=3)
    make_ready(scheduler, A, B)
    assert scheduler.handle(StopRequested(at_s=1.0, reason="interrupted")) == [
        StopActor(actor=A, graceful=False),
        StopActor(actor=B, graceful=True),
        StopActor(actor=C, graceful=False),
        Fail(kind=FailureKind.STOPPED, reason="interrupted"),
    ]
    assert scheduler.failed == Fail(kind=FailureKind.STOPPED, reason="interrupted")
    for event in (ready(C), done(A, "s0"), died(B), StopRequested(at_s=2.0, reason="again"), Tick(at_s=9.0)):
        assert scheduler.handle(event) == []
    assert scheduler.shards_done == 0


# ---- dispatch


def test_shards_go_out_in_order_to_the_actor_with_the_fewest_then_to_the_first_that_was_ready() -> None:
    scheduler = scheduler_of(10, actors=3)
    assert make_ready(scheduler, B, A) == [(B, "s0", 1), (B, "s1", 1), (A, "s2", 1), (A, "s3", 1)]
    assert given_out(scheduler.handle(done(A, "s2"))) == [(A, "s4", 1)]
    assert make_ready(scheduler, C) == [(C, "s5", 1), (C, "s6", 1)]
    assert scheduler.running == 6
    assert scheduler.pending == 3


def test_lost_shards_are_spread_over_the_actors_with_the_fewest_in_flight() -> None:
    scheduler = scheduler_of(6, actors=3)
    make_ready(scheduler, C, B, A)
    for shard in ("s0", "s1"):
        scheduler.handle(done(C, shard))
    scheduler.handle(done(B, "s2"))
    # C has none in flight and B has one; after the first they tie, and C was ready before B.
    assert given_out(scheduler.handle(died(A))) == [(C, "s4", 2), (C, "s5", 2)]


def test_the_last_shards_are_spread_one_to_each_actor() -> None:
    scheduler = scheduler_of(6, actors=2)
    make_ready(scheduler, A, B)
    lost = given_out(scheduler.handle(error(A, "s0", at_s=1.0))) + given_out(
        scheduler.handle(error(B, "s2", at_s=1.0))
    )
    assert lost == [(A, "s4", 1), (B, "s5", 1)]
    for actor, shard in ((A, "s1"), (A, "s4"), (B, "s3"), (B, "s5")):
        scheduler.handle(done(actor, shard, at_s=1.2))
    assert given_out(scheduler.handle(Tick(at_s=1.5))) == [(A, "s0", 2), (B, "s2", 2)]


# ---- errors and backoff


def test_a_failed_shard_waits_for_its_backoff_and_is_then_first_in_line() -> None:
    scheduler = scheduler_of(9, in_flight_per_actor=1)
    make_ready(scheduler, A)
    assert scheduler.handle(error(A, "s0", at_s=1.0)) == [Dispatch(actor=A, shard="s1", attempt=1)]
    assert given_out(scheduler.handle(done(A, "s1", at_s=1.4))) == [(A, "s2", 1)]
    assert given_out(scheduler.handle(done(A, "s2", at_s=1.6))) == [(A, "s0", 2)]
    assert given_out(scheduler.handle(error(A, "s0", 2, at_s=2.0))) == [(A, "s3", 1)]
    assert given_out(scheduler.handle(done(A, "s3", at_s=2.9))) == [(A, "s4", 1)]
    assert given_out(scheduler.handle(done(A, "s4", at_s=3.0))) == [(A, "s0", 3)]
    assert scheduler.errors == 2
    assert [(note.at_s, note.subject, note.reason) for note in scheduler.failures] == [
        (1.0, "s0", "broken"),
        (2.0, "s0", "broken"),
    ]


def test_the_shell_is_woken_for_a_retry_once_and_only_if_an_actor_could_take_it() -> None:
    scheduler = scheduler_of(2, in_flight_per_actor=1)
    make_ready(scheduler, A)
    assert scheduler.handle(error(A, "s0", at_s=1.0)) == [Dispatch(actor=A, shard="s1", attempt=1)]
    assert scheduler.handle(done(A, "s1", at_s=1.2)) == [WakeAt(at_s=1.5)]
    assert scheduler.handle(Tick(at_s=1.3)) == []
    assert scheduler.handle(Tick(at_s=1.4999)) == []
    assert scheduler.handle(Tick(at_s=1.5)) == [Dispatch(actor=A, shard="s0", attempt=2)]


def test_a_shard_may_fail_as_often_as_allowed_and_not_once_more() -> None:
    scheduler = scheduler_of(1, shard_errors=3, backoff_s=0.0)
    make_ready(scheduler, A)
    for attempt in (1, 2, 3):
        assert scheduler.handle(error(A, "s0", attempt)) == [
            Dispatch(actor=A, shard="s0", attempt=attempt + 1)
        ]
    last = Fail(
        kind=FailureKind.SHARD_DATA, reason="it failed 4 times, 3 allowed; the last: torn page", shard="s0"
    )
    actions = scheduler.handle(error(A, "s0", 4, reason="torn page"))
    assert actions == [StopActor(actor=A, graceful=True), last]


def test_an_error_that_is_not_retryable_fails_at_once() -> None:
    scheduler = scheduler_of(3)
    make_ready(scheduler, A)
    actions = scheduler.handle(error(A, "s1", retryable=False, reason="column gone"))
    assert actions[-1] == Fail(kind=FailureKind.SHARD_DATA, reason="column gone", shard="s1")


def test_bad_rows_are_counted_once_per_shard_and_fail_when_over_the_limit() -> None:
    scheduler = scheduler_of(4, max_bad_rows=5)
    make_ready(scheduler, A)
    scheduler.handle(done(A, "s0", bad_rows=3))
    scheduler.handle(done(A, "s0", bad_rows=3))
    scheduler.handle(done(A, "s1", bad_rows=2))
    assert scheduler.bad_rows == 5
    assert not scheduler.over
    actions = scheduler.handle(done(A, "s2", bad_rows=1))
    assert actions[-1] == Fail(kind=FailureKind.BAD_ROWS, reason="6 rows are bad, 5 allowed")


def test_bad_rows_of_the_very_last_shard_fail_too_and_no_limit_means_none() -> None:
    strict = scheduler_of(1)
    make_ready(strict, A)
    assert isinstance(strict.handle(done(A, "s0", bad_rows=1))[-1], Fail)
    lenient = scheduler_of(1, max_bad_rows=None)
    make_ready(lenient, A)
    assert lenient.handle(done(A, "s0", bad_rows=10)) == [Finish()]


# ---- deaths


def test_a_dead_actor_is_replaced_under_a_new_name_and_its_shards_go_first() -> None:
    scheduler = scheduler_of(9)
    make_ready(scheduler, A)
    assert scheduler.handle(died(A)) == [StartActor(actor=B)]
    assert (scheduler.deaths, scheduler.actors_ready, scheduler.running) == (1, 0, 0)
    assert make_ready(scheduler, B) == [(B, "s0", 2), (B, "s1", 2)]
    assert [given[1] for given in given_out(scheduler.handle(done(B, "s0", 2)))] == ["s2"]


def test_no_replacement_is_started_when_the_actors_left_suffice_for_the_shards_left() -> None:
    scheduler = scheduler_of(3, actors=3)
    make_ready(scheduler, A, B, C)
    scheduler.handle(done(A, "s0"))
    assert scheduler.handle(died(C)) == []


def test_deaths_count_against_the_shards_in_flight_only_and_fail_when_over_the_limit() -> None:
    scheduler = scheduler_of(3, in_flight_per_actor=1, shard_deaths=1, actor_deaths=100)
    make_ready(scheduler, A)
    scheduler.handle(died(A))
    make_ready(scheduler, B)
    scheduler.handle(done(B, "s0", 2))
    scheduler.handle(died(B))
    make_ready(scheduler, C)
    actions = scheduler.handle(died(C))
    reason = "2 actors died with it, 1 allowed; the last: SIGKILL"
    assert actions == [Fail(kind=FailureKind.SHARD_DEATHS, reason=reason, shard="s1")]


def test_deaths_of_all_actors_have_a_budget_of_their_own_and_idle_ones_count() -> None:
    scheduler = scheduler_of(2, actors=2, in_flight_per_actor=2, actor_deaths=1)
    make_ready(scheduler, A, B)
    assert scheduler.handle(died(B)) == [StartActor(actor=C)]
    make_ready(scheduler, C)
    actions = scheduler.handle(died(C))
    reason = "2 actors died, 1 allowed; the last: SIGKILL"
    assert actions[-1] == Fail(kind=FailureKind.ACTOR_DEATHS, reason=reason)


def test_failed_starts_are_counted_from_the_last_success_and_the_last_reason_is_given() -> None:
    scheduler = scheduler_of(9, consecutive_failed_starts=2, actor_deaths=0)
    assert scheduler.handle(no_start(A)) == [StartActor(actor=B)]
    assert scheduler.handle(died(B)) == [StartActor(actor=C)]
    make_ready(scheduler, C)
    assert scheduler.deaths == 0
    scheduler = scheduler_of(9, actors=2, consecutive_failed_starts=2)
    assert scheduler.handle(no_start(A)) == [StartActor(actor=C)]
    assert scheduler.handle(no_start(C)) == [StartActor(actor=D)]
    make_ready(scheduler, B)
    for number in (4, 5):
        assert scheduler.handle(no_start(f"actor-{number:04d}")) == [
            StartActor(actor=f"actor-{number + 1:04d}")
        ]
    actions = scheduler.handle(no_start("actor-0006", "cuda driver too old"))
    assert actions[-1] == Fail(kind=FailureKind.ACTOR_STARTS, reason="cuda driver too old")


def test_a_backoff_outlasts_the_death_of_another_copy() -> None:
    scheduler = scheduler_of(2, actors=2, in_flight_per_actor=1, backoff_s=8.0)
    make_ready(scheduler, A, B)
    scheduler.handle(done(B, "s1", at_s=1.0))
    assert given_out(scheduler.handle(Tick(at_s=5.0))) == [(B, "s0", 2)]
    assert scheduler.handle(error(A, "s0", at_s=6.0)) == [WakeAt(at_s=10.0)]
    assert scheduler.handle(died(B, at_s=7.0)) == [WakeAt(at_s=14.0)]
    assert scheduler.handle(Tick(at_s=14.0)) == [Dispatch(actor=A, shard="s0", attempt=3)]


# ---- stragglers


def test_the_longest_running_attempt_is_duplicated_on_an_idle_actor_when_it_is_slow() -> None:
    scheduler = scheduler_of(4, actors=3, in_flight_per_actor=1)
    make_ready(scheduler, A, B, C)
    assert given_out(scheduler.handle(done(A, "s0", at_s=4.0))) == [(A, "s3", 1)]
    # The median is 4 s, so that an attempt is slow after 12 s: s1 runs since 0 s.
    assert scheduler.handle(done(A, "s3", at_s=8.0)) == [WakeAt(at_s=12.0)]
    assert scheduler.handle(Tick(at_s=11.9)) == []
    assert scheduler.handle(Tick(at_s=12.0)) == [Dispatch(actor=A, shard="s1", attempt=2)]
    assert scheduler.handle(Tick(at_s=500.0)) == []


def test_the_threshold_has_a_floor() -> None:
    scheduler = scheduler_of(2, actors=2)
    make_ready(scheduler, A)
    assert scheduler.handle(ready(B, at_s=0.5)) == [WakeAt(at_s=5.0)]
    assert scheduler.handle(done(A, "s0", at_s=1.0)) == []
    assert scheduler.handle(Tick(at_s=5.0)) == [Dispatch(actor=B, shard="s1", attempt=2)]


def test_the_threshold_follows_the_median_of_the_last_101_durations() -> None:
    stragglers = Stragglers(Limits(actors=1, straggler_factor=2.0, straggler_min_s=0.0))
    assert stragglers.patience_s == 0.0
    durations: list[float] = []
    for number in range(400):
        durations.append(float(number * 7919 % 613))
        stragglers.measure(durations[-1])
        assert stragglers.patience_s == 2 * statistics.median(durations[-101:])


def test_a_busy_actor_gets_no_duplicate_and_each_shard_only_so_many_copies() -> None:
    scheduler = scheduler_of(4, actors=2)
    make_ready(scheduler, A, B)
    assert scheduler.handle(done(B, "s3")) == []
    assert scheduler.handle(Tick(at_s=1000.0)) == []
    scheduler = scheduler_of(4, actors=4, in_flight_per_actor=1, copies=3, straggler_factor=0.0)
    make_ready(scheduler, A, B, C, D)
    scheduler.handle(done(A, "s0", at_s=1.0))
    scheduler.handle(done(B, "s1", at_s=1.0))
    scheduler.handle(done(C, "s2", at_s=1.0))
    assert scheduler.handle(Tick(at_s=6.0)) == [
        Dispatch(actor=A, shard="s3", attempt=2),
        Dispatch(actor=B, shard="s3", attempt=3),
    ]
    assert scheduler.running == 1


def test_no_duplicates_while_a_shard_waits_for_its_retry() -> None:
    scheduler = scheduler_of(3, actors=3, in_flight_per_actor=1, backoff_s=20.0)
    make_ready(scheduler, A, B, C)
    scheduler.handle(done(A, "s0", at_s=1.0))
    assert scheduler.handle(error(B, "s1", at_s=2.0)) == [WakeAt(at_s=22.0)]
    assert scheduler.handle(Tick(at_s=21.0)) == []
    assert scheduler.handle(Tick(at_s=22.0)) == [
        Dispatch(actor=A, shard="s1", attempt=2),
        Dispatch(actor=B, shard="s2", attempt=2),
    ]


def test_the_first_copy_decides_and_the_other_occupies_its_actor_until_it_reports() -> None:
    scheduler = scheduler_of(3, actors=2, in_flight_per_actor=1, backoff_s=0.0)
    make_ready(scheduler, A, B)
    scheduler.handle(done(B, "s1", at_s=1.0))
    scheduler.handle(done(B, "s2", at_s=2.0))
    assert given_out(scheduler.handle(Tick(at_s=6.0))) == [(B, "s0", 2)]
    assert scheduler.handle(done(B, "s0", 2, at_s=7.0)) == [StopActor(actor=A, graceful=False), Finish()]


def test_a_copy_that_ends_in_an_error_or_a_death_leaves_the_other_running_and_makes_room_for_one_more() -> (
    None
):
    scheduler = scheduler_of(3, actors=3, in_flight_per_actor=1, straggler_factor=0.0)
    make_ready(scheduler, A, B, C)
    scheduler.handle(done(B, "s1", at_s=1.0))
    scheduler.handle(done(C, "s2", at_s=1.0))
    assert given_out(scheduler.handle(Tick(at_s=5.0))) == [(B, "s0", 2)]
    assert scheduler.handle(died(A, at_s=6.0)) == [WakeAt(at_s=10.0)]
    assert given_out(scheduler.handle(Tick(at_s=10.0))) == [(C, "s0", 3)]
    assert scheduler.handle(error(B, "s0", 2, at_s=11.0)) == [WakeAt(at_s=15.0)]
    assert scheduler.running == 1
    assert scheduler.pending == 0


def test_every_actor_is_left_when_none_of_them_is_idle_at_the_end() -> None:
    scheduler = scheduler_of(2, actors=2, in_flight_per_actor=1, straggler_factor=0.0, straggler_min_s=1.0)
    make_ready(scheduler, A, B)
    scheduler.handle(done(B, "s1", at_s=0.5))
    assert given_out(scheduler.handle(Tick(at_s=1.0))) == [(B, "s0", 2)]
    # An actor of an earlier life reports; A and B are both still at work.
    assert scheduler.handle(done("actor-0099", "s0", 9, at_s=2.0)) == [Finish()]


# ---- late and stale events


def test_events_that_come_late_twice_or_from_strangers_change_nothing() -> None:
    scheduler = scheduler_of(9, in_flight_per_actor=1)
    make_ready(scheduler, A)
    scheduler.handle(died(A))
    make_ready(scheduler, B)
    before = (scheduler.running, scheduler.pending, scheduler.deaths, scheduler.errors, scheduler.failures)
    for event in (
        ready(A),
        ready(B),
        ready("stranger"),
        died(A),
        died("stranger"),
        no_start(A),
        error(A, "s0", 1, retryable=False),
        error(B, "s0", 1, retryable=False),
        error(B, "unknown", 1, retryable=False),
        done(B, "unknown"),
        Tick(at_s=-5.0),
    ):
        assert scheduler.handle(event) == []
    assert before == (
        scheduler.running,
        scheduler.pending,
        scheduler.deaths,
        scheduler.errors,
        scheduler.failures,
    )


def test_a_commit_by_an_actor_taken_for_dead_counts_and_its_retry_does_not_count_again() -> None:
    scheduler = scheduler_of(2, in_flight_per_actor=1)
    make_ready(scheduler, A)
    scheduler.handle(died(A))
    make_ready(scheduler, B)
    assert scheduler.handle(done(A, "s0", 1, at_s=2.0)) == []
    assert (scheduler.shards_done, scheduler.rows_done, scheduler.running) == (1, 10, 0)
    # The retry ends as it likes; it only frees its actor.
    assert given_out(scheduler.handle(error(B, "s0", 2, at_s=3.0, retryable=False))) == [(B, "s1", 1)]
    assert scheduler.errors == 0


def test_a_commit_by_an_actor_taken_for_dead_takes_the_shard_out_of_the_line() -> None:
    scheduler = scheduler_of(2, in_flight_per_actor=1)
    make_ready(scheduler, A)
    scheduler.handle(died(A))
    assert scheduler.handle(done(A, "s0", 1, at_s=2.0)) == []
    assert make_ready(scheduler, B) == [(B, "s1", 1)]


def test_a_shard_that_is_committed_while_it_waits_wakes_nobody() -> None:
    scheduler = scheduler_of(2, in_flight_per_actor=1, backoff_s=8.0)
    make_ready(scheduler, A)
    scheduler.handle(died(A))
    make_ready(scheduler, B)
    assert given_out(scheduler.handle(error(B, "s0", 2, at_s=1.0))) == [(B, "s1", 1)]
    assert scheduler.handle(error(B, "s1", at_s=2.0)) == [WakeAt(at_s=9.0)]
    assert scheduler.handle(done(A, "s0", 1, at_s=3.0)) == [WakeAt(at_s=10.0)]


def test_the_list_of_failures_is_bounded() -> None:
    scheduler = scheduler_of(1, shard_errors=1000, backoff_s=0.0)
    make_ready(scheduler, A)
    for attempt in range(1, 500):
        scheduler.handle(error(A, "s0", attempt, at_s=float(attempt)))
    assert scheduler.errors == 499
    assert [note.at_s for note in scheduler.failures] == [float(number) for number in range(400, 500)]


# ---- size


def test_a_long_job_with_a_hung_attempt_at_its_head_does_not_grow() -> None:
    scheduler = scheduler_of(20_000, actors=2, shard_errors=1000)
    make_ready(scheduler, A, B)
    scheduler.handle(done(A, "s1"))

    def run(first: int, last: int) -> None:
        # s0 hangs on A, which drops to it alone and fills up again; B empties and fills up again.
        for number in range(first, last):
            at_s = 1.0 + number / 100
            held_by = A if number % 3 else B
            scheduler.handle(done(held_by, f"s{number}", at_s=at_s))
            for actor in (A, B):
                scheduler.handle(done(actor, f"s{number}", at_s=at_s))

    run(2, 2_000)
    tracemalloc.start()
    run(2_000, 19_000)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert scheduler.shards_done == 18_999
    assert grown < 200_000


def test_an_actor_that_is_busy_and_idle_in_turn_beside_an_idle_one_does_not_pile_up() -> None:
    workers = Workers(2)
    for _ in range(2):
        workers.make_ready(workers.add().name)
    tracemalloc.start()
    for number in range(20_000):
        actor = workers.next_for(10)
        assert actor is not None
        assert actor.name == A
        workers.assign(actor, Attempt(shard=number, number=1, rows=10, started_s=0.0, copies=[]))
        workers.release(A, number, 1, 0.0, is_done=True)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 100_000


def test_finished_attempts_leave_nothing_to_the_garbage_collector() -> None:
    scheduler = scheduler_of(200)
    scheduler.handle(ready("actor-0001"))
    gc.collect()
    gc.disable()
    try:
        for number in range(200):
            scheduler.handle(done("actor-0001", f"s{number}"))
        assert gc.collect() < 200
    finally:
        gc.enable()


def test_a_job_of_many_shards_on_many_actors_with_deaths_errors_and_stragglers_ends_complete() -> None:
    shards, actors = 200_000, 2_000
    plan = [(f"shard-{number:06d}", 7) for number in range(shards)]
    tracemalloc.start()
    scheduler = Scheduler(plan, Limits(actors=actors, max_bad_rows=None, actor_deaths=500))
    per_shard = tracemalloc.get_traced_memory()[0] / shards
    tracemalloc.stop()
    assert per_shard < 150

    # What happens when, as (time, number, what, actor, shard, attempt): every 1,000th attempt kills its
    # actor, every 777th fails, and every 9,999th takes a hundred times as long.
    agenda: list[tuple[float, int, str, str, str, int]] = []
    counts = dict.fromkeys(("dispatch", "start", "kill", "error", "finish"), 0)
    dead: set[str] = set()

    def plan_for(actions: Sequence[Action], now_s: float) -> None:
        for action in actions:
            what, after_s, actor, shard, attempt = "tick", 0.0, "", "", 0
            match action:
                case StartActor(actor=actor):
                    counts["start"] += 1
                    what, after_s = "ready", 1.0
                case Dispatch(actor=actor, shard=shard, attempt=attempt):
                    counts["dispatch"] += 1
                    number = counts["dispatch"]
                    what, after_s = "done", 1.0 + number % 13 / 10
                    if number % 1000 == 0:
                        what = "kill"
                    elif number % 777 == 0:
                        what = "error"
                    elif number % 9_999 == 0:
                        after_s = 200.0
                case WakeAt(at_s=at_s):
                    after_s = at_s - now_s
                case Finish():
                    counts["finish"] += 1
                    continue
                case StopActor():
                    continue
                case Fail():
                    pytest.fail(f"{action}")
            heapq.heappush(agenda, (now_s + after_s, len(agenda), what, actor, shard, attempt))

    plan_for(scheduler.start(0.0), 0.0)
    committed: dict[str, int] = {}
    while not scheduler.over:
        at_s, _, what, actor, shard, attempt = heapq.heappop(agenda)
        if actor in dead:
            continue
        if what == "ready":
            actions = scheduler.handle(ready(actor, at_s))
        elif what == "kill":
            counts["kill"] += 1
            dead.add(actor)
            actions = scheduler.handle(died(actor, at_s))
        elif what == "error":
            counts["error"] += 1
            actions = scheduler.handle(error(actor, shard, attempt, at_s))
        elif what == "done":
            committed.setdefault(shard, attempt)
            actions = scheduler.handle(
                ShardDone(at_s=at_s, actor=actor, shard=shard, attempt=attempt, rows=7, bad_rows=0)
            )
        else:
            actions = scheduler.handle(Tick(at_s=at_s))
        plan_for(actions, at_s)

    assert scheduler.finished
    assert counts["finish"] == 1
    assert len(committed) == scheduler.shards_done == shards
    assert scheduler.rows_done == scheduler.rows_total == 7 * shards
    assert scheduler.deaths == counts["kill"] > 150
    assert scheduler.errors <= counts["error"]
    assert counts["error"] > 200
    assert counts["start"] <= actors + counts["kill"]
    assert counts["dispatch"] > shards + scheduler.errors
    assert any(attempt > 1 for attempt in committed.values())
