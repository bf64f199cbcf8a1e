"""The cluster's nodes, as Ray knows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray._private.worker import global_worker
from ray.exceptions import RayError

from ..errors import ClusterError

__all__ = ["Node", "ask_head", "head_lost", "is_other_head", "nodes"]

_ACCELERATOR = "accelerator_type:"
_ALIVE = 0
_ANSWER_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine that is, or was, part of the cluster.

    Attributes:
        id: Ray's identifier.
        address: Its IP address.
        cpus: Logical CPUs that Ray may give away.
        gpus: GPUs that Ray may give away.
        memory_bytes: Memory that Ray may give away, without its object store.
        accelerator_type: As Ray calls its GPUs, ``H100`` for example; empty where Ray knows of none.
        is_alive: Whether Ray still hears from it.
    """

    id: str
    address: str
    cpus: float
    gpus: float
    memory_bytes: int
    accelerator_type: str
    is_alive: bool


def nodes() -> list[Node]:
    """Every node that Ray knows, the dead ones too, in the order of their addresses; needs a connection.

    Raises:
        ClusterError: The head node does not answer, or was restarted as another cluster.
    """
    try:
        told = ask_head()
    except RayError as error:
        raise head_lost(error, _ANSWER_S) from error
    found = [_node(identifier.hex(), node) for identifier, node in told.items()]
    return sorted(found, key=lambda node: (not node.is_alive, node.address, node.id))


def ask_head() -> Mapping[Any, Any]:
    """What the head node tells of each node, by its identifier; needs a connection.

    Raises:
        RayError: It does not answer within seconds, or is another one than this process connected to.
    """
    # Ray's public call ends the whole process where the head node was restarted, and hangs where it is gone.
    found: Mapping[Any, Any] = global_worker.gcs_client.get_all_node_info(timeout=_ANSWER_S)
    return found


def is_other_head(error: BaseException) -> bool:
    """Whether a head node is there that does not know the cluster which this process connected to."""
    return "WrongClusterID" in str(error)


def head_lost(error: BaseException, silent_s: float) -> ClusterError:
    """The error that the head node is gone, out of what asking it raised and how long that has been so."""
    address = global_worker.gcs_client.address
    hint = "what is committed stays: the same command goes on with it"
    if is_other_head(error):
        return ClusterError(f"the head node at {address} was restarted and has forgotten this job", hint)
    return ClusterError(
        f"the head node at {address} has not answered for {silent_s:.0f} s", f"is it up? {hint} once it is"
    )


def _node(identifier: str, told: Any) -> Node:
    is_alive = told.state == _ALIVE
    # A node that is gone has no resources any more.
    has = dict(told.resources_total) if is_alive else {}
    kinds = sorted(name.removeprefix(_ACCELERATOR) for name in has if name.startswith(_ACCELERATOR))
    return Node(
        id=identifier,
        address=told.node_manager_address,
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory_bytes=int(has.get("memory", 0)),
        accelerator_type=kinds[0] if kinds else "",
        is_alive=is_alive,
    )
