"""The cluster's nodes, as Ray knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

__all__ = ["Node", "nodes"]

_ACCELERATOR = "accelerator_type:"


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
    """Every node that Ray knows, the dead ones too, in the order of their addresses; needs a connection."""
    found = [_node(told) for told in ray.nodes()]
    return sorted(found, key=lambda node: (not node.is_alive, node.address, node.id))


def _node(told: dict[str, Any]) -> Node:
    # A node that is gone has no resources any more.
    has = told.get("Resources") or {}
    kinds = sorted(name.removeprefix(_ACCELERATOR) for name in has if name.startswith(_ACCELERATOR))
    return Node(
        id=told["NodeID"],
        address=told.get("NodeManagerAddress", ""),
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory_bytes=int(has.get("memory", 0)),
        accelerator_type=kinds[0] if kinds else "",
        is_alive=bool(told["Alive"]),
    )
