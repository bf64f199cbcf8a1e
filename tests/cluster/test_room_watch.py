"""Looking at a cluster that grows, shrinks or cannot be asked."""

from __future__ import annotations

import pytest
from trtfleet.cluster.events import RoomFound
from trtfleet.cluster.room_watch import RoomWatch
from trtfleet.errors import ClusterError


class Cluster:
    """Room as it is told, and what was said about it."""

    def __init__(self, room: int | Exception, *, actors: int = 2, follows: bool = True) -> None:
        self.room = room
        self.asked = 0
        self.said: list[str] = []
        self.watch = RoomWatch(
            self._ask,
            actors=actors,
            follows=follows,
            wait_s=60.0,
            inventory=lambda: "1 node with 4 CPUs",
            say=self.said.append,
        )

    def _ask(self) -> int:
        self.asked += 1
        if isinstance(self.room, Exception):
            raise self.room
        return self.room


def test_it_asks_every_few_seconds_only() -> None:
    cluster = Cluster(2)
    for tenths in range(100):
        assert cluster.watch.look(tenths / 10, 2) is None
    assert cluster.asked == 2
    assert cluster.said == []


def test_more_room_than_ever_before_is_told_once() -> None:
    cluster = Cluster(5)
    assert cluster.watch.look(0.0, 2) == RoomFound(at_s=0.0, actors=5)
    assert cluster.watch.look(10.0, 2) is None
    cluster.room = 3
    assert cluster.watch.look(20.0, 2) is None
    cluster.room = 5
    assert cluster.watch.look(30.0, 2) is None
    cluster.room = 6
    assert cluster.watch.look(40.0, 2) == RoomFound(at_s=40.0, actors=6)
    assert cluster.said == [
        "the cluster has room for 5 actors now, for 2 before",
        "the cluster has room for 6 actors now, for 5 before",
    ]


def test_a_job_with_a_fixed_number_of_actors_does_not_grow() -> None:
    cluster = Cluster(5, follows=False)
    assert cluster.watch.look(0.0, 2) is None
    assert cluster.said == []


def test_without_any_node_that_fits_it_says_so_and_gives_up_in_the_end() -> None:
    cluster = Cluster(0)
    assert cluster.watch.look(0.0, 0) is None
    assert cluster.watch.look(59.0, 0) is None
    assert len(cluster.said) == 1
    assert "1 node with 4 CPUs: waiting up to 60 s" in cluster.said[0]
    with pytest.raises(ClusterError, match=r"for 64 s .* 1 node with 4 CPUs") as caught:
        cluster.watch.look(64.0, 0)
    assert "same command" in caught.value.hint


def test_a_node_that_comes_back_in_time_ends_the_wait_and_so_does_an_actor_at_work() -> None:
    cluster = Cluster(0)
    cluster.watch.look(0.0, 0)
    cluster.room = 1
    cluster.watch.look(50.0, 0)
    cluster.room = 0
    cluster.watch.look(90.0, 0)
    assert cluster.watch.look(140.0, 0) is None
    cluster.watch.look(145.0, 1)
    cluster.watch.look(200.0, 0)
    assert cluster.watch.look(250.0, 0) is None


def test_a_cluster_that_cannot_be_asked_for_a_moment_is_no_reason_to_give_up() -> None:
    cluster = Cluster(ConnectionError("the head node is away"))
    for at_s in range(0, 1000, 10):
        assert cluster.watch.look(float(at_s), 0) is None
    assert cluster.said == []
