"""A session for planning alone: it tells what a cluster has, and starts nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from .session import Resources, Session, connect

__all__ = ["ThisMachine", "look_only"]

_OURS = "local"


@dataclass(frozen=True, kw_only=True)
class ThisMachine(Session):
    """This machine as the cluster that Ray would make of it.

    Attributes:
        resources: What Ray would give away.
    """

    resources: Resources

    @property
    def nodes(self) -> list[Resources]:
        """This machine."""
        return [self.resources]


@contextlib.contextmanager
def look_only(address: str | None, gpus: int) -> Iterator[Session]:
    """Connects to a cluster where one is named, as ``connect`` would; else stands in for this machine.

    Args:
        address: A running cluster; None takes ``RAY_ADDRESS``, and without it this machine.
        gpus: How many GPUs this machine has.

    Raises:
        ClusterError: The cluster cannot be reached, or refuses the connection.
    """
    target = address or os.environ.get("RAY_ADDRESS") or _OURS
    if ray.is_initialized() or target != _OURS:
        with connect(address) as session:
            yield session
        return
    resources = Resources(cpus=float(_cpus()), gpus=float(gpus))
    yield ThisMachine(is_embedded=True, address="this machine", resources=resources)


def _cpus() -> int:
    """Logical CPUs as Ray would count them: in a container, its share."""
    try:
        from ray._private.utils import get_num_cpus
    except ImportError:
        return multiprocessing.cpu_count()
    return max(1, int(get_num_cpus(override_docker_cpu_warning=True)))
