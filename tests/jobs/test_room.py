"""How many actors a job gets, and when it is told that there is no place for any."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from trtfleet.cluster.session import Resources, Session
from trtfleet.errors import BackendError, ClusterError, TrtfleetError, UsageError
from trtfleet.jobs.progress import Silent
from trtfleet.jobs.room import Room, find_room
from trtfleet.jobs.spec import ScoreSpec

CPU_NODE = Resources(cpus=8, gpus=0)
GPU_NODE = Resources(cpus=16, gpus=2, accelerator="A100")


class Said(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True, kw_only=True)
class Cluster(Session):
    """A cluster of some nodes, with an autoscaler that could bring others."""

    has: list[Resources] = field(default_factory=list)
    brings: list[Resources] = field(default_factory=list)
    is_embedded: bool = False
    address: str = "a:1"

    @property
    def nodes(self) -> list[Resources]:
        return self.has

    def could_bring(self, actor: Resources) -> bool:
        return any(node.room_for(actor) for node in self.brings)


def room_on(cluster: Cluster, said: Said | None = None, **options: Any) -> Room:
    wanted: dict[str, Any] = {
        "backend": "auto",
        "actors": None,
        "cpus_per_actor": None,
        "gpus_per_actor": 1.0,
    }
    return find_room(cluster, said or Said(), **{**wanted, **options})


def test_as_many_as_fit_then_and_later() -> None:
    room = room_on(Cluster(has=[GPU_NODE, GPU_NODE, CPU_NODE]))
    assert (room.actors, room.resources, room.follows) == (4, Resources(cpus=8, gpus=1), True)
    assert room.watch(Cluster(has=[]), Said()) is not None


def test_a_number_is_kept_and_those_beyond_the_room_wait() -> None:
    said = Said()
    room = room_on(Cluster(has=[CPU_NODE]), said, actors=12)
    assert (room.actors, room.follows) == (12, False)
    assert said.lines == ["the cluster has room for 8 of 12 actors; the others wait for it"]


def test_this_machine_neither_grows_nor_is_watched() -> None:
    here = Cluster(has=[CPU_NODE], is_embedded=True)
    room = room_on(here)
    assert (room.actors, room.follows) == (8, False)
    assert room.watch(here, Said()) is None


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"cpus_per_actor": 9}, ClusterError, "an actor wants 9 CPUs, the cluster has 2 nodes with 8 CPUs"),
        (
            {"backend": "tensorrt"},
            BackendError,
            "backend tensorrt is not available: the cluster has no GPU, only 2 nodes with 8 CPUs",
        ),
    ],
)
def test_no_place_for_any_is_an_error_at_once_that_tells_what_there_is(
    options: dict[str, Any], kind: type[TrtfleetError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        room_on(Cluster(has=[CPU_NODE, CPU_NODE]), **options)
    assert caught.value.fact == says
    assert caught.value.hint


def test_gpus_without_enough_cpus_beside_them_are_told_too() -> None:
    with pytest.raises(ClusterError) as caught:
        room_on(Cluster(has=[GPU_NODE, CPU_NODE]), cpus_per_actor=20)
    assert caught.value.fact == (
        "an actor wants 20 CPUs and 1 GPU, the cluster has 1 node with 16 CPUs and 2 A100, 1 node with 8 CPUs"
    )


def test_a_node_that_the_autoscaler_could_bring_is_waited_for_and_asked_for() -> None:
    cluster = Cluster(has=[CPU_NODE], brings=[GPU_NODE])
    room = room_on(cluster)
    assert (room.actors, room.resources.gpus, room.follows, room.wait_s) == (1, 1.0, True, 600.0)
    assert room_on(cluster, actors=6).actors == 6
    assert room_on(cluster, wait_for_nodes_s=5.0).wait_s == 5.0
    with pytest.raises(BackendError):
        room_on(cluster, wait_for_nodes_s=0.0)
    with pytest.raises(ClusterError):
        room_on(cluster, cpus_per_actor=17, backend="onnxruntime-cpu")


def test_whoever_knows_better_than_the_autoscaler_may_wait() -> None:
    room = room_on(Cluster(has=[CPU_NODE]), backend="onnxruntime-cuda", wait_for_nodes_s=30.0)
    assert (room.actors, room.resources.gpus, room.wait_s) == (1, 1.0, 30.0)


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_a_wait_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(UsageError, match="wait_for_nodes must be finite and >= 0"):
        ScoreSpec(model="m.onnx", data=("d",), out="o", wait_for_nodes=seconds)
