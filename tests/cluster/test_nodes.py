"""What Ray tells of nodes, and asking each of them something, on a real cluster of one node."""

from __future__ import annotations

import os
import platform
import threading
from dataclasses import replace

import pytest
import ray
from trtfleet.cluster.asking import ask
from trtfleet.cluster.nodes import Node, nodes
from trtfleet.cluster.planning import ThisMachine, look_only
from trtfleet.cluster.session import Resources
from trtfleet.errors import CacheError

pytestmark = pytest.mark.usefixtures("ray_session")

PATIENCE_S = 120.0


@pytest.fixture
def node(ray_session: None) -> Node:
    """The cluster's only node."""
    (found,) = nodes()
    return found


def fail() -> None:
    raise CacheError("the cache is gone", "look for it")


def divide() -> float:
    return 1 / 0


def older() -> None:
    raise ModuleNotFoundError("No module named 'trtfleet.jobs.node_report'")


def crash() -> None:
    os._exit(3)


def never() -> None:
    threading.Event().wait()


def test_a_node_has_what_ray_may_give_away(node: Node) -> None:
    assert node.is_alive
    assert (node.cpus, node.gpus, node.accelerator_type) == (4.0, 0.0, "")
    assert node.memory_bytes > 1 << 20
    assert node.id == ray.get_runtime_context().get_node_id()
    assert node.address


def test_every_node_answers_in_a_process_of_its_own(node: Node) -> None:
    first = ask([node], os.getpid, PATIENCE_S)[node.id]
    second = ask([node], os.getpid, PATIENCE_S)[node.id]
    assert (first.failure, second.failure) == ("", "")
    assert len({first.value, second.value, os.getpid()}) == 3


def test_asking_needs_no_free_cpu(node: Node) -> None:
    @ray.remote(num_cpus=4)
    class Greedy:
        def ready(self) -> bool:
            return True

    greedy = Greedy.remote()  # type: ignore[attr-defined,unused-ignore]
    assert ray.get(greedy.ready.remote())
    assert ask([node], platform.node, PATIENCE_S)[node.id].value == platform.node()
    ray.kill(greedy)


@pytest.mark.parametrize(
    ("question", "failure"),
    [
        (fail, "the cache is gone"),
        (divide, "ZeroDivisionError: "),
        (older, "it has another version of trtfleet"),
        (crash, "WorkerCrashedError: "),
    ],
)
def test_a_question_that_fails_is_an_answer_with_the_reason(
    question: object, failure: str, node: Node
) -> None:
    answer = ask([node], question, PATIENCE_S)[node.id]  # type: ignore[arg-type]
    assert answer.value is None
    assert answer.failure.startswith(failure)
    assert "\n" not in answer.failure


def test_who_does_not_answer_in_time_is_not_waited_for(node: Node) -> None:
    assert ask([node], never, 0.2)[node.id].failure == "no answer within 0.2 s"


def test_nodes_that_are_gone_are_told_without_being_asked(node: Node) -> None:
    dead = replace(node, id="0" * 56, is_alive=False)
    lost = replace(node, id="1" * 56)
    answers = ask([dead, lost, node], os.getppid, PATIENCE_S)
    assert list(answers) == [dead.id, lost.id, node.id]
    assert answers[dead.id].failure == "the node is gone"
    assert answers[lost.id].failure.startswith("TaskUnschedulableError: ")
    assert answers[node.id].value


def test_nobody_to_ask() -> None:
    assert ask([], os.getpid, PATIENCE_S) == {}


def test_looking_at_a_cluster_uses_the_connection_that_is_there(node: Node) -> None:
    with look_only(None, gpus=3) as session:
        assert not isinstance(session, ThisMachine)
        assert [(found.cpus, found.gpus) for found in session.nodes] == [(4.0, 0.0)]
    assert ray.is_initialized()


def test_this_machine_as_a_cluster() -> None:
    session = ThisMachine(
        is_embedded=True, address="here", resources=Resources(cpus=16.0, gpus=2.0, accelerator="H100")
    )
    assert session.gpus == 2
    assert session.cpus_beside(1.0) == 8
    assert session.room_for(Resources(cpus=8.0, gpus=1.0)) == 2
