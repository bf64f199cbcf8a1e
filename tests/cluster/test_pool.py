"""The pool with real Ray actors that do next to nothing, and fail as they are told."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from trtfleet.cluster.budgets import Limits
from trtfleet.cluster.pool import ActorPool, Work
from trtfleet.cluster.scheduler import Scheduler
from trtfleet.cluster.session import Resources
from trtfleet.errors import (
    ActorStartError,
    BackendError,
    BadRowsError,
    ClusterError,
    MismatchError,
    ModelError,
    OutputError,
    ShardFailedError,
    TrtfleetError,
)


def obedient_actor() -> Any:
    """An actor class that travels by value, so that workers need not import this module."""
    import ray

    @ray.remote(max_restarts=0, max_task_retries=0)
    class Obedient:
        """Its task maps ``start`` or ``shard/attempt`` to what goes wrong then."""

        def _obey(self, command: Any) -> None:
            if isinstance(command, BaseException):
                raise command
            if command == "die":
                os._exit(1)
            if isinstance(command, float):
                time.sleep(command)

        def start(self, task: dict[str, Any]) -> int:
            self.task = task
            for number in range(1000):
                try:
                    os.close(os.open(f"{task['folder']}/start-{number}", os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                break
            self.pause_s = task.get("pauses_s", [0.0, 0.0])[number % 2]
            self._obey(task.get(f"start {number}", task.get("start")))
            return os.getpid()

        def score(self, shard: str, attempt: int) -> tuple[str, int]:
            time.sleep(self.pause_s)
            self._obey(self.task.get(f"{shard}/{attempt}", self.task.get(shard)))
            return shard, os.getpid()

        def double(self, value: Any) -> Any:
            self._obey(value)
            return value * 2

    return Obedient


@dataclass
class Watched:
    """A pool, and what it told."""

    pool: ActorPool
    scheduler: Scheduler
    started: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    by_actor: Counter[str] = field(default_factory=Counter)
    progress: int = 0
    on_progress: Callable[[], None] = lambda: None


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(pids: Any) -> None:
    deadline_s = time.monotonic() + 60
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline_s, f"{left} still run"
        time.sleep(0.02)


@pytest.fixture
def make(ray_session: None, tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Makes pools of two actors over some shards, and closes them."""
    actor = obedient_actor()
    made: list[Watched] = []

    def build(
        orders: dict[str, Any] | None = None,
        shards: int = 8,
        bad_rows: int = 0,
        cpus: float = 0.5,
        **limits: Any,
    ) -> Watched:
        settings = {"actors": 2, "backoff_s": 0.01, **limits}
        scheduler = Scheduler([(f"s{number}", 10) for number in range(shards)], Limits(**settings))
        work = Work(
            actor=actor,
            task={"folder": str(tmp_path), **(orders or {})},
            resources=Resources(cpus=cpus, gpus=0),
            threads=4,
            payload=lambda shard, attempt: (shard, attempt),
            count=lambda result: (10 - bad_rows, bad_rows),
        )

        def on_done(name: str, shard: str, result: Any) -> None:
            watched.done.append(shard)
            watched.by_actor[name] += 1

        def on_progress() -> None:
            watched.progress += 1
            watched.on_progress()

        pool = ActorPool(
            scheduler,
            work,
            on_started=lambda name, pid: watched.started.update({name: pid}),
            on_done=on_done,
            on_progress=on_progress,
        )
        watched = Watched(pool, scheduler)
        made.append(watched)
        return watched

    yield build
    for watched in made:
        watched.pool.close()
    assert_gone(pid for watched in made for pid in watched.started.values())


Make = Callable[..., Watched]


def test_every_shard_is_done_once_and_told(make: Make) -> None:
    watched = make(shards=30)
    watched.pool.run()
    assert sorted(watched.done) == sorted(f"s{number}" for number in range(30))
    assert watched.scheduler.shards_done == 30
    assert watched.scheduler.rows_done == 300
    assert watched.progress >= 30
    assert 1 <= len(watched.started) <= 2


def test_nothing_to_do_starts_nobody(make: Make, tmp_path: Path) -> None:
    watched = make(shards=0)
    watched.pool.run()
    assert not list(tmp_path.glob("start-*"))


def test_starts_that_fail_for_a_while_are_repeated(make: Make) -> None:
    orders = {"start 0": "die", "start 1": OSError("no route"), "start 2": ClusterError("busy", "wait")}
    watched = make(orders)
    watched.pool.run()
    assert watched.scheduler.shards_done == 8
    reasons = [incident.reason for incident in watched.scheduler.failures]
    assert len(reasons) == 3
    assert any("busy" in reason for reason in reasons)
    assert any("no route" in reason for reason in reasons)


def test_starts_that_never_work_end_the_job_with_the_last_reason(make: Make, tmp_path: Path) -> None:
    watched = make({"start": OSError("the disk is gone")}, consecutive_failed_starts=3)
    with pytest.raises(ActorStartError, match="the disk is gone") as caught:
        watched.pool.run()
    assert caught.value.hint
    assert len(list(tmp_path.glob("start-*"))) <= 6


def test_a_start_that_cannot_work_is_not_repeated(make: Make, tmp_path: Path) -> None:
    watched = make({"start": ModelError("no such operator", "upgrade")})
    with pytest.raises(ModelError, match="no such operator") as caught:
        watched.pool.run()
    assert caught.value.hint == "upgrade"
    assert len(list(tmp_path.glob("start-*"))) <= 2


def test_a_start_that_fails_leaves_the_machine_to_the_next_one(make: Make) -> None:
    # Each actor takes all of the cluster.
    watched = make({"start 0": OSError("no route")}, cpus=4, actors=1)
    watched.pool.run()
    assert watched.scheduler.shards_done == 8


def test_a_machine_that_cannot_run_it_is_left_alone_and_the_others_do_the_job(make: Make) -> None:
    watched = make({"start 0": BackendError("no kernel for compute capability 9.0")})
    watched.pool.run()
    assert watched.scheduler.shards_done == 8
    assert len(watched.started) == 1


def test_if_no_machine_can_run_it_the_job_fails_with_the_reason(make: Make, tmp_path: Path) -> None:
    watched = make({"start": BackendError("no kernel for compute capability 9.0", "rebuild")}, actors=3)
    with pytest.raises(BackendError, match=r"9\.0") as caught:
        watched.pool.run()
    assert caught.value.hint == "rebuild"
    assert len(list(tmp_path.glob("start-*"))) == 3


def test_an_actor_that_is_five_times_slower_does_less_and_every_shard_is_done_once(make: Make) -> None:
    watched = make({"pauses_s": [0.05, 0.25]}, shards=60, in_flight_per_actor=1)
    watched.pool.run()
    assert sorted(watched.done) == sorted(f"s{number}" for number in range(60))
    slow, fast = sorted(watched.by_actor.values())
    assert slow < fast / 2


def test_an_actor_that_nobody_needs_any_more_is_stopped_before_the_end(make: Make) -> None:
    # One shard takes long, and none may have a copy.
    watched = make({"s1": 6.0, **{f"s{n}": 0.3 for n in range(2, 8)}}, copies=1, release_after_s=0.2)
    released: list[bool] = []

    def look() -> None:
        if watched.scheduler.actors_released:
            released.append(sum(map(is_running, watched.started.values())) < 2)

    watched.on_progress = look
    watched.pool.run()
    assert watched.scheduler.actors_released == 1
    assert released[-2]


def test_an_actor_that_dies_is_replaced_and_its_shards_are_retried(make: Make) -> None:
    watched = make({"s3/1": "die", "s6/1": "die"}, shards=12)
    watched.pool.run()
    assert sorted(watched.done) == sorted({f"s{number}" for number in range(12)})
    assert watched.scheduler.deaths == 2
    assert watched.scheduler.rows_done == 120
    assert len(set(watched.started.values())) == len(watched.started) >= 3


def test_a_shard_that_kills_every_actor_fails_the_job(make: Make) -> None:
    watched = make({"s2": "die"}, shard_deaths=1)
    with pytest.raises(ShardFailedError, match="actors died with it") as caught:
        watched.pool.run()
    assert "memory" in caught.value.hint


def test_deaths_have_a_budget_over_the_whole_job(make: Make) -> None:
    watched = make({f"s{n}/1": "die" for n in range(8)}, shard_deaths=50, actor_deaths=2)
    with pytest.raises(ClusterError, match="3 actors died, 2 allowed"):
        watched.pool.run()


def test_transient_errors_are_retried(make: Make) -> None:
    orders = {"s1/1": OutputError("slow down"), "s1/2": OSError("reset"), "s4/1": ValueError("odd")}
    watched = make(orders)
    watched.pool.run()
    assert watched.scheduler.errors == 3
    assert watched.scheduler.deaths == 0
    assert sorted(watched.done) == [f"s{number}" for number in range(8)]


@pytest.mark.parametrize(
    ("error", "raised", "says"),
    [
        (OutputError("the bucket is gone", "make it"), OutputError, "the bucket is gone"),
        (ZeroDivisionError("by zero"), ShardFailedError, "by zero"),
    ],
)
def test_an_error_that_stays_ends_the_job_as_what_it_is(
    make: Make, error: Exception, raised: type[TrtfleetError], says: str
) -> None:
    watched = make({"s5": error}, shard_errors=2)
    with pytest.raises(raised, match=says):
        watched.pool.run()
    assert watched.scheduler.errors == 3


def test_an_error_that_blames_the_job_is_not_retried(make: Make) -> None:
    watched = make({"s5": MismatchError("float64 is not float32", "cast it")})
    with pytest.raises(MismatchError, match="float64"):
        watched.pool.run()
    assert watched.scheduler.errors == 1


def test_too_many_bad_rows(make: Make) -> None:
    watched = make(bad_rows=3, max_bad_rows=7)
    with pytest.raises(BadRowsError, match="rows are bad, 7 allowed"):
        watched.pool.run()


def test_an_interrupt_stops_every_actor(make: Make) -> None:
    watched = make({"s7": 60.0})

    def interrupt() -> None:
        if len(watched.done) >= 3:
            raise KeyboardInterrupt

    watched.on_progress = interrupt
    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        watched.pool.run()
    # Before anybody calls close.
    assert_gone(watched.started.values())
    assert time.monotonic() - start_s < 30


def test_actors_live_on_for_map_until_close(make: Make) -> None:
    watched = make()
    watched.pool.run()
    assert watched.pool.map("double", [(number,) for number in range(9)]) == [2 * n for n in range(9)]
    assert all(map(is_running, watched.started.values()))
    watched.pool.close()
    assert_gone(watched.started.values())
    results = watched.pool.map("double", [(1,), (2,)])
    assert len(results) == 2
    assert all(isinstance(result, ClusterError) for result in results)
    watched.pool.close()


def test_map_gives_errors_in_the_place_of_results(make: Make) -> None:
    watched = make(shards=1)
    watched.pool.run()
    assert len(watched.started) == 1
    good, lost, after = watched.pool.map("double", [(1,), (OutputError("full"),), (3,)])
    assert (good, after) == (2, 6)
    assert isinstance(lost, OutputError)
    assert lost.fact == "full"
    # Calls on an actor run one after another or at once: those after its death fail, none hangs.
    results = watched.pool.map("double", [("die",), (5,)])
    assert isinstance(results[0], RayActorError)


def test_an_actor_that_never_answered_gets_no_call_of_map(make: Make) -> None:
    orders = {"s0/1": 60.0}
    watched = make(orders, shards=12, straggler_min_s=0.3, straggler_factor=1.0)
    start_s = time.monotonic()
    watched.pool.run()
    assert watched.scheduler.shards_done == 12
    assert time.monotonic() - start_s < 30
    busy = set(watched.started) - watched.pool._ready
    assert len(busy) == 1
    assert watched.pool.map("double", [(n,) for n in range(4)]) == [0, 2, 4, 6]
    watched.pool.close()
    assert_gone(watched.started.values())


def test_a_frozen_actor_does_not_hold_up_map(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtfleet.cluster.pool._SILENCE_S", 3.0)
    # Long enough for the second actor to start.
    watched = make({f"s{number}/1": 1.0 for number in range(8)})
    watched.pool.run()
    assert len(watched.started) == 2
    frozen = watched.started[min(watched.started)]
    os.kill(frozen, signal.SIGSTOP)
    try:
        results = watched.pool.map("double", [(n,) for n in range(6)])
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert [result for result in results if not isinstance(result, ClusterError)] == [2, 6, 10]
    assert sum(isinstance(result, ClusterError) for result in results) == 3
